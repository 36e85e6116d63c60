"""The process that looks up the names of all services, each in a thread of its own.

A lookup blocks, for half a minute if a name server hangs, and nothing interrupts it. So each name
has a thread, and no name waits for another. Threads do no harm in a process that never forks. The
process may be killed at any moment, because the tables stay whole. The master kills it when the
names to look up change.

The threads share next to nothing. Each writes to the tables of its own endpoint. One lock, that of
the log's handler, protects their log lines and the count of lines that cannot be written. Only the
main thread gets signals; it just waits for the end of the master.
"""

from __future__ import annotations

import logging
import os
import select
import threading
from dataclasses import dataclass
from typing import Dict, List, Sequence

from vsock_proxy.endpoint.addresses import AddressTable
from vsock_proxy.endpoint.lookup import Question
from vsock_proxy.endpoint.policy import Policy
from vsock_proxy.endpoint.resolution import Resolution
from vsock_proxy.process.signals import block, unblock

# Bytes. With the usual 8 MiB the kernel may give a thread a huge page of 2 MiB.
STACK_SIZE = 512 << 10
# Milliseconds until the next try after a thread could not be started.
START_AGAIN_MS = 1000

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Lookup:
    """What to look up for one service, and how often, in seconds."""

    table: AddressTable
    policy: Policy
    interval: float


class Resolver:
    """What the process does."""

    def __init__(self, lookups: Sequence[Lookup]) -> None:
        """lookups: at least one. Those with the same question share a thread and its answers."""
        by_question: Dict[Question, List[Lookup]] = {}
        for lookup in lookups:
            question = lookup.policy.endpoint, lookup.policy.family
            by_question.setdefault(question, []).append(lookup)
        hosts = {endpoint.host for endpoint, _ in by_question}
        self.title = (
            f"resolver {hosts.pop()}" if len(hosts) == 1 else f"resolver, {len(hosts)} names"
        )
        self._resolutions = [
            Resolution(
                [lookup.table for lookup in group],
                group[0].policy,
                min(lookup.interval for lookup in group),
            )
            for group in by_question.values()
        ]

    def run(self, lifeline: int) -> None:
        """Serve until the lifeline ends."""
        if len(self._resolutions) == 1:
            self._resolutions[0].run(lifeline)
            return
        threading.stack_size(STACK_SIZE)
        poll = select.poll()
        poll.register(lifeline, select.POLLIN)
        missing = list(self._resolutions)
        self._start(missing, lifeline)
        if missing:
            log.error(
                "cannot start a thread for each name: %(count)d of %(all)d are missing; raise the "
                "limit of processes with TasksMax= in the unit or ulimit -u; trying again every "
                "second",
                {
                    "event": "threads_missing",
                    "count": len(missing),
                    "all": len(self._resolutions),
                },
            )
        while not poll.poll(START_AGAIN_MS if missing else None):
            self._start(missing, lifeline)

    def _start(self, missing: List[Resolution], lifeline: int) -> None:
        """Start a thread for each that is missing, as long as the system permits it."""
        # A thread inherits the signal mask of the thread that starts it.
        block()
        try:
            while missing:
                target = missing[0]
                threading.Thread(target=_run, args=(target, lifeline), daemon=True).start()
                del missing[0]
        except RuntimeError:
            # No thread can be started now.
            pass
        finally:
            unblock()


def _run(resolution: Resolution, lifeline: int) -> None:
    try:
        resolution.run(lifeline)
    except Exception:
        # This does not hide it: it is the thread's last frame, and the master starts a new process.
        log.exception("internal error, please report it", {"event": "internal_error"})
        os._exit(os.EX_SOFTWARE)
