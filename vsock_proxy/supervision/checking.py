"""--check: everything that comes before serving, and what stands in its way, a verdict a line.

Each step is one that serving takes, in the same order and by the same functions; only what they
refuse is told, and not raised. So the first fault is the one with which serving would end, and its
code is the exit code. What serving would merely complain of is a warning.

Nothing is changed. No listener listens, no file is made or removed, and systemd is told nothing. An
endpoint sees a connection to each of its addresses, which ends without a byte.

    step        bounded by
    file        30 s for the writer of a pipe
    metadata    30 s
    name        all at the same time, as at the start: 5 s, or for the one endpoint of the command
                line what the system's resolver takes
    connect     all at the same time, --connect-timeout each, and at most LONGEST_ATTEMPT
"""

from __future__ import annotations

import errno
import os
import resource
import socket
import time
from typing import (
    Callable,
    Dict,
    Iterator,
    List,
    Mapping,
    Optional,
    Sequence,
    Set,
    Tuple,
    TypeVar,
    Union,
)

from vsock_proxy.config import loading, metadata
from vsock_proxy.config.hostnames import parse_address
from vsock_proxy.config.loading import Configuration
from vsock_proxy.config.places import TcpPlace, place_of, tcp_place, tcp_place_of, unix_place
from vsock_proxy.endpoint.addresses import MAX_ADDRESSES, Address
from vsock_proxy.endpoint.lookup import Answer, LookupFailed, Question
from vsock_proxy.endpoint.policy import described, make_policy
from vsock_proxy.errors import ProxyError, TryAgainError
from vsock_proxy.observing.verdicts import FAULT, OK, WARNING, Verdict, Verdicts
from vsock_proxy.process.signals import Interrupted, Signals
from vsock_proxy.process.titles import find_room, set_title
from vsock_proxy.serving.listener import check_tcp, check_unix, check_vsock
from vsock_proxy.serving.passed import Passed
from vsock_proxy.settings import ServiceSettings, Settings
from vsock_proxy.supervision.judging import (
    Judged,
    Wanted,
    check_doubts,
    judge,
    names_of,
    patience_of,
    question_of,
    warn_of_doubts,
)
from vsock_proxy.supervision.limits import ensure_files, needed_files
from vsock_proxy.supervision.probing import (
    TITLE,
    Outcome,
    Target,
    Timed,
    connect_timed,
    look_up_timed,
)
from vsock_proxy.supervision.surroundings import (
    tell_of_backlog,
    tell_of_processes,
    tell_of_vsock,
)
from vsock_proxy.supervision.systemd import inherited_sockets
from vsock_proxy.supervision.wanting import asked_for, fill_in
from vsock_proxy.words import counted

# Seconds; who waits for a check waits no longer for one endpoint.
LONGEST_ATTEMPT = 10.0
# Beside the workers, and a thread for each name: the master, the resolver, and who reloads.
OTHER_PROCESSES = 3
# How many of a list of addresses a line has.
MOST_SHOWN = 8
FAMILIES = {socket.AF_INET: "IPv4", socket.AF_INET6: "IPv6"}
FAMILY_OPTIONS = {
    socket.AF_INET: "-4, or family: ipv4",
    socket.AF_INET6: "-6, or family: ipv6",
}
NO_ROUTE = "this machine has no route to it: see `ip route get ADDRESS`"
# What to do where TCP does not connect, by errno; 0: nobody answered. The other upstreams say it.
TCP_ADVICE = {
    0: "look at routes, security groups and firewalls, or raise --connect-timeout",
    errno.ETIMEDOUT: "look at routes, security groups and firewalls",
    errno.ECONNREFUSED: "nothing listens on that port there, or a firewall refuses",
    errno.ENETUNREACH: NO_ROUTE,
    errno.EHOSTUNREACH: NO_ROUTE,
    errno.EADDRNOTAVAIL: "no local port is left, or this machine has no address of that family",
    errno.EACCES: "a firewall, a sandbox or a security module forbids it",
    errno.EPERM: "a firewall, a sandbox or a security module forbids it",
    errno.EAFNOSUPPORT: "the system has no such addresses, or the unit's RestrictAddressFamilies= "
    "none",
}
T = TypeVar("T")


