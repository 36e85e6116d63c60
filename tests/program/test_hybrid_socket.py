"""What may be wrong with the socket of an endpoint's VMM, and what the log says of it."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Callable, List

import pytest

from tests.conftest import StartProxy, StartServer
from tests.support.clients import answers, failure


def no_file(path: Path) -> None:
    del path


def no_folder(path: Path) -> None:
    path.parent.rmdir()


def a_file_for_a_folder(path: Path) -> None:
    path.parent.rmdir()
    path.parent.touch()


def a_file(path: Path) -> None:
    path.touch()


def a_folder(path: Path) -> None:
    path.mkdir()


def left_behind(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()


def for_datagrams(path: Path) -> None:
    socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM).bind(str(path))
    # Kept open for the test's time.
    KEPT.append(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM))
    path.unlink()
    KEPT[-1].bind(str(path))


def a_link_to_itself(path: Path) -> None:
    path.symlink_to(path.name)


KEPT: List[socket.socket] = []
NOT_STARTED = "the VM is not started yet, or its vsock device has another path"
NO_VMM = "its VMM has ended and left the file, or it is no socket"


@pytest.mark.hybrid_only  # no transport has a part in it
@pytest.mark.parametrize(
    ("make", "said"),
    [
        (no_file, f"No such file or directory; {NOT_STARTED}"),
        (no_folder, f"No such file or directory; {NOT_STARTED}"),
        (a_file_for_a_folder, f"Not a directory; {NOT_STARTED}"),
        (a_file, f"Connection refused; {NO_VMM}"),
        (a_folder, f"Connection refused; {NO_VMM}"),
        (left_behind, f"Connection refused; {NO_VMM}"),
        (
            for_datagrams,
            "Protocol wrong type for socket; it is not the socket of a VMM's vsock device",
        ),
        (a_link_to_itself, "Too many levels of symbolic links"),
    ],
)
def test_a_socket_that_cannot_be_connected_to_is_explained(
    make: Callable[[Path], None], said: str, tmp_path: Path, start_proxy: StartProxy
) -> None:
    path = tmp_path / "vms" / "v.sock"
    path.parent.mkdir()
    make(path)
    proxy = start_proxy((f"unix:{path}", 5000))
    assert failure(proxy) == f"unix:{path}:5000: {said}"


@pytest.mark.hybrid_only  # no transport has a part in it
def test_a_socket_that_may_not_be_written_to_is_explained(
    start_proxy: StartProxy, start_vmm: StartServer
) -> None:
    server = start_vmm()
    os.chmod(server.host[len("unix:") :], 0)
    # Root may, but for its capabilities.
    without = ["setpriv", "--bounding-set=-dac_override,-dac_read_search"]
    proxy = start_proxy(server, wrapper=[] if os.geteuid() else without)
    assert failure(proxy).endswith(
        ": Permission denied; the user of this process must be able to write to it and to enter "
        "its directories"
    )


def test_a_vm_that_is_started_later_is_served_from_then_on(
    tmp_path: Path, start_proxy: StartProxy, start_vmm: StartServer
) -> None:
    proxy = start_proxy((f"unix:{tmp_path}/vm", 5000))
    assert not answers(proxy)
    start_vmm()
    assert answers(proxy)
