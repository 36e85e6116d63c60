"""The log for programs: one JSON object a line, as docs/log.schema.json says."""

from __future__ import annotations

import json
import os
import signal
import socket
from pathlib import Path
from typing import Callable, Dict, List, Sequence

import pytest
from jsonschema import ValidationError  # type: ignore[import-untyped]

from tests.conftest import StartProxy, StartServer
from tests.support import processes
from tests.support.clients import end_of
from tests.support.json_log import CLOSING, JSON, lines_about, lines_of, wait_for
from tests.support.program import Proxy, Transport, run
from tests.support.python import printed_by
from tests.support.servers import exchange
from tests.support.services import ServicesFile, service
from tests.support.sides import reset
from tests.support.timing import wait_until

CONNECTION_KEYS = {
    "time",
    "level",
    "event",
    "process",
    "worker",
    "service",
    "connection",
    "peer",
    "upstream",
    "bytes_up",
    "bytes_down",
    "seconds",
    "reason",
    "message",
}


@pytest.fixture
def start_json(start_proxy: StartProxy) -> StartProxy:
    """Starts a proxy that writes JSON."""

    def start(*arguments: object, **process: object) -> Proxy:
        proxy = start_proxy(*arguments, *JSON, ready=False, **process)
        wait_for(proxy, "serving")
        return proxy

    return start


def test_a_connection_that_ends_has_one_line_with_all_that_is_known_of_it(
    start_json: StartProxy, start_server: StartServer
) -> None:
    server = start_server()
    proxy = start_json(server, workers=1)
    with proxy.connect() as client:
        assert exchange(client, b"12345") == b"12345"
    (line,) = wait_for(proxy, "connection_closed")
    assert set(line) == CONNECTION_KEYS
    assert 0 < line.pop("seconds") < 60
    assert line.pop("time") <= lines_of(proxy.log.lines[-1:])[0]["time"]
    message = line.pop("message")
    peer = line.pop("peer")
    assert message.startswith(f"#1-1 {peer} -> 127.0.0.1:{server.port} ended: 5 bytes up, ")
    assert line == {
        "level": "info",
        "event": "connection_closed",
        "process": "worker 1",
        "worker": "1",
        "service": str(proxy.transport.port),
        "connection": "1-1",
        "upstream": f"127.0.0.1:{server.port}",
        "bytes_up": 5,
        "bytes_down": 5,
        "reason": "client closed",
    }


@pytest.mark.hybrid_only  # what an endpoint does to it is the same on each transport
def test_a_reset_has_its_reason_in_one_word_and_its_errno_by_name(
    start_json: StartProxy, start_server: StartServer
) -> None:
    proxy = start_json(start_server(_reset), workers=1)
    with proxy.connect() as client:
        client.sendall(b"x")
        assert end_of(client) == b""
    (line,) = wait_for(proxy, "connection_closed")
    assert (line["reason"], line["errno"]) == ("endpoint reset", "ECONNRESET")
    assert line["message"].endswith(", endpoint reset (Connection reset by peer)")


def _reset(connection: socket.socket) -> None:
    connection.recv(1)
    reset(connection)


def test_a_connection_that_comes_to_nothing_says_why_in_one_word(
    start_json: StartProxy, start_server: StartServer
) -> None:
    server = start_server()
    proxy = start_json(server, workers=1)
    server.close()
    with proxy.connect() as client:
        assert end_of(client) == b""
    (line,) = wait_for(proxy, "connection_failed")
    assert set(line) == CONNECTION_KEYS | {"errno"}
    assert (line["reason"], line["errno"]) == ("refused", "ECONNREFUSED")
    assert (line["level"], line["bytes_up"], line["bytes_down"]) == ("error", 0, 0)
    assert line["upstream"] == f"127.0.0.1:{server.port}"


@pytest.mark.vsock_only
def test_a_guest_that_is_refused_has_a_line_too(
    start_json: StartProxy, start_server: StartServer
) -> None:
    proxy = start_json(start_server(), "--allow-cid", "4711", workers=1)
    with proxy.connect() as client:
        end_of(client)
    (line,) = wait_for(proxy, "connection_refused")
    assert set(line) == CONNECTION_KEYS
    assert (line["level"], line["reason"]) == ("warning", "denied")


def test_the_master_logs_the_connection_of_a_dead_worker_and_names_both(
    start_json: StartProxy, start_server: StartServer
) -> None:
    proxy = start_json(start_server(), workers=1)
    with proxy.connect() as client:
        assert exchange(client, b"x") == b"x"
        (worker,) = proxy.wait_for_workers(1, " -> ")
        os.kill(worker, signal.SIGKILL)
        (line,) = wait_for(proxy, "connection_closed")
    assert set(line) == CONNECTION_KEYS
    assert (line["process"], line["worker"]) == ("master", "1")
    assert (line["connection"], line["reason"]) == ("1-1", "worker died")
    (died,) = wait_for(proxy, "worker_died")
    assert (died["worker"], died["reason"]) == ("1", "signal 9 (Killed)")


