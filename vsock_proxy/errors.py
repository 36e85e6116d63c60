"""Why the program ends before or instead of serving, each with the exit code that says so.

The codes are those of sysexits.h, so that a unit file can tell an error that a restart may cure
(`RestartPreventExitStatus=`) from one that only an operator can.
"""

from __future__ import annotations

import errno
import os
from typing import Optional


class ProxyError(Exception):
    """An end of the program that its user can cause and mend: one line, no traceback."""

    exit_code = os.EX_SOFTWARE


class UsageError(ProxyError):
    """The command line asks for something that there is not."""

    exit_code = os.EX_USAGE


class ConfigurationError(ProxyError):
    """The file cannot be read, is malformed, or does not permit an endpoint."""

    exit_code = os.EX_CONFIG


class UnavailableError(ProxyError):
    """There can be no listener: in use, not permitted, or no such transport here."""

    exit_code = os.EX_UNAVAILABLE


class TryAgainError(ProxyError):
    """What is needed to decide is not there yet, such as the address of a name."""

    exit_code = os.EX_TEMPFAIL


class OutputError(ProxyError):
    """The text that was asked for cannot be written."""

    exit_code = os.EX_IOERR


def raise_error(error: ProxyError) -> None:
    """Raise it: what is done with an error where nobody asks for anything else."""
    raise error


# What the machine may be out of, and what to do.
EXHAUSTED = {
    errno.EMFILE: "raise the limit of open files with LimitNOFILE= in the unit or ulimit -n",
    errno.ENFILE: "raise the system's limit of open files, sysctl fs.file-max",
    errno.EAGAIN: "raise the limit of processes with TasksMax= in the unit or ulimit -u",
    errno.ENOMEM: "free memory, or lower -w",
}


def advice(error: OSError) -> str:
    """What to do, behind the error's text, if the machine is out of something; else nothing."""
    known = EXHAUSTED.get(error.errno or 0)
    return f"; {known}" if known else ""


def out_of(error: OSError) -> Optional[UnavailableError]:
    """The error for the user if the machine is out of something, None if it is another one."""
    known = advice(error)
    return UnavailableError(f"cannot start: {error.strerror}{known}") if known else None


def out_of_memory() -> UnavailableError:
    """The same where Python could not have the memory."""
    return UnavailableError(f"cannot start: {os.strerror(errno.ENOMEM)}; {EXHAUSTED[errno.ENOMEM]}")
