"""The child that keeps the endpoint's addresses fresh, so that no worker ever waits for DNS.

A lookup may block for half a minute and can fail at any time; here that harms nothing: the last
known good addresses stay published until there are better ones.
"""

from __future__ import annotations

import logging
import os
import select
import time
from typing import Optional, Tuple

from vsock_proxy.addresses import Address, AddressTable
from vsock_proxy.policy import LookupFailed, Policy, look_up

# As long as nothing is known yet, clients are waiting.
FIRST_RETRY = 1.0
# Workers that cannot connect ask for a lookup; seconds between two of those.
NUDGE_INTERVAL = 1.0
NUDGES = 65536

log = logging.getLogger(__name__)


class Resolver:
    """Looks the name up again and again, until the master is gone."""

    def __init__(self, table: AddressTable, policy: Policy, interval: float) -> None:
        self._table = table
        self._policy = policy
        self._interval = interval
        self._known = frozenset(table.current())
        self._trouble: Optional[str] = None

    def run(self, nudges: int, lifeline: int) -> None:
        """Serve until the lifeline ends; nudges is a pipe by which workers ask for a lookup."""
        poll = select.poll()
        poll.register(nudges, select.POLLIN)
        poll.register(lifeline, select.POLLIN)
        self._table.announce()
        while True:
            self._refresh()
            looked_up = time.monotonic()
            interval = self._interval if self._known else min(FIRST_RETRY, self._interval)
            ready = [fd for fd, _ in poll.poll(int(interval * 1000))]
            if lifeline in ready:
                return
            if nudges in ready:
                os.read(nudges, NUDGES)
                _pause(lifeline, looked_up + NUDGE_INTERVAL - time.monotonic())

    def _refresh(self) -> None:
        try:
            found = look_up(self._policy.endpoint, self._policy.family)
        except LookupFailed as error:
            self._complain(f"does not resolve: {error}")
            return
        chosen = self._policy.choose(found)
        if not chosen:
            hosts = ", ".join(address.sockaddr[0] for address in found)
            self._complain(f"resolves only to addresses that are not permitted: {hosts}")
            return
        self._publish(chosen)

    def _publish(self, chosen: Tuple[Address, ...]) -> None:
        # Many services give their addresses in turn: another order is no news.
        if frozenset(chosen) != self._known:
            level = logging.DEBUG if self._known else logging.INFO
            hosts = ", ".join(address.sockaddr[0] for address in chosen)
            self._table.publish(chosen)
            log.log(level, "%s is %s", self._policy.endpoint.host, hosts)
            self._known = frozenset(chosen)
        if self._trouble:
            log.info("%s resolves again", self._policy.endpoint.host)
            self._trouble = None

    def _complain(self, trouble: str) -> None:
        """Log a trouble when it begins, not each time it is met."""
        if trouble == self._trouble:
            return
        self._trouble = trouble
        known = len(self._known)
        remedy = f"keeping the {known} known before" if known else "clients wait until it does"
        log.warning("%s %s; %s", self._policy.endpoint.host, trouble, remedy)


def _pause(lifeline: int, seconds: float) -> None:
    """Wait a little, so that refused connections do not become a flood of DNS queries."""
    wait = select.poll()
    wait.register(lifeline, select.POLLIN)
    wait.poll(max(0, int(seconds * 1000)))
