"""The master's side of the copier, which runs as long as anything may be logged."""

from __future__ import annotations

from typing import Callable, List, Optional

from vsock_proxy.observing.copier import Copier
from vsock_proxy.supervision.children import START_AGAIN, Respawning
from vsock_proxy.supervision.pacer import Pacer
from vsock_proxy.supervision.timers import Timers


class Copying:
    """Replaces a copier that has ended by another, where there is a copier."""

    def __init__(
        self,
        copier: Optional[Copier],
        respawning: Respawning,
        timers: Timers,
        leave_master: Callable[[], None],
    ) -> None:
        """leave_master: called in the new process."""
        self._copier = copier
        self._respawning = respawning
        self._timers = timers
        self._leave_master = leave_master
        self._pacer = Pacer()

    def buried(self, pid: int, status: int) -> None:
        """A child of the master has ended; it may be the copier."""
        copier = self._copier
        if copier is not None and pid == copier.pid:
            copier.pid = None
            self._respawning.another("log", status, self._pacer, self._start)

    @property
    def descriptors(self) -> List[int]:
        """The descriptors that only the master and the copier may hold."""
        return [] if self._copier is None else [self._copier.descriptor]

    def _start(self) -> None:
        assert self._copier is not None
        try:
            self._copier.start(self._leave_master)
        except OSError:
            # No log is left to say it in.
            self._timers.after(START_AGAIN, self._start)
