"""What may be served, for each thing that a list, a table and DNS can say."""

from __future__ import annotations

import socket
from dataclasses import replace
from ipaddress import ip_network
from typing import Dict, List, Mapping, Optional, Sequence, Set, Tuple, Union

import pytest

from vsock_proxy.config.allowlist import Allowlist, Entry
from vsock_proxy.endpoint.addresses import Address, AddressTable, make_address
from vsock_proxy.endpoint.lookup import Answer, LookupFailed, Question, look_up_all
from vsock_proxy.endpoint.policy import NotPermitted, make_policy
from vsock_proxy.errors import ConfigurationError, TryAgainError, UsageError
from vsock_proxy.process.signals import Signals
from vsock_proxy.settings import Endpoint, ServiceOptions, ServiceSettings
from vsock_proxy.supervision import judging
from vsock_proxy.supervision.judging import Judged, Wanted, judge, judge_at_start, put_into_force

pytestmark = pytest.mark.hybrid_only  # no transport has a part in it

PORT = 443
NAME, OTHER = "endpoint.test", "other.test"
HERE, THERE, ELSEWHERE, METADATA = "192.0.2.1", "192.0.2.2", "198.51.100.1", "169.254.169.254"
HERE_6 = "2001:db8::1"
GONE = LookupFailed("gone")
# What DNS says: addresses, or why it has none.
Says = Union[Sequence[str], LookupFailed]


def address(host: str) -> Address:
    return make_address(socket.AF_INET6 if ":" in host else socket.AF_INET, (host, PORT))


def addresses(*hosts: str) -> Tuple[Address, ...]:
    return tuple(map(address, hosts))


def permitting(*what: str, port: int = PORT) -> Allowlist:
    """A list that permits these names, addresses and networks."""
    entries = []
    for each in what:
        try:
            entries.append(Entry(port, network=ip_network(each)))
        except ValueError:
            entries.append(Entry(port, name=each))
    return Allowlist("list", tuple(entries))


def service(
    host: str, listen: int = 8000, family: socket.AddressFamily = socket.AF_UNSPEC
) -> ServiceSettings:
    return ServiceSettings(listen, Endpoint(host, PORT), ServiceOptions(family))


class Dns:
    """Answers so, and knows what it was asked for."""

    def __init__(self, says: Mapping[str, Says]) -> None:
        self.asked: List[Set[str]] = []
        self._says = says

    def __call__(self, questions: Set[Question]) -> Dict[Question, Answer]:
        self.asked.append({endpoint.host for endpoint, _ in questions})
        return {question: self._answer(question[0].host) for question in questions}

    def _answer(self, host: str) -> Answer:
        says = self._says[host]
        return says if isinstance(says, LookupFailed) else list(addresses(*says))


@pytest.mark.parametrize(
    ("host", "listed", "known", "says", "expected"),
    [
        # Without DNS.
        (HERE, [HERE], [], None, [HERE]),
        (HERE, ["192.0.2.0/24"], [], None, [HERE]),
        (METADATA, [METADATA], [], None, [METADATA]),
        (HERE, [HERE], [HERE], None, [HERE]),
        (NAME, [NAME], [], None, []),
        (NAME, [NAME], [HERE], None, [HERE]),
        (NAME, [NAME, HERE], [THERE], None, [THERE]),
        (NAME, [HERE], [HERE], None, [HERE]),
        (NAME, [HERE], [THERE, HERE], None, [HERE]),
        (NAME, ["192.0.2.0/24"], [THERE, ELSEWHERE, HERE], None, [THERE, HERE]),
        # By DNS.
        (NAME, [HERE], [], [HERE], [HERE]),
        (NAME, [HERE], [], [THERE, HERE], [HERE]),
        (NAME, [HERE], [THERE], [HERE], [HERE]),
        (NAME, ["192.0.2.0/24", "2001:db8::/32"], [], [HERE, THERE, HERE_6], [HERE, HERE_6, THERE]),
    ],
)
def test_what_is_permitted_is_served_and_only_at_the_addresses_that_are(
    host: str,
    listed: Sequence[str],
    known: Sequence[str],
    says: Optional[Says],
    expected: Sequence[str],
) -> None:
    dns = Dns({} if says is None else {host: says})
    one = replace(service(host), line=7)
    wanted = Wanted(permitting(*listed), (one,), of_file=False)
    (judged,) = judge(wanted, {judging.question_of(one): addresses(*known)}, dns)
    assert judged.settings == one
    assert judged.addresses == addresses(*expected)
    assert not judged.unresolved
    assert judged.by_dns is bool(dns.asked) is (says is not None)


