"""Whatever systemd, the metadata service and DNS say: no traceback, no signal, no long wait."""

from __future__ import annotations

import os
import random
import re
import socket
import time
from pathlib import Path
from typing import Dict, Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.conftest import StartProxy
from tests.support.clients import answers
from tests.support.dns import HEADER, NameServer
from tests.support.fuzzing import FEW, MANY, assert_civil, choices
from tests.support.namespaces import RESOLV_CONF, Namespace, needs_namespace
from tests.support.servers import Server, echo
from tests.support.systemd import passing
from tests.support.timing import SLOWNESS, at_full_length
from vsock_proxy.config.metadata import FORMS, look_up
from vsock_proxy.errors import TryAgainError
from vsock_proxy.supervision.systemd import Notifier

pytestmark = pytest.mark.hybrid_only

NAME, HERE = "endpoint.test", "127.0.0.2"

# The variables of systemd

NUMBERS = (
    *(
        "",
        "0",
        "1",
        "2",
        "-1",
        "+1",
        " 1",
        "1 ",
        "01",
        "1e3",
        "0.5",
        "x",
        "3000000",
        "18446744073709551616",
    ),
    *("9" * 400, "9" * 5000, "\u0661", "\u00b2", "1_000", "\n", "\udcff", "0x1"),
)
SOCKETS = (
    *("", "@", "@x", "/", "/nonexistent/notify", "relative", "a" * 108, "/" + "a" * 5000, "\udcff"),
    *("@" + "a" * 107, "@" + "a" * 108, "vsock:2:1234", "\n", "/dev/null", "."),
)
STREAMS = ("", "1:2", "1:2:3", ":", "x:y", "9" * 5000, "\udcff", "-1:-1")
VARIABLES = st.fixed_dictionaries(
    {},
    optional={
        "NOTIFY_SOCKET": st.sampled_from(SOCKETS),
        "WATCHDOG_USEC": st.sampled_from(NUMBERS),
        "WATCHDOG_PID": st.sampled_from((*NUMBERS, str(os.getpid()))),
        "JOURNAL_STREAM": st.sampled_from(STREAMS),
        "LISTEN_FDS": st.sampled_from(NUMBERS),
        "LISTEN_FDNAMES": st.sampled_from((*SOCKETS, "a:b", ":")),
    },
)


@MANY
@given(variables=VARIABLES)
def test_whatever_systemd_says_there_is_an_interval_or_none(variables: Dict[str, str]) -> None:
    notifier = Notifier(dict(variables))
    assert notifier.interval is None or 0 < notifier.interval < 60
    notifier.ready()
    notifier.watchdog()
    notifier.status("x")
    notifier.stopping(1.0)


@FEW
@given(variables=VARIABLES, kind=st.sampled_from(("unix-listener", "unix-datagram", "file")))
def test_the_program_takes_any_variables_of_systemd(
    tmp_path: Path, variables: Dict[str, str], kind: str
) -> None:
    socket_path = tmp_path / "v_8000"
    socket_path.unlink(missing_ok=True)
    allowlist = tmp_path / "allowlist.yaml"
    allowlist.write_text("allowlist:\n- {address: 127.0.0.1, port: 443}\n")
    assert_civil(
        ["--config", str(allowlist), "--uds-path", str(tmp_path / "v"), "8000", "127.0.0.1", "443"],
        environment={**os.environ, **variables},
        wrapper=passing((kind, os.devnull if kind == "file" else socket_path)),
    )


# The metadata service

HTTP = (
    *("HTTP/1.1 200 OK\r\n", "HTTP/1.0 200\r\n", "HTTP/1.1 100 Continue\r\n\r\n", "HTTP/9.9 x\r\n"),
    *(
        "HTTP/1.1 404 Not Found\r\n",
        "HTTP/1.1 99999999 x\r\n",
        "HTTP/1.1 -1 x\r\n",
        "ICY 200 OK\r\n",
    ),
    *("Content-Length: 9\r\n", "Content-Length: -1\r\n", f"Content-Length: {'9' * 5000}\r\n"),
    *("Content-Length: x\r\n", "Transfer-Encoding: chunked\r\n", "Connection: close\r\n"),
    *("Location: http://192.0.2.1/\r\n", "A: " + "a" * 70_000 + "\r\n", "A: b\r\n" * 101),
    *(": \r\n", "A\r\n", " folded\r\n", "\r\n", "\n", "\r", "\x00", "\xff", "\r\n\r\n", "\r\n\r\n"),
    *("eu-west-1", "eu-west-", "amazonaws.com", "9\r\neu-west-1\r\n0\r\n\r\n", "fffffffffff\r\n"),
    *("-1\r\n", "x" * 5000, "..", "../..", "a.b", "HTTP/1.1 ", "HTTP/1.1 200 OK\r\n\r\neu-west-1"),
)
OK = "HTTP/1.1 200 OK\r\n"
BODY = "Content-Length: 9\r\n\r\neu-west-1"
REPLIES = st.one_of(
    st.binary(max_size=100),
    choices(HTTP, 12).map("".join).map(lambda text: text.encode("latin-1")),
    st.tuples(choices(HTTP, 3), choices(HTTP, 3)).map(
        lambda parts: "".join([OK, *parts[0], BODY, *parts[1]]).encode("latin-1")
    ),
)


