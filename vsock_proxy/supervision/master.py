"""The master: starts the workers, replaces those that die, and does what signals ask for.

It never touches a connection. It sleeps in poll() until a signal comes, a worker ends, an alarm is
raised or something is due, so an idle proxy makes no system call at all.

    SIGTERM, SIGINT   stop accepting, let live connections end, at most --drain-timeout
    the same again    end everything now; SIGQUIT does that at once
    SIGHUP            read the allowlist again
    SIGUSR1           write the scoreboard to the log

The workers are told by SIGTERM and SIGQUIT, and by the lifeline if the master dies.
"""

from __future__ import annotations

import gc
import logging
import os
import resource
import select
import signal
import time
from dataclasses import replace
from typing import Callable, Dict, List, Optional, Tuple

from vsock_proxy.config import loading, metadata
from vsock_proxy.config.hostnames import parse_address
from vsock_proxy.endpoint.addresses import AddressTable
from vsock_proxy.endpoint.policy import NotPermitted
from vsock_proxy.endpoint.resolver import Lookup, Resolver
from vsock_proxy.errors import TryAgainError, UnavailableError
from vsock_proxy.observing import report
from vsock_proxy.observing.copier import Copier
from vsock_proxy.observing.logs import Log
from vsock_proxy.observing.saturation import Alarm, Watch
from vsock_proxy.observing.scoreboard import Scoreboard
from vsock_proxy.observing.stderr import Stderr
from vsock_proxy.observing.teller import Teller
from vsock_proxy.observing.untold import Untold
from vsock_proxy.process.forking import fork
from vsock_proxy.process.immortal import make_all_immortal
from vsock_proxy.process.lifeline import Lifeline
from vsock_proxy.process.signals import Interrupted, Signals
from vsock_proxy.process.titles import set_master_title, set_title
from vsock_proxy.serving.listener import Listener
from vsock_proxy.serving.passed import Passed
from vsock_proxy.serving.route import Route
from vsock_proxy.serving.upstream import Upstream
from vsock_proxy.serving.worker import Duty, Worker
from vsock_proxy.settings import Settings
from vsock_proxy.supervision.judging import (
    Judged,
    Wanted,
    judge_at_start,
    put_into_force,
    question_of,
)
from vsock_proxy.supervision.pacer import Pacer
from vsock_proxy.supervision.reloading import Reloading
from vsock_proxy.supervision.shortage import Shortage
from vsock_proxy.supervision.systemd import Notifier, inherited_sockets, summary

# Seconds that a worker has to end a connection at once before it is killed.
END_NOW_TIMEOUT = 2.0
# Seconds that the master waits for a resolver that it has killed.
END_RESOLVER_TIMEOUT = 0.5
# Seconds until what could not be started, or told to systemd, is tried again.
START_AGAIN = 1.0
NOTIFY_AGAIN = 0.5
# Descriptors that a worker may need at one time, with some to spare.
NEEDED_FILES = 64

log = logging.getLogger(__name__)


def serve(settings: Settings, signals: Signals, stderr: Stderr) -> int:
    """Serve until told to stop; returns the exit code. Raises ProxyError if it cannot start."""
    _raise_file_limit()
    if stderr.is_own:
        return _serve(settings, signals, stderr, None)
    copier = Copier(stderr, signals)
    try:
        copier.start()
    except OSError as error:
        raise TryAgainError(f"cannot start a process for the log: {error.strerror}") from None
    try:
        return _serve(settings, signals, stderr, copier)
    finally:
        copier.finish()


def _serve(settings: Settings, signals: Signals, stderr: Stderr, copier: Optional[Copier]) -> int:
    # A row for the master, one for each worker, the last for the resolver.
    untold = Untold(settings.workers + 2)
    log_output = Log(settings.log_level, stderr, untold)
    log_output.name("master", 0)
    notifier = Notifier(os.environ)
    passed = Passed(inherited_sockets(os.environ))
    try:
        judged = signals.unless_told_to_end(lambda: _judge(settings, signals))
    except Interrupted:
        log.info("told to end before the start was complete")
        return os.EX_OK
    passed.check([judged.settings])
    listener = passed.open(judged.settings)
    try:
        return Master(settings, judged, log_output, copier, notifier, listener, signals).run()
    except BaseException:
        listener.remove()
        raise


def _judge(settings: Settings, signals: Signals) -> Judged:
    """Everything at start that may have to be waited for: metadata, the allowlist, DNS."""
    service = settings.service
    names = metadata.placeholders([service.endpoint.host])
    values = metadata.values(names, search=metadata.look_up_apart(signals))
    host = metadata.fill(service.endpoint.host, values)
    service = replace(service, endpoint=replace(service.endpoint, host=host))
    wanted = Wanted(loading.load(settings.config).allowlist, (service,), of_file=False)
    (judged,) = judge_at_start(wanted, signals)
    return judged