def test_each_connection_of_a_run_has_a_name_of_its_own(
    start_services: StartProxy,
    start_server: StartServer,
    services_file: ServicesFile,
    transport: Transport,
) -> None:
    one, two = transport.ports(2)
    server = start_server()
    proxy = start_services(
        service(one, server), service(two, server, workers=1), options=JSON, workers=2, ready=False
    )
    wait_for(proxy, "serving_all")
    made = 0
    for workers in (1, 2, 1):
        for port in (one, two, one):
            with proxy.connect(port) as client:
                assert exchange(client, b"x") == b"x"
                made += 1
        with proxy.connect(two) as client:
            assert exchange(client, b"x") == b"x"
            made += 1
            (worker,) = proxy.wait_for_workers(1, f"[{two}: ")
            os.kill(worker, signal.SIGKILL)
            wait_for(proxy, "connection_closed", made)
        services_file.write([service(one, server), service(two, server, workers=workers)])
        proxy.send(signal.SIGHUP)
        services_file.systemd.wait_for("^RELOADING=1\n")
        services_file.systemd.wait_for("^READY=1$")
    lines = wait_for(proxy, "connection_closed", made)
    assert len(lines) == made
    assert len({line["connection"] for line in lines}) == made
    assert {line["service"] for line in lines} == {str(one), str(two)}
    assert all(line["message"].startswith(f"#{line['connection']} ") for line in lines)


def test_a_connection_has_one_name_in_the_table_and_at_its_end(
    start_json: StartProxy, start_server: StartServer
) -> None:
    server = start_server()
    proxy = start_json(server, workers=2)
    proxy.wait_for_workers(2, "idle")
    with proxy.connect() as client:
        assert exchange(client, b"123") == b"123"
        proxy.send(signal.SIGUSR1)
        wait_for(proxy, "scoreboard_totals")
    (end,) = wait_for(proxy, "connection_closed")
    (heading,) = lines_about(proxy, "scoreboard")
    busy, idle = sorted(lines_about(proxy, "scoreboard_worker"), key=lambda row: row["state"])[::-1]
    assert idle["state"] == "idle"
    assert not {"connection", "peer", "upstream", "bytes_up", "bytes_down"} & set(idle)
    assert busy["state"] == "relaying"
    for key in ("connection", "peer", "upstream", "service", "worker"):
        assert busy[key] == end[key]
    # What has come to the client is counted a moment later.
    assert busy["bytes_up"] == 3
    column = heading["message"].index("connection") + len("connection")
    assert busy["message"][:column].endswith(f" {end['connection']}")


def test_each_connection_has_one_line_of_text_that_begins_with_its_name(
    start_proxy: StartProxy, start_server: StartServer
) -> None:
    proxy = start_proxy(start_server(), workers=2)
    for _ in range(20):
        with proxy.connect() as client:
            assert exchange(client, b"x") == b"x"
    lines = proxy.log.wait_for(" ended: ", count=20)
    names = [line.split(": ", 1)[1].split()[0] for line in lines]
    assert len(set(names)) == len(names) == 20
    assert {name.split("-")[0] for name in names} <= {"#1", "#2"}


@pytest.mark.hybrid_only  # no transport has a part in it
def test_connections_that_have_no_line_are_counted(
    start_json: StartProxy, start_server: StartServer
) -> None:
    proxy = start_json(start_server(), workers=2)
    made = 600
    for _ in range(made):
        with proxy.connect() as client:
            assert exchange(client, b"x") == b"x"
    proxy.wait_for_workers(2, "idle")
    proxy.send(signal.SIGTERM)
    assert proxy.wait() == os.EX_OK
    proxy.log.join()
    left_out = sum(line["count"] for line in lines_about(proxy, "lines_left_out", "lines_lost"))
    assert len(lines_about(proxy, *CLOSING)) + left_out == made
    (ended,) = lines_about(proxy, "ended")
    assert (ended["served"], ended["failed"], ended["bytes_up"]) == (made, 0, made)


def test_a_whole_run_is_one_object_a_line(
    start_json: StartProxy, start_server: StartServer, write_allowlist: Callable[..., Path]
) -> None:
    server = start_server()
    config = write_allowlist(("127.0.0.1", server.port))
    with config.open("a") as file:
        file.write("strange: 1\n")
    proxy = start_json(server, workers=1, config=config)
    config.write_text("allowlist: [\n")
    proxy.send(signal.SIGHUP)
    (failed,) = wait_for(proxy, "reload_failed")
    assert failed["message"] == f"{failed['reason']}; the allowlist stays as it was"
    config.write_text(f"allowlist:\n- {{address: 127.0.0.1, port: {server.port}}}\n")
    proxy.send(signal.SIGHUP)
    wait_for(proxy, "reloaded")
    with proxy.connect() as client:
        assert exchange(client, b"x") == b"x"
        wait_for(proxy, "saturated")
        proxy.send(signal.SIGTERM)
        wait_for(proxy, "draining")
        proxy.send(signal.SIGTERM)
        assert proxy.wait() == os.EX_OK
    proxy.log.join()
    assert [line["event"] for line in lines_of(proxy.log.lines)] == [
        "unknown_key",
        "serving",
        "reload_failed",
        "reloaded",
        "saturated",
        "draining",
        "ending_now",
        "connection_closed",
        "ended",
    ]


