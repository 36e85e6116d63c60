"""What is published and said of one endpoint, for what DNS answers in turn."""

from __future__ import annotations

import socket
import time
from ipaddress import ip_network
from typing import Callable, Iterator, List, Optional, Sequence, Tuple, Union

import pytest

from vsock_proxy.config.allowlist import Allowlist, Entry
from vsock_proxy.endpoint.addresses import (
    MAX_ADDRESSES,
    Address,
    AddressTable,
    Lookups,
    make_address,
)
from vsock_proxy.endpoint.lookup import LookupFailed
from vsock_proxy.endpoint.policy import Policy
from vsock_proxy.endpoint.resolution import LINES_PERIOD, MOST_LINES, Resolution
from vsock_proxy.settings import Endpoint

pytestmark = pytest.mark.hybrid_only  # no transport has a part in it

NAME, PORT = "endpoint.test", 443
# A lookup that fails is written as the reason it gives.
Answer = Union[str, Sequence[str]]
HERE, THERE, ELSEWHERE, METADATA = "192.0.2.1", "192.0.2.2", "192.0.2.3", "169.254.169.254"
MANY = [f"198.51.100.{number}" for number in range(MAX_ADDRESSES + 16)]
GONE = "No address associated with hostname"


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def address(host: str) -> Address:
    return make_address(socket.AF_INET, (host, PORT))


def policy(*hosts: str) -> Policy:
    """One that permits these addresses, or the name if there are none."""
    entries = tuple(Entry(PORT, network=ip_network(host)) for host in hosts)
    return Policy(Endpoint(NAME, PORT), socket.AF_UNSPEC, not hosts, Allowlist("list", entries))


def resolution(
    table: AddressTable,
    answers: Sequence[Answer],
    permits: Policy,
    clock: Optional[Callable[[], float]] = None,
) -> Resolution:
    """One that DNS answers so in turn."""
    coming: Iterator[Answer] = iter(answers)

    def look_up(endpoint: Endpoint, family: socket.AddressFamily) -> List[Address]:
        answer = next(coming)
        if isinstance(answer, str):
            raise LookupFailed(answer)
        return [address(host) for host in answer]

    return Resolution([table], permits, 15.0, look_up, clock or Clock())


def published(table: AddressTable) -> Tuple[str, ...]:
    return tuple(known.sockaddr[0] for known in table.current())


@pytest.fixture
def table() -> AddressTable:
    return AddressTable(PORT)


@pytest.mark.parametrize(
    ("answers", "expected", "lines"),
    [
        ([[HERE]], [HERE], [f"{NAME} is {HERE}"]),
        ([[HERE, THERE], [THERE, HERE]], [HERE, THERE], [f"{NAME} is {HERE}, {THERE}"]),
        ([[HERE], [THERE]], [THERE], [f"{NAME} is {HERE}"]),
        ([GONE, GONE], [], [f"{NAME} does not resolve: {GONE}; clients wait until it does"]),
        (
            [[HERE], GONE, "Timeout", [HERE]],
            [HERE],
            [
                f"{NAME} is {HERE}",
                f"{NAME} does not resolve: {GONE}; keeping the 1 known before",
                f"{NAME} resolves again",
            ],
        ),
        (
            [[HERE], [METADATA], ["169.254.0.1"], ["169.254.0.2"]],
            [HERE],
            [
                f"{NAME} is {HERE}",
                f"{NAME} resolves only to addresses that are not permitted: {METADATA}; keeping "
                "the 1 known before",
            ],
        ),
        (
            [MANY[:65], MANY[1:66], MANY[2:80], MANY[:64]],
            MANY[:64],
            [
                f"{NAME} is {', '.join(MANY[:8])} and 56 more",
                f"{NAME} has 65 addresses; only the first 64 are used",
                f"{NAME} has no more than 64 addresses again",
            ],
        ),
        (
            [[METADATA, HERE]],
            [HERE],
            [f"{NAME} is {HERE}"],
        ),
    ],
)
def test_what_dns_answers_is_published_and_said_once(
    table: AddressTable,
    caplog: pytest.LogCaptureFixture,
    answers: Sequence[Answer],
    expected: Sequence[str],
    lines: Sequence[str],
) -> None:
    caplog.set_level("INFO")
    resolving = resolution(table, answers, policy())
    for _ in answers:
        resolving.refresh()
    assert published(table) == tuple(expected)
    assert [record.getMessage() for record in caplog.records] == list(lines)


