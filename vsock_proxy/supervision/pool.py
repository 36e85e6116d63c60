"""Some services and the workers that serve them.

A service with workers of its own has its own pool, and no other service takes its places. The
others share one pool.

A pool never changes. If a reload changes something of it, a new pool replaces it and keeps the
listeners that stay. The old pool retires as soon as others serve these listeners. Its idle workers
then end at once, and each other worker ends with its connection.
"""

from __future__ import annotations

import logging
import os
import signal
import time
from dataclasses import dataclass
from typing import Callable, Dict, Iterable, Iterator, List, Sequence, Tuple

from vsock_proxy.observing import report
from vsock_proxy.observing.account import SHARED, PoolView
from vsock_proxy.observing.closing import WITHOUT_CLIENT, cut_short
from vsock_proxy.observing.logs import Log
from vsock_proxy.observing.measures import Measures
from vsock_proxy.observing.saturation import Alarm, Watch
from vsock_proxy.observing.scoreboard import Scoreboard, State
from vsock_proxy.process.descriptors import close_all
from vsock_proxy.serving.listener import Listener
from vsock_proxy.serving.worker import Duty, Worker
from vsock_proxy.settings import ServiceSettings
from vsock_proxy.supervision.children import Children, Respawning
from vsock_proxy.supervision.pacer import Pacer
from vsock_proxy.supervision.service import Service
from vsock_proxy.supervision.timers import Timers
from vsock_proxy.words import counted

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Composition:
    """What a pool is made of. own: whether it serves one service with workers of its own."""

    services: Tuple[Service, ...]
    workers: int
    own: bool


def divide(services: Sequence[Service], workers: int) -> List[Composition]:
    """Divide the services among pools. workers: how many serve those that share a pool."""
    sharing = tuple(service for service in services if service.settings.workers is None)
    pools = [Composition(sharing, workers, False)] if sharing else []
    for service in services:
        if service.settings.workers is not None:
            pools.append(Composition((service,), service.settings.workers, True))
    return pools


@dataclass(frozen=True)
class Means:
    """What all pools have in common.

    alarm: the pipe into which workers write when all of them are busy.
    serials: each process that becomes a worker takes the next.
    measures: whether workers count what they do for each service.
    foreign: the descriptors that a worker of these services may not hold.
    wanting: called when workers are missing.
    """

    children: Children
    timers: Timers
    worker: Worker
    log_output: Log
    alarm: int
    serials: Iterator[int]
    respawning: Respawning
    measures: bool
    foreign: Callable[[Sequence[Service]], List[int]]
    wanting: Callable[[], None]