@pytest.mark.parametrize(
    ("host", "listed", "known", "says"),
    [
        (HERE, [THERE], [], None),
        (HERE, [THERE], [HERE], None),
        (HERE, [], [], None),
        # No address could permit these.
        (NAME, [], [], None),
        (NAME, [OTHER], [], None),
        (NAME, [OTHER], [HERE], None),
        # DNS says that none does.
        (NAME, [HERE], [], [THERE]),
        (NAME, [HERE], [ELSEWHERE], [THERE]),
        (NAME, ["0.0.0.0/0"], [], [METADATA]),
        (NAME, [HERE], [], [HERE_6]),
    ],
)
@pytest.mark.parametrize("of_file", [False, True], ids=["command line", "file"])
def test_what_is_not_permitted_is_told(
    host: str,
    listed: Sequence[str],
    known: Sequence[str],
    says: Optional[Says],
    of_file: bool,
) -> None:
    dns = Dns({} if says is None else {host: says})
    one = replace(service(host), line=7)
    wanted = Wanted(permitting(*listed), (one,), of_file)
    with pytest.raises(ConfigurationError) as caught:
        judge(wanted, {judging.question_of(one): addresses(*known)}, dns)
    assert isinstance(caught.value, NotPermitted) is not of_file
    near = f"; the closest entry is '{THERE}', port 443" if THERE in listed else ""
    told = (
        f"{host}:443 is not permitted by list{near}; to permit it add "
        f"'- {{address: {host}, port: 443}}'"
    )
    assert str(caught.value) == (
        f"services list, line 7: service 8000: {told}" if of_file else told
    )
    assert bool(dns.asked) is (says is not None)


def test_the_address_of_another_port_permits_nothing_and_asks_nothing() -> None:
    dns = Dns({})
    with pytest.raises(NotPermitted):
        judge(Wanted(permitting(HERE, port=80), (service(NAME),), of_file=False), {}, dns)
    assert not dns.asked


def test_what_is_known_of_another_family_is_not_known() -> None:
    known = {(Endpoint(NAME, PORT), socket.AF_INET): addresses(HERE)}
    one = service(NAME, family=socket.AF_INET6)
    wanted = Wanted(permitting(HERE, HERE_6), (one,), of_file=True)
    (judged,) = judge(wanted, known, Dns({NAME: [HERE_6]}))
    assert judged.addresses == addresses(HERE_6)


def test_an_address_of_a_family_that_is_not_wanted_names_its_service() -> None:
    one = service(HERE, 8001, family=socket.AF_INET6)
    with pytest.raises(UsageError):
        judge(Wanted(permitting(HERE), (one,), of_file=False), {}, Dns({}))
    with pytest.raises(ConfigurationError, match=f": service 8001: {HERE} is not an address of"):
        judge(Wanted(permitting(HERE), (one,), of_file=True), {}, Dns({}))


SEVERAL = (service(HERE, 8000), service(NAME, 8001), service(OTHER, 8002), service(NAME, 8003))


def test_several_are_judged_in_their_order_and_by_one_round_of_lookups() -> None:
    dns = Dns({NAME: [HERE, ELSEWHERE], OTHER: GONE})
    judged = judge(Wanted(permitting("192.0.2.0/24"), SEVERAL, of_file=True), {}, dns)
    assert [one.settings for one in judged] == list(SEVERAL)
    assert [one.addresses for one in judged] == [
        addresses(HERE),
        addresses(HERE),
        (),
        addresses(HERE),
    ]
    assert [one.unresolved for one in judged] == ["", "", "gone", ""]
    assert dns.asked == [{NAME, OTHER}]


def test_two_services_that_lead_to_the_same_endpoint_share_what_is_known() -> None:
    known = {judging.question_of(SEVERAL[1]): addresses(HERE)}
    (judged,) = judge(Wanted(permitting(NAME), (SEVERAL[3],), of_file=True), known, Dns({}))
    assert judged.addresses == addresses(HERE)


def test_of_several_the_one_that_is_not_permitted_is_named() -> None:
    dns = Dns({NAME: [HERE], OTHER: [ELSEWHERE]})
    with pytest.raises(ConfigurationError, match=rf": service 8002: {OTHER}:443 is not permitted"):
        judge(Wanted(permitting("192.0.2.0/24"), SEVERAL, of_file=True), {}, dns)


def test_who_does_not_raise_what_is_refused_has_the_others_judged() -> None:
    dns = Dns({NAME: [ELSEWHERE], OTHER: [HERE]})
    refused: List[Tuple[int, str]] = []
    services = (*SEVERAL, service(THERE, 8004), service(NAME, 8005))
    judged = judge(
        Wanted(permitting(HERE), services, of_file=True),
        {},
        dns,
        lambda one, error: refused.append((one.local_port, str(error))),
    )
    assert [one.settings.local_port for one in judged] == [8000, 8002]
    # First those that need no DNS.
    assert [port for port, _ in refused] == [8004, 8001, 8003, 8005]
    assert all(f": service {port}: " in text for port, text in refused)
    assert dns.asked == [{NAME, OTHER}]


