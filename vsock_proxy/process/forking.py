"""Forking a child that inherits no surprises.

Between fork() and the child's own work, no signal may reach the parent's pipe, the child must never
return into the parent's code, and nothing buffered may be written twice. So signals are blocked
until the child has a pipe of its own, and the child ends by os._exit().
"""

from __future__ import annotations

import logging
import os
from typing import Callable, Optional

from vsock_proxy.process.signals import Signals, block, unblock

log = logging.getLogger(__name__)


def fork(signals: Signals, child: Callable[[], Optional[int]]) -> int:
    """Run a function in a new process and return its pid. Raises OSError if that cannot be made.

    child: may return an exit code other than 0.
    """
    block()
    try:
        pid = os.fork()
        if not pid:
            _run(signals, child)
        return pid
    finally:
        unblock()


def _run(signals: Signals, child: Callable[[], Optional[int]]) -> None:
    exit_code = os.EX_SOFTWARE
    try:
        signals.inherit()
        unblock()
        exit_code = child() or os.EX_OK
    except Exception:
        # This does not hide it: it is the process's last frame, and the master starts a new one.
        log.exception("internal error, please report it", {"event": "internal_error"})
    finally:
        os._exit(exit_code)
