"""Keeping the addresses of one endpoint fresh, so that no worker ever waits for DNS.

A lookup may block for half a minute and can fail at any time. That does no harm here: the last good
addresses stay published until there are new ones.

A name server can change its answer as often as it likes. The log reports the condition of the name
when it changes, with at most a fixed number of lines a minute. A condition that was left out is
reported later, unless it is over by then.
"""

from __future__ import annotations

import enum
import logging
import select
import time
from collections import deque
from typing import Callable, Deque, Sequence, Tuple

from vsock_proxy.endpoint.addresses import (
    MAX_ADDRESSES,
    NOT_PERMITTED,
    RESOLVED,
    UNRESOLVED,
    Address,
    AddressTable,
)
from vsock_proxy.endpoint.lookup import LookUp, LookupFailed, look_up
from vsock_proxy.endpoint.policy import Policy

# Seconds. As long as no address is known, clients wait.
FIRST_RETRY = 1.0
# Seconds between two lookups that workers ask for because they cannot connect.
NUDGE_INTERVAL = 1.0
# At most this number of lines of each kind in this number of seconds.
MOST_LINES = 10
LINES_PERIOD = 60.0
# How many addresses of a list the log shows.
MOST_SHOWN = 8

log = logging.getLogger(__name__)


class Condition(enum.Enum):
    """How the last lookup ended, and the event of the log line that says so."""

    WELL = "name_well_again"
    UNRESOLVED = "name_unresolved"
    NOT_PERMITTED = "name_not_permitted"
    TOO_MANY = "name_has_too_many"


class Resolution:
    """Looks one name up again and again, until the master is gone."""

    def __init__(
        self,
        tables: Sequence[AddressTable],
        policy: Policy,
        interval: float,
        look_up: LookUp = look_up,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """tables: those of all services that lead to this endpoint."""
        self._tables = tables
        self._policy = policy
        self._interval = interval
        self._look_up = look_up
        self._clock = clock
        self._said = Condition.WELL
        self._troubles = _Pace()
        self._news = _Pace()

    def run(self, lifeline: int) -> None:
        """Serve until the lifeline ends."""
        poll = select.poll()
        poll.register(lifeline, select.POLLIN)
        for table in self._tables:
            poll.register(table.nudges, select.POLLIN)
            table.announce()
        while True:
            self.refresh()
            looked_up = time.monotonic()
            ready = [fd for fd, _ in poll.poll(int(self.pause() * 1000))]
            if lifeline in ready:
                return
            if ready:
                for table in self._tables:
                    table.take_nudges()
                _pause(lifeline, looked_up + NUDGE_INTERVAL - time.monotonic())

    def pause(self) -> float:
        """Seconds until the next lookup."""
        if all(table.current() for table in self._tables):
            return self._interval
        return min(FIRST_RETRY, self._interval)

    def refresh(self) -> None:
        """Look up once, and publish the result."""
        try:
            found = self._look_up(self._policy.endpoint, self._policy.family)
        except LookupFailed as error:
            self._count(UNRESOLVED)
            self._say(Condition.UNRESOLVED, f"does not resolve: {error}; {self._remedy()}")
            return
        chosen = self._policy.choose(found)
        if chosen:
            self._publish(chosen)
            self._count(RESOLVED)
        else:
            self._count(NOT_PERMITTED)
            self._say(
                Condition.NOT_PERMITTED,
                f"resolves only to addresses that are not permitted: {_hosts(found)}; "
                f"{self._remedy()}",
            )

    def _publish(self, chosen: Tuple[Address, ...]) -> None:
        used = chosen[:MAX_ADDRESSES]
        # Many names give their addresses in rotation: another order is no news.
        stale = [table for table in self._tables if frozenset(table.current()) != frozenset(used)]
        if stale:
            level = logging.DEBUG if self._known() else logging.INFO
            for table in stale:
                table.publish(used)
            if log.isEnabledFor(level) and self._news.allow(self._clock()):
                log.log(
                    level,
                    "%(host)s is %(addresses)s",
                    {
                        "event": "name_resolved",
                        "upstream": self._policy.endpoint,
                        "host": self._policy.endpoint.host,
                        "addresses": _hosts(used),
                    },
                )
        if len(chosen) > len(used):
            self._say(
                Condition.TOO_MANY,
                f"has {len(chosen)} addresses; only the first {len(used)} are used",
            )
        else:
            was_full = self._said is Condition.TOO_MANY
            self._say(
                Condition.WELL,
                f"has no more than {MAX_ADDRESSES} addresses again"
                if was_full
                else "resolves again",
            )

    def _count(self, result: int) -> None:
        for table in self._tables:
            table.count_lookup(result)

    def _known(self) -> Tuple[Address, ...]:
        return self._tables[0].current()

    def _remedy(self) -> str:
        """What the proxy does without an answer."""
        known = len(self._known())
        return f"keeping the {known} known before" if known else "clients wait until it does"

    def _say(self, condition: Condition, text: str) -> None:
        """Log a condition when it begins, and not each time it is found."""
        if condition is self._said or not self._troubles.allow(self._clock()):
            return
        self._said = condition
        level = logging.INFO if condition is Condition.WELL else logging.WARNING
        log.log(
            level,
            "%(host)s %(text)s",
            {
                "event": condition.value,
                "upstream": self._policy.endpoint,
                "host": self._policy.endpoint.host,
                "text": text,
                "reason": text,
            },
        )


class _Pace:
    """A limit for lines that a name server can cause at will."""

    def __init__(self) -> None:
        self._given: Deque[float] = deque(maxlen=MOST_LINES)

    def allow(self, now: float) -> bool:
        """Whether the limit allows one more line; counts it if so."""
        if len(self._given) == MOST_LINES and now - self._given[0] < LINES_PERIOD:
            return False
        self._given.append(now)
        return True


def _hosts(addresses: Sequence[Address]) -> str:
    shown = ", ".join(address.sockaddr[0] for address in addresses[:MOST_SHOWN])
    more = len(addresses) - MOST_SHOWN
    return f"{shown} and {more} more" if more > 0 else shown


def _pause(lifeline: int, seconds: float) -> None:
    """Wait a little, so that refused connections do not cause a flood of DNS queries."""
    wait = select.poll()
    wait.register(lifeline, select.POLLIN)
    wait.poll(max(0, int(seconds * 1000)))
