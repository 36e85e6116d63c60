"""Why the program ends before or instead of serving, each with the exit code that says so.

The codes are those of sysexits.h, so that a unit file can tell an error that a restart may cure
(`RestartPreventExitStatus=`) from one that only an operator can.
"""

from __future__ import annotations

import os


class ProxyError(Exception):
    """An end of the program that its user can cause and mend: one line, no traceback."""

    exit_code = os.EX_SOFTWARE


class UsageError(ProxyError):
    """The command line asks for something that there is not."""

    exit_code = os.EX_USAGE


class ConfigurationError(ProxyError):
    """The allowlist cannot be read, is malformed, or does not permit the endpoint."""

    exit_code = os.EX_CONFIG


class UnavailableError(ProxyError):
    """The listener cannot be had: in use, not permitted, or no such transport here."""

    exit_code = os.EX_UNAVAILABLE


class TryAgainError(ProxyError):
    """What is needed to decide is not there yet, such as the address of a name."""

    exit_code = os.EX_TEMPFAIL


class OutputError(ProxyError):
    """The text that was asked for cannot be written."""

    exit_code = os.EX_IOERR