def test_services_on_the_same_port_are_named_by_their_paths() -> None:
    one, two = (
        replace(service(host), options=ServiceOptions(uds_path=path))
        for host, path in ((HERE, "/run/a"), (THERE, "/run/b"))
    )
    with pytest.raises(ConfigurationError, match=r": service /run/b_8000: 192\.0\.2\.2:443 is not"):
        judge(Wanted(permitting(HERE), (one, two), of_file=True), {}, Dns({}))


# At start, with lookups in a process of their own


def dns_says(monkeypatch: pytest.MonkeyPatch, says: Mapping[str, Says]) -> None:
    """What the process that looks names up is told."""

    def look_up(endpoint: Endpoint, family: socket.AddressFamily) -> List[Address]:
        answer = says[endpoint.host]
        if isinstance(answer, LookupFailed):
            raise answer
        return list(addresses(*answer))

    monkeypatch.setattr(
        judging,
        "look_up_all",
        lambda questions, patience: look_up_all(questions, patience, look_up),
    )


def test_the_one_service_that_dns_cannot_judge_yet_may_be_tried_again(
    monkeypatch: pytest.MonkeyPatch, signals: Signals
) -> None:
    dns_says(monkeypatch, {NAME: GONE})
    with pytest.raises(TryAgainError) as caught:
        judge_at_start(Wanted(permitting(HERE), (service(NAME),), of_file=False), signals)
    assert str(caught.value) == (
        f"list does not name {NAME}:443, so its addresses must be judged, and {NAME} does not "
        "resolve: gone"
    )


def test_a_service_of_the_file_that_dns_cannot_judge_is_told_and_waits(
    monkeypatch: pytest.MonkeyPatch, signals: Signals, caplog: pytest.LogCaptureFixture
) -> None:
    dns_says(monkeypatch, {NAME: [HERE], OTHER: GONE})
    wanted = Wanted(permitting("192.0.2.0/24"), SEVERAL, of_file=True)
    judged = judge_at_start(wanted, signals)
    assert [bool(one.addresses) for one in judged] == [True, True, False, True]
    assert not judged[2].policy.any_address
    (record,) = caplog.records
    assert record.getMessage() == (
        f"service 8002: list does not name {OTHER}:443, so its addresses must be judged, and "
        f"{OTHER} does not resolve: gone; its clients wait until it does"
    )


def test_a_process_that_dies_over_its_lookups_has_not_found_anything(
    monkeypatch: pytest.MonkeyPatch, signals: Signals
) -> None:
    def die(questions: Set[Question], patience: Optional[float]) -> Dict[Question, Answer]:
        raise AssertionError

    monkeypatch.setattr(judging, "look_up_all", die)
    with pytest.raises(TryAgainError, match="the process that looks it up ended with exit code 70"):
        judge_at_start(Wanted(permitting(HERE), (service(NAME),), of_file=False), signals)


# Into force


@pytest.mark.parametrize(
    ("before", "listed", "found", "after"),
    [
        ([], [NAME], [], []),
        ([], [HERE], [HERE], [HERE]),
        ([HERE, THERE], [NAME], [HERE, THERE], [HERE, THERE]),
        ([HERE, THERE], [THERE], [THERE], [THERE]),
        ([HERE], [THERE], [THERE], [THERE]),
        ([HERE], [THERE], [], []),
        # Published since it was judged.
        ([THERE], ["192.0.2.0/24"], [HERE], [THERE]),
        ([ELSEWHERE], ["192.0.2.0/24"], [HERE], [HERE]),
    ],
)
def test_only_what_is_permitted_stays_in_the_table(
    before: Sequence[str], listed: Sequence[str], found: Sequence[str], after: Sequence[str]
) -> None:
    table = AddressTable(PORT)
    if before:
        table.publish(addresses(*before))
    policy = make_policy(service(NAME), permitting(*listed))
    put_into_force(Judged(service(NAME), policy, addresses(*found)), table)
    assert table.current() == addresses(*after)
    table.close()


def test_what_stays_as_it_is_keeps_the_mark_of_the_address_that_works() -> None:
    table = AddressTable(PORT)
    table.publish(addresses(HERE, THERE))
    table.current()
    table.prefer(address(THERE))
    policy = make_policy(service(NAME), permitting(NAME))
    put_into_force(Judged(service(NAME), policy, addresses(HERE, THERE)), table)
    assert table.current() == addresses(THERE, HERE)
    table.close()


def test_addresses_of_a_family_that_is_not_wanted_any_more_go() -> None:
    table = AddressTable(PORT)
    table.publish(addresses(HERE, HERE_6))
    one = service(NAME, family=socket.AF_INET6)
    put_into_force(Judged(one, make_policy(one, permitting(NAME)), ()), table)
    assert table.current() == addresses(HERE_6)
    table.close()
