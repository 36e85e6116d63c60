"""What systemd passes to a service, and what a service tells systemd.

Both are small protocols over environment variables, so no library is needed (sd_notify(3),
sd_watchdog_enabled(3), sd_listen_fds(3)). News are datagrams to the socket that $NOTIFY_SOCKET
names. The listening sockets that .socket units hold are the descriptors from 3 on. Each variable is
removed from the environment once it is read, because none is meant for child processes.

The master does not wait for systemd. What systemd does not take at once is kept, one of each kind,
until it does.

Without systemd, nothing here makes a system call.
"""

from __future__ import annotations

import logging
import os
import re
import socket
import time
from typing import Dict, List, MutableMapping, Optional

from vsock_proxy.errors import UnavailableError
from vsock_proxy.observing.report import Totals
from vsock_proxy.process.kernel import AF_VSOCK

FIRST_PASSED_FD = 3
# Seconds between two looks at whether the status has changed.
STATUS_INTERVAL = 5.0
# Seconds; no sign of life comes more often, because the master has other things to do.
SHORTEST_INTERVAL = 0.01
MICROSECONDS = 1_000_000
# As many digits as a number of 64 bits has.
COUNT = "[0-9]{1,20}"

log = logging.getLogger(__name__)

Environment = MutableMapping[str, str]


class Notifier:
    """Tells systemd how the service is; does nothing where systemd does not ask for it."""

    def __init__(self, environment: Environment) -> None:
        self._address = _notify_address(environment)
        self._watchdog = _watchdog_interval(environment) if self._address else None
        # What systemd has not taken yet, by kind, oldest first.
        self._news: Dict[str, str] = {}
        self._last_status = ""
        self._complained = False

    @property
    def interval(self) -> Optional[float]:
        """Seconds between two calls of status() and watchdog(); None: never call them."""
        if self._address is None:
            return None
        # Twice within the time that systemd allows, as sd_watchdog_enabled(3) recommends.
        wanted = (self._watchdog or STATUS_INTERVAL * 2) / 2
        return max(SHORTEST_INTERVAL, min(STATUS_INTERVAL, wanted))

    def ready(self) -> None:
        """Connections are accepted; or a reload has ended."""
        self._tell("READY", "READY=1")

    def reloading(self) -> None:
        """A reload has begun; ready() must follow."""
        self._tell("RELOADING", f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}")

    def stopping(self, patience: float) -> None:
        """No new connections. The live ones have these seconds, even if the unit allows less."""
        self._tell("STOPPING", f"STOPPING=1\nEXTEND_TIMEOUT_USEC={int(patience * MICROSECONDS)}")

    def status(self, text: str) -> None:
        """The line that `systemctl status` shows; sent when it has changed."""
        if text != self._last_status:
            self._last_status = text
            self._tell("STATUS", f"STATUS={text}")

    def watchdog(self) -> None:
        """The service is alive."""
        if self._watchdog is not None:
            self._tell("WATCHDOG", "WATCHDOG=1")

    @property
    def unsent(self) -> bool:
        """Whether there is news that systemd has not taken yet; send() tries again."""
        return bool(self._news)

    def send(self) -> None:
        """Send the news, as far as systemd takes it at once."""
        try:
            # A socket for each call: every worker would inherit one that stays open.
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as sock:
                for kind, news in list(self._news.items()):
                    sock.sendto(news.encode(), self._address or "")
                    del self._news[kind]
        except BlockingIOError:
            # systemd has much to read.
            pass
        except OSError as error:
            self._news.clear()
            if not self._complained:
                log.warning(
                    "cannot notify systemd: %(reason)s; going on",
                    {
                        "event": "notify_failed",
                        "reason": error.strerror or error,
                        "errno": error.errno,
                    },
                )
            self._complained = True

    def _tell(self, kind: str, news: str) -> None:
        if self._address is None:
            return
        # The newest of a kind replaces an unsent one, and goes to the end.
        self._news.pop(kind, None)
        self._news[kind] = news
        self.send()


def summary(services: int, busy: int, workers: int, totals: Totals) -> str:
    """The status line: `3 services, 5 of 24 workers busy, 1207 connections served, 2 failed`.

    A single service is not mentioned.
    """
    several = f"{services} services, " if services > 1 else ""
    return (
        f"{several}{busy} of {workers} workers busy, "
        f"{totals.served} connections served, {totals.failed} failed"
    )


def inherited_sockets(environment: Environment) -> List[socket.socket]:
    """The listening sockets that systemd passes to this process, from one or more .socket units.

    Raises UnavailableError if one of them cannot be served.
    """
    pid, count, names = (
        environment.pop(name, "") for name in ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES")
    )
    if not count or pid != str(os.getpid()):
        return []
    if not re.fullmatch(COUNT, count):
        raise UnavailableError(f"systemd passed {count!r} sockets; LISTEN_FDS must be a number")
    named = dict(enumerate(names.split(":"), FIRST_PASSED_FD))
    passed = range(FIRST_PASSED_FD, FIRST_PASSED_FD + int(count))
    return [_take(fd, named.get(fd) or "unnamed") for fd in passed]


def _take(fd: int, name: str) -> socket.socket:
    try:
        os.set_inheritable(fd, False)
        sock = socket.socket(fileno=fd)
    except OSError as error:
        raise _unfit(name, error.strerror or str(error)) from None
    problems = _problems(sock)
    if problems:
        sock.close()
        raise _unfit(name, ", ".join(problems))
    return sock


def _problems(sock: socket.socket) -> List[str]:
    """Why guests' connections cannot be accepted from a socket."""
    problems = []
    if sock.family in (socket.AF_INET, socket.AF_INET6):
        if sock.type == socket.SOCK_STREAM and sock.proto != socket.IPPROTO_TCP:
            problems.append("not TCP")
    elif sock.family not in (AF_VSOCK, socket.AF_UNIX):
        problems.append("neither AF_VSOCK, AF_UNIX nor TCP")
    if sock.type != socket.SOCK_STREAM:
        problems.append("not a stream socket")
    if not sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
        problems.append("not listening")
    return problems


def _unfit(name: str, problem: str) -> UnavailableError:
    return UnavailableError(
        f"the socket that systemd passed ({name}) cannot be served: {problem}; the "
        ".socket unit must have ListenStream=vsock::PORT, a path or ADDRESS:PORT, and Accept=no"
    )


def _notify_address(environment: Environment) -> Optional[str]:
    address = environment.pop("NOTIFY_SOCKET", "")
    if not address:
        return None
    # '@' stands for the zero byte of an abstract address (unix(7)).
    return "\0" + address[1:] if address[0] == "@" else address


def _watchdog_interval(environment: Environment) -> Optional[float]:
    """Seconds within which systemd expects a sign of life; None if it expects none."""
    interval = environment.pop("WATCHDOG_USEC", "")
    pid = environment.pop("WATCHDOG_PID", "")
    if not re.fullmatch(COUNT, interval) or pid not in ("", str(os.getpid())):
        return None
    return int(interval) / MICROSECONDS or None