# A start that fails


START_FAILURES: Dict[str, List[str]] = {
    "no such option": ["--log-format", "json", "--no-such-option"],
    "another option is wrong, and the format comes last": ["-w", "0", "8000", "h", "1", *JSON],
    "joined": ["--log-format=json", "8000"],
    "abbreviated": ["--log-f", "json", "8000", "h", "port"],
    "the file": [*JSON, "--config", "/nonexistent", "8000", "h", "1"],
    "control characters and bytes that are no text": [*JSON, "8000", '\x1b[2J"\\\n\udcff', "1"],
}


@pytest.mark.hybrid_only
@pytest.mark.parametrize("arguments", START_FAILURES.values(), ids=START_FAILURES.keys())
def test_a_start_that_fails_ends_with_an_object_if_json_was_asked_for(
    arguments: Sequence[str],
) -> None:
    ended = run(*arguments)
    (line,) = lines_of(ended.stderr.splitlines())
    assert (line["event"], line["level"]) == ("start_failed", "error")
    assert line["exit_code"] == ended.returncode != 0
    assert line["message"].isprintable()


@pytest.mark.hybrid_only
@pytest.mark.parametrize(
    "arguments", [["--log-format", "xml"], ["--", "--log-format", "json"], ["json"]]
)
def test_where_json_was_not_asked_for_a_start_that_fails_ends_with_text(
    arguments: Sequence[str],
) -> None:
    ended = run(*arguments)
    assert ended.returncode == os.EX_USAGE
    assert ended.stderr.startswith("vsock-proxy: ")


@pytest.mark.hybrid_only
def test_an_unknown_format_is_refused_with_those_that_there_are() -> None:
    ended = run("--log-format", "xml", "8000", "h", "1")
    assert ended.stderr == "vsock-proxy: --log-format must be one of text, json, not 'xml'\n"


# What it costs


@pytest.mark.hybrid_only
def test_who_writes_text_does_not_import_json() -> None:
    code = (
        "import sys, vsock_proxy.cli, vsock_proxy.supervision.start\n"
        "from vsock_proxy.observing import logs, stderr, untold\n"
        "log = logs.Log('info', stderr.Stderr(), untold.Untold())\n"
        "log.rehearse()\n"
        "print('json' in sys.modules)\n"
    )
    assert printed_by(code) == "False\n"


@pytest.mark.hybrid_only  # no transport has a part in it
@pytest.mark.parametrize("log_format", ["text", "json"])
def test_a_worker_gains_no_memory_by_the_names_of_its_connections(
    log_format: str, start_proxy: StartProxy, start_server: StartServer
) -> None:
    proxy = start_proxy(start_server(), "--log-format", log_format, workers=1, ready=False)
    (worker,) = proxy.wait_for_workers(1, "idle")
    _serve(proxy, 500)
    before = processes.anonymous_kib(worker)
    # A name that is kept takes 50 bytes at least.
    _serve(proxy, 2000)
    assert processes.anonymous_kib(worker) - before < 80


def _serve(proxy: Proxy, connections: int) -> None:
    for _ in range(connections):
        with proxy.connect() as client:
            assert exchange(client, b"x") == b"x"
    wait_until(lambda: proxy.workers("idle"), "it is idle")


def test_the_journal_gets_the_priority_before_each_object(
    start_proxy: StartProxy, start_server: StartServer, tmp_path: Path
) -> None:
    path = tmp_path / "journal"
    with path.open("w") as file:
        stat = os.fstat(file.fileno())
        proxy = start_proxy(
            start_server(),
            *JSON,
            workers=1,
            ready=False,
            stderr=file.fileno(),
            environment={**os.environ, "JOURNAL_STREAM": f"{stat.st_dev}:{stat.st_ino}"},
        )
        proxy.wait_for_workers(1, "idle")
        wait_until(lambda: "serving" in path.read_text(), "it serves")
    proxy.send(signal.SIGTERM)
    proxy.wait()
    texts = path.read_text().splitlines()
    assert {text[:3] for text in texts} == {"<6>"}
    assert [line["event"] for line in lines_of(text[3:] for text in texts)] == [
        "serving",
        "draining",
        "ended",
    ]


@pytest.mark.hybrid_only
def test_the_schema_refuses_what_is_no_line_of_the_log() -> None:
    good = {"time": "2026-01-31T12:00:00.000Z", "level": "info", "event": "ended"}
    good.update(process="master", message="ended")
    lines_of([json.dumps(good)])
    for change in ({"level": "critical"}, {"event": "end"}, {"time": "now"}, {"extra": 1}):
        with pytest.raises(ValidationError):
            lines_of([json.dumps({**good, **change})])
