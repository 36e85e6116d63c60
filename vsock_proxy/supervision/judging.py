"""What may be served: the endpoint of each service, judged by the allowlist.

An endpoint that the list names needs no DNS. Neither does an address, nor a guest on vsock or
behind a VMM. For any other endpoint the list has to permit one of its addresses: a known one, or
one that a lookup finds. Lookups for several services run at the same time. So a name server that
hangs delays no other lookup.

If DNS does not answer, some services cannot be decided yet. They are not refused. Each is judged
with no address and the reason why. That does no harm until DNS answers, because only addresses that
the list permits are ever published.

    where                       what cannot be decided yet
    command line, at start      the program ends with 75
    command line, on a reload   the old list stays in force until it can (reloading.py)
    services of the file        that service waits for DNS, the others do not
"""

from __future__ import annotations

import contextlib
import ipaddress
import logging
from collections import Counter
from dataclasses import dataclass, field
from typing import Callable, Iterator, List, Mapping, Optional, Sequence, Set, Tuple

from vsock_proxy.config.allowlist import Allowlist
from vsock_proxy.config.hostnames import parse_address
from vsock_proxy.config.rules import normal_path
from vsock_proxy.endpoint.addresses import Address, AddressTable
from vsock_proxy.endpoint.lookup import Answer, LookupFailed, Question, look_up_all
from vsock_proxy.endpoint.policy import Policy, literal_address, make_policy, not_permitted
from vsock_proxy.errors import ConfigurationError, ProxyError, TryAgainError, UsageError
from vsock_proxy.process.apart import Apart, Died
from vsock_proxy.process.kernel import VMADDR_CID_LOCAL
from vsock_proxy.process.signals import Signals
from vsock_proxy.settings import ServiceSettings

# Seconds for all lookups together, where others wait for them.
LOOKUP_PATIENCE = 5.0
LOOPBACK = {address.version: address for address in map(ipaddress.ip_address, ("127.0.0.1", "::1"))}

log = logging.getLogger(__name__)

# The addresses of endpoints that are known without a lookup.
Known = Mapping[Question, Sequence[Address]]
Ask = Callable[[Set[Question]], Mapping[Question, Answer]]
Refuse = Callable[[ServiceSettings, ProxyError], None]


@dataclass(frozen=True)
class Wanted:
    """What the operator asks for, with placeholders filled in.

    of_file: True: these are the services of the file; False: the one of the command line.
    placeholders: the values filled in, by name.
    """

    allowlist: Allowlist
    services: Tuple[ServiceSettings, ...]
    of_file: bool
    placeholders: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Judged:
    """A service that may be served, as far as is known now.

    addresses: the known addresses of its endpoint that the list permits.
    by_dns: whether DNS has answered with these just now.
    unresolved: why it cannot be decided yet; empty if it is decided.
    """

    settings: ServiceSettings
    policy: Policy
    addresses: Tuple[Address, ...]
    by_dns: bool = False
    unresolved: str = ""

    @property
    def doubt(self) -> str:
        """Why it cannot be decided yet, for the operator."""
        endpoint = self.policy.endpoint
        return (
            f"{self.policy.allowlist.path} does not name {endpoint}, so its addresses must be "
            f"judged, and {endpoint.host} does not resolve: {self.unresolved}"
        )


def question_of(service: ServiceSettings) -> Question:
    """What a lookup has to ask for a service."""
    return service.endpoint, service.options.family


def names_of(services: Sequence[ServiceSettings]) -> List[str]:
    """The name of each where there are several: its port, or its place if others have that port."""
    ports = Counter(service.local_port for service in services)
    return [
        str(service.local_port)
        if ports[service.local_port] == 1
        else service.path or service.tcp_place or str(service.local_port)
        for service in services
    ]


def _raise_refusal(service: ServiceSettings, error: ProxyError) -> None:
    raise error


def judge_at_start(wanted: Wanted, signals: Signals) -> Tuple[Judged, ...]:
    """Judge in the master. It has no threads, so lookups run in a process apart.

    Raises ConfigurationError if an endpoint is not permitted, and TryAgainError if the endpoint of
    the command line cannot be judged yet.
    """
    patience = patience_of(wanted)
    judged = judge(wanted, {}, lambda questions: _look_up_apart(signals, questions, patience))
    check_doubts(wanted, judged)
    warn_of_doubts(judged)
    return judged


def patience_of(wanted: Wanted) -> Optional[float]:
    """Seconds for all lookups at the start; None: no limit."""
    return LOOKUP_PATIENCE if wanted.of_file else None


def check_doubts(wanted: Wanted, judged: Sequence[Judged]) -> None:
    """Raise TryAgainError if the service of the command line cannot be decided yet."""
    doubtful = [one for one in judged if one.unresolved]
    if doubtful and not wanted.of_file:
        raise TryAgainError(doubtful[0].doubt)


def judge_again(wanted: Wanted, known: Known) -> Tuple[Judged, ...]:
    """Judge in a process of its own, which may have threads. Raises ConfigurationError."""
    return judge(wanted, known, lambda questions: look_up_all(questions, LOOKUP_PATIENCE))


