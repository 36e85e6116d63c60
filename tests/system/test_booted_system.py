"""The package on a booted Debian system with systemd as its init; inside/ has the tests there."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.packages.building import TO_BUILD_DEB, TO_BUILD_PAGES, build, missing
from tests.system import image, machine
from tests.vm import kernel

NEEDED = {**TO_BUILD_DEB, **TO_BUILD_PAGES}
NEWER_VERSION = "99.0.0"
TIMEOUT = 1200
CONSOLE_LINES = 60

pytestmark = pytest.mark.skipif(bool(missing(NEEDED)), reason=missing(NEEDED) or "can be built")


def test_the_installed_service_passes_its_tests_inside(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        image.require_means()
        its_kernel = kernel.obtain()
    except kernel.Lacking as lacking:
        pytest.skip(str(lacking))
    installed, newer = build("deb", tmp_path), build("deb", tmp_path, NEWER_VERSION)
    result = machine.boot(image.build(its_kernel, installed, newer, tmp_path), tmp_path, TIMEOUT)
    with capsys.disabled():
        print("", *result.output.splitlines(), sep="\n    | ")
    console = "\n".join(result.console.splitlines()[-CONSOLE_LINES:])
    assert result.status == 0, f"the tests inside have failed; the end of the console:\n{console}"
