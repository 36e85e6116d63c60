"""The race of addresses, over a network that is a script: who is tried when, and what is said."""

from __future__ import annotations

import errno
import socket
from dataclasses import dataclass
from typing import Dict, List, Optional, Sequence, Tuple

import pytest

from vsock_proxy.endpoint.addresses import Address, make_address
from vsock_proxy.observing import scoreboard
from vsock_proxy.serving.race import Race

pytestmark = pytest.mark.hybrid_only  # no transport has a part in it

BEGAN = 1000.0
PORT = 443
TIMEOUT = 10.0


@dataclass(frozen=True)
class Behaviour:
    """What an address does, and after how many seconds: nothing, answer, or fail with an errno."""

    after: Optional[float]
    code: int = 0


SILENCE = Behaviour(None)
ANSWER = Behaviour(0.01)
REFUSAL = Behaviour(0.0, errno.ECONNREFUSED)
UNREACHABLE = Behaviour(0.0, errno.ENETUNREACH)
NO_PORT_LEFT = Behaviour(0.0, errno.EADDRNOTAVAIL)


def after(seconds: float, code: int = 0) -> Behaviour:
    return Behaviour(seconds, code)


def address(number: int) -> Address:
    return make_address(socket.AF_INET, (f"192.0.2.{number}", PORT))


@dataclass
class Course:
    """What happened: when each address was tried, who won and when, or how it was lost."""

    tried: List[float]
    winner: Optional[int]
    ended: float
    text: str = ""
    cause: int = 0


def run(network: Sequence[Behaviour], timeout: float = TIMEOUT) -> Course:
    """A race over that network, in a time of its own."""
    addresses = [address(number) for number in range(len(network))]
    race = Race(addresses, BEGAN + timeout)
    now = BEGAN
    tried: List[float] = []
    under_way: Dict[int, float] = {}
    while not race.all_failed:
        over = race.is_over(now)
        place = None if over else race.next(now)
        if place is not None:
            assert place == len(tried), "in their order"
            tried.append(now - BEGAN)
            delay = network[place].after
            if delay is not None:
                under_way[place] = now + delay
            continue
        due = min(under_way.items(), key=lambda item: item[1], default=None)
        if due is not None and due[1] <= max(now, race.until):
            place, now = due[0], max(now, due[1])
            del under_way[place]
            if not network[place].code:
                return Course(tried, place, now - BEGAN)
            race.fail(place, network[place].code)
        elif over:
            break
        else:
            now = race.until
    failure = race.failure()
    return Course(tried, None, now - BEGAN, str(failure), failure.cause)


def reasons(text: str) -> List[str]:
    """What is said of each address, in their order."""
    found = [part.split(": ", 1) for part in text.split("; ")]
    assert [where for where, _ in found] == [f"192.0.2.{i}:{PORT}" for i in range(len(found))]
    return [reason for _, reason in found]


WON: Dict[str, Tuple[List[Behaviour], List[float], int, float]] = {
    "the first answers": ([ANSWER, ANSWER], [0], 0, 0.01),
    "the first is slow but quicker than the delay": ([after(0.2), ANSWER], [0], 0, 0.2),
    "the first does not answer": ([SILENCE, ANSWER], [0, 0.25], 1, 0.26),
    "the first refuses": ([REFUSAL, ANSWER], [0, 0], 1, 0.01),
    "the first refuses after a while": (
        [after(0.1, errno.ECONNREFUSED), ANSWER],
        [0, 0.1],
        1,
        0.11,
    ),
    "the first has no port left": ([NO_PORT_LEFT, ANSWER], [0, 0], 1, 0.01),
    "all but the last refuse": ([REFUSAL] * 5 + [ANSWER], [0] * 6, 5, 0.01),
    "a black hole, four that refuse, a good one": (
        [SILENCE, *[REFUSAL] * 4, ANSWER],
        [0, 0.25, 0.25, 0.25, 0.25, 0.25],
        5,
        0.26,
    ),
    "refusals that take a while are followed at once": (
        [SILENCE, *[after(0.1, errno.ECONNREFUSED)] * 3, ANSWER],
        [0, 0.25, 0.35, 0.45, 0.55],
        4,
        0.56,
    ),
    "an earlier one that fails hurries nobody": (
        [after(0.3, errno.ECONNREFUSED), SILENCE, ANSWER],
        [0, 0.25, 0.5],
        2,
        0.51,
    ),
    "the first answers after others were tried": (
        [after(0.6), *[SILENCE] * 3],
        [0, 0.25, 0.5],
        0,
        0.6,
    ),
    "two black holes between those that refuse": (
        [SILENCE, REFUSAL, SILENCE, UNREACHABLE, ANSWER],
        [0, 0.25, 0.25, 0.5, 0.5],
        4,
        0.51,
    ),
    "the only one is slow": ([after(9.9)], [0], 0, 9.9),
}


