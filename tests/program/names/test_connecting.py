"""Connecting to a name that has several addresses, some of which do not answer."""

from __future__ import annotations

import os
import signal
import time

import pytest

from tests.program.names.conftest import Scene
from tests.support import processes
from tests.support.clients import answers, end_of
from tests.support.dns import NameServer
from tests.support.named import HERE, NAME, THERE
from tests.support.namespaces import needs_namespace
from tests.support.program import Proxy
from tests.support.servers import Server, exchange, silent
from tests.support.timing import AT_ONCE, SLOWNESS, is_within

pytestmark = [
    pytest.mark.hybrid_only,
    needs_namespace,
]

HOLE, HOLE_6, BEYOND = "192.0.2.77", "2001:db8::77", "198.51.100.1"


@pytest.fixture
def behind_a_hole(scene: Scene, dns: NameServer) -> Server:
    """An endpoint with two addresses, of which the preferred one leads nowhere (RFC 6724, 6)."""
    scene.network.add_black_holes(HOLE, HOLE_6)
    scene.network.add_address(f"{BEYOND}/32")
    dns.set(NAME, HOLE_6, BEYOND)
    return scene.server(host=BEYOND)


@pytest.mark.alone
def test_an_address_that_does_not_answer_costs_less_than_400_ms(
    behind_a_hole: Server, scene: Scene
) -> None:
    def be_first() -> float:
        proxy = scene.start(behind_a_hole.port)
        proxy.log.wait_for(f"{NAME} is {HOLE_6}, {BEYOND}")
        proxy.wait_for_workers(4, "idle")
        took = seconds_until_answered(proxy)
        assert took + 0.01 >= 0.25
        proxy.end()
        return took

    assert is_within(0.4, be_first)


def seconds_until_answered(proxy: Proxy) -> float:
    """How long a client takes, with a byte there and back."""
    with proxy.connect() as client:
        began = time.monotonic()
        assert exchange(client, b"x") == b"x"
        return time.monotonic() - began


REFUSING = tuple(f"198.51.100.{number}" for number in range(2, 6))


@pytest.mark.parametrize("timeout", ["10", "1"])
@pytest.mark.alone
def test_addresses_that_refuse_after_one_that_is_silent_cost_no_time(
    timeout: str, behind_a_hole: Server, scene: Scene, dns: NameServer
) -> None:
    for address in REFUSING:
        scene.network.add_address(f"{address}/32")
    dns.set(NAME, HOLE_6, *REFUSING, BEYOND)

    def be_first() -> float:
        proxy = scene.start(behind_a_hole.port, "--connect-timeout", timeout, workers=1)
        proxy.log.wait_for(f"{NAME} is {HOLE_6}, .*{BEYOND}")
        took = seconds_until_answered(proxy)
        proxy.end()
        return took

    assert is_within(0.4, be_first)


def test_an_address_without_a_free_local_port_is_followed_by_the_next(
    scene: Scene, dns: NameServer
) -> None:
    server = scene.server(silent, host=HERE)
    scene.server(host=THERE, port=server.port)
    dns.set(NAME, HERE, THERE)
    scene.network.run("sysctl", "-qw", "net.ipv4.ip_local_port_range=40000 40001")
    proxy = scene.start(server.port, "--resolve-interval", "1000")
    proxy.log.wait_for(f"{NAME} is {HERE}, {THERE}")
    with proxy.connect(), proxy.connect():
        server.wait_for_connections(2)
        assert answers(proxy)


def test_the_address_that_worked_last_is_tried_first(behind_a_hole: Server, scene: Scene) -> None:
    proxy = scene.start(behind_a_hole.port)
    proxy.log.wait_for(f"{NAME} is {HOLE_6}, {BEYOND}")
    assert answers(proxy)

    def try_all() -> float:
        began = time.monotonic()
        assert all(answers(proxy) for _ in range(8))
        return time.monotonic() - began

    assert is_within(0.25, try_all)


