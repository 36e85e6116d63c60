"""How many forks there may be in a second, with the clock handed in."""

from __future__ import annotations

from typing import List, Sequence

import pytest

from vsock_proxy.supervision.pacer import FORKS_PER_SECOND, Pacer

pytestmark = pytest.mark.hybrid_only  # no transport has a part in it

N = FORKS_PER_SECOND
TABLE = {
    "one": ([5.0], [5.0]),
    "as many as a second may have, at once": ([5.0] * N, [5.0] * N),
    "one more waits until the first is a second ago": ([5.0] * (N + 1), [5.0] * N + [6.0]),
    "it waits only for what is left of that second": (
        [5.0] * N + [5.75],
        [5.0] * N + [6.0],
    ),
    "after that second none waits": ([5.0] * N + [6.0] * N, [5.0] * N + [6.0] * N),
    "twice as many fill two seconds": (
        [5.0] * (2 * N + 1),
        [5.0] * N + [6.0] * N + [7.0],
    ),
    "ten that come one by one": (
        [index * 0.125 for index in range(2 * N)],
        [index * 0.125 for index in range(2 * N)],
    ),
    "those given for later count too": (
        [5.0] * (N + 1) + [6.0] * N,
        [5.0] * N + [6.0] * N + [7.0],
    ),
}


@pytest.mark.parametrize(("asked", "given"), TABLE.values(), ids=TABLE.keys())
def test_a_fork_is_due_at_once_or_when_a_second_has_room(
    asked: Sequence[float], given: List[float]
) -> None:
    pacer = Pacer()
    assert [pacer.next(now) for now in asked] == given


def test_no_second_has_more_forks_than_the_bound_wherever_it_begins() -> None:
    pacer = Pacer()
    due = [pacer.next(now / 16) for now in (*range(100), *[100] * 50, *range(100, 500, 7))]
    assert due == sorted(due)
    assert all(later - earlier >= 1.0 for earlier, later in zip(due, due[N:]))
