"""What is said when processes cannot be started: one line for all, and again after a minute."""

from __future__ import annotations

import errno
import os
from typing import Tuple

import pytest

from vsock_proxy.supervision.shortage import TELL_INTERVAL, Shortage

pytestmark = pytest.mark.hybrid_only


def lacking(code: int) -> OSError:
    return OSError(code, os.strerror(code))


@pytest.mark.parametrize(
    ("missing", "others", "text"),
    [
        (3, (), "cannot start 3 of 4 workers: "),
        (1, (), "cannot start 1 of 4 workers: "),
        (4, ("the resolver",), "cannot start 4 of 4 workers and the resolver: "),
        (0, ("the resolver",), "cannot start the resolver: "),
    ],
)
def test_a_shortage_says_who_is_missing(
    missing: int, others: Tuple[str, ...], text: str, caplog: pytest.LogCaptureFixture
) -> None:
    Shortage().lasts(missing, 4, others, lacking(errno.EAGAIN), 0.0)
    assert caplog.messages[0].startswith(text)


@pytest.mark.parametrize(
    ("code", "advice"),
    [
        (errno.EAGAIN, "TasksMax="),
        (errno.ENOMEM, "free memory"),
        (errno.EINVAL, "Invalid argument;"),
    ],
)
def test_a_shortage_says_why_and_what_to_do(
    code: int, advice: str, caplog: pytest.LogCaptureFixture
) -> None:
    Shortage().lasts(1, 4, (), lacking(code), 0.0)
    assert os.strerror(code) in caplog.text
    assert advice in caplog.text


@pytest.mark.parametrize(
    ("times", "lines"),
    [
        ((0.0, 1.0, TELL_INTERVAL - 1), 1),
        ((0.0, TELL_INTERVAL), 2),
        ((0.0, 59.0, 61.0, 100.0, 122.0), 3),
    ],
)
def test_a_shortage_that_lasts_is_told_once_a_minute(
    times: tuple[float, ...], lines: int, caplog: pytest.LogCaptureFixture
) -> None:
    shortage = Shortage()
    for now in times:
        shortage.lasts(2, 4, (), lacking(errno.EAGAIN), now)
    assert len(caplog.messages) == lines


def test_the_end_of_a_shortage_is_told_once_and_the_next_one_at_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO")
    shortage = Shortage()
    shortage.is_over(4)
    assert not caplog.messages
    shortage.lasts(2, 4, (), lacking(errno.EAGAIN), 0.0)
    shortage.is_over(4)
    shortage.is_over(4)
    shortage.lasts(2, 4, (), lacking(errno.EAGAIN), 1.0)
    assert [message.split()[0] for message in caplog.messages] == ["cannot", "all", "cannot"]