def check(settings: Settings, signals: Signals, verdicts: Verdicts) -> int:
    """Check everything; returns the exit code that serving would have. Raises TryAgainError."""
    find_room()
    # By the name of the program only a master is found, for signals that mean more to that.
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
        # What is asked for, as far as that is known.
        self._services: Sequence[ServiceSettings] = ()
        if settings.service is not None:
            self._services = (settings.service,)
        # Whether a line has to name its service.
        self._are_several = False
        # Where the proxy would listen on TCP already, when it comes to the next place.
        self._on_tcp: List[TcpPlace] = []

    def run(self) -> None:
        self._unless_refused("files", lambda: ensure_files(1))
        passed = self._unless_refused("passed", lambda: Passed(inherited_sockets(os.environ)))
        wanted = self._wanted()
        if wanted is not None:
            self._endpoints(wanted)
            if passed is not None:
                self._unless_refused("passed", lambda: passed.check(wanted.services))
        if self._services:
            self._limits()
        if any(map(_uses_vsock, self._services)):
            tell_of_vsock(self._tell)
        for name, service in self._named():
            self._listener(name, service, passed)
        self._metrics()
        self._outcome()

    # Telling

    def _tell(self, level: int, check: str, text: str, service: str = "", **known: object) -> None:
        """service: its name; the line has it where there are several."""
        if service:
            known["service"] = service
        named = f"{service}: {text}" if service and self._are_several else text
        self._verdicts.say(Verdict(level, check, named, known))

    def _refused(self, check: str, error: ProxyError, service: str = "") -> None:
        known = {"service": service} if service else {}
        # A service of the file is named by the error itself.
        self._verdicts.say(
            Verdict(FAULT, check, str(error), {**known, "exit_code": error.exit_code})
        )

    def _unless_refused(self, check: str, step: Callable[[], T]) -> Optional[T]:
        """What a step of serving returns, None if it would end the start."""
        try:
            return step()
        except ProxyError as error:
            self._refused(check, error)
            return None

    def _named(self) -> Iterator[Tuple[str, ServiceSettings]]:
        return zip(names_of(self._services), self._services)

    # The file, and what it permits

    def _wanted(self) -> Optional[Wanted]:
        settings = self._settings
        configuration = self._unless_refused("file", lambda: loading.load(settings.config))
        if configuration is None:
            return None
        entries = len(configuration.allowlist.entries)
        self._tell(
            OK if entries else WARNING,
            "file",
            f"file {settings.config} is read: {_of_file(entries)}",
            count=entries,
        )
        refused: List[ProxyError] = []
        services = self._unless_refused(
            "file", lambda: asked_for(settings, configuration, refused.append)
        )
        for error in refused:
            self._refused("file", error)
        if not services:
            return None
        self._services = services
        self._are_several = len(services) + len(refused) > 1
        if settings.service is None and not refused:
            text = f"file {settings.config} lists {counted(len(services), 'service')}"
            self._tell(OK, "file", text, count=len(services))
        return self._filled(configuration, services)

    def _filled(
        self, configuration: Configuration, services: Sequence[ServiceSettings]
    ) -> Optional[Wanted]:
        search = metadata.look_up_apart(self._signals)
        began = time.monotonic()
        wanted = self._unless_refused(
            "metadata",
            lambda: fill_in(self._settings, configuration, services, search=search),
        )
        if wanted is None:
            return None
        self._services = wanted.services
        if wanted.placeholders:
            seconds = time.monotonic() - began
            values = ", ".join(f"{name} is {value}" for name, value in wanted.placeholders.items())
            self._tell(OK, "metadata", f"{values} (after {seconds:.3f} s)", seconds=seconds)
        return wanted

    # Endpoints

    def _endpoints(self, wanted: Wanted) -> None:
        refusals: Dict[int, ProxyError] = {}

        def refuse(service: ServiceSettings, error: ProxyError) -> None:
            refusals[id(service)] = error

        questions = _questions(wanted)
        # What only helps to say why a name has no address of the family that is asked for.
        others = {
            _question_of_other_family(one)
            for one in wanted.services
            if question_of(one) in questions
        }
        answers = look_up_timed(self._signals, questions | others, patience_of(wanted))
        judged = judge(wanted, {}, lambda questions: _untimed(answers), refuse)
        by_service = {id(one.settings): one for one in judged}
        outcomes = connect_timed(
            self._signals,
            {target for one in judged for target in _targets(one, answers)},
        )
        for name, service in self._named():
            one = by_service.get(id(service))
            timed = answers.get(question_of(service))
            if one is None:
                if timed is not None:
                    self._resolved(name, service, answers)
                self._refused("permitted", refusals[id(service)], name)
                continue
            self._permitted(name, one)
            if timed is not None and not one.unresolved:
                self._resolved(name, service, answers)
                self._addresses(name, one, timed)
            for target in _targets(one, answers):
                self._connected(name, one, target, outcomes[target])
        self._unless_refused("permitted", lambda: check_doubts(wanted, judged))
        if wanted.of_file:
            warn_of_doubts(judged)

    def _permitted(self, name: str, one: Judged) -> None:
        entry, endpoint = one.policy.entry(), one.settings.endpoint
        if entry is not None:
            text = f"{endpoint} is permitted by the {entry.kind} {described(entry)}"
        elif not one.unresolved:
            text = f"{endpoint} is not on the allowlist by its name, but by addresses"
        else:
            return
        self._tell(OK, "permitted", text, name)

    def _resolved(
        self, name: str, service: ServiceSettings, answers: Mapping[Question, Timed]
    ) -> None:
        answer, seconds = answers[question_of(service)]
        host = service.endpoint.host
        if not isinstance(answer, LookupFailed):
            text = f"{host} resolves in {seconds:.3f} s to {_by_family(answer)}"
            self._tell(OK, "name", text, name, seconds=seconds, count=len(answer))
            return
        other, _ = answers.get(_question_of_other_family(service), (answer, 0.0))
        if isinstance(other, LookupFailed):
            what = f"does not resolve: {answer} (after {seconds:.3f} s)"
            remedy = "check DNS and the spelling of the name"
        else:
            family = service.options.family
            what = f"has no {FAMILIES[family]} address, only {_by_family(other)}"
            remedy = f"leave out {FAMILY_OPTIONS[family]}"
        text = f"{host} {what}; clients wait until it has an address; {remedy}"
        self._tell(WARNING, "name", text, name, seconds=seconds, reason=answer)

    def _addresses(self, name: str, one: Judged, timed: Timed) -> None:
        """Which of the addresses that DNS gives are used, and why."""
        answer, _ = timed
        if isinstance(answer, LookupFailed):
            return
        host, permitted = one.settings.endpoint.host, one.policy.choose(answer)
        for address in answer:
            if address not in permitted:
                self._tell(WARNING, "permitted", _not_used(one, address), name, upstream=address)
            elif one.by_dns:
                self._tell(OK, "permitted", _by_entry(one, address), name, upstream=address)
        if len(permitted) > MAX_ADDRESSES:
            text = f"{host} has {len(permitted)} addresses; only the first {MAX_ADDRESSES} are used"
            self._tell(WARNING, "name", text, name, count=len(permitted))

    def _connected(self, name: str, one: Judged, target: Target, outcome: Outcome) -> None:
        where = target.address or target.endpoint
        known = {"upstream": where, "seconds": outcome.seconds}
        after = f"{outcome.seconds:.3f} s"
        if not outcome.error:
            self._tell(OK, "connect", f"connected to {where} in {after}", name, **known)
            return
        if target.address is None:
            text = f"cannot connect to {where}: {outcome.error}"
        else:
            # Who tries several addresses names each.
            advice = TCP_ADVICE.get(outcome.code)
            text = f"cannot connect to {outcome.error}" + (f"; {advice}" if advice else "")
        text = f"{text} (after {after})"
        code = {"errno": outcome.code} if outcome.code else {}
        self._tell(WARNING, "connect", text, name, **known, reason=outcome.error, **code)

    # The machine

    def _limits(self) -> None:
        services = len(self._services)
        if self._unless_refused("files", lambda: _ensured(services)):
            _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
            most = "any number" if hard == resource.RLIM_INFINITY else str(hard)
            needed = needed_files(services)
            text = f"open files: a process needs {needed}, and may have {most}"
            self._tell(OK, "files", text, count=needed)
        names = len({service.endpoint.host for service in self._services if _has_name(service)})
        others = OTHER_PROCESSES + (self._settings.metrics is not None)
        tell_of_processes(self._tell, self._workers + names + others)
        tell_of_backlog(self._tell, self._workers)

    @property
    def _workers(self) -> int:
        own = [service.workers for service in self._services]
        shared = self._settings.workers if None in own else 0
        return shared + sum(workers or 0 for workers in own)

    # Listening

    def _listener(self, name: str, service: ServiceSettings, passed: Optional[Passed]) -> None:
        place = place_of(service)
        if passed is not None and passed.has(service):
            self._tell(OK, "listener", f"systemd passes {place}", name)
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
                check_unix(path)
            elif isinstance(port, TcpPlace):
                check_tcp(port, self._on_tcp)
                self._on_tcp.append(port)
            else:
                check_vsock(port)
        except ProxyError as error:
            self._tell(FAULT, check, str(error), name, exit_code=error.exit_code)
        else:
            self._tell(OK, check, f"{words} is free", name)

    def _outcome(self) -> None:
        code = self._verdicts.exit_code
        if code:
            self._tell(
                FAULT, "outcome", f"the proxy would not start: exit code {code}", exit_code=code
            )
            return
        what = (
            f"the proxy would start: {counted(len(self._services), 'service')}, "
            f"{counted(self._workers, 'worker')}"
        )
        warnings = self._verdicts.warnings
        text = f"{what}; {counted(warnings, 'warning')}" if warnings else what
        self._tell(OK, "outcome", text, count=len(self._services), exit_code=code)


