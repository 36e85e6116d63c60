"""The virtual machine itself: what the tests in it rely on."""

from __future__ import annotations

import pytest

from . import boot


def test_a_command_has_vsock_in_it_and_its_status_and_output_come_back(means: boot.Means) -> None:
    connects_to_itself = (
        "import socket\n"
        "listener = socket.socket(socket.AF_VSOCK)\n"
        "listener.bind((socket.VMADDR_CID_ANY, 5000))\n"
        "listener.listen()\n"
        "socket.socket(socket.AF_VSOCK).connect((1, 5000))\n"
        "print('connected from CID', listener.accept()[1][0])\n"
        "raise SystemExit(37)\n"
    )
    result = boot.run_in_vm(["python3", "-c", connects_to_itself], timeout=300)
    assert result == (37, "connected from CID 1\n")


def test_a_command_that_takes_too_long_is_ended_with_its_machine(means: boot.Means) -> None:
    with pytest.raises(boot.MachineFailed, match="was not done in 3 s"):
        boot.run_in_vm(["sleep", "1000"], timeout=3)
