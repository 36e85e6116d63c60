"""Several services whose endpoints are names: what DNS does to one of them is its own affair."""

from __future__ import annotations

import os
import re
import time

import pytest

from tests.program.services.conftest import Scene
from tests.support import processes
from tests.support.clients import end_of
from tests.support.dns import Mood, NameServer
from tests.support.named import HERE, THERE
from tests.support.namespaces import needs_namespace
from tests.support.services import letter, letter_at, service
from tests.support.timing import SLOWNESS, wait_until

pytestmark = [
    pytest.mark.hybrid_only,  # the network is of this machine's own
    needs_namespace,
]

ONE, TWO = "one.test", "two.test"
# Of the range that THERE is not in.
LISTED = f"{HERE}/32"


def test_a_service_that_only_dns_can_judge_waits_for_it_and_no_other_does(
    inside: Scene, dns: NameServer
) -> None:
    one, two = inside.ports(2)
    here = inside.server(letter(b"H"), host=HERE)
    there = inside.server(letter(b"T"), host=THERE, port=here.port)
    dns.mood = Mood.NXDOMAIN
    permitted = [(LISTED, here.port), (THERE, there.port)]
    # The second may be connected to as an address, and the first, by its name, as both.
    proxy = inside.start(
        service(one, (ONE, here.port)), service(two, (THERE, here.port)), permitted=permitted
    )
    proxy.log.wait_for(
        rf"warning master: service {one}: .* does not name {ONE}:{here.port}, so its addresses "
        rf"must be judged, and {ONE} does not resolve: .*; its clients wait until it does$"
    )
    assert letter_at(proxy, two) == b"T"
    with proxy.connect(one) as early:
        early.sendall(b"?")
        dns.set(ONE, HERE)
        dns.mood = Mood.ANSWERING
        assert early.recv(1) == b"H"


def test_a_service_that_is_judged_late_leads_to_no_forbidden_address(
    inside: Scene, dns: NameServer
) -> None:
    one, two = inside.ports(2)
    there = inside.server(letter(b"T"), host=THERE)
    here = inside.server(letter(b"H"), host=HERE, port=there.port)
    dns.mood = Mood.NXDOMAIN
    proxy = inside.start(
        service(one, (ONE, there.port)),
        service(two, here),
        permitted=[(LISTED, there.port)],
        options=["--connect-timeout", "1"],
    )
    dns.set(ONE, THERE)
    dns.mood = Mood.ANSWERING
    proxy.log.wait_for(f"{ONE} resolves only to addresses that are not permitted: {THERE}")
    with proxy.connect(one) as client:
        assert end_of(client) == b""
    assert not there.accepted
    assert letter_at(proxy, two) == b"H"


def test_a_name_that_hangs_delays_no_start_and_no_reload_of_the_others(
    inside: Scene, dns: NameServer
) -> None:
    one, two, three = inside.ports(3)
    here = inside.server(letter(b"H"), host=HERE)
    dns.set(TWO, HERE)
    dns.unanswered.add(ONE)
    hangs, well = service(one, (ONE, here.port)), service(two, (TWO, here.port))
    began = time.monotonic()
    proxy = inside.start(hangs, well, permitted=[(LISTED, here.port)])
    assert letter_at(proxy, two) == b"H"
    permitted = [(LISTED, here.port)]
    inside.file.write([hangs, well, service(three, (TWO, here.port))], permitted)
    inside.reload(proxy)
    assert letter_at(proxy, three) == b"H"
    # Each of them waited for 5 s, and neither until the name server was given up.
    assert time.monotonic() - began < 20 * SLOWNESS
    assert len(proxy.log.matching(f"service {one}: .*: no answer within 5 s; its clients")) == 2


def test_a_reload_with_one_service_that_is_not_permitted_changes_nothing(
    inside: Scene, dns: NameServer
) -> None:
    one, two, three = inside.ports(3)
    here = inside.server(letter(b"H"), host=HERE)
    dns.set(ONE, HERE)
    dns.set(TWO, THERE)
    old = [service(one, (ONE, here.port)), service(two, here)]
    permitted = [(LISTED, here.port)]
    proxy = inside.start(*old, permitted=permitted)
    assert letter_at(proxy, one) == b"H"
    pids = proxy.children()
    inside.file.write([*old, service(three, (TWO, here.port))], permitted)
    line = inside.file.reload_in_vain(proxy)
    assert re.search(rf"service {three}: {TWO}:{here.port} is not permitted by ", line)
    assert letter_at(proxy, one) == letter_at(proxy, two) == b"H"
    assert sorted(proxy.children()) == sorted(pids)


def test_a_reload_takes_a_forbidden_address_from_one_service_alone(
    inside: Scene, dns: NameServer
) -> None:
    one, two = inside.ports(2)
    here = inside.server(letter(b"H"), host=HERE)
    there = inside.server(letter(b"T"), host=THERE, port=here.port)
    dns.set(ONE, HERE)
    services = [service(one, (ONE, here.port)), service(two, there)]
    proxy = inside.start(*services)
    assert letter_at(proxy, one) == b"H"
    dns.mood = Mood.NXDOMAIN
    inside.file.write(services, [(THERE, here.port)])
    inside.reload(proxy)
    proxy.log.wait_for(f"service {one}: .* must be judged, and {ONE} does not resolve")
    accepted = len(here.accepted)
    with proxy.connect(one) as waits:
        waits.sendall(b"?")
        assert letter_at(proxy, two) == b"T"
        dns.set(ONE, THERE)
        dns.mood = Mood.ANSWERING
        assert waits.recv(1) == b"T"
    assert len(here.accepted) == accepted


def test_one_resolver_keeps_all_names_and_is_replaced_when_it_dies(
    inside: Scene, dns: NameServer
) -> None:
    one, two = inside.ports(2)
    here = inside.server(letter(b"H"), host=HERE)
    dns.set(ONE, HERE)
    dns.set(TWO, HERE)
    proxy = inside.start(service(one, (ONE, here.port)), service(two, (TWO, here.port)))
    assert letter_at(proxy, one) == letter_at(proxy, two) == b"H"
    title = "vsock-proxy: resolver, 2 names"
    (old,) = [pid for pid in proxy.children() if processes.title(pid) == title]
    os.kill(old, 9)
    proxy.log.wait_for("resolver ended, signal 9 .Killed.; starting another")
    wait_until(lambda: proxy.titles().count(title) == 1, "another resolver")
    assert letter_at(proxy, one) == letter_at(proxy, two) == b"H"
