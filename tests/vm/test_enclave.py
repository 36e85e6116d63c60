"""The proxy in the parent of a real guest, which comes over vhost-vsock."""

from __future__ import annotations

from pathlib import Path

from . import boot, enclave
from .conftest import RunPytestInVm

TIMEOUT = 900
SCENARIO = Path(__file__).resolve().parent / "inside" / "enclave_and_parent.py"


def test_an_enclave_is_served_by_the_proxy_in_its_parent(
    means: boot.Means, run_pytest_in_vm: RunPytestInVm, tmp_path: Path
) -> None:
    image = enclave.build(means.kernel, tmp_path)
    run_pytest_in_vm(
        str(SCENARIO),
        "--transport=vsock",
        "-v",
        timeout=TIMEOUT,
        modules=("vhost_vsock",),
        environment=image.as_environment(),
    )
