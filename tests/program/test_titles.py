"""Process titles where they cannot be set. What they say, other tests see."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.conftest import StartProxy, StartServer
from tests.support.servers import exchange

pytestmark = pytest.mark.hybrid_only  # no transport has a part in it

# What setproctitle is where its C module is missing.
WITHOUT_C_MODULE = """
import logging

def setproctitle(title):
    logging.getLogger("setproctitle").debug("C module not available")

def getproctitle():
    logging.getLogger("setproctitle").debug("C module not available")
    return ""

setthreadtitle = setproctitle
"""


@pytest.mark.parametrize(
    ("module", "reason"),
    [
        ("raise ModuleNotFoundError(\"No module named 'setproctitle'\")", "No module named .*"),
        (WITHOUT_C_MODULE, "it lacks its C module"),
    ],
    ids=["not installed", "without its C module"],
)
def test_without_setproctitle_all_works_and_a_debug_line_says_so(
    start_proxy: StartProxy, start_server: StartServer, tmp_path: Path, module: str, reason: str
) -> None:
    (tmp_path / "setproctitle.py").write_text(module)
    proxy = start_proxy(
        start_server(),
        *("--log-level", "debug"),
        environment={**os.environ, "PYTHONPATH": str(tmp_path)},
    )
    with proxy.connect() as client:
        assert exchange(client, b"x") == b"x"
    proxy.log.wait_for(" ended: 1 bytes up, 1 bytes down")
    (line,) = proxy.log.matching("setproctitle|title|C module")
    _, said = line.split(" debug master: ")
    assert said.startswith("processes have no titles: cannot use setproctitle: ")
    assert proxy.log.matching(f": {reason}$")
