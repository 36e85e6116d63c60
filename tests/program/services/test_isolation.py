"""What happens to one service is not noticed by clients of another."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from typing import Iterator, List

import pytest

from tests.program.services.conftest import Scene
from tests.support import processes
from tests.support.clients import end_of
from tests.support.comparing import FEWEST_TURNS, Turn, compare
from tests.support.dns import NameServer
from tests.support.named import HERE, THERE
from tests.support.namespaces import needs_namespace
from tests.support.program import Proxy
from tests.support.servers import exchange, silent
from tests.support.services import letter, letter_at, pool_of, service
from tests.support.timing import AT_ONCE, SLOWNESS, let_pass, wait_until

# How often the pool is measured with the disturbance and without it, in turn.
TURNS = 30 if SLOWNESS == 1 else FEWEST_TURNS
CONNECTIONS = 100 if SLOWNESS == 1 else 10
# The first ones after a pause find caches cold, and the proxy still at what has just happened.
NOT_COUNTED = 10
MOST = 1.2
HANGS, GOOD = "hangs.test", "good.test"
# A name that hangs does so for half a minute; others must not wait for it.
LONG_BEFORE_IT_ANSWERS = 10

needs_network = [
    pytest.mark.hybrid_only,
    needs_namespace,
]


# An endpoint that hangs


def times(proxy: Proxy, port: int, count: int) -> List[float]:
    """How long connections take that follow others, each with a byte there and back."""
    found = []
    for _ in range(NOT_COUNTED + count):
        began = time.perf_counter()
        assert letter_at(proxy, port) == b"A"
        found.append(time.perf_counter() - began)
    return found[NOT_COUNTED:]


@pytest.mark.alone
@pytest.mark.parametrize("own", [False, True], ids=["beside the common pool", "beside its own"])
def test_an_endpoint_that_holds_a_whole_pool_does_not_slow_another_pool(
    scene: Scene, own: bool
) -> None:
    hangs, good = scene.ports(2)
    held = scene.server(silent)
    keys = {"workers": 4} if own else {}
    proxy = scene.start(
        service(hangs, held, **keys),
        service(good, scene.server(letter(b"A")), workers=4),
        workers=4,
        options=["--log-level", "warning"],
        ready=False,
    )
    wait_until(lambda: len(proxy.workers("idle")) == 8, "all are there")
    times(proxy, good, CONNECTIONS)
    turns: List[Turn] = []
    for _ in range(TURNS):
        free = times(proxy, good, CONNECTIONS)
        with all_held(proxy, hangs):
            turns.append((free, times(proxy, good, CONNECTIONS)))
    for percent in (99, 50):
        found = compare(turns, MOST, percent)
        assert not found.is_slower, found


@contextlib.contextmanager
def all_held(proxy: Proxy, port: int) -> Iterator[None]:
    """Four connections that last, and as many clients that wait."""
    clients = [proxy.connect(port) for _ in range(8)]
    try:
        wait_until(lambda: len(proxy.workers(f"[{port}: ")) == 4, "all are held")
        yield
    finally:
        for client in clients:
            client.close()
        wait_until(lambda: len(proxy.workers("idle")) == 8, "all are free again")


def test_an_endpoint_that_hangs_delays_no_replacement_in_another_pool(scene: Scene) -> None:
    hangs, good = scene.ports(2)
    held = scene.server(silent)
    proxy = scene.start(
        service(hangs, held), service(good, scene.server(letter(b"A")), workers=1), workers=2
    )
    clients = [proxy.connect(hangs) for _ in range(4)]
    held.wait_for_connections(2)
    (old,) = pool_of(proxy, good)
    os.kill(old, signal.SIGKILL)
    wait_until(lambda: set(pool_of(proxy, good)) - {old}, "another worker", AT_ONCE)
    assert letter_at(proxy, good) == b"A"
    for client in clients:
        client.close()


# Workers that die at once


class Killer:
    """Kills each worker with a certain title as soon as it has it."""

    def __init__(self, proxy: Proxy, title: str) -> None:
        self._proxy, self._title = proxy, title
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._kill)

    def __enter__(self) -> Killer:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _kill(self) -> None:
        while not self._over.wait(0.001):
            for pid in processes.children(self._proxy.pid):
                if processes.title(pid).startswith(self._title):
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)


@pytest.mark.hybrid_only  # no transport has a part in it
@pytest.mark.parametrize("own", [False, True], ids=["of the common pool", "of another service"])
def test_workers_that_die_at_once_delay_no_replacement_in_another_pool(
    scene: Scene, own: bool
) -> None:
    bad, good = scene.ports(2)
    server = scene.server(letter(b"A"))
    keys = {"workers": 1} if own else {}
    proxy = scene.start(service(bad, server, workers=8), service(good, server, **keys), workers=1)
    wait_until(lambda: len(proxy.workers("idle")) == 9, "all are there")
    title = f"worker {good}/" if own else "worker 1 "
    ended = rf"worker {bad}/\d ended, signal 9"
    with Killer(proxy, f"vsock-proxy: worker {bad}/"):
        proxy.log.wait_for(rf"{ended} .* in \d+\.\d s, too many have ended", 20)
        began, before = time.monotonic(), len(proxy.log.matching(ended))
        took = [seconds_until_replaced(proxy, good, title) for _ in range(5)]
        # Others who use this machine do not spoil most of them.
        assert sorted(took)[2] < 0.5 * SLOWNESS, took
        let_pass(1.0, why="workers go on dying, of which no more than ten a second may be replaced")
        # At most ten a second, and those of a burst that had begun before.
        count = len(proxy.log.matching(ended)) - before
        assert 0 < count <= 10 * (time.monotonic() - began) + 10
    wait_until(lambda: len(pool_of(proxy, bad)) == 8, "it recovers", 20)
    assert letter_at(proxy, bad) == b"A"


def seconds_until_replaced(proxy: Proxy, port: int, title: str) -> float:
    """Seconds from the end of a killed worker until another one replaces it."""
    (old,) = proxy.wait_for_workers(1, title)
    began = time.monotonic()
    os.kill(old, signal.SIGKILL)
    wait_until(lambda: set(proxy.workers(title)) - {old}, "another worker")
    took = time.monotonic() - began
    assert letter_at(proxy, port) == b"A"
    return took


# DNS


# Lookups are frequent, and a client that cannot be served is soon closed.
IMPATIENT = ["--resolve-interval", "0.2", "--connect-timeout", str(2 * SLOWNESS)]


class TestNames:
    """Names of several services, some of which hang."""

    pytestmark = needs_network

    @pytest.mark.parametrize("hanging", [1, 24], ids=["one", "24"])
    def test_a_name_that_hangs_does_not_delay_the_first_answer_for_another(
        self, inside: Scene, dns: NameServer, hanging: int
    ) -> None:
        *bad, good = inside.ports(hanging + 1)
        for number in range(hanging):
            dns.unanswered.add(f"{number}.{HANGS}")
        server = inside.server(letter(b"A"), host=HERE)
        dns.set(GOOD, HERE)
        began = time.monotonic()
        proxy = inside.start(
            *(service(port, (f"{number}.{HANGS}", 443)) for number, port in enumerate(bad)),
            service(good, (GOOD, server.port), workers=1),
            options=IMPATIENT,
            workers=2,
        )
        assert letter_at(proxy, good) == b"A"
        assert time.monotonic() - began < LONG_BEFORE_IT_ANSWERS * SLOWNESS
        # Who comes for a name that hangs waits, at most for the time that connecting may take.
        with proxy.connect(bad[0]) as client:
            assert letter_at(proxy, good) == b"A"
            assert end_of(client) == b""

    def test_a_name_that_begins_to_hang_does_not_delay_the_refresh_of_another(
        self, inside: Scene, dns: NameServer
    ) -> None:
        bad, good = inside.ports(2)
        here = inside.server(letter(b"A"), host=HERE)
        there = inside.server(letter(b"B"), host=THERE, port=here.port)
        dns.set(HANGS, HERE)
        dns.set(GOOD, HERE)
        proxy = inside.start(
            service(bad, (HANGS, here.port)),
            service(good, (GOOD, there.port)),
            options=IMPATIENT,
            workers=2,
        )
        assert [letter_at(proxy, port) for port in (bad, good)] == [b"A", b"A"]
        dns.unanswered.add(HANGS)
        dns.wait_for_name(HANGS)
        for address, name in ((THERE, b"B"), (HERE, b"A"), (THERE, b"B")):
            dns.set(GOOD, address)
            wait_until(
                lambda name=name: letter_at(proxy, good) == name,  # type: ignore[misc]
                "the new address",
                1.5,
            )
            # What is known of the one that hangs stays in use.
            assert letter_at(proxy, bad) == b"A"

    def test_a_service_that_a_reload_adds_resolves_while_another_name_hangs(
        self, inside: Scene, dns: NameServer
    ) -> None:
        bad, good = inside.ports(2)
        server = inside.server(letter(b"A"), host=HERE)
        dns.unanswered.add(HANGS)
        dns.set(GOOD, HERE)
        proxy = inside.start(service(bad, (HANGS, server.port)), options=IMPATIENT, workers=2)
        dns.wait_for_name(HANGS)
        began = time.monotonic()
        inside.reload(proxy, service(bad, (HANGS, server.port)), service(good, (GOOD, server.port)))
        assert letter_at(proxy, good) == b"A"
        assert time.monotonic() - began < LONG_BEFORE_IT_ANSWERS * SLOWNESS

    def test_a_reload_keeps_what_is_known_of_a_name_that_hangs(
        self, inside: Scene, dns: NameServer
    ) -> None:
        bad, good = inside.ports(2)
        server = inside.server(letter(b"A"), host=HERE)
        dns.set(HANGS, HERE)
        dns.set(GOOD, HERE)
        services = [service(bad, (HANGS, server.port)), service(good, (GOOD, server.port))]
        proxy = inside.start(*services, options=IMPATIENT, workers=2)
        assert [letter_at(proxy, port) for port in (bad, good)] == [b"A", b"A"]
        dns.unanswered.add(HANGS)
        dns.wait_for_name(HANGS)
        began = time.monotonic()
        inside.reload(proxy)
        inside.reload(proxy, {**services[0], "idle_timeout": 900}, services[1])
        assert [letter_at(proxy, port) for port in (bad, good)] == [b"A", b"A"]
        assert time.monotonic() - began < LONG_BEFORE_IT_ANSWERS * SLOWNESS

    def test_names_that_hang_do_not_keep_the_proxy_from_ending(
        self, inside: Scene, dns: NameServer
    ) -> None:
        bad, good = inside.ports(2)
        server = inside.server()
        dns.unanswered.add(HANGS)
        proxy = inside.start(
            service(bad, (HANGS, 443)), service(good, server), options=IMPATIENT, workers=1
        )
        dns.wait_for_name(HANGS)
        pids = proxy.children()
        with proxy.connect(good) as client:
            assert exchange(client, b"x") == b"x"
        proxy.send(signal.SIGTERM)
        assert proxy.wait(timeout=AT_ONCE) == os.EX_OK
        wait_until(lambda: not any(map(processes.is_alive, pids)), "no process is left", AT_ONCE)

    def test_services_of_the_same_name_share_nothing_but_the_name(
        self, inside: Scene, dns: NameServer
    ) -> None:
        one, two = inside.ports(2)
        first = inside.server(letter(b"A"), host=HERE)
        second = inside.server(letter(b"B"), host=HERE)
        dns.set(GOOD, HERE)
        proxy = inside.start(
            service(one, (GOOD, first.port)), service(two, (GOOD, second.port)), options=IMPATIENT
        )
        assert (letter_at(proxy, one), letter_at(proxy, two)) == (b"A", b"B")
