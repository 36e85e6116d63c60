"""The errors that end the program before it serves or instead of serving, with their exit codes.

The codes are those of sysexits.h. So a unit file can distinguish an error that a restart may cure
from one that only an operator can cure (`RestartPreventExitStatus=`).
"""

from __future__ import annotations

import errno
import os
from typing import Optional


class ProxyError(Exception):
    """An error that a user can cause and correct: the program ends with one line, no traceback."""

    exit_code = os.EX_SOFTWARE


class UsageError(ProxyError):
    """The command line asks for something that does not exist."""

    exit_code = os.EX_USAGE


class ConfigurationError(ProxyError):
    """The file cannot be read, is malformed, or does not permit an endpoint."""

    exit_code = os.EX_CONFIG


class UnavailableError(ProxyError):
    """The program cannot listen, or the machine lacks open files, memory or processes for it."""

    exit_code = os.EX_UNAVAILABLE


class TryAgainError(ProxyError):
    """Something that the program needs is not there yet, such as the address of a name."""

    exit_code = os.EX_TEMPFAIL


class OutputError(ProxyError):
    """The requested text cannot be written."""

    exit_code = os.EX_IOERR


def raise_error(error: ProxyError) -> None:
    """Raise it: the default for functions that take another way to handle an error."""
    raise error


# By errno, for what the machine may have run out of: what to do.
EXHAUSTED = {
    errno.EMFILE: "raise the limit of open files with LimitNOFILE= in the unit or ulimit -n",
    errno.ENFILE: "raise the system's limit of open files, sysctl fs.file-max",
    errno.EAGAIN: "raise the limit of processes with TasksMax= in the unit or ulimit -u",
    errno.ENOMEM: "free memory, or lower -w",
}


def advice(error: OSError) -> str:
    """The advice to append to the error's text if the machine is out of something; else nothing."""
    known = EXHAUSTED.get(error.errno or 0)
    return f"; {known}" if known else ""


def out_of(error: OSError) -> Optional[UnavailableError]:
    """The error for the user if the machine is out of something; None for any other error."""
    known = advice(error)
    return UnavailableError(f"cannot start: {error.strerror}{known}") if known else None


def out_of_memory() -> UnavailableError:
    """The same if Python could not get memory."""
    return UnavailableError(f"cannot start: {os.strerror(errno.ENOMEM)}; {EXHAUSTED[errno.ENOMEM]}")
