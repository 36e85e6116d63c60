"""The master: supervises the other processes, and does what signals ask for.

It never touches a connection. It sleeps in poll() until a signal comes, a child ends, a worker
raises an alarm or a timer is due. So an idle proxy makes no system call at all.

    SIGTERM, SIGINT   stop accepting; live connections have --drain-timeout to end
    the same again    end everything now
    SIGQUIT           end everything now
    SIGHUP            read the file again
    SIGUSR1           write the scoreboard to the log

The master passes SIGTERM and SIGQUIT on to the workers. If it dies, the lifeline tells them.
"""

from __future__ import annotations

import gc
import itertools
import logging
import os
import select
import signal
import time
from typing import Callable, Dict, List, Mapping, Optional, Protocol, Sequence, Tuple

from vsock_proxy.config.metadata import look_up
from vsock_proxy.endpoint.policy import NotPermitted
from vsock_proxy.endpoint.resolver import Resolver
from vsock_proxy.observing.copier import Copier
from vsock_proxy.observing.logs import Log
from vsock_proxy.observing.saturation import Alarm
from vsock_proxy.observing.teller import Teller
from vsock_proxy.observing.vitals import Stage, Vitals
from vsock_proxy.process.descriptors import close_all, non_blocking_pipe
from vsock_proxy.process.interpreter import share_with_children
from vsock_proxy.process.lifeline import Lifeline
from vsock_proxy.process.signals import Signals
from vsock_proxy.process.titles import set_master_title, set_title
from vsock_proxy.serving.listener import Listener
from vsock_proxy.serving.passed import Passed
from vsock_proxy.serving.worker import Worker
from vsock_proxy.settings import Settings
from vsock_proxy.supervision.announcing import Announcing
from vsock_proxy.supervision.changes import Changes
from vsock_proxy.supervision.children import Children, Respawning
from vsock_proxy.supervision.copying import Copying
from vsock_proxy.supervision.exporting import Exporting
from vsock_proxy.supervision.fleet import CHANGE_TIMEOUT, END_NOW_TIMEOUT, Fleet
from vsock_proxy.supervision.judging import Judged, Wanted, judge_again
from vsock_proxy.supervision.pool import Means
from vsock_proxy.supervision.reloading import METADATA_PATIENCE, Reloading
from vsock_proxy.supervision.resolving import Resolving
from vsock_proxy.supervision.service import Service
from vsock_proxy.supervision.starting import Starting
from vsock_proxy.supervision.systemd import Notifier, summary
from vsock_proxy.supervision.timers import Timers
from vsock_proxy.supervision.wanting import want

log = logging.getLogger(__name__)


class Attentive(Protocol):
    """A part that the master calls at a time. due: by time.monotonic(); None: not at all."""

    @property
    def due(self) -> Optional[float]: ...

    def look(self, now: float) -> None: ...


