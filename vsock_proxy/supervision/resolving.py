"""The master's side of the resolver: one process for the names of all services."""

from __future__ import annotations

from typing import Callable, Optional

from vsock_proxy.supervision.children import Children, Respawning
from vsock_proxy.supervision.pacer import Pacer


class Resolving:
    """Keeps the resolver running while there is a name to look up.

    is_needed: whether there is such a name.
    """

    def __init__(
        self,
        children: Children,
        respawning: Respawning,
        be_resolver: Callable[[], None],
        wanting: Callable[[], None],
    ) -> None:
        """
        be_resolver: what the process does.
        wanting: called when it has to be started again.
        """
        self.is_needed = False
        self._children = children
        self._respawning = respawning
        self._be_resolver = be_resolver
        self._wanting = wanting
        self._pacer = Pacer()
        self._pid: Optional[int] = None

    @property
    def is_missing(self) -> bool:
        """Whether it is needed and does not run."""
        return self.is_needed and self._pid is None

    def start(self) -> None:
        """Start it if it is missing. Raises OSError if that cannot be done."""
        if self.is_missing:
            self._pid = self._children.start(self._be_resolver, self._buried)

    def end(self) -> None:
        """End it for good, before another publishes addresses in its place."""
        if self._pid is not None:
            # The tables stay whole, whenever it dies.
            self._children.end(self._pid)
            self._pid = None

    def _buried(self, status: int) -> None:
        self._pid = None
        if self.is_needed:
            self._respawning.another("resolver", status, self._pacer, self._wanting)