FLAPPING = {
    "fails and answers": [GONE, [HERE]],
    "fails and is poisoned": [GONE, [METADATA]],
    "fails in many ways, and answers": [GONE, "Timeout", [HERE], [METADATA], [THERE], MANY],
    "has other addresses each time": [[HERE], [THERE], [ELSEWHERE]],
    "has too many each time, and others": [MANY[:70], MANY[5:]],
    "is poisoned by turns": [[METADATA], ["169.254.0.1"]],
}


@pytest.mark.parametrize("answers", FLAPPING.values(), ids=FLAPPING.keys())
def test_a_name_that_changes_all_the_time_makes_a_bounded_number_of_lines(
    table: AddressTable, caplog: pytest.LogCaptureFixture, answers: Sequence[Answer]
) -> None:
    caplog.set_level("DEBUG")
    clock = Clock()
    resolving = resolution(table, [*answers] * 100, policy(), clock=clock)
    for _ in range(100 * len(answers)):
        clock.now += 0.1
        resolving.refresh()
    periods = 1 + clock.now // LINES_PERIOD
    assert len(caplog.records) <= 2 * MOST_LINES * periods
    assert all(len(record.getMessage()) < 500 for record in caplog.records)


def test_what_was_not_said_for_the_bound_is_said_later(
    table: AddressTable, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    clock = Clock()
    flapping: List[Answer] = [GONE, [HERE]] * (MOST_LINES // 2)
    resolving = resolution(table, [*flapping, GONE, GONE], policy(), clock=clock)
    for _ in range(len(flapping) + 1):
        resolving.refresh()
    assert caplog.records[-1].getMessage() == f"{NAME} resolves again"
    clock.now += LINES_PERIOD
    resolving.refresh()
    assert "does not resolve" in caplog.records[-1].getMessage()


@pytest.mark.parametrize(("known", "seconds"), [([], 1.0), ([HERE], 15.0)])
def test_the_next_lookup_is_soon_as_long_as_somebody_waits_for_it(
    table: AddressTable, known: Sequence[str], seconds: float
) -> None:
    if known:
        table.publish([address(host) for host in known])
    assert resolution(table, [], policy()).pause() == seconds


@pytest.mark.parametrize(
    ("answers", "expected"),
    [
        ([], (0, 0, 0)),
        ([[HERE], [HERE]], (2, 0, 0)),
        ([GONE, [HERE], GONE], (1, 2, 0)),
        ([[METADATA], [HERE], [METADATA, THERE], [METADATA]], (2, 0, 2)),
    ],
)
def test_lookups_are_counted_by_how_they_ended(
    table: AddressTable, answers: Sequence[Answer], expected: Tuple[int, int, int]
) -> None:
    before = time.time_ns()
    looking = resolution(table, answers, policy())
    for _ in answers:
        looking.refresh()
    counted = table.lookups
    assert (counted.resolved, counted.unresolved, counted.not_permitted) == expected
    if counted.resolved:
        assert before <= counted.resolved_at <= time.time_ns()
    else:
        assert counted.resolved_at == 0


def test_lookups_of_two_tables_add_up_and_the_later_good_one_counts() -> None:
    one, other = Lookups(1, 2, 3, 100), Lookups(10, 20, 30, 50)
    assert one.plus(other) == other.plus(one) == Lookups(11, 22, 33, 100)
