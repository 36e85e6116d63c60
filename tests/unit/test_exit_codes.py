"""What the user sees of every way to fail: one line on stderr, and an exit code."""

from __future__ import annotations

import errno
import os
import signal
from typing import List, NoReturn

import pytest

from vsock_proxy import cli, errors
from vsock_proxy.process.signals import Interrupted, Signals

pytestmark = pytest.mark.hybrid_only


def fails(code: int) -> OSError:
    return OSError(code, os.strerror(code))


TABLE = {
    "usage": (errors.UsageError("so and so"), os.EX_USAGE, "so and so"),
    "configuration": (errors.ConfigurationError("so and so"), os.EX_CONFIG, "so and so"),
    "not available": (errors.UnavailableError("so and so"), os.EX_UNAVAILABLE, "so and so"),
    "try again": (errors.TryAgainError("so and so"), os.EX_TEMPFAIL, "so and so"),
    "output": (errors.OutputError("so and so"), os.EX_IOERR, "so and so"),
    "control characters": (errors.UsageError("\x1b[2J\n\udcff"), os.EX_USAGE, r"\x1b[2J\n\udcff"),
    "no memory": (
        MemoryError(),
        os.EX_UNAVAILABLE,
        "cannot start: Cannot allocate memory; free memory, or lower -w",
    ),
    "no memory for the kernel": (
        fails(errno.ENOMEM),
        os.EX_UNAVAILABLE,
        "cannot start: Cannot allocate memory; free memory, or lower -w",
    ),
    "no descriptor": (
        fails(errno.EMFILE),
        os.EX_UNAVAILABLE,
        "cannot start: Too many open files; raise the limit of open files with LimitNOFILE= in the "
        "unit or ulimit -n",
    ),
    "no descriptor in the whole system": (
        fails(errno.ENFILE),
        os.EX_UNAVAILABLE,
        "cannot start: Too many open files in system; raise the system's limit of open files, "
        "sysctl fs.file-max",
    ),
    "no process": (
        fails(errno.EAGAIN),
        os.EX_UNAVAILABLE,
        "cannot start: Resource temporarily unavailable; raise the limit of processes with "
        "TasksMax= in the unit or ulimit -u",
    ),
}


def fail_with(error: BaseException, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let whatever the program does first fail so."""

    def fail(arguments: List[str]) -> NoReturn:
        raise error

    monkeypatch.setattr(cli, "parse", fail)


@pytest.mark.parametrize(("error", "code", "line"), TABLE.values(), ids=TABLE.keys())
def test_what_a_user_can_cause_is_one_line_and_an_exit_code(
    error: Exception,
    code: int,
    line: str,
    signals: Signals,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    fail_with(error, monkeypatch)
    assert cli.run([], signals) == code
    assert capfd.readouterr().err == f"vsock-proxy: {line}\n"


@pytest.mark.parametrize("error", [fails(errno.EPERM), OSError("no number"), RuntimeError("a bug")])
def test_what_no_user_can_cause_is_shown_whole_and_is_exit_code_70(
    error: Exception,
    signals: Signals,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    fail_with(error, monkeypatch)
    assert cli.run([], signals) == os.EX_SOFTWARE
    first, *_, last_but_one, last = capfd.readouterr().err.splitlines()
    assert first == "Traceback (most recent call last):"
    assert str(error) in last_but_one
    assert last == "vsock-proxy: internal error, please report it"


def test_a_signal_while_the_output_waits_ends_the_program_without_a_word(
    signals: Signals, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cli, "_print", lambda text: signal.raise_signal(signal.SIGTERM))
    assert cli.run(["--help"], signals) == os.EX_OK
    assert capfd.readouterr() == ("", "")


def test_an_interruption_anywhere_else_ends_it_so_too(
    signals: Signals, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    fail_with(Interrupted(), monkeypatch)
    assert cli.run([], signals) == os.EX_OK
    assert capfd.readouterr() == ("", "")
