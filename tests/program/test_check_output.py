"""--check: a line for a person, in colour on a terminal, or an object for a program."""

from __future__ import annotations

import os
import pty
import re
import subprocess
from pathlib import Path
from typing import Sequence

import pytest

from tests.conftest import StartServer
from tests.support.checking import LIST, OK, ONE, WARNING, Words, check
from tests.support.json_log import JSON, SCHEMA, lines_of
from tests.support.program import PROJECT, command
from tests.support.timing import SLOWNESS
from tests.support.transports import Hybrid
from vsock_proxy.supervision import checking, reaching, surroundings

PARTS = (checking, reaching, surroundings)


@pytest.mark.hybrid_only
def test_in_json_each_line_is_an_object_of_the_schema(
    words: Words, transport: Hybrid, start_server: StartServer
) -> None:
    server = start_server()
    with transport.occupy(transport.port):
        checked = check(*words(server), *JSON)
    lines = lines_of(checked.lines)
    assert {line["event"] for line in lines} == {"checked"}
    assert {line["process"] for line in lines} == {"check"}
    by_check = {line["check"]: line for line in lines}
    assert by_check["file"]["count"] == 1
    connected = by_check["connect"]
    assert (connected["level"], connected["service"]) == ("info", "8000")
    assert connected["upstream"] == f"{server.host}:{server.port}"
    assert 0 <= connected["seconds"] < 10
    assert by_check["listener"]["level"] == "error"
    assert by_check["listener"]["exit_code"] == checked.code == os.EX_UNAVAILABLE
    assert by_check["outcome"]["exit_code"] == os.EX_UNAVAILABLE


@pytest.mark.hybrid_only
def test_what_may_be_looked_at_is_what_schema_and_reference_have() -> None:
    source = "".join(Path(str(part.__file__)).read_text() for part in PARTS)
    named = set(re.findall(r'(?:OK|WARNING|FAULT|refused?|passes|_place)[(,]\s*"([a-z]+)"', source))
    assert named == {*SCHEMA["properties"]["check"]["enum"]}
    reference = (PROJECT / "docs" / "reference.md").read_text("utf-8")
    assert all(f"| `{check}` |" in reference for check in named)


@pytest.mark.hybrid_only
def test_in_json_a_failed_connection_has_its_errno(words: Words) -> None:
    lines = lines_of(check(*words(("127.0.0.1", 9)), *JSON).lines)
    (failed,) = [line for line in lines if line.get("check") == "connect"]
    assert (failed["level"], failed["errno"]) == ("warning", "ECONNREFUSED")


@pytest.mark.hybrid_only
def test_the_level_of_the_log_leaves_out_what_is_below_it(words: Words) -> None:
    arguments = words(("127.0.0.1", 9))
    assert [line[:8] for line in check(*arguments, "--log-level", "warning").lines] == [WARNING]
    assert check(*arguments, "--log-level", "error").lines == []


def on_terminal(arguments: Sequence[str], **variables: str) -> str:
    """What a check writes to a terminal."""
    near, far = pty.openpty()
    environment = {key: value for key, value in os.environ.items() if key != "NO_COLOR"}
    process = subprocess.Popen(
        command("--check", *arguments),
        cwd=PROJECT,
        env={**environment, "TERM": "xterm", **variables},
        stdin=subprocess.DEVNULL,
        stdout=far,
    )
    os.close(far)
    written = b""
    while True:
        try:
            part = os.read(near, 65536)
        except OSError:
            # What a terminal has for an end.
            break
        if not part:
            break
        written += part
    os.close(near)
    process.wait(20 * SLOWNESS)
    return written.decode()


@pytest.mark.hybrid_only
def test_colour_is_for_a_terminal_alone_and_only_if_nobody_objects(words: Words) -> None:
    arguments = words(("127.0.0.1", 9))
    coloured = on_terminal(arguments)
    assert "\x1b[32mok\x1b[0m      file " in coloured
    assert "\x1b[33mwarning\x1b[0m cannot connect to " in coloured
    assert "\x1b" in on_terminal(arguments, NO_COLOR="")
    assert "\x1b" not in on_terminal(arguments, NO_COLOR="1")
    assert "\x1b" not in on_terminal(arguments, TERM="dumb")
    assert "\x1b" not in on_terminal([*arguments, *JSON])
    assert "\x1b" not in "".join(check(*arguments).lines)


@pytest.mark.hybrid_only
def test_what_the_file_holds_cannot_write_to_the_terminal(tmp_path: Path) -> None:
    name = tmp_path / "list\x1b[2J.yaml"
    name.write_text(LIST)
    checked = check("--config", str(name), "--uds-path", str(tmp_path / "v"), *ONE)
    assert checked.has(OK, r"list\\x1b\[2J\.yaml is read")
