"""What --check says of endpoints: what permits each, its addresses, and whether they connect.

The check judges by the function that serving uses. It looks up all names at the same time, and then
connects to all addresses at the same time. Both run in processes apart.
"""

from __future__ import annotations

import errno
import socket
from typing import Dict, List, Mapping, Sequence, Set

from vsock_proxy.config.hostnames import parse_address
from vsock_proxy.endpoint.addresses import MAX_ADDRESSES, Address
from vsock_proxy.endpoint.lookup import Answer, LookupFailed, Question
from vsock_proxy.endpoint.policy import described, make_policy
from vsock_proxy.errors import ProxyError
from vsock_proxy.observing.verdicts import OK, WARNING, Verdicts
from vsock_proxy.process.signals import Signals
from vsock_proxy.settings import ServiceSettings
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
from vsock_proxy.supervision.probing import (
    Outcome,
    Target,
    Timed,
    connect_timed,
    look_up_timed,
)

# Seconds; a check waits no longer for one endpoint.
LONGEST_ATTEMPT = 10.0
# How many addresses a line shows.
MOST_SHOWN = 8
FAMILIES = {socket.AF_INET: "IPv4", socket.AF_INET6: "IPv6"}
FAMILY_OPTIONS = {
    socket.AF_INET: "-4, or family: ipv4",
    socket.AF_INET6: "-6, or family: ipv6",
}
NO_ROUTE = "this machine has no route to it: see `ip route get ADDRESS`"
# What to do if TCP does not connect, by errno; 0: nobody answered. Other upstreams say it in their
# errors.
TCP_ADVICE = {
    0: "look at routes, security groups and firewalls, or raise --connect-timeout",
    errno.ETIMEDOUT: "look at routes, security groups and firewalls",
    errno.ECONNREFUSED: "nothing listens on that port there, or a firewall refuses",
    errno.ENETUNREACH: NO_ROUTE,
    errno.EHOSTUNREACH: NO_ROUTE,
    errno.EADDRNOTAVAIL: "no local port is left, or this machine has no address of that family",
    errno.EACCES: "a firewall, a sandbox or a security module forbids it",
    errno.EPERM: "a firewall, a sandbox or a security module forbids it",
    errno.EAFNOSUPPORT: "the system or RestrictAddressFamilies= of the unit does not allow such "
    "addresses",
}


class Endpoints:
    """What is said of the endpoints of all services."""

    def __init__(self, signals: Signals, verdicts: Verdicts) -> None:
        self._signals = signals
        self._verdicts = verdicts

    def run(self, wanted: Wanted) -> None:
        refusals: Dict[int, ProxyError] = {}

        def refuse(service: ServiceSettings, error: ProxyError) -> None:
            refusals[id(service)] = error

        questions = _questions(wanted)
        # Looked up only to say why a name has no address of the wanted family.
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
        for name, service in zip(names_of(wanted.services), wanted.services):
            one = by_service.get(id(service))
            timed = answers.get(question_of(service))
            if one is None:
                if timed is not None:
                    self._resolved(name, service, answers)
                self._verdicts.refuse("permitted", refusals[id(service)], name)
                continue
            self._permitted(name, one)
            if timed is not None and not one.unresolved:
                self._resolved(name, service, answers)
                self._addresses(name, one, timed)
            for target in _targets(one, answers):
                self._connected(name, one, target, outcomes[target])
        self._verdicts.passes("permitted", lambda: check_doubts(wanted, judged))
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
        self._verdicts.tell(OK, "permitted", text, name)

    def _resolved(
        self, name: str, service: ServiceSettings, answers: Mapping[Question, Timed]
    ) -> None:
        answer, seconds = answers[question_of(service)]
        host = service.endpoint.host
        if not isinstance(answer, LookupFailed):
            text = f"{host} resolves in {seconds:.3f} s to {_by_family(answer)}"
            self._verdicts.tell(OK, "name", text, name, seconds=seconds, count=len(answer))
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
        self._verdicts.tell(WARNING, "name", text, name, seconds=seconds, reason=answer)

    def _addresses(self, name: str, one: Judged, timed: Timed) -> None:
        """Which of the addresses that DNS gives are used, and why."""
        answer, _ = timed
        if isinstance(answer, LookupFailed):
            return
        host, permitted = one.settings.endpoint.host, one.policy.choose(answer)
        for address in answer:
            if address not in permitted:
                self._verdicts.tell(
                    WARNING, "permitted", _not_used(one, address), name, upstream=address
                )
            elif one.by_dns:
                self._verdicts.tell(
                    OK, "permitted", _by_entry(one, address), name, upstream=address
                )
        if len(permitted) > MAX_ADDRESSES:
            text = f"{host} has {len(permitted)} addresses; only the first {MAX_ADDRESSES} are used"
            self._verdicts.tell(WARNING, "name", text, name, count=len(permitted))

    def _connected(self, name: str, one: Judged, target: Target, outcome: Outcome) -> None:
        where = target.address or target.endpoint
        known = {"upstream": where, "seconds": outcome.seconds}
        after = f"{outcome.seconds:.3f} s"
        if not outcome.error:
            self._verdicts.tell(OK, "connect", f"connected to {where} in {after}", name, **known)
            return
        if target.address is None:
            text = f"cannot connect to {where}: {outcome.error}"
        else:
            # The error begins with the address.
            advice = TCP_ADVICE.get(outcome.code)
            text = f"cannot connect to {outcome.error}" + (f"; {advice}" if advice else "")
        text = f"{text} (after {after})"
        code = {"errno": outcome.code} if outcome.code else {}
        self._verdicts.tell(WARNING, "connect", text, name, **known, reason=outcome.error, **code)


def has_name(service: ServiceSettings) -> bool:
    """Whether DNS is asked for the endpoint of a service."""
    return service.endpoint.is_tcp and parse_address(service.endpoint.host) is None


def _questions(wanted: Wanted) -> Set[Question]:
    """What serving would ask DNS for, at the start or later."""
    return {
        question_of(service)
        for service in wanted.services
        if has_name(service) and make_policy(service, wanted.allowlist).may_permit_addresses()
    }


def _question_of_other_family(service: ServiceSettings) -> Question:
    """The question of a service, for the other address family; the same if it wants both."""
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
