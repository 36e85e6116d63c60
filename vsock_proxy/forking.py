"""Forking a child that inherits no surprises.

Between fork() and the child's own work a signal must not run the parent's handlers, the child must
never return into the parent's code, and nothing buffered may be written twice. So signals are
blocked around the fork, the child starts with handlers of its own, and it leaves by os._exit().
"""

from __future__ import annotations

import logging
import os
import signal
from typing import Callable

# What the master acts on. A terminal's Ctrl-C and systemd's KillMode=control-group reach every
# process; a child is told what to do by its master alone, unless it says otherwise.
HANDLED = (
    signal.SIGTERM,
    signal.SIGINT,
    signal.SIGQUIT,
    signal.SIGHUP,
    signal.SIGUSR1,
    signal.SIGCHLD,
)
IGNORED_BY_CHILDREN = (signal.SIGINT, signal.SIGHUP, signal.SIGUSR1)

log = logging.getLogger(__name__)


def fork(child: Callable[[], None]) -> int:
    """Run a function in a new process and return its pid. Raises OSError if there can be none."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, HANDLED)
    try:
        pid = os.fork()
        if not pid:
            _run(child)
        return pid
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _run(child: Callable[[], None]) -> None:
    exit_code = os.EX_SOFTWARE
    try:
        signal.set_wakeup_fd(-1)
        for number in HANDLED:
            ignored = number in IGNORED_BY_CHILDREN
            signal.signal(number, signal.SIG_IGN if ignored else signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, HANDLED)
        child()
        exit_code = os.EX_OK
    except Exception:
        # Not to hide it: this is the process's last frame, and the master starts another.
        log.exception("internal error, please report it")
    finally:
        os._exit(exit_code)