@pytest.mark.parametrize(("network", "tried", "winner", "ended"), WON.values(), ids=WON.keys())
def test_the_first_to_answer_wins(
    network: List[Behaviour], tried: List[float], winner: int, ended: float
) -> None:
    course = run(network)
    assert course.tried == pytest.approx(tried)
    assert course.winner == winner
    assert course.ended == pytest.approx(ended)


REFUSED, OVER, UNTRIED = "Connection refused", "no answer in time", "not tried, time was over"
LOST: Dict[str, Tuple[List[Behaviour], List[str], int, float]] = {
    "all refuse": ([REFUSAL] * 3, [REFUSED] * 3, scoreboard.REFUSED, 0),
    "none answers": ([SILENCE] * 3, [OVER] * 3, scoreboard.TIMED_OUT, TIMEOUT),
    "one refuses and one does not answer": (
        [REFUSAL, SILENCE],
        [REFUSED, OVER],
        scoreboard.TIMED_OUT,
        TIMEOUT,
    ),
    "each says it in the order in which they were tried": (
        [after(0.5, errno.EHOSTUNREACH), REFUSAL],
        ["No route to host", REFUSED],
        scoreboard.UNREACHABLE,
        0.5,
    ),
    "no way there": (
        [UNREACHABLE],
        ["Network is unreachable"],
        scoreboard.UNREACHABLE,
        0,
    ),
    "the kernel gives up": (
        [after(5, errno.ETIMEDOUT)],
        ["Connection timed out"],
        scoreboard.TIMED_OUT,
        5,
    ),
    "no local port is left": (
        [NO_PORT_LEFT] * 2,
        ["Cannot assign requested address"] * 2,
        scoreboard.FAILED,
        0,
    ),
}


@pytest.mark.parametrize(("network", "said", "cause", "ended"), LOST.values(), ids=LOST.keys())
def test_a_race_that_is_lost_says_why_of_each_address(
    network: List[Behaviour], said: List[str], cause: int, ended: float
) -> None:
    course = run(network)
    assert course.winner is None
    assert reasons(course.text) == said
    assert course.cause == cause
    assert course.ended == pytest.approx(ended)


@pytest.mark.parametrize("timeout", [0.3, 1.0, 2.0, 10.0])
@pytest.mark.parametrize("count", [2, 5, 8])
def test_each_address_has_its_turn_before_time_is_over(count: int, timeout: float) -> None:
    course = run([SILENCE] * (count - 1) + [ANSWER], timeout)
    assert course.winner == count - 1
    pauses = [later - earlier for earlier, later in zip(course.tried, course.tried[1:])]
    assert all(0.01 <= pause <= 0.2500001 for pause in pauses)


def test_addresses_for_which_there_is_no_time_at_all_are_named() -> None:
    course = run([SILENCE] * 12, 0.1)
    said = reasons(course.text)
    tried = said.index(UNTRIED)
    assert tried >= 8
    assert said == [OVER] * tried + [UNTRIED] * (12 - tried)
    assert course.cause == scoreboard.TIMED_OUT


def test_one_address_twice_in_the_list_is_tried_twice() -> None:
    race = Race([address(0), address(0)], BEGAN + TIMEOUT)
    assert race.next(BEGAN) == 0
    race.fail(0, errno.ECONNREFUSED)
    assert race.next(BEGAN) == 1
    race.fail(1, errno.ECONNREFUSED)
    assert race.all_failed