class Pool:
    """One pool, from its first worker to the end of its last.

    view: what the exporter shows of it; None: there are no metrics.
    """

    def __init__(self, composition: Composition, means: Means) -> None:
        self.composition = composition
        self.listeners = frozenset(service.listener for service in composition.services)
        self.board = Scoreboard(composition.workers)
        self.missing = list(range(1, composition.workers + 1))
        self.view = _view(composition, self.board) if means.measures else None
        self._means = means
        self._duty = Duty(
            tuple(service.route() for service in composition.services),
            self.board,
            Alarm(self.board, means.alarm),
            composition.own,
            self.view.measures if self.view else None,
        )
        self.watch = Watch(self.board, self._duty.routes[0].name if composition.own else None)
        self._pacer = Pacer()
        # The pids of the workers that run, by their numbers.
        self._pids: Dict[int, int] = {}
        self._replaces = True
        self._has_lost = False
        self._has_warned = False
        # Cells in which each worker counts the lines that it could not log.
        self._counts = means.log_output.untold.add(composition.workers)

    def is_like(self, other: Composition) -> bool:
        """Whether a pool of that composition would be the same as this one."""
        own = self.composition
        return (own.workers, own.own, _asked(own)) == (other.workers, other.own, _asked(other))

    @property
    def serves(self) -> bool:
        """Whether a worker has waited for connections."""
        return self.board.serving

    @property
    def size(self) -> int:
        """How many workers it should have."""
        return self.composition.workers

    @property
    def running(self) -> int:
        """How many workers it has."""
        return len(self._pids)

    @property
    def has_let_go(self) -> bool:
        """Whether all workers that still run have closed their listeners."""
        return all(self.board.row(number).drains for number in self._pids)

    @property
    def has_ended(self) -> bool:
        """Whether it was told to end, and all its workers have ended."""
        return not self._replaces and not self._pids

    def take_loss(self) -> bool:
        """Whether a worker has died since the last call and this pool does not replace it.

        The kernel may have woken only this worker for a client.
        """
        had_lost, self._has_lost = self._has_lost, False
        return had_lost

    def staff(self) -> report.Staff:
        """Its workers, as the report shows them."""
        return self._duty.staff()

    def forget(self) -> None:
        """Give back the cells in which its workers counted, once it has ended."""
        self._means.log_output.untold.drop(self._counts)

    def introduce(self) -> None:
        """Say in the log what it serves, and with how many workers."""
        services, workers = self.composition.services, counted(self.size, "worker")
        share = "" if len(services) == 1 else "shares "
        for service in services:
            log.info(
                "%(listener)s -> %(upstream)s, %(share)s%(workers)s",
                {
                    "event": "serving",
                    "service": service.name,
                    "upstream": service.settings.endpoint,
                    "count": self.size,
                    "listener": service.listener.name,
                    "share": share,
                    "workers": workers,
                },
            )
        self.warn_if_short()

    def warn_if_short(self) -> None:
        """Warn, once, if it has fewer workers than services."""
        services = len(self.composition.services)
        if self._has_warned or services <= self.size:
            return
        self._has_warned = True
        log.warning(
            "%(services)s share %(workers)s: a worker serves one connection at a time; -w sets how "
            "many there are",
            {
                "event": "few_workers",
                "count": self.size,
                "services": counted(services, "service"),
                "workers": counted(self.size, "worker"),
            },
        )

    def rehearse(self) -> None:
        """Before any fork: let the interpreter cache what its workers have in common."""
        self._means.worker.rehearse(self._duty)

    def start_missing(self) -> None:
        """Start the workers that are not there. Raises OSError if one cannot be started."""
        # Called before the fork, because each function that a worker runs costs it pages. This
        # saves each worker 60 to 120 KiB on CPython 3.13, and 95 to 250 KiB on 3.11.
        foreign = self._means.foreign(self.composition.services) if self.missing else []
        while self.missing:
            self._start(self.missing[0], foreign)
            del self.missing[0]

    def replace_no_more(self) -> None:
        """Start no more workers: another pool takes over, or the proxy ends."""
        self._replaces = False
        self.missing.clear()
        self.watch.end(time.monotonic())

    def tell_several(self, several: bool) -> None:
        """Whether there are several services from now on, so that they are named."""
        changed = self.board.several != several
        self.board.several = several
        if changed and self.composition.own:
            # In their titles the workers have the name of their service, or no longer.
            self.send(signal.SIGHUP)

    def retire(self) -> None:
        """Another pool serves in its place: let each worker end, after the connection it has."""
        self.board.retired = True
        self.send(signal.SIGTERM)

    def send(self, number: signal.Signals) -> None:
        """Send all workers a signal."""
        # Until a dead child is buried, no other process gets its pid.
        for pid in self._pids.values():
            os.kill(pid, number)

    def send_those_of(self, listeners: Iterable[Listener], number: signal.Signals) -> None:
        """Send a signal to the workers whose connection came by one of these listeners."""
        places = [
            index
            for index, service in enumerate(self.composition.services)
            if service.listener in listeners
        ]
        for worker, pid in self._pids.items():
            row = self.board.row(worker)
            if row.state not in WITHOUT_CLIENT and row.route in places:
                os.kill(pid, number)

    def _start(self, number: int, foreign: List[int]) -> None:
        self.board.expect(number, next(self._means.serials))
        self._pids[number] = self._means.children.start(
            lambda: self._be_worker(number, foreign), lambda status: self._buried(number, status)
        )

    def _be_worker(self, number: int, foreign: List[int]) -> None:
        close_all(foreign)
        means = self._means
        row = self._counts.row(number - 1)

        def name() -> None:
            means.log_output.name(f"worker {self._duty.name_of(number)}", row)

        means.worker.run(self._duty, number, name)

    def _buried(self, number: int, status: int) -> None:
        del self._pids[number]
        row = self.board.row(number)
        route = self._duty.routes[row.route]
        line = cut_short(
            row,
            self._duty.name_of(number),
            route.name,
            self.board.several,
            route.endpoint,
            time.monotonic_ns(),
        )
        if line is not None:
            log.warning(*line)
            if self.view is not None and row.state is not State.CONNECTING:
                self.view.measures.tally(number).ended(time.monotonic_ns() - row.since)
        self.board.vacate(number)
        self._has_lost |= not self._replaces and status != 0
        if self._replaces:
            self.watch.suspect(time.monotonic())
            self._means.respawning.another(
                f"worker {self._duty.name_of(number)}",
                status,
                self._pacer,
                lambda: self._miss(number),
            )

    def _miss(self, number: int) -> None:
        if self._replaces:
            self.missing.append(number)
            self._means.wanting()


def _asked(composition: Composition) -> Tuple[ServiceSettings, ...]:
    """What the operator has asked for: pools are compared by it."""
    return tuple(service.settings for service in composition.services)


def _view(composition: Composition, board: Scoreboard) -> PoolView:
    services = composition.services
    return PoolView(
        name=services[0].name if composition.own else SHARED,
        services=tuple(service.name for service in services),
        endpoints=tuple(service.settings.endpoint for service in services),
        tables=tuple(service.table if service.is_looked_up else None for service in services),
        board=board,
        measures=Measures(board, len(services)),
    )
