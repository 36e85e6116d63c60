"""A connection reads the same wherever an operator looks: `ps`, SIGUSR1, STATUS, log and metrics.

A table of the states that a connection can be in, for either direction: from a guest to a server
on TCP, and from a client on TCP to a guest.
"""

from __future__ import annotations

import contextlib
import os
import re
import socket
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Callable, Dict, Iterator, List, Tuple, Union

import pytest

from tests.conftest import StartProxy, StartServer
from tests.support import board, json_log
from tests.support.asleep import guest_asleep
from tests.support.program import Proxy, Transport
from tests.support.scraping import BYTES, CONNECTIONS, DURATION, WORKERS, scrape
from tests.support.servers import Handler, Server, UnixServer, echo, read_exactly, silent
from tests.support.systemd import NotifySocket
from tests.support.timing import SLOWNESS, wait_until
from tests.support.transports import Tcp, Vsock

Endpoint = Union[Server, Tuple[str, int]]
POOL = 2
# Nobody listens there.
NO_PORT = 4_000_000_000
SATURATED = "vsock_proxy_saturated_seconds_total"
WAITS, GIVES_UP = ("--connect-timeout", "60"), ("--connect-timeout", "0.2")


@dataclass
class Place:
    """One direction: where its clients come from, and the endpoints that there are on its way."""

    on: Transport
    working: Callable[[Handler], Endpoint]
    refusing: Callable[[], Endpoint]
    # Sees to it that there is one while the context lasts.
    filtered: Callable[[], contextlib.AbstractContextManager[Endpoint]]


@dataclass(frozen=True)
class Reading:
    """What is to be read while a connection is in a state. Workers that are not named are idle."""

    busy: Tuple[str, ...] = ()
    served: int = 0
    # By cause.
    failed: Dict[str, int] = field(default_factory=dict)
    up: int = 0
    down: int = 0
    # The lines about connections that have ended: event and reason.
    ended: Tuple[Tuple[str, str], ...] = ()
    saturated: bool = False


@dataclass(frozen=True)
class State:
    endpoint: Callable[[Place], contextlib.AbstractContextManager[Endpoint]]
    reading: Reading
    # What each client sends and is answered before it is looked at; it stays if `stays`.
    clients: int = 1
    says: bytes = b""
    is_answered: bool = False
    stays: bool = True
    options: Tuple[str, ...] = ()


def working(handler: Handler) -> Callable[[Place], contextlib.AbstractContextManager[Endpoint]]:
    return lambda place: contextlib.nullcontext(place.working(handler))


def refusing(place: Place) -> contextlib.AbstractContextManager[Endpoint]:
    return contextlib.nullcontext(place.refusing())


def filtered(place: Place) -> contextlib.AbstractContextManager[Endpoint]:
    return place.filtered()


STATES = {
    "nobody has come": State(working(echo), Reading(), clients=0),
    "idle": State(
        working(echo),
        Reading(busy=("relaying",), served=1, up=3, down=3),
        says=b"abc",
        is_answered=True,
    ),
    "hung": State(
        working(silent), Reading(busy=("relaying",), served=1, up=3, down=0), says=b"abc"
    ),
    "filtered": State(filtered, Reading(busy=("connecting",)), options=WAITS),
    "filtered and given up": State(
        filtered,
        Reading(failed={"timed out": 1}, ended=(("connection_failed", "timed out"),)),
        options=GIVES_UP,
    ),
    "refused": State(
        refusing, Reading(failed={"refused": 1}, ended=(("connection_failed", "refused"),))
    ),
    "saturated": State(
        working(echo),
        Reading(busy=("relaying",) * POOL, served=POOL, up=6, down=6, saturated=True),
        clients=POOL,
        says=b"abc",
        is_answered=True,
    ),
    "finished": State(
        working(echo),
        Reading(served=1, up=3, down=3, ended=(("connection_closed", "client closed"),)),
        says=b"abc",
        is_answered=True,
        stays=False,
    ),
}


@pytest.fixture(params=["from a guest", "to a guest"])
def place(
    request: pytest.FixtureRequest,
    transport: Transport,
    tmp_path: Path,
    start_server: StartServer,
    start_vmm: StartServer,
    start_vsock_server: StartServer,
) -> Place:
    """The direction."""
    if request.param == "from a guest":
        return Place(transport, start_server, _closed_port, _full_backlog)
    if isinstance(transport, Vsock):
        return Place(Tcp(tmp_path), start_vsock_server, lambda: ("vsock:1", NO_PORT), _guest_asleep)
    return Place(
        Tcp(tmp_path),
        start_vmm,
        lambda: start_vmm(lambda connection: connection.close(), UnixServer),
        lambda: contextlib.nullcontext(start_vmm(silent, UnixServer)),
    )


def _closed_port() -> Endpoint:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        port: int = sock.getsockname()[1]
    return "127.0.0.1", port


@contextlib.contextmanager
def _full_backlog() -> Iterator[Endpoint]:
    """The kernel drops what asks for another connection, as a firewall does."""
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
        address = listener.getsockname()
        stack.enter_context(socket.create_connection(address))
        yield address


@contextlib.contextmanager
def _guest_asleep() -> Iterator[Endpoint]:
    with guest_asleep() as cid:
        yield f"vsock:{cid}", 5000