def _of_file(entries: int) -> str:
    if entries:
        return f"the allowlist has {entries} " + ("entry" if entries == 1 else "entries")
    return "the allowlist is empty, so it permits nothing"


def _ensured(services: int) -> bool:
    ensure_files(services)
    return True


def _has_name(service: ServiceSettings) -> bool:
    return service.endpoint.is_tcp and parse_address(service.endpoint.host) is None


def _uses_vsock(service: ServiceSettings) -> bool:
    over_vsock = service.path is None and service.options.listen_tcp is None
    return over_vsock or service.endpoint.cid is not None


def _questions(wanted: Wanted) -> Set[Question]:
    """What serving would ask DNS for, at the start or later."""
    return {
        question_of(service)
        for service in wanted.services
        if _has_name(service) and make_policy(service, wanted.allowlist).may_permit_addresses()
    }


def _question_of_other_family(service: ServiceSettings) -> Question:
    """The question that a service restricts to a family, for the other one; else the same."""
    endpoint, family = question_of(service)
    others = {socket.AF_INET: socket.AF_INET6, socket.AF_INET6: socket.AF_INET}
    return endpoint, others.get(family, family)


def _untimed(answers: Mapping[Question, Timed]) -> Mapping[Question, Answer]:
    return {question: answer for question, (answer, _) in answers.items()}