class Answering:
    """A server that gives the same reply, any bytes, to whoever connects, and closes."""

    def __init__(self) -> None:
        self.reply = b""
        self._server = Server(self._answer)
        self.endpoint = f"http://127.0.0.1:{self._server.port}"

    def close(self) -> None:
        """Stop."""
        self._server.close()

    def _answer(self, connection: socket.socket) -> None:
        with connection:
            connection.recv(65536)
            connection.sendall(self.reply)


@pytest.fixture(scope="module")
def metadata() -> Iterator[Answering]:
    service = Answering()
    yield service
    service.close()


@MANY
@given(reply=REPLIES)
def test_any_reply_of_the_metadata_service_is_a_region_or_none(
    metadata: Answering, reply: bytes
) -> None:
    metadata.reply = reply
    began = time.monotonic()
    try:
        values = look_up(["{region}"], [metadata.endpoint], patience=0)
    except TryAgainError as error:
        assert "\n" not in str(error)
    else:
        assert re.fullmatch(FORMS["{region}"], values["{region}"])
    assert time.monotonic() - began < 5 * SLOWNESS


@FEW
@given(reply=REPLIES)
def test_the_program_takes_any_reply_of_the_metadata_service(
    tmp_path: Path, metadata: Answering, reply: bytes
) -> None:
    metadata.reply = reply
    allowlist = tmp_path / "allowlist.yaml"
    allowlist.write_text("allowlist:\n- {address: '*.invalid', port: 443}\n")
    socket_prefix = str(tmp_path / "v")
    assert_civil(
        [
            "--config",
            str(allowlist),
            "--uds-path",
            socket_prefix,
            "8000",
            "{region}.invalid",
            "443",
        ],
        environment={**os.environ, "VSOCK_PROXY_IMDS_ENDPOINT": metadata.endpoint},
        going=r" workers?$|trying again$",
    )


# DNS


@pytest.fixture
def resolv_conf() -> str:
    return RESOLV_CONF


class Garbling:
    """Changes each answer of a name server somewhere."""

    def __init__(self, seed: int) -> None:
        self._chance = random.Random(seed)

    def __call__(self, answer: bytes) -> bytes:
        chance = self._chance
        # Without the right number and question in it, it is no answer: the resolver waits for one.
        kept = chance.choice((4, HEADER.size, len(answer) - 20, len(answer) - 20))
        head, rest = answer[:kept], bytearray(answer[kept:])
        for _ in range(chance.randrange(8)):
            rest[chance.randrange(len(rest))] = chance.randrange(256)
        more = chance.randbytes(chance.choice((0, 0, 0, 1, 500, 60_000)))
        return bytes(
            head + rest[: chance.choice((len(rest), chance.randrange(len(rest) + 1)))] + more
        )


@needs_namespace
@pytest.mark.parametrize("seed", range(int(at_full_length(8, 2))))
def test_any_answer_of_dns_leaves_the_proxy_serving(
    start_proxy: StartProxy, network: Namespace, seed: int
) -> None:
    server = network.call(lambda: Server(echo, HERE))
    name_server = network.call(NameServer)
    try:
        name_server.set(NAME, HERE)
        options = ("--resolve-interval", "0.1")
        proxy = start_proxy((NAME, server.port), *options, wrapper=network.wrapper)
        assert answers(proxy)
        name_server.garble = Garbling(seed)
        until = time.monotonic() + at_full_length(20, 4)
        while time.monotonic() < until:
            name_server.wait_for_questions(1)
        name_server.garble = None
        name_server.wait_for_questions(4)
        assert answers(proxy)
        assert not proxy.log.matching("Traceback|internal error|resolver ended")
    finally:
        name_server.close()
        server.close()


@needs_namespace
@pytest.mark.parametrize("seed", range(int(at_full_length(24, 4))))
def test_the_program_takes_any_answer_of_dns_at_its_start(
    tmp_path: Path, network: Namespace, seed: int
) -> None:
    name_server = network.call(NameServer)
    try:
        name_server.set(NAME, HERE, "::1", "169.254.169.254")
        name_server.garble = Garbling(seed)
        allowlist = tmp_path / "allowlist.yaml"
        allowlist.write_text("allowlist:\n- {address: 127.0.0.0/8, port: 443}\n")
        assert_civil(
            ["--config", str(allowlist), "--uds-path", str(tmp_path / "v"), "8000", NAME, "443"],
            wrapper=network.wrapper,
        )
    finally:
        name_server.close()
