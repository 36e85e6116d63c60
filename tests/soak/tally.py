"""What became of the connections, and what faults may explain of it."""

from __future__ import annotations

import collections
import contextlib
import threading
import time
from dataclasses import dataclass, field
from typing import Counter, Iterator, List, Tuple

# How long a connection may still fail because of a fault that is over.
AFTERMATH = 0.5


@dataclass
class Tally:
    """Counts of all threads; `wrong` has what no fault explains."""

    results: Counter[str] = field(default_factory=collections.Counter)
    faults: Counter[str] = field(default_factory=collections.Counter)
    wrong: List[str] = field(default_factory=list)
    killed: int = 0
    # Connections that were cut while the endpoint was there: each costs a worker that was killed.
    cut_without_outage: int = 0
    _outages: List[Tuple[float, float]] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, result: str) -> None:
        """A connection ended as it should."""
        with self._lock:
            self.results[result] += 1

    def cut(self, began: float) -> None:
        """A connection was cut: by an outage of the endpoint, or else by the end of a worker."""
        with self._lock:
            self.results["cut"] += 1
            self.cut_without_outage += not self._was_out_since(began)

    def unexplained(self, text: str) -> None:
        """Something that must not happen, whatever the faults."""
        with self._lock:
            self.wrong.append(text)

    @contextlib.contextmanager
    def outage(self) -> Iterator[None]:
        """While this lasts, and a moment longer, a connection may fail."""
        began = time.monotonic()
        with self._lock:
            self._outages.append((began, float("inf")))
        yield
        with self._lock:
            self._outages[-1] = (began, time.monotonic() + AFTERMATH)

    def _was_out_since(self, began: float) -> bool:
        now = time.monotonic()
        return any(start <= now and began <= end for start, end in self._outages)
