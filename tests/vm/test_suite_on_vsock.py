"""The whole suite once more, on real AF_VSOCK."""

from __future__ import annotations

from .conftest import RunPytestInVm

TIMEOUT = 2700
# One more than the machine has processors: about a third of the time, a test waits.
AT_ONCE = "-n3"
# The suite itself leaves out what has no meaning on vsock.
SELECTION = ("tests/unit", "tests/program", "--transport=vsock")


def test_the_suite_passes_on_real_vsock(run_pytest_in_vm: RunPytestInVm) -> None:
    run_pytest_in_vm(*SELECTION, AT_ONCE, "-ra", "--durations=10", timeout=TIMEOUT)