def test_a_connection_that_is_being_made_when_sigterm_comes_is_served(
    behind_a_hole: Server, scene: Scene
) -> None:
    proxy = scene.start(behind_a_hole.port)
    proxy.log.wait_for(f"{NAME} is {HOLE_6}, {BEYOND}")
    with proxy.connect() as client:
        client.sendall(b"x")
        proxy.wait_for_workers(1, "connecting")
        proxy.send(signal.SIGTERM)
        began = time.monotonic()
        assert client.recv(1) == b"x"
        assert time.monotonic() - began < AT_ONCE * SLOWNESS
    assert proxy.wait(timeout=2) == os.EX_OK


def test_a_worker_stopped_while_it_connects_goes_on_with_the_next_address(
    behind_a_hole: Server, scene: Scene
) -> None:
    proxy = scene.start(behind_a_hole.port, workers=1)
    proxy.log.wait_for(f"{NAME} is {HOLE_6}, {BEYOND}")
    (worker,) = proxy.wait_for_workers(1, "idle")
    with proxy.connect() as client:
        client.sendall(b"x")
        proxy.wait_for_workers(1, "connecting")
        processes.stop(worker)
        os.kill(worker, signal.SIGCONT)
        assert client.recv(1) == b"x"


def test_no_answer_at_all_is_given_up_after_the_connect_timeout(
    behind_a_hole: Server, scene: Scene, dns: NameServer
) -> None:
    dns.set(NAME, HOLE_6, HOLE)
    proxy = scene.start(behind_a_hole.port, "--connect-timeout", "0.6", workers=1)
    proxy.log.wait_for(f"{NAME} is {HOLE_6}, {HOLE}")

    def seconds_beyond() -> float:
        took = seconds_until_closed(proxy)
        assert took > 0.5
        return took - 0.6

    # Were the time for each of the addresses, it would be twice as long.
    assert is_within(0.4, seconds_beyond)
    line = proxy.log.wait_for("cannot connect to")[0]
    assert f"[{HOLE_6}]:{behind_a_hole.port}: no answer in time" in line
    assert f"{HOLE}:{behind_a_hole.port}: no answer in time" in line


def seconds_until_closed(proxy: Proxy) -> float:
    """How long a client is kept that cannot be served."""
    with proxy.connect() as client:
        began = time.monotonic()
        assert end_of(client) == b""
        return time.monotonic() - began


def test_families_take_turns(behind_a_hole: Server, scene: Scene, dns: NameServer) -> None:
    dns.set(NAME, HOLE_6, "2001:db8::1", "192.0.2.1", BEYOND)
    proxy = scene.start(behind_a_hole.port)
    line = proxy.log.wait_for(f"{NAME} is ")[0]
    families = [":" in address for address in line.split(" is ")[1].split(", ")]
    assert families == [True, False, True, False]


@pytest.mark.parametrize("option", ["-4", "-6"])
def test_only_addresses_of_the_family_asked_for_are_used(
    option: str, behind_a_hole: Server, scene: Scene, dns: NameServer
) -> None:
    dns.set(NAME, "2001:db8::1", BEYOND)
    proxy = scene.start(behind_a_hole.port, option)
    line = proxy.log.wait_for(f"{NAME} is ")[0]
    assert line.endswith(f" is {BEYOND}" if option == "-4" else " is 2001:db8::1")


def test_a_client_is_closed_at_once_when_all_addresses_refuse(
    scene: Scene, dns: NameServer
) -> None:
    server = scene.server(silent, host=HERE)
    server.close()
    dns.set(NAME, HERE, THERE)
    proxy = scene.start(server.port, workers=1)
    proxy.log.wait_for(f"{NAME} is ")
    assert is_within(0.2, lambda: seconds_until_closed(proxy))
    line = proxy.log.wait_for("cannot connect to")[0]
    assert f"{HERE}:{server.port}: Connection refused" in line
    assert f"{THERE}:{server.port}: Connection refused" in line
    scene.server(host=THERE, port=server.port)
    assert answers(proxy)


def test_a_refused_address_is_followed_by_the_next_at_once(scene: Scene, dns: NameServer) -> None:
    server = scene.server(host=THERE)
    dns.set(NAME, HERE, THERE)

    def be_first() -> float:
        proxy = scene.start(server.port, workers=1)
        proxy.log.wait_for(f"{NAME} is ")
        took = seconds_until_answered(proxy)
        proxy.end()
        return took

    assert is_within(0.2, be_first)
