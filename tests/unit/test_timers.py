"""What the master is to do later, by a clock of the test's own."""

from __future__ import annotations

import time
from typing import List

import pytest

from vsock_proxy.supervision.timers import Timers

pytestmark = pytest.mark.hybrid_only


def test_without_anything_to_do_nothing_is_due() -> None:
    assert Timers().due is None


@pytest.mark.parametrize(
    ("now", "done"), [(0.9, []), (1.0, ["a"]), (1.9, ["a"]), (2.0, ["a", "b"]), (9.0, ["a", "b"])]
)
def test_what_is_due_is_done_in_the_order_of_time(now: float, done: List[str]) -> None:
    timers, seen = Timers(), []
    timers.at(2.0, lambda: seen.append("b"))
    timers.at(1.0, lambda: seen.append("a"))
    assert timers.due == 1.0
    timers.look(now)
    assert seen == done


def test_what_was_done_is_not_done_again() -> None:
    timers, seen = Timers(), []
    timers.at(1.0, lambda: seen.append("a"))
    timers.look(1.0)
    timers.look(2.0)
    assert seen == ["a"]
    assert timers.due is None


def test_what_an_action_adds_waits_for_the_next_look_even_if_it_is_due() -> None:
    timers, seen = Timers(), []
    timers.at(1.0, lambda: timers.at(1.0, lambda: seen.append("later")))
    timers.look(1.0)
    assert seen == []
    assert timers.due == 1.0
    timers.look(1.0)
    assert seen == ["later"]


def test_of_what_is_due_at_one_time_the_first_that_was_added_comes_first() -> None:
    timers, seen = Timers(), []
    for name in "abc":
        timers.at(1.0, lambda name=name: seen.append(name))  # type: ignore[misc]
    timers.look(1.0)
    assert seen == ["a", "b", "c"]


def test_an_action_that_clears_the_timers_keeps_what_is_due_with_it() -> None:
    timers, seen = Timers(), []
    timers.at(1.0, timers.clear)
    timers.at(1.0, lambda: seen.append("due"))
    timers.at(2.0, lambda: seen.append("later"))
    timers.look(1.0)
    timers.look(3.0)
    assert seen == ["due"]


def test_what_is_to_be_done_after_some_seconds_is_due_then() -> None:
    timers = Timers()
    before = time.monotonic()
    timers.after(5.0, lambda: None)
    assert timers.due is not None
    assert before + 5.0 <= timers.due <= time.monotonic() + 5.0
