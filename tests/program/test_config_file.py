"""The file is read whole, or the reason is said; nobody can make the program wait for it."""

from __future__ import annotations

import contextlib
import os
import pty
import select
import signal
import socket
import subprocess
import threading
import time
from pathlib import Path
from typing import Callable, Dict, Iterator

import pytest

from tests.conftest import StartProxy, StartServer
from tests.support import processes
from tests.support.clients import answers
from tests.support.namespaces import WITHOUT_PROC, needs_namespace
from tests.support.program import PROJECT, command, run
from tests.support.timing import SLOWNESS, wait_until
from vsock_proxy.config import config_file
from vsock_proxy.config.config_file import Unreadable

TEXT = b"allowlist: []\n"
# Far more than any of these should take.
LONG = 20 * SLOWNESS

pytestmark = pytest.mark.hybrid_only  # no transport has a part in it


@pytest.fixture
def fifo(tmp_path: Path) -> Path:
    path = tmp_path / "fifo"
    os.mkfifo(path)
    return path


@contextlib.contextmanager
def writing(path: Path, *parts: bytes) -> Iterator[None]:
    """Writes to a FIFO from a thread."""

    def write() -> None:
        with open(path, "wb", buffering=0) as file:
            for part in parts:
                file.write(part)

    thread = threading.Thread(target=write, daemon=True)
    thread.start()
    yield
    thread.join(LONG)
    assert not thread.is_alive()


def refusal(path: object, patience: float = 0) -> str:
    began = time.monotonic()
    with pytest.raises(Unreadable) as caught:
        config_file.read(str(path), patience)
    assert time.monotonic() - began < LONG
    return str(caught.value)


# At start


def test_a_regular_file_is_read(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(TEXT)
    assert config_file.read(str(tmp_path / "file"), 0) == TEXT
    assert config_file.read(str(tmp_path / "file"), LONG) == TEXT


def test_a_pipe_is_read_to_its_end_however_slowly_it_is_written(fifo: Path) -> None:
    halves = (TEXT[:5], TEXT[5:])
    reading = threading.Event()
    read: list[bytes] = []

    def read_it() -> None:
        reading.set()
        read.append(config_file.read(str(fifo), LONG))

    thread = threading.Thread(target=read_it, daemon=True)
    thread.start()
    reading.wait(LONG)
    with open(fifo, "wb", buffering=0) as writer:
        for half in halves:
            writer.write(half)
            thread.join(0.1)
            assert thread.is_alive()
    thread.join(LONG)
    assert read == [TEXT]


def test_a_pipe_that_was_written_and_closed_before_is_read() -> None:
    reader, writer = os.pipe()
    os.write(writer, TEXT)
    os.close(writer)
    assert config_file.read(f"/dev/fd/{reader}", LONG) == TEXT
    os.close(reader)


def test_a_pipe_that_was_closed_without_a_word_is_empty_at_once() -> None:
    reader, writer = os.pipe()
    os.close(writer)
    assert config_file.read(f"/dev/fd/{reader}", LONG) == b""
    os.close(reader)


def test_a_pipe_is_at_its_end_when_its_writer_has_gone_without_a_word(fifo: Path) -> None:
    with writing(fifo):
        assert config_file.read(str(fifo), LONG) == b""


def test_a_pipe_without_a_writer_is_given_up(fifo: Path) -> None:
    assert refusal(fifo, patience=0.1) == "not written to its end within 0.1 s"


def test_a_pipe_whose_writer_says_nothing_is_given_up(fifo: Path) -> None:
    keeper = os.open(fifo, os.O_RDWR)
    assert refusal(fifo, patience=0.1) == "not written to its end within 0.1 s"
    os.write(keeper, TEXT)
    assert refusal(fifo, patience=0.1) == "not written to its end within 0.1 s"
    os.close(keeper)


def test_a_pipe_without_end_is_too_large(fifo: Path) -> None:
    stop = threading.Event()

    def write() -> None:
        with contextlib.suppress(BrokenPipeError), open(fifo, "wb", buffering=0) as file:
            while not stop.is_set():
                file.write(b"#" * 65536)

    thread = threading.Thread(target=write, daemon=True)
    thread.start()
    assert refusal(fifo, patience=LONG) == "larger than 1048576 bytes"
    stop.set()
    thread.join(LONG)


def test_a_path_that_no_file_can_have_is_refused() -> None:
    assert "embedded null" in refusal("a\0b")


def test_a_terminal_at_which_nobody_types_is_given_up() -> None:
    controller, terminal = pty.openpty()
    assert "not written to its end" in refusal(os.ttyname(terminal), patience=0.1)
    os.close(controller)
    os.close(terminal)


# Later


def test_a_file_that_is_no_regular_one_is_refused_at_once(tmp_path: Path, fifo: Path) -> None:
    (tmp_path / "link").symlink_to(fifo)
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(tmp_path / "socket"))
        kinds = {
            tmp_path: "a directory",
            fifo: "a pipe",
            tmp_path / "link": "a pipe",
            tmp_path / "socket": "a socket",
            Path("/dev/zero"): "a device",
            Path("/dev/null"): "a device",
        }
        for path, kind in kinds.items():
            assert refusal(path) == f"is {kind}, where a regular file is expected"


