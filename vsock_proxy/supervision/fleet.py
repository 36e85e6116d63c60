"""The services in force and their pools, and how a reload replaces them.

A reload first binds the new listeners. If that fails, nothing has changed. Then new pools start
beside the pools that they replace. An old pool retires once each new pool that has one of its
listeners has a worker that waits for clients. So some worker always accepts from a listener that
stays. No client of it is refused, because the master never closes it. A new pool whose workers do
not start delays only the pools whose listeners it has.
"""

from __future__ import annotations

import contextlib
import logging
import signal
import socket
import time
from typing import Collection, Dict, Iterable, List, Mapping, Sequence, Set, Tuple

from vsock_proxy.config.places import place_of
from vsock_proxy.endpoint.addresses import AddressTable
from vsock_proxy.endpoint.resolver import Lookup
from vsock_proxy.errors import UnavailableError, advice
from vsock_proxy.observing import report
from vsock_proxy.observing.account import Account, PoolView, Scene
from vsock_proxy.serving.listener import Listener
from vsock_proxy.serving.passed import Passed
from vsock_proxy.settings import ServiceSettings
from vsock_proxy.supervision.changes import Changes, compare
from vsock_proxy.supervision.judging import Judged, Known, names_of, question_of
from vsock_proxy.supervision.limits import ensure_files
from vsock_proxy.supervision.pool import Composition, Means, Pool, divide
from vsock_proxy.supervision.service import Service, make_service
from vsock_proxy.words import counted

# Seconds from the signal to end now until a worker is killed.
END_NOW_TIMEOUT = 2.0
# Seconds after which a reload counts as done, even if old pools still serve.
CHANGE_TIMEOUT = 5.0

log = logging.getLogger(__name__)


