"""The master's side of the copier: it runs as long as there is anything to be logged."""

from __future__ import annotations

from typing import Callable, List, Optional

from vsock_proxy.observing.copier import Copier
from vsock_proxy.supervision.children import START_AGAIN, Respawning
from vsock_proxy.supervision.pacer import Pacer
from vsock_proxy.supervision.timers import Timers


class Copying:
    """Starts another copier in the place of one that has ended, where there is one."""

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
        """A child of this process has ended; it may be the copier."""
        copier = self._copier
        if copier is not None and pid == copier.pid:
            copier.pid = None
            self._respawning.another("log", status, self._pacer, self._start)

    @property
    def descriptors(self) -> List[int]:
        """What only the master and the copier may hold."""
        return [] if self._copier is None else [self._copier.descriptor]

    def _start(self) -> None:
        assert self._copier is not None
        try:
            self._copier.start(self._leave_master)
        except OSError:
            # There is no log to say it in.
            self._timers.after(START_AGAIN, self._start)