def test_a_terminal_is_refused_at_once() -> None:
    controller, terminal = pty.openpty()
    assert refusal(os.ttyname(terminal)) == "is a device, where a regular file is expected"
    os.close(controller)
    os.close(terminal)


def test_a_file_that_grows_while_it_is_read_is_too_large(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"#" * (1 << 20))
    assert len(config_file.read(str(path), 0)) == 1 << 20
    with path.open("ab") as file:
        file.write(b"#")
    assert refusal(path) == "larger than 1048576 bytes"


def test_no_descriptor_is_left_open(tmp_path: Path, fifo: Path) -> None:
    (tmp_path / "file").write_bytes(TEXT)
    before = processes.descriptors(os.getpid())
    config_file.read(str(tmp_path / "file"), 0)
    refusal(fifo)
    refusal(fifo, patience=0.01)
    refusal(tmp_path)
    refusal(tmp_path / "none")
    assert processes.descriptors(os.getpid()) == before


# The program


def test_the_program_reads_its_allowlist_from_a_pipe() -> None:
    # It gets as far as the endpoint, which the list does not permit.
    script = 'exec "$@" --config <(sleep 0.2; echo "allowlist: []") 8000 10.0.0.1 443'
    done = run(wrapper=["bash", "-c", script, "bash"])
    assert done.returncode == os.EX_CONFIG
    assert "10.0.0.1:443 is not permitted by /dev/fd/" in done.stderr


@needs_namespace
def test_the_program_reads_its_allowlist_from_a_pipe_without_proc(fifo: Path) -> None:
    with writing(fifo, TEXT):
        done = run("--config", str(fifo), "8000", "10.0.0.1", "443", wrapper=WITHOUT_PROC)
    assert done.returncode == os.EX_CONFIG
    assert f"10.0.0.1:443 is not permitted by {fifo}" in done.stderr


def test_the_program_reads_its_allowlist_from_its_standard_input() -> None:
    done = subprocess.run(
        command("--config", "/dev/stdin", "8000", "10.0.0.1", "443"),
        cwd=PROJECT,
        input="allowlist: []\n",
        capture_output=True,
        text=True,
        timeout=LONG,
        check=False,
    )
    assert done.returncode == os.EX_CONFIG
    assert "10.0.0.1:443 is not permitted by /dev/stdin" in done.stderr


def test_a_start_that_waits_for_a_pipe_can_be_ended(fifo: Path) -> None:
    keeper = os.open(fifo, os.O_RDWR)
    with subprocess.Popen(
        command("--config", str(fifo), "8000", "10.0.0.1", "443"),
        cwd=PROJECT,
        stdin=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as process:
        # What it has read, nobody else can; an empty pipe says that it has come to waiting.
        os.write(keeper, b"#")
        wait_until(lambda: not _is_readable(keeper), "it has read", LONG)
        process.send_signal(signal.SIGTERM)
        assert process.wait(LONG) in (os.EX_OK, -signal.SIGTERM)
    os.close(keeper)


def _is_readable(fd: int) -> bool:
    return bool(select.select([fd], [], [], 0)[0])


def link_to_a_pipe(path: Path) -> None:
    os.mkfifo(f"{path}.pipe")
    path.symlink_to(f"{path}.pipe")


REPLACEMENTS: Dict[str, Callable[[Path], None]] = {
    "a pipe": os.mkfifo,
    "a link to a pipe": link_to_a_pipe,
    "a directory": Path.mkdir,
    "a link to an endless device": lambda path: path.symlink_to("/dev/zero"),
    "a link to a terminal": lambda path: path.symlink_to("/dev/ptmx"),
}


@pytest.mark.parametrize("replace", REPLACEMENTS.values(), ids=REPLACEMENTS.keys())
def test_a_reload_of_what_is_no_regular_file_keeps_the_list_and_the_proxy(
    replace: Callable[[Path], None],
    start_proxy: StartProxy,
    start_server: StartServer,
    write_allowlist: Callable[..., Path],
) -> None:
    server = start_server()
    path = write_allowlist((server.host, server.port))
    proxy = start_proxy(server, config=path)
    path.unlink()
    replace(path)
    proxy.send(signal.SIGHUP)
    proxy.log.wait_for(
        r"error .*, where a regular file is expected; .*the allowlist stays as it was"
    )
    assert answers(proxy)
    proxy.send(signal.SIGTERM)
    assert proxy.wait() == os.EX_OK


@pytest.mark.parametrize("content", ["- " * 50_000, "[" * 60_000], ids=["block", "flow"])
def test_a_reload_of_what_is_nested_too_deep_keeps_the_list_and_the_proxy(
    content: str,
    start_proxy: StartProxy,
    start_server: StartServer,
    write_allowlist: Callable[..., Path],
) -> None:
    server = start_server()
    path = write_allowlist((server.host, server.port))
    proxy = start_proxy(server, config=path)
    path.write_text(content)
    proxy.send(signal.SIGHUP)
    proxy.log.wait_for("error .*line 1: .*the allowlist stays as it was")
    assert answers(proxy)
