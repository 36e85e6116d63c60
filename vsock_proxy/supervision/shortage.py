"""Logs that processes cannot be started: one line for all, not one for each process and try."""

from __future__ import annotations

import logging
from typing import Optional, Sequence

from vsock_proxy.errors import advice
from vsock_proxy.words import counted

# Seconds after which the log repeats that a shortage lasts.
TELL_INTERVAL = 60.0

log = logging.getLogger(__name__)


class Shortage:
    """What the log says while fewer processes run than should."""

    def __init__(self) -> None:
        self._told: Optional[float] = None

    def lasts(
        self, missing: int, workers: int, others: Sequence[str], error: OSError, now: float
    ) -> None:
        """Processes could not be started. missing: how many workers; others: their names."""
        if self._told is not None and now - self._told < TELL_INTERVAL:
            return
        self._told = now
        lacking = [f"{missing} of {counted(workers, 'worker')}"] if missing else []
        lacking += others
        log.error(
            "cannot start %(lacking)s: %(reason)s%(advice)s; trying again every second",
            {
                "event": "processes_missing",
                "count": missing + len(others),
                "reason": error.strerror,
                "errno": error.errno,
                "lacking": " and ".join(lacking),
                "advice": advice(error),
            },
        )

    def is_over(self, workers: int) -> None:
        """All processes run, among them this number of workers."""
        if self._told is not None:
            log.info(
                "%(workers)s",
                {
                    "event": "processes_complete",
                    "count": workers,
                    "workers": "the worker runs" if workers == 1 else f"all {workers} workers run",
                },
            )
        self._told = None