def _targets(one: Judged, answers: Mapping[Question, Timed]) -> List[Target]:
    """What a worker would connect to."""
    endpoint = one.settings.endpoint
    timeout = min(one.settings.options.connect_timeout, LONGEST_ATTEMPT)
    if not endpoint.is_tcp:
        return [Target(endpoint, None, timeout)]
    addresses = one.addresses
    answer, _ = answers.get(question_of(one.settings), ((), 0.0))
    if not addresses and not isinstance(answer, LookupFailed):
        addresses = one.policy.choose(answer)
    return [Target(endpoint, address, timeout) for address in addresses[:MAX_ADDRESSES]]


def _by_entry(one: Judged, address: Address) -> str:
    entry = one.policy.entry_of(address)
    assert entry is not None
    return f"{address} is permitted by the {entry.kind} {described(entry)}"


def _not_used(one: Judged, address: Address) -> str:
    host = address.sockaddr[0]
    if one.policy.any_address or one.policy.entry_of(address) is not None:
        return (
            f"{host} is not used: the proxy refuses such an address from DNS, because a cloud may "
            "keep credentials there; to connect to it, give it as the endpoint"
        )
    return f"{host} is not used: the allowlist does not permit it"


def _by_family(addresses: Sequence[Address]) -> str:
    """`IPv4 10.0.0.1, 10.0.0.2 and IPv6 2001:db8::1`"""
    parts = []
    for family, word in FAMILIES.items():
        hosts = [address.sockaddr[0] for address in addresses if address.family == family]
        if hosts:
            more = len(hosts) - MOST_SHOWN
            shown = ", ".join(hosts[:MOST_SHOWN])
            parts.append(f"{word} {shown}" + (f", {more} more" if more > 0 else ""))
    return " and ".join(parts)
