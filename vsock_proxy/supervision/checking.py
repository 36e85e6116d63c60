"""--check: all steps before serving, and what stands in its way, a verdict a line.

It takes the steps of serving, in the same order and by the same functions. What a step refuses
becomes a verdict, and the next step follows. So serving would end with the first fault, and the
code of that fault is the exit code. What serving would only complain of is a warning.

The check changes nothing. It does not listen, makes and removes no file, and tells systemd nothing.
Each address of an endpoint gets a connection, which ends without a byte.

    step        bounded by
    file        30 s for the writer of a pipe
    metadata    30 s
    name        all at the same time, as at the start: 5 s; for the one endpoint of the command
                line, the time that the system's resolver takes
    connect     all at the same time, --connect-timeout each, and at most 10 s
"""

from __future__ import annotations

import os
import time
from typing import Iterator, List, Optional, Sequence, Tuple, Union

from vsock_proxy.config import loading, metadata
from vsock_proxy.config.loading import Configuration
from vsock_proxy.config.places import TcpPlace, place_of, tcp_place, tcp_place_of, unix_place
from vsock_proxy.errors import ProxyError, TryAgainError
from vsock_proxy.observing.verdicts import FAULT, OK, WARNING, Verdicts
from vsock_proxy.process.signals import Interrupted, Signals
from vsock_proxy.process.titles import find_room, set_title
from vsock_proxy.serving.listener import check_tcp, check_unix, check_vsock
from vsock_proxy.serving.passed import Passed
from vsock_proxy.settings import ServiceSettings, Settings
from vsock_proxy.supervision.judging import Wanted, names_of
from vsock_proxy.supervision.limits import ensure_files
from vsock_proxy.supervision.probing import TITLE
from vsock_proxy.supervision.reaching import Endpoints, has_name
from vsock_proxy.supervision.surroundings import (
    tell_of_backlog,
    tell_of_files,
    tell_of_processes,
    tell_of_vsock,
)
from vsock_proxy.supervision.systemd import inherited_sockets
from vsock_proxy.supervision.wanting import asked_for, fill_in
from vsock_proxy.words import counted

# Besides the workers and a thread for each name: the master, the resolver, and a reload.
OTHER_PROCESSES = 3


def check(settings: Settings, signals: Signals, verdicts: Verdicts) -> int:
    """Check everything; returns the exit code that serving would have. Raises TryAgainError."""
    find_room()
    # With this title, nobody who signals the master by its name signals a check.
    set_title(TITLE)
    run = _Check(settings, signals, verdicts)
    try:
        signals.unless_told_to_end(run.run)
    except Interrupted:
        raise TryAgainError("told to end before all was checked") from None
    return verdicts.exit_code


