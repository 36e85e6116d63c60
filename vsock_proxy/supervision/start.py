"""Everything that comes before the first listener. Each step may end the program.

The order: take what systemd passed, read the operator's file and the instance metadata, judge what
may be served. If a step fails, no later step has had an effect.
"""

from __future__ import annotations

import logging
import os
from typing import Optional, Tuple

from vsock_proxy.config import metadata
from vsock_proxy.errors import TryAgainError
from vsock_proxy.observing.copier import Copier
from vsock_proxy.observing.logs import Log
from vsock_proxy.observing.stderr import Stderr
from vsock_proxy.observing.untold import Untold
from vsock_proxy.process.interpreter import share_with_first_child
from vsock_proxy.process.signals import Interrupted, Signals
from vsock_proxy.process.titles import find_room
from vsock_proxy.serving.passed import Passed
from vsock_proxy.settings import Settings
from vsock_proxy.supervision.judging import Judged, Wanted, judge_at_start
from vsock_proxy.supervision.limits import ensure_files
from vsock_proxy.supervision.master import Master
from vsock_proxy.supervision.systemd import Notifier, inherited_sockets
from vsock_proxy.supervision.wanting import want

log = logging.getLogger(__name__)


def serve(settings: Settings, signals: Signals, stderr: Stderr) -> int:
    """Serve until a signal ends it; returns the exit code. Raises ProxyError if it cannot start."""
    ensure_files(1)
    if stderr.is_own:
        return _serve(settings, signals, stderr, None)
    copier = Copier(stderr, signals)
    share_with_first_child()
    try:
        copier.start()
    except OSError as error:
        raise TryAgainError(f"cannot start a process for the log: {error.strerror}") from None
    try:
        return _serve(settings, signals, stderr, copier)
    finally:
        copier.finish()


def _serve(settings: Settings, signals: Signals, stderr: Stderr, copier: Optional[Copier]) -> int:
    log_output = Log(settings.log_level, stderr, Untold(), settings.log_format)
    log_output.name("master")
    find_room()
    notifier = Notifier(os.environ)
    passed = Passed(inherited_sockets(os.environ))
    try:
        wanted, judged = signals.unless_told_to_end(lambda: _judge(settings, signals))
    except Interrupted:
        log.info("told to end before the start was complete", {"event": "start_interrupted"})
        return os.EX_OK
    passed.check(wanted.services)
    master = Master(settings, log_output, copier, notifier, passed, signals)
    return master.run(wanted, judged)


def _judge(settings: Settings, signals: Signals) -> Tuple[Wanted, Tuple[Judged, ...]]:
    """Everything that may take time: the file, the metadata, DNS."""
    wanted = want(settings, search=metadata.look_up_apart(signals))
    return wanted, judge_at_start(wanted, signals)