def judge(
    wanted: Wanted, known: Known, ask: Ask, refuse: Refuse = _raise_refusal
) -> Tuple[Judged, ...]:
    """Judge all services; returns those that may be served.

    known: the addresses that are known.
    ask: looks up all names that have to be looked up, at the same time.
    refuse: called with each service that may not be served. If it does not raise, the others are
    judged all the same.

    The error is NotPermitted or UsageError for the service of the command line. For a service of
    the file it is ConfigurationError, which names the service.
    """
    services, path = wanted.services, wanted.allowlist.path
    names = names_of(services) if wanted.of_file else [""]
    found: List[Tuple[str, ServiceSettings, Policy, Optional[Tuple[Address, ...]]]] = []
    for name, service in zip(names, services):
        policy = make_policy(service, wanted.allowlist)
        with _refusing(refuse, service), naming(service, name, path):
            _check_loop(service)
            addresses = _without_dns(service, policy, known.get(question_of(service), ()))
            found.append((name, service, policy, addresses))
    questions = {question_of(one) for _, one, _, addresses in found if addresses is None}
    answers = ask(questions) if questions else {}
    judged: List[Judged] = []
    for name, service, policy, addresses in found:
        if addresses is not None:
            judged.append(Judged(service, policy, addresses))
            continue
        with _refusing(refuse, service), naming(service, name, path):
            judged.append(_by_answer(service, policy, answers[question_of(service)]))
    return tuple(judged)


def put_into_force(judged: Judged, table: AddressTable) -> None:
    """Let a table of the endpoint have the permitted addresses, and nothing else.

    No resolver may run meanwhile: it would publish by the policy from before.
    """
    before = table.current()
    kept = tuple(address for address in before if judged.policy.keeps(address))
    after = kept or judged.addresses
    # A publication makes every worker forget which address works.
    if after and after != before:
        table.publish(after)
    elif before and not after:
        table.withdraw()


def warn_of_doubts(judged: Sequence[Judged]) -> None:
    """Say which services of the file have to wait for DNS."""
    for name, one in zip(names_of([one.settings for one in judged]), judged):
        if one.unresolved:
            log.warning(
                "service %(service)s: %(reason)s; its clients wait until it does",
                {
                    "event": "service_awaits_dns",
                    "service": name,
                    "upstream": one.policy.endpoint,
                    "reason": one.doubt,
                },
            )


def _check_loop(service: ServiceSettings) -> None:
    """Raise UsageError if a service leads to itself: one client would then busy all workers."""
    if leads_to_itself(service):
        raise UsageError(
            f"{service.endpoint} is where this service listens itself; give the address and the "
            "port of the server"
        )


def leads_to_itself(service: ServiceSettings) -> bool:
    """Whether it does, as far as that shows without DNS and the addresses of the machine."""
    endpoint = service.endpoint
    if service.path is not None:
        return endpoint.path is not None and normal_path(endpoint.path) == normal_path(service.path)
    if service.options.listen_tcp is None:
        return (endpoint.cid, endpoint.port) == (VMADDR_CID_LOCAL, service.local_port)
    here, there = parse_address(service.options.listen_tcp), parse_address(endpoint.host)
    if here is None or there is None or endpoint.port != service.local_port:
        return False
    if there.is_unspecified:
        # Linux connects to the loopback instead.
        there = LOOPBACK[there.version]
    covers = here.version == there.version or (here.version == 6 and not service.is_v6_only)
    return here == there or (here.is_unspecified and covers and there.is_loopback)


def _without_dns(
    service: ServiceSettings, policy: Policy, known: Sequence[Address]
) -> Optional[Tuple[Address, ...]]:
    """The permitted addresses known now; None if only a lookup can tell.

    Raises NotPermitted, or UsageError if there is no such address.
    """
    kept = tuple(address for address in known if policy.keeps(address))
    if parse_address(policy.endpoint.host) is not None:
        literal = kept or literal_address(service)
        if not policy.permits_literal():
            raise not_permitted(policy)
        return literal
    if kept or policy.any_address:
        return kept
    if not policy.may_permit_addresses():
        raise not_permitted(policy)
    return None


def _by_answer(service: ServiceSettings, policy: Policy, answer: Answer) -> Judged:
    """Raises NotPermitted."""
    if isinstance(answer, LookupFailed):
        return Judged(service, policy, (), unresolved=str(answer))
    permitted = policy.choose(answer)
    if not permitted:
        raise not_permitted(policy)
    return Judged(service, policy, permitted, by_dns=True)


@contextlib.contextmanager
def naming(service: ServiceSettings, name: str, path: str) -> Iterator[None]:
    """Let errors name this service of the file. An empty name: leave them as they are."""
    try:
        yield
    except ProxyError as error:
        if not name:
            raise
        raise ConfigurationError(
            f"services {path}, line {service.line}: service {name}: {error}"
        ) from None


@contextlib.contextmanager
def _refusing(refuse: Refuse, service: ServiceSettings) -> Iterator[None]:
    try:
        yield
    except ProxyError as error:
        refuse(service, error)


def _look_up_apart(
    signals: Signals, questions: Set[Question], patience: Optional[float]
) -> Mapping[Question, Answer]:
    """Look up in another process, because a signal cannot interrupt getaddrinfo()."""
    try:
        with Apart(signals, "lookup", lambda: look_up_all(questions, patience)) as asking:
            return asking.result()
    except Died as error:
        failed = LookupFailed(f"the process that looks it up {error}")
        return dict.fromkeys(questions, failed)