class _Check:
    def __init__(self, settings: Settings, signals: Signals, verdicts: Verdicts) -> None:
        self._settings = settings
        self._signals = signals
        self._verdicts = verdicts
        # The services that are asked for, as far as they are known.
        self._services: Sequence[ServiceSettings] = ()
        if settings.service is not None:
            self._services = (settings.service,)
        # Where the proxy would already listen before it comes to the next place.
        self._on_paths: List[str] = []
        self._on_tcp: List[TcpPlace] = []

    def run(self) -> None:
        has_files = self._verdicts.passes("files", lambda: ensure_files(1))
        passed = self._verdicts.unless_refused(
            "passed", lambda: Passed(inherited_sockets(os.environ))
        )
        wanted = self._wanted()
        if wanted is not None:
            Endpoints(self._signals, self._verdicts).run(wanted)
            if passed is not None:
                self._verdicts.passes("passed", lambda: passed.check(self._services))
        if self._services:
            self._limits(has_files)
        if any(map(_uses_vsock, self._services)):
            tell_of_vsock(self._verdicts)
        for name, service in self._named():
            self._listener(name, service, passed)
        self._metrics()
        self._outcome()

    def _named(self) -> Iterator[Tuple[str, ServiceSettings]]:
        return zip(names_of(self._services), self._services)

    # The file, and what it permits

    def _wanted(self) -> Optional[Wanted]:
        settings = self._settings
        configuration = self._verdicts.unless_refused("file", lambda: loading.load(settings.config))
        if configuration is None:
            return None
        entries = len(configuration.allowlist.entries)
        self._verdicts.tell(
            OK if entries else WARNING,
            "file",
            f"file {settings.config} is read: {_of_file(entries)}",
            count=entries,
        )
        refused: List[ProxyError] = []
        services = self._verdicts.unless_refused(
            "file", lambda: asked_for(settings, configuration, refused.append)
        )
        for error in refused:
            self._verdicts.refuse("file", error)
        if not services:
            return None
        self._services = services
        self._verdicts.are_several = len(services) + len(refused) > 1
        if settings.service is None and not refused:
            text = f"file {settings.config} lists {counted(len(services), 'service')}"
            self._verdicts.tell(OK, "file", text, count=len(services))
        return self._filled(configuration, services)

    def _filled(
        self, configuration: Configuration, services: Sequence[ServiceSettings]
    ) -> Optional[Wanted]:
        search = metadata.look_up_apart(self._signals)
        began = time.monotonic()
        wanted = self._verdicts.unless_refused(
            "metadata",
            lambda: fill_in(self._settings, configuration, services, search=search),
        )
        if wanted is None:
            # The services without placeholders are known anyway.
            known = tuple(one for one in services if not metadata.placeholders([one.endpoint.host]))
            return Wanted(configuration.allowlist, known, self._settings.service is None)
        self._services = wanted.services
        if wanted.placeholders:
            seconds = time.monotonic() - began
            values = ", ".join(f"{name} is {value}" for name, value in wanted.placeholders.items())
            self._verdicts.tell(
                OK, "metadata", f"{values} (after {seconds:.3f} s)", seconds=seconds
            )
        return wanted

    # The machine

    def _limits(self, has_files: bool) -> None:
        services = len(self._services)
        # A limit too low for one service has its verdict already.
        if has_files and self._verdicts.passes("files", lambda: ensure_files(services)):
            tell_of_files(self._verdicts, services)
        names = len({service.endpoint.host for service in self._services if has_name(service)})
        others = OTHER_PROCESSES + (self._settings.metrics is not None)
        tell_of_processes(self._verdicts, self._workers + names + others)
        tell_of_backlog(self._verdicts, self._workers)

    @property
    def _workers(self) -> int:
        own = [service.workers for service in self._services]
        shared = self._settings.workers if None in own else 0
        return shared + sum(workers or 0 for workers in own)

    # Listening

    def _listener(self, name: str, service: ServiceSettings, passed: Optional[Passed]) -> None:
        place = place_of(service)
        if passed is not None and passed.has(service):
            self._verdicts.tell(OK, "listener", f"systemd passes {place}", name)
        else:
            on_tcp = tcp_place_of(service)
            self._place("listener", place, service.path, on_tcp or service.local_port, name)

    def _metrics(self) -> None:
        metrics = self._settings.metrics
        if metrics is not None:
            on_tcp = TcpPlace(metrics.host, metrics.port)
            place = unix_place(metrics.path) if metrics.path else tcp_place(*on_tcp)
            self._place("metrics", f"{place}, for metrics,", metrics.path, on_tcp)

    def _place(
        self,
        check: str,
        words: str,
        path: Optional[str],
        port: Union[TcpPlace, int],
        name: str = "",
    ) -> None:
        """Whether the proxy could listen there: on a path, else on TCP, else on a vsock port."""
        try:
            if path is not None:
                check_unix(path, self._on_paths)
                self._on_paths.append(path)
            elif isinstance(port, TcpPlace):
                check_tcp(port, self._on_tcp)
                self._on_tcp.append(port)
            else:
                check_vsock(port)
        except ProxyError as error:
            self._verdicts.tell(FAULT, check, str(error), name, exit_code=error.exit_code)
        else:
            self._verdicts.tell(OK, check, f"{words} is free", name)

    def _outcome(self) -> None:
        code = self._verdicts.exit_code
        if code:
            self._verdicts.tell(
                FAULT, "outcome", f"the proxy would not start: exit code {code}", exit_code=code
            )
            return
        what = (
            f"the proxy would start: {counted(len(self._services), 'service')}, "
            f"{counted(self._workers, 'worker')}"
        )
        warnings = self._verdicts.warnings
        text = f"{what}; {counted(warnings, 'warning')}" if warnings else what
        self._verdicts.tell(OK, "outcome", text, count=len(self._services), exit_code=code)


def _of_file(entries: int) -> str:
    if entries:
        return f"the allowlist has {entries} " + ("entry" if entries == 1 else "entries")
    return "the allowlist is empty, so it permits nothing"


def _uses_vsock(service: ServiceSettings) -> bool:
    over_vsock = service.path is None and service.options.listen_tcp is None
    return over_vsock or service.endpoint.cid is not None