@pytest.fixture
def systemd(tmp_path: Path) -> Iterator[NotifySocket]:
    made = NotifySocket(str(tmp_path / "notify"))
    yield made
    made.close()


@pytest.mark.parametrize("name", STATES)
def test_a_connection_reads_the_same_in_each_view(
    name: str,
    place: Place,
    systemd: NotifySocket,
    start_proxy: StartProxy,
    metrics_path: Path,
    metrics_option: Tuple[str, str],
) -> None:
    state = STATES[name]
    with contextlib.ExitStack() as stack:
        proxy = start_proxy(
            stack.enter_context(state.endpoint(place)),
            *state.options,
            *metrics_option,
            *json_log.JSON,
            on=place.on,
            workers=POOL,
            # STATUS comes as often as the watchdog asks for it.
            environment={
                **os.environ,
                "NOTIFY_SOCKET": systemd.address,
                "WATCHDOG_USEC": "100000",
            },
        )
        for _ in range(state.clients):
            client = stack.enter_context(proxy.connect())
            client.sendall(state.says)
            if state.is_answered:
                assert read_exactly(client, len(state.says)) == state.says
            if not state.stays:
                client.close()
        expected = state.reading
        _settles(lambda: _in_ps(proxy), _workers(expected), "ps")
        _settles(lambda: _in_table(proxy), _table(expected), "the table")
        _settles(lambda: _in_metrics(metrics_path), _metrics(expected), "the metrics")
        _settles(lambda: _in_log(proxy), Counter(expected.ended), "the log")
        if expected.saturated:
            json_log.wait_for(proxy, "saturated")
            wait_until(lambda: scrape(metrics_path).sum(SATURATED) >= 1, "it counts in the metrics")
        else:
            assert not json_log.lines_about(proxy, "saturated")
        rows = board.last(proxy)
        assert _clients_in_ps(proxy) == Counter(row.client for row in rows if row.client != "-")
        systemd.wait_for(f"^STATUS={re.escape(_status(expected))}$")


def _settles(view: Callable[[], object], expected: object, name: str) -> None:
    """Wait until a view says what it should; what it says if not."""
    seen: List[object] = []

    def is_there() -> bool:
        seen[:] = [view()]
        return seen[0] == expected

    try:
        wait_until(is_there, name, 5 * SLOWNESS)
    except AssertionError:
        assert seen[0] == expected, name


def _workers(reading: Reading) -> Counter[str]:
    return Counter([*reading.busy, *["idle"] * (POOL - len(reading.busy))])


def _in_ps(proxy: Proxy) -> Counter[str]:
    words = [title.split()[3] for title in _titles(proxy)]
    return Counter("relaying" if word.startswith("[") else word for word in words)


def _titles(proxy: Proxy) -> List[str]:
    return [title for title in proxy.titles() if title.startswith("vsock-proxy: worker ")]


def _clients_in_ps(proxy: Proxy) -> Counter[str]:
    return Counter(re.findall(r"\[(\S+) -> ", "".join(_titles(proxy))))


def _table(reading: Reading) -> object:
    return _workers(reading), reading.served, reading.failed, reading.up, reading.down


def _in_table(proxy: Proxy) -> object:
    rows = board.ask(proxy)
    totals = json_log.lines_about(proxy, "scoreboard_totals")[-1]
    known = json_log.lines_about(proxy, "scoreboard_worker")[-POOL:]
    assert [row.state for row in rows] == [line["state"] for line in known]
    assert sum(row.served for row in rows) == totals["served"]
    assert sum(row.failed for row in rows) == totals["failed"]
    causes = re.search(r"failed \((.*?)\)", totals["message"])
    assert causes
    failed = {cause: int(count) for count, cause in re.findall(r"(\d+) ([a-z ]+)", causes[1])}
    assert sum(failed.values()) == totals["failed"]
    return (
        Counter(row.state for row in rows),
        totals["served"],
        {cause: count for cause, count in failed.items() if count},
        totals["bytes_up"],
        totals["bytes_down"],
    )


def _metrics(reading: Reading) -> object:
    results = {cause.replace(" ", "_"): float(count) for cause, count in reading.failed.items()}
    if reading.served:
        results["served"] = reading.served
    over = sum(event == "connection_closed" for event, _ in reading.ended)
    return _workers(reading), results, reading.up, reading.down, over


def _in_metrics(path: Path) -> object:
    metrics = scrape(path)
    words = ("served", "refused", "timed_out", "unreachable", "unresolved", "denied", "otherwise")
    results = {word: metrics.sum(CONNECTIONS, result=word) for word in (*words, "client_gone")}
    states = ("absent", "starting", "idle", "connecting", "relaying", "half_closed", "draining")
    workers = Counter({state: int(metrics.sum(WORKERS, state=state)) for state in states})
    return (
        +workers,
        {word: count for word, count in results.items() if count},
        metrics.sum(BYTES, direction="up"),
        metrics.sum(BYTES, direction="down"),
        metrics.sum(f"{DURATION}_count"),
    )


def _in_log(proxy: Proxy) -> Counter[Tuple[str, str]]:
    lines = json_log.lines_about(proxy, *json_log.CLOSING)
    return Counter((line["event"], line["reason"]) for line in lines)


def _status(reading: Reading) -> str:
    return (
        f"{len(reading.busy)} of {POOL} workers busy, {reading.served} connections served, "
        f"{sum(reading.failed.values())} failed"
    )