class Fleet:
    """All services and all pools.

    services: those in force.
    pools: those that serve them.
    """

    def __init__(self, workers: int, drain_timeout: float, passed: Passed, means: Means) -> None:
        """workers: how many serve the services that share a pool."""
        self.services: List[Service] = []
        self.pools: List[Pool] = []
        self._workers = workers
        self._drain_timeout = drain_timeout
        self._passed = passed
        self._means = means
        # Replaced pools: those that wait to retire; those with a worker that may still have its
        # listeners open; and all of them, until their last worker has ended.
        self._to_retire: List[Pool] = []
        self._retiring: List[Pool] = []
        self._former: List[Pool] = []
        # What the pools without a worker have done.
        self._ended = report.NOTHING
        self._before = Account()
        # Listeners of removed services, until all pools that accept from them retire.
        self._gone: List[Listener] = []
        self._patient_until = 0.0

    @property
    def serves(self) -> bool:
        """Whether each pool has had a worker that waits for clients."""
        return all(pool.serves for pool in self.pools)

    @property
    def is_changing(self) -> bool:
        """Whether a reload is not in force yet. After CHANGE_TIMEOUT it counts as in force."""
        return bool(self._to_retire or self._retiring) and time.monotonic() < self._patient_until

    @property
    def all_pools(self) -> List[Pool]:
        """The pools in force, then those that are ending."""
        return [*self.pools, *self._former]

    @property
    def running(self) -> int:
        """How many workers there are."""
        return sum(pool.running for pool in self.all_pools)

    @property
    def size(self) -> int:
        """How many workers there should be."""
        return sum(pool.size for pool in self.pools)

    @property
    def places(self) -> int:
        """How many connections there can be, counting those of workers that are replaced."""
        return self.size + sum(pool.running for pool in self._former)

    @property
    def missing(self) -> int:
        """How many workers are still to be started."""
        return sum(len(pool.missing) for pool in self.pools)

    @property
    def lookups(self) -> List[Lookup]:
        """What a resolver has to look up."""
        return [
            Lookup(service.table, service.policy, service.settings.options.resolve_interval)
            for service in self.services
            if service.table is not None and service.is_looked_up
        ]

    def put_into_force(self, judged: Sequence[Judged]) -> Changes:
        """Serve these and nothing else, once their workers have started; returns what is new.

        No resolver may run meanwhile: it would publish by the policies from before.

        Raises UnavailableError if it cannot listen; then nothing has changed.
        """
        before = {service.listener.name: service for service in self.services}
        ensure_files(len(judged))
        try:
            with contextlib.ExitStack() as undo:
                services = self._make_services(judged, before, undo)
                pools = [self._pool(one, undo) for one in divide(services, self._workers)]
                undo.pop_all()
        except OSError as error:
            raise UnavailableError(f"cannot serve: {error.strerror}{advice(error)}") from None
        self.services = services
        # Nothing can fail from here on. So only now may services that stay lose addresses.
        for service, one in zip(services, judged):
            service.publish(one)
        listeners = {service.listener for service in services}
        self._gone = [listener for listener in self._gone if listener not in listeners]
        self._replace_pools(pools)
        self._patient_until = time.monotonic() + CHANGE_TIMEOUT
        self._let_go(before.values())
        for pool in self.pools:
            pool.tell_several(len(services) > 1)
        for pool in self._former:
            # Its connections keep the names of services if there were several before.
            pool.board.several |= len(services) > 1
        return compare(_asked(before.values()), _asked(services))

    def known(self) -> Known:
        """The known addresses of the endpoints."""
        return {question_of(one.settings): one.addresses for one in self.services}

    def table(self) -> List[report.Line]:
        """What all workers do, to be read by people."""
        staffs = [pool.staff() for pool in self.all_pools]
        return report.table(staffs, time.monotonic_ns(), self._ended)

    @property
    def totals(self) -> report.Totals:
        """What was done since the start, also by workers and pools that have ended."""
        return self._ended.plus(row for pool in self.all_pools for row in pool.board.rows())

    def scene(self) -> Scene:
        """What the exporter shows, until other services are put into force."""
        return Scene(_views(self.pools), _views(self._former), self._before)

    @property
    def busy(self) -> int:
        """How many workers have a connection."""
        return sum(pool.board.busy() for pool in self.all_pools)

    @property
    def title(self) -> str:
        """What the master is called."""
        if len(self.services) > 1:
            return f"master, {len(self.services)} services"
        (service,) = self.services
        settings = service.settings
        return f"master {settings.tcp_place or settings.local_port} -> {settings.endpoint}"

    def introduce(self) -> None:
        """Say in the log what is served."""
        for pool in self.pools:
            pool.introduce()
        if len(self.services) > 1:
            log.info(
                "%(services)d services, %(workers)s",
                {
                    "event": "serving_all",
                    "services": len(self.services),
                    "count": self.size,
                    "workers": counted(self.size, "worker"),
                },
            )

    def warn_of_short_pools(self) -> None:
        """Warn once of each pool that has fewer workers than services."""
        for pool in self.pools:
            pool.warn_if_short()

    def rehearse(self) -> None:
        """Before any fork: let the interpreter cache what workers have in common."""
        self.pools[0].rehearse()

    def start_missing(self) -> None:
        """Start the workers that are not there. Raises OSError if one cannot be started."""
        for pool in self.pools:
            pool.start_missing()

    def look(self) -> None:
        """Retire pools that are replaced, and forget those that have ended."""
        if self._to_retire:
            self._retire([pool for pool in self._to_retire if self._is_succeeded(pool)])
        for pool in self._former:
            if pool.take_loss():
                self._let_successors_look(pool)
        self._retiring = [pool for pool in self._retiring if not pool.has_let_go]
        ended = [pool for pool in self._former if pool.has_ended]
        for pool in ended:
            self._former.remove(pool)
            self._ended = self._ended.plus(pool.board.rows())
            self._before = self._before.plus_pools(_views([pool]))
            pool.forget()

    def _is_succeeded(self, old: Pool) -> bool:
        """Whether new pools serve each of its listeners that stays."""
        return all(pool.serves for pool in self._successors(old))

    def _successors(self, old: Pool) -> List[Pool]:
        return [pool for pool in self.pools if pool.listeners & old.listeners]

    def _let_successors_look(self, old: Pool) -> None:
        for pool in self._successors(old):
            pool.send(signal.SIGHUP)

    def _retire(self, pools: List[Pool]) -> None:
        for pool in pools:
            pool.retire()
            self._to_retire.remove(pool)
        self._retiring += pools
        # A pool that still waits to retire accepts from all its listeners, also from removed ones.
        held = frozenset().union(*(pool.listeners for pool in self._to_retire))
        gone = [listener for listener in self._gone if listener not in held]
        self._gone = [listener for listener in self._gone if listener in held]
        _close_for_good(gone)
        if gone:
            self._means.timers.after(self._drain_timeout, lambda: self._end_those_of(gone))

    def drain(self) -> None:
        """No new connections; each worker ends with the one it has."""
        for pool in self.all_pools:
            pool.replace_no_more()
        self.close()
        self.send(signal.SIGTERM)

    def send(self, number: signal.Signals) -> None:
        """Send all workers a signal."""
        for pool in self.all_pools:
            pool.send(number)

    def close(self) -> None:
        """Close all listeners for good."""
        for sock in self._sockets:
            sock.close()
        for listener in self._listeners:
            listener.remove()

    @property
    def listening(self) -> List[int]:
        """The descriptors of all listeners."""
        return _descriptors(self._sockets)

    def foreign_to(self, kept: Sequence[Service]) -> List[int]:
        """The descriptors of what belongs to other services than these."""
        own = {service.listener.sock for service in kept}
        tables = _tables(self.services, kept)
        return [
            *_descriptors(self._sockets - own),
            *(fd for table in tables for fd in table.descriptors),
        ]

    @property
    def _listeners(self) -> List[Listener]:
        """All listeners that the master has open."""
        return [*(service.listener for service in self.services), *self._gone]

    @property
    def _sockets(self) -> Set[socket.socket]:
        """The sockets of the listeners, and the passed ones that no service asks for now."""
        return {*(listener.sock for listener in self._listeners), *self._passed.sockets}

    def _make_services(
        self, judged: Sequence[Judged], before: Mapping[str, Service], undo: contextlib.ExitStack
    ) -> List[Service]:
        """Make the services. Each keeps what it can of the one that listened there before.

        undo: takes back what is new. Raises OSError or UnavailableError.
        """
        # A removed listener that is still open may come back.
        going = {listener.name: listener for listener in self._gone}
        names = names_of([one.settings for one in judged])
        services = []
        for one, name in zip(judged, names):
            place = place_of(one.settings)
            known = before.get(place)
            if known is not None and not known.leads_elsewhere(one.settings):
                services.append(known.renewed(one, name))
                continue
            listener = known.listener if known is not None else going.get(place)
            if listener is None:
                listener = self._passed.open(one.settings)
                undo.callback(_close_for_good, [listener])
            services.append(make_service(one, name, listener))
            undo.callback(services[-1].close_table)
        return services

    def _pool(self, composition: Composition, undo: contextlib.ExitStack) -> Pool:
        """The pool that exists, if nothing of it has changed; else a new one."""
        for pool in self.pools:
            if pool.is_like(composition):
                return pool
        made = Pool(composition, self._means)
        undo.callback(made.forget)
        return made

    def _replace_pools(self, pools: List[Pool]) -> None:
        left = [pool for pool in self.pools if pool not in pools]
        self.pools = pools
        for pool in left:
            pool.replace_no_more()
        self._to_retire += left
        self._former += left

    def _let_go(self, before: Collection[Service]) -> None:
        """Close what the services from before had and nothing needs any more."""
        listeners = [service.listener for service in self.services]
        left = _tables(before, self.services)
        self._before = self._before.plus_lookups(
            (service.name, service.table)
            for service in before
            if service.table in left and service.is_looked_up
        )
        for table in left:
            table.close()
        for service in before:
            if service.listener not in listeners:
                self._gone.append(service.listener)

    def _end_those_of(self, gone: List[Listener]) -> None:
        """End connections that have outlived their service for too long."""
        self._send_those_of(gone, signal.SIGQUIT)
        self._means.timers.after(END_NOW_TIMEOUT, lambda: self._send_those_of(gone, signal.SIGKILL))

    def _send_those_of(self, gone: List[Listener], number: signal.Signals) -> None:
        for pool in self._former:
            pool.send_those_of(gone, number)


def _tables(services: Iterable[Service], kept: Iterable[Service]) -> List[AddressTable]:
    """The tables of some services that none of the kept ones has."""
    others = [service.table for service in kept]
    return [
        service.table
        for service in services
        if service.table is not None and service.table not in others
    ]


def _views(pools: Iterable[Pool]) -> List[PoolView]:
    """What the exporter shows of them, if anything is counted."""
    return [pool.view for pool in pools if pool.view is not None]


def _descriptors(sockets: Iterable[socket.socket]) -> List[int]:
    """The descriptors of those that are open."""
    return [sock.fileno() for sock in sockets if sock.fileno() >= 0]


def _asked(services: Iterable[Service]) -> Dict[str, Tuple[str, ServiceSettings]]:
    """The name and the settings of each, by the place where it listens."""
    return {one.listener.name: (one.name, one.settings) for one in services}


def _close_for_good(listeners: Iterable[Listener]) -> None:
    for listener in listeners:
        if not listener.passed:
            listener.close()
            listener.remove()