class Master:
    """One run of the proxy."""

    def __init__(
        self,
        settings: Settings,
        judged: Judged,
        log_output: Log,
        copier: Optional[Copier],
        notifier: Notifier,
        listener: Listener,
        signals: Signals,
    ) -> None:
        self._settings = settings = replace(settings, service=judged.settings)
        self._log = log_output
        self._copier = copier
        self._teller = Teller(log_output)
        self._notifier = notifier
        self._policy = judged.policy
        self._listener = listener
        self._table = AddressTable(settings.service.endpoint.port)
        put_into_force(judged, self._table)
        self._board = Scoreboard(settings.workers)
        self._lifeline = Lifeline()
        self._alarm_reader, alarm = _non_blocking_pipe()
        self._watch = Watch(self._board, self._alarm_reader)
        self._signals = signals
        options = settings.service.options
        route = Route(
            str(settings.service.local_port),
            listener,
            settings.service.endpoint,
            Upstream(self._table, options.connect_timeout),
            options.allowed_cids,
            options.idle_timeout,
        )
        self._duty = Duty((route,), self._board, Alarm(self._board, alarm))
        # Made here once for all: what a child has to make, it has to keep for itself.
        self._worker = Worker(signals, self._lifeline, log_output.untold)
        # One each: the resolver must not wait for its turn behind a hundred workers.
        self._worker_pacer, self._resolver_pacer, self._copier_pacer = Pacer(), Pacer(), Pacer()
        self._workers: Dict[int, int] = {}
        # The numbers of the workers that are to be started.
        self._missing = list(range(1, settings.workers + 1))
        self._shortage = Shortage(settings.workers)
        self._starts_again = self._notifies_again = False
        self._ready = False
        self._resolver: Optional[int] = None
        self._poll = select.poll()
        self._reloading = Reloading(
            signals,
            self._poll,
            settings.config,
            self._read_again,
            lambda: {question_of(settings.service): self._table.current()},
            self._be_reader,
            self._take_over,
            self._refuse,
            self._reloaded,
        )
        # What to do when: the restarts that are due, and the next step of ending.
        self._timers: List[Tuple[float, Callable[[], None]]] = []
        self._draining = False
        self._exit_code = os.EX_OK

    def run(self) -> int:
        """Start everything, supervise, and return the exit code when all has ended."""
        self._worker.rehearse(self._duty)
        self._log.rehearse()
        set_master_title(
            f"{self._settings.service.local_port} -> {self._settings.service.endpoint}"
        )
        # What the master has made is shared by all children as long as nobody writes to it.
        gc.collect()
        make_all_immortal()
        gc.freeze()
        self._start_children()
        self._supervise()
        # Not before: a client may have been waiting for the first answer.
        self._end_resolver()
        self._teller.look(time.monotonic())
        log.info("ended; %s", report.totals(self._board.rows()))
        return self._exit_code

    def _supervise(self) -> None:
        poll = self._poll
        poll.register(self._signals.reader, select.POLLIN)
        poll.register(self._alarm_reader, select.POLLIN)
        while self._workers or not self._draining:
            self._teller.watch_by(poll)
            events = poll.poll(self._patience())
            now = time.monotonic()
            for fd, _ in events:
                if fd == self._alarm_reader:
                    self._watch.begin(now)
                self._teller.told_by(fd, now)
                self._reloading.told_by(fd, now)
            self._obey()
            self._reap()
            self._tell_ready()
            self._run_due()
            self._notify_again_if_need_be()

    def _patience(self) -> Optional[float]:
        """Milliseconds until something is due."""
        due = [when for when, _ in self._timers]
        others = (self._watch.due, self._teller.due, self._reloading.due)
        due += [when for when in others if when is not None]
        return max(0.0, (min(due) - time.monotonic()) * 1000) if due else None

    def _run_due(self) -> None:
        now = time.monotonic()
        if self._watch.due is not None and self._watch.due <= now:
            self._watch.look(now)
        if self._teller.due is not None and self._teller.due <= now:
            self._teller.look(now)
        self._reloading.look(now)
        due = [action for when, action in self._timers if when <= now]
        self._timers = [timer for timer in self._timers if timer[0] > now]
        for action in due:
            action()

    def _tell_ready(self) -> None:
        """Once the first worker serves."""
        if self._ready or self._draining or not self._board.serving:
            return
        self._ready = True
        log.info(
            "%s -> %s, %d worker%s",
            self._listener.name,
            self._settings.service.endpoint,
            self._settings.workers,
            "s" if self._settings.workers > 1 else "",
        )
        self._notifier.ready()
        self._tell_status()

    def _obey(self) -> None:
        for number in self._signals.take():
            self._act_on(number)

    def _act_on(self, number: int) -> None:
        if number == signal.SIGCHLD:
            # Children are looked after whatever it is that wakes.
            pass
        elif number == signal.SIGHUP:
            self._reload()
        elif number == signal.SIGUSR1:
            for line in report.table(self._board.rows(), time.monotonic_ns()):
                log.info("%s", line)
        elif number == signal.SIGQUIT or self._draining:
            log.info("%s: ending now", signal.Signals(number).name)
            self._end_now()
        else:
            log.info(
                "%s: no new connections, those that live have %g s",
                signal.Signals(number).name,
                self._settings.drain_timeout,
            )
            self._drain()

    def _tell_status(self) -> None:
        """Tell systemd how it goes, again and again where there is one to be told."""
        if self._notifier.interval is None:
            return
        self._notifier.status(summary(1, self._board.busy(), self._board.rows()))
        self._notifier.watchdog()
        self._schedule(self._notifier.interval, self._tell_status)

    def _notify_again_if_need_be(self) -> None:
        if self._notifier.unsent and not self._notifies_again:
            self._notifies_again = True
            self._schedule(NOTIFY_AGAIN, self._notify_again)

    def _notify_again(self) -> None:
        self._notifies_again = False
        self._notifier.send()

    # Children

    def _start_children(self) -> None:
        """Start what is not there. One that cannot be started means that none can: try later."""
        if self._draining or self._starts_again:
            return
        try:
            self._start_resolver()
            while self._missing:
                self._start_worker(self._missing[0])
                del self._missing[0]
        except OSError as error:
            lacks_resolver = self._resolver is None and self._is_looked_up()
            self._shortage.lasts(len(self._missing), lacks_resolver, error, time.monotonic())
            self._starts_again = True
            self._schedule(START_AGAIN, self._start_again)
        else:
            self._shortage.is_over()

    def _start_again(self) -> None:
        self._starts_again = False
        self._start_children()

    def _start_worker(self, number: int) -> None:
        """Raises OSError if it cannot be started."""
        self._workers[fork(self._signals, lambda: self._be_worker(number))] = number

    def _be_worker(self, number: int) -> None:
        self._leave_master()
        self._log.name(f"worker {number}", number)
        self._worker.run(self._duty, number)

    def _start_resolver(self) -> None:
        """Raises OSError if it cannot be started."""
        if self._is_looked_up() and self._resolver is None:
            self._resolver = fork(self._signals, self._be_resolver)

    def _is_looked_up(self) -> bool:
        """Whether what the endpoint is may change: that of a name, and of a zone's interface."""
        host = self._settings.service.endpoint.host
        return parse_address(host) is None or "%" in host

    def _be_resolver(self) -> None:
        self._leave_master()
        self._listener.close()
        self._log.name("resolver", self._settings.workers + 1)
        interval = self._settings.service.options.resolve_interval
        resolver = Resolver([Lookup(self._table, self._policy, interval)])
        set_title(resolver.title)
        resolver.run(self._lifeline.reader)

    def _be_reader(self) -> None:
        self._leave_master()
        self._listener.close()

    def _leave_master(self) -> None:
        """In a child: close what only the master may hold."""
        self._close_ends()
        if self._copier is not None:
            self._copier.leave()

    def _start_copier(self) -> None:
        if self._copier is None:
            return
        try:
            self._copier.start(self._leave_for_copier)
        except OSError:
            # There is no log to say it in.
            self._schedule(START_AGAIN, self._start_copier)

    def _leave_for_copier(self) -> None:
        self._listener.close()
        self._close_ends()

    def _close_ends(self) -> None:
        """The ends of pipes that are the master's."""
        os.close(self._lifeline.writer)
        os.close(self._alarm_reader)
        os.close(self._log.untold.reader)
        self._reloading.leave()

    def _reap(self) -> None:
        while True:
            try:
                dead = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            except ChildProcessError:
                return
            if dead is None:
                return
            # A signal to the whole group that ended it has reached this process before.
            self._obey()
            pid, status = os.waitpid(dead.si_pid, 0)
            self._reloading.buried(pid, status)
            self._buried(pid, os.waitstatus_to_exitcode(status))

    def _buried(self, pid: int, exit_code: int) -> None:
        if pid == self._resolver:
            self._resolver = None
            self._replace("resolver", exit_code, self._resolver_pacer, self._start_children)
        elif self._copier is not None and pid == self._copier.pid:
            self._copier.pid = None
            self._replace("log", exit_code, self._copier_pacer, self._start_copier)
        elif pid in self._workers:
            number = self._workers.pop(pid)
            line = report.cut_short(
                self._board.row(number), self._settings.service.endpoint, time.monotonic_ns()
            )
            if line is not None:
                log.warning("%s", line)
            self._board.vacate(number)
            self._watch.suspect(time.monotonic())
            self._replace(
                f"worker {number}", exit_code, self._worker_pacer, lambda: self._miss(number)
            )

    def _replace(self, name: str, exit_code: int, pacer: Pacer, start: Callable[[], None]) -> None:
        """Start another in the place of a process that has ended."""
        if self._draining:
            return
        now = time.monotonic()
        delay = pacer.next(now) - now
        when = f" in {delay:.1f} s, too many have ended" if delay else ""
        # A worker that somebody told to end did nothing wrong.
        level = logging.WARNING if exit_code else logging.INFO
        log.log(level, "%s ended, %s; starting another%s", name, _cause(exit_code), when)
        self._schedule(delay, start)

    def _miss(self, number: int) -> None:
        self._missing.append(number)
        self._start_children()

    def _schedule(self, delay: float, action: Callable[[], None]) -> None:
        self._timers.append((time.monotonic() + delay, action))

    # Reload

    def _reload(self) -> None:
        if self._draining:
            return
        if self._ready:
            self._notifier.reloading()
        self._reloading.ask(time.monotonic())

    def _reloaded(self) -> None:
        if self._ready and not self._draining:
            self._notifier.ready()

    def _read_again(self) -> Wanted:
        """In the child that reads the file again."""
        permitted = loading.load(self._settings.config, patience=0).allowlist
        return Wanted(permitted, (self._settings.service,), of_file=False)

    def _take_over(self, found: Tuple[Judged, ...]) -> bool:
        (judged,) = found
        self._end_resolver()
        put_into_force(judged, self._table)
        self._policy = judged.policy
        self._start_children()
        return True

    def _refuse(self, error: NotPermitted) -> None:
        log.error("%s; ending", error)
        self._exit_code = os.EX_CONFIG
        self._drain()

    def _end_resolver(self) -> None:
        """End it for good before its successor: it would publish by the old policy."""
        if self._resolver is None:
            return
        # Not SIGTERM, which a stopped process would not see. The table is whole whenever it dies.
        os.kill(self._resolver, signal.SIGKILL)
        deadline = time.monotonic() + END_RESOLVER_TIMEOUT
        while not os.waitpid(self._resolver, os.WNOHANG)[0] and time.monotonic() < deadline:
            time.sleep(0.001)
        # One that is still there hangs in the kernel, and will never come back from it to publish.
        self._resolver = None

    # The end

    def _drain(self) -> None:
        if self._draining:
            return
        self._draining = True
        self._watch.end()
        self._listener.close()
        self._listener.remove()
        self._notifier.stopping(self._settings.drain_timeout + 2 * END_NOW_TIMEOUT)
        self._timers.clear()
        self._notifies_again = False
        self._reloading.stop()
        self._tell_status()
        self._kill_all(signal.SIGTERM)
        self._schedule(self._settings.drain_timeout, self._drained_too_long)

    def _drained_too_long(self) -> None:
        log.warning("connections that did not end in time: %d; ending them now", len(self._workers))
        self._end_now()

    def _end_now(self) -> None:
        self._drain()
        self._timers.clear()
        self._notifies_again = False
        self._kill_all(signal.SIGQUIT)
        self._schedule(END_NOW_TIMEOUT, lambda: self._kill_all(signal.SIGKILL))

    def _kill_all(self, number: signal.Signals) -> None:
        # A pid stays that of our child, dead or not, until _reap() takes it out.
        for pid in self._workers:
            os.kill(pid, number)


def _cause(exit_code: int) -> str:
    if exit_code < 0:
        return f"signal {-exit_code} ({signal.strsignal(-exit_code)})"
    return f"exit code {exit_code}"


def _non_blocking_pipe() -> Tuple[int, int]:
    reader, writer = os.pipe()
    os.set_blocking(reader, False)
    os.set_blocking(writer, False)
    return reader, writer


def _raise_file_limit() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft >= NEEDED_FILES or soft == resource.RLIM_INFINITY:
        return
    if hard < NEEDED_FILES and hard != resource.RLIM_INFINITY:
        raise UnavailableError(
            f"the limit of open files is {hard}, {NEEDED_FILES} are needed; raise it with "
            "LimitNOFILE= in the unit or ulimit -n"
        )
    resource.setrlimit(resource.RLIMIT_NOFILE, (NEEDED_FILES, hard))
