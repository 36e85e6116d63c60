"""Fixtures of the tests that boot virtual machines."""

from __future__ import annotations

import sys
from typing import Callable, Mapping, Optional, Sequence

import pytest

from . import boot
from .kernel import Lacking

LAST_LINES = 15
SLOWNESS_VARIABLE = "VSOCK_PROXY_TEST_SLOWNESS"
RunPytestInVm = Callable[..., None]


@pytest.fixture(scope="session")
def means() -> boot.Means:
    """What it takes to run a virtual machine; skips the test where that is lacking."""
    try:
        return boot.find_means()
    except Lacking as lacking:
        pytest.skip(str(lacking))


@pytest.fixture
def run_pytest_in_vm(means: boot.Means, capsys: pytest.CaptureFixture[str]) -> RunPytestInVm:
    """Runs pytest in a virtual machine and fails unless all of its tests pass.

    The end of what it prints is always shown, all of it when it fails.
    """
    del means

    def run(
        *arguments: str,
        timeout: float,
        modules: Sequence[str] = boot.DEFAULT_MODULES,
        environment: Optional[Mapping[str, str]] = None,
    ) -> None:
        command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *arguments]
        variables = {SLOWNESS_VARIABLE: str(boot.SLOWNESS), **(environment or {})}
        result = boot.run_in_vm(command, timeout=timeout, modules=modules, environment=variables)
        with capsys.disabled():
            print("", *result.output.splitlines()[-LAST_LINES:], sep="\n    | ")
        assert result.status == 0, f"pytest in the virtual machine ended with {result.status}"

    return run
