"""The whole suite once more, on real AF_VSOCK."""

from __future__ import annotations

from .conftest import RunPytestInVm

TIMEOUT = 900
# Everything but the folders of tests that have machines of their own; the suite itself leaves out
# what has no meaning on vsock.
SELECTION = (
    *("tests", "--transport=vsock"),
    *("--ignore=tests/packages", "--ignore=tests/system", "--ignore=tests/vm"),
)


def test_the_suite_passes_on_real_vsock(run_pytest_in_vm: RunPytestInVm) -> None:
    run_pytest_in_vm(*SELECTION, "-ra", "--durations=10", timeout=TIMEOUT)
