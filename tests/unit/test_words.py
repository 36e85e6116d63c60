"""Numbers in messages."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import List

import pytest

from vsock_proxy.config import loading
from vsock_proxy.config.unknown_keys import MOST_WARNINGS
from vsock_proxy.observing.saturation import LOOK_INTERVAL, TOLERATED, Watch
from vsock_proxy.observing.scoreboard import Scoreboard
from vsock_proxy.supervision.shortage import Shortage
from vsock_proxy.words import counted

pytestmark = pytest.mark.hybrid_only  # no transport has a part in it


@pytest.mark.parametrize(
    ("number", "text"), [(0, "0 workers"), (1, "1 worker"), (2, "2 workers"), (10, "10 workers")]
)
def test_a_thing_alone_is_no_plural(number: int, text: str) -> None:
    assert counted(number, "worker") == text


ONE_BUSY = [
    (None, False, "the only worker is busy, further clients wait; "),
    (None, True, "the only worker that services share is busy, further clients wait; "),
    ("8002", True, "the only worker of 8002 is busy, further clients wait; "),
]


@pytest.mark.parametrize(("service", "several", "beginning"), ONE_BUSY)
def test_one_worker_that_is_busy_is_no_plural(
    service: str, several: bool, beginning: str, caplog: pytest.LogCaptureFixture
) -> None:
    board = Scoreboard(1)
    board.several = several
    board.set_busy(1, True)
    watch = Watch(board, service)
    watch.suspect(0.0)
    for number in range(int(TOLERATED / LOOK_INTERVAL) + 2):
        watch.look(number * LOOK_INTERVAL)
    (message,) = caplog.messages
    assert message.startswith(beginning)


def test_one_worker_that_could_not_be_started_is_no_plural(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    shortage = Shortage()
    shortage.lasts(1, 1, (), OSError(12, "Cannot allocate memory"), 0.0)
    shortage.is_over(1)
    first, second = caplog.messages
    assert first.startswith("cannot start 1 of 1 worker: ")
    assert second == "the worker runs"


def messages_of(keys: int, file: Path, caplog: pytest.LogCaptureFixture) -> List[str]:
    file.write_text("allowlist: []\n" + "".join(f"key{number}: 1\n" for number in range(keys)))
    loading.load(str(file))
    return caplog.messages


@pytest.mark.parametrize(("more", "text"), [(1, "1 more unknown key"), (2, "2 more unknown keys")])
def test_one_more_unknown_key_is_no_plural(
    more: int, text: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "file.yaml"
    assert messages_of(MOST_WARNINGS + more, file, caplog)[-1] == f"file {file}: {text} ignored"
