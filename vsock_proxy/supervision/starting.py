"""Starting the processes that are missing: all together, because what stops one stops all."""

from __future__ import annotations

import time
from typing import List

from vsock_proxy.supervision.children import START_AGAIN
from vsock_proxy.supervision.exporting import Exporting
from vsock_proxy.supervision.fleet import Fleet
from vsock_proxy.supervision.resolving import Resolving
from vsock_proxy.supervision.shortage import Shortage
from vsock_proxy.supervision.timers import Timers


class Starting:
    """Starts processes, and tries again later if it cannot."""

    def __init__(
        self, fleet: Fleet, resolving: Resolving, exporting: Exporting, timers: Timers
    ) -> None:
        self._fleet = fleet
        self._resolving = resolving
        self._exporting = exporting
        self._timers = timers
        self._shortage = Shortage()
        self._tries_again = False
        self._stopped = False

    def start(self) -> None:
        """Start what is missing. If one process cannot be started, try all again later."""
        if self._stopped or self._tries_again:
            return
        fleet = self._fleet
        try:
            self._resolving.start()
            self._exporting.start()
            fleet.start_missing()
        except OSError as error:
            self._shortage.lasts(
                fleet.missing, fleet.size, self._missing_others(), error, time.monotonic()
            )
            self._tries_again = True
            self._timers.after(START_AGAIN, self._try_again)
        else:
            self._shortage.is_over(fleet.size)

    def stop(self) -> None:
        """Start nothing from now on."""
        self._stopped = True

    def _missing_others(self) -> List[str]:
        others = [
            ("the resolver", self._resolving.is_missing),
            ("the process for metrics", self._exporting.is_missing),
        ]
        return [name for name, is_missing in others if is_missing]

    def _try_again(self) -> None:
        self._tries_again = False
        self.start()