class Master:
    """One run of the proxy."""

    def __init__(
        self,
        settings: Settings,
        log_output: Log,
        copier: Optional[Copier],
        notifier: Notifier,
        passed: Passed,
        signals: Signals,
    ) -> None:
        self._settings = settings
        self._log = log_output
        self._passed = passed
        self._signals = signals
        self._actions: Dict[int, Callable[[signal.Signals], None]] = {
            signal.SIGQUIT: self._end_now_by,
            signal.SIGTERM: self._end_by,
            signal.SIGINT: self._end_by,
            # The master looks after its children whenever it wakes.
            signal.SIGCHLD: lambda number: None,
            signal.SIGHUP: self._reload_by,
            signal.SIGUSR1: self._show_by,
        }
        self._poll = select.poll()
        self._timers = Timers()
        self._teller = Teller(log_output)
        self._resolver_counts = log_output.untold.add(1)
        self._lifeline = Lifeline()
        self._alarm_reader, alarm = non_blocking_pipe()
        self._alarm = alarm
        self._vitals = Vitals()
        self._exporter_counts = log_output.untold.add(1)
        self._children = Children(signals, self._obey, self._buried)
        respawning = Respawning(self._timers, self._vitals)
        self._fleet = Fleet(
            settings.workers,
            settings.drain_timeout,
            passed,
            Means(
                self._children,
                self._timers,
                # Made once, here: memory that a child fills is not shared.
                Worker(signals, self._lifeline, log_output.untold),
                log_output,
                alarm,
                itertools.count(1),
                respawning,
                settings.metrics is not None,
                self._foreign_to_worker,
                self._start_missing,
            ),
        )
        self._resolving = Resolving(
            self._children, respawning, self._be_resolver, self._start_missing
        )
        self._exporting = Exporting(
            settings.metrics,
            self._children,
            respawning,
            self._vitals,
            self._be_exporter,
            self._start_missing,
        )
        self._starting = Starting(self._fleet, self._resolving, self._exporting, self._timers)
        self._copying = Copying(copier, respawning, self._timers, self._leave_for_copier)
        self._announcing = Announcing(notifier, self._timers, self._summary)
        self._reloading = Reloading(
            settings, signals, self._poll, self._read_again, self._take_over, self._refuse
        )
        # The values of {region} and {domain} that are known.
        self._placeholders: Mapping[str, str] = {}
        self._is_to_reload = False
        # The changes of the last reload, until they are in force.
        self._changes: Optional[Changes] = None
        self._draining = False
        self._fillers: Sequence[object] = ()
        self._exit_code = os.EX_OK

    def run(self, wanted: Wanted, judged: Sequence[Judged]) -> int:
        """Serve, and return the exit code when all has ended.

        Raises UnavailableError if it cannot listen.
        """
        self._put_into_force(wanted, judged)
        try:
            self._exporting.listen()
            self._prepare()
            self._starting.start()
            self._supervise()
        except BaseException:
            self._fleet.close()
            self._exporting.end()
            raise
        # Only now: clients may still wait for the first answer of DNS, and metrics show the end.
        self._resolving.end()
        self._exporting.end()
        self._teller.look(time.monotonic())
        totals = self._fleet.totals
        log.info("ended; %(totals)s", {"event": "ended", "totals": totals, **totals.known})
        return self._exit_code

    def _prepare(self) -> None:
        """Fill the memory that all children share. It is shared until somebody writes to it."""
        self._fillers = share_with_children(self._fleet.rehearse, self._log.rehearse)
        set_master_title(self._fleet.title)

    def _supervise(self) -> None:
        poll = self._poll
        poll.register(self._signals.reader, select.POLLIN)
        poll.register(self._alarm_reader, select.POLLIN)
        while self._fleet.running or not self._draining:
            self._teller.watch_by(poll)
            events = poll.poll(self._patience())
            now = time.monotonic()
            for fd, _ in events:
                self._told_by(fd, now)
            self._obey()
            self._children.reap()
            self._look()
            self._fleet.look()
            self._go_on()
            self._announcing.look()
            self._vitals.count_round()

    def _told_by(self, fd: int, now: float) -> None:
        if fd == self._alarm_reader:
            os.read(fd, 4096)
            for pool in self._fleet.pools:
                pool.watch.suspect(now)
        self._teller.told_by(fd, now)
        self._reloading.told_by(fd, now)

    def _attentive(self) -> List[Attentive]:
        watches = [pool.watch for pool in self._fleet.pools]
        return [self._timers, self._teller, self._reloading, *watches]

    def _patience(self) -> Optional[float]:
        """Milliseconds until something is due."""
        due = [one.due for one in self._attentive() if one.due is not None]
        return max(0.0, (min(due) - time.monotonic()) * 1000) if due else None

    def _look(self) -> None:
        """Do what is due."""
        now = time.monotonic()
        for one in self._attentive():
            if one.due is not None and one.due <= now:
                one.look(now)

    def _go_on(self) -> None:
        """Take the next step: say that all serve, finish a reload, begin another."""
        if self._draining:
            return
        fleet = self._fleet
        if not self._announcing.is_ready and fleet.serves:
            fleet.introduce()
            self._vitals.stage = Stage.SERVING
            self._announcing.ready()
        if fleet.is_changing:
            return
        if self._changes is not None:
            log.info(
                "services read again: %(changes)s",
                {"event": "reloaded", "changes": self._changes},
            )
            self._changes = None
            fleet.warn_of_short_pools()
        if self._is_to_reload and not self._reloading.is_reading:
            self._is_to_reload = False
            self._reloading.ask(time.monotonic())
        # Also if the reading could not start.
        if not self._reloading.is_reading:
            self._announcing.reloaded()

    def _summary(self) -> str:
        fleet = self._fleet
        return summary(len(fleet.services), fleet.busy, fleet.places, fleet.totals)

    # What signals ask for

    def _obey(self) -> None:
        for number in self._signals.take():
            self._actions[number](signal.Signals(number))

    def _reload_by(self, number: signal.Signals) -> None:
        if not self._draining:
            self._announcing.reloading()
            self._is_to_reload = True

    def _show_by(self, number: signal.Signals) -> None:
        for text, known in self._fleet.table():
            log.info("%(text)s", {"text": text, **known})

    def _end_by(self, number: signal.Signals) -> None:
        if self._draining:
            self._end_now_by(number)
            return
        log.info(
            "%(reason)s: no new connections; live ones have %(seconds)g s to end",
            {
                "event": "draining",
                "reason": number.name,
                "count": self._fleet.busy,
                "seconds": self._settings.drain_timeout,
            },
        )
        self._drain()

    def _end_now_by(self, number: signal.Signals) -> None:
        log.info(
            "%(reason)s: ending now",
            {"event": "ending_now", "reason": number.name, "count": self._fleet.busy},
        )
        self._end_now()

    # A reload

    def _read_again(self, waiting: Optional[Wanted]) -> Tuple[Wanted, Tuple[Judged, ...]]:
        """Runs in the child that reads. It may hang, and its time is short."""
        self._leave_with_tables()
        self._lifeline.signal_when_cut(signal.SIGALRM)
        wanted = waiting or want(
            self._settings,
            again=True,
            known=self._placeholders,
            search=lambda names, urls, _: look_up(names, urls, METADATA_PATIENCE),
        )
        return wanted, judge_again(wanted, self._fleet.known())

    def _take_over(self, wanted: Wanted, judged: Sequence[Judged]) -> None:
        try:
            changes = self._put_into_force(wanted, judged)
            # Children share what is new too.
            gc.freeze()
        finally:
            self._starting.start()
        if wanted.of_file:
            self._changes = changes
        # Wakes the master then, also if no worker does anything meanwhile.
        self._timers.after(CHANGE_TIMEOUT, lambda: None)
        self._passed.warn(wanted.services)
        set_master_title(self._fleet.title)

    def _refuse(self, error: NotPermitted) -> None:
        log.error("%(reason)s; ending", {"event": "no_longer_permitted", "reason": error})
        self._exit_code = os.EX_CONFIG
        self._drain()

    def _put_into_force(self, wanted: Wanted, judged: Sequence[Judged]) -> Changes:
        # The resolver that runs publishes by the policies from before.
        self._resolving.end()
        changes = self._fleet.put_into_force(judged)
        self._resolving.is_needed = bool(self._fleet.lookups)
        self._exporting.renew()
        self._placeholders = wanted.placeholders
        return changes

    # Children

    def _start_missing(self) -> None:
        self._starting.start()

    def _be_resolver(self) -> None:
        self._leave_with_tables()
        self._log.name("resolver", self._resolver_counts.row(0))
        resolver = Resolver(self._fleet.lookups)
        set_title(resolver.title)
        resolver.run(self._lifeline.reader)

    def _be_exporter(self, listener: Listener, serial: int) -> Optional[int]:
        close_all([*self._fleet.foreign_to(()), *self._pipes, *self._copying.descriptors])
        self._log.name("metrics", self._exporter_counts.row(0))
        set_title("metrics")
        # Imported late: no other process uses it.
        from vsock_proxy.observing.exporter import Exporter

        wake_master = Alarm(self._fleet.pools[0].board, self._alarm).wake_master
        exporter = Exporter(self._fleet.scene(), self._log.untold, self._vitals, wake_master)
        return exporter.run(listener.sock, serial, self._lifeline.reader, self._signals)

    def _foreign_to_worker(self, services: Sequence[Service]) -> List[int]:
        """The descriptors that a worker of these services may not hold."""
        return [*self._fleet.foreign_to(services), *self._ends, *self._copying.descriptors]

    @property
    def _pipes(self) -> List[int]:
        """The ends of pipes that are the master's alone."""
        pipes = [self._lifeline.writer, self._alarm_reader, self._log.untold.reader]
        return [*pipes, *self._reloading.descriptors]

    @property
    def _ends(self) -> List[int]:
        """The master's ends of pipes, and the exporter's descriptors."""
        return [*self._pipes, *self._exporting.descriptors]

    def _leave_with_tables(self) -> None:
        """Runs in a child that accepts no connections, but may look up addresses."""
        close_all([*self._fleet.listening, *self._ends, *self._copying.descriptors])

    def _leave_for_copier(self) -> None:
        close_all([*self._fleet.foreign_to(()), *self._ends])

    def _buried(self, pid: int, status: int) -> None:
        """A child has ended that Children did not fork."""
        self._reloading.buried(pid, status)
        if not self._draining:
            self._copying.buried(pid, status)

    # The end

    def _drain(self) -> None:
        if self._draining:
            return
        self._draining = True
        self._vitals.stage = Stage.DRAINING
        self._timers.clear()
        self._starting.stop()
        self._reloading.stop()
        self._announcing.stopping(self._settings.drain_timeout + 2 * END_NOW_TIMEOUT)
        self._fleet.drain()
        self._timers.after(self._settings.drain_timeout, self._drained_too_long)

    def _drained_too_long(self) -> None:
        log.warning(
            "connections that did not end in time: %(count)d; ending them now",
            {"event": "drain_timeout", "count": self._fleet.busy},
        )
        self._end_now()

    def _end_now(self) -> None:
        self._drain()
        self._timers.clear()
        self._fleet.send(signal.SIGQUIT)
        self._timers.after(END_NOW_TIMEOUT, lambda: self._fleet.send(signal.SIGKILL))
