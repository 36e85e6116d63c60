"""What the master tells the service manager, and when."""

from __future__ import annotations

from typing import Callable

from vsock_proxy.supervision.systemd import Notifier
from vsock_proxy.supervision.timers import Timers

# Seconds until news that the service manager did not take are sent again.
NOTIFY_AGAIN = 0.5


class Announcing:
    """Tells it through a notifier, and repeats that where needed."""

    def __init__(self, notifier: Notifier, timers: Timers, summary: Callable[[], str]) -> None:
        """summary: the status line as it is now."""
        self._notifier = notifier
        self._timers = timers
        self._summary = summary
        self._ready = self._sends_again = False
        # Whether an announced reload is not over yet.
        self._reloading = False

    @property
    def is_ready(self) -> bool:
        """Whether ready() was called."""
        return self._ready

    def ready(self) -> None:
        """Each service is served."""
        self._ready = True
        self._notifier.ready()
        self.status()

    def reloading(self) -> None:
        """A reload has begun. Before ready(), it counts as part of the start."""
        if self._ready:
            self._reloading = True
            self._notifier.reloading()

    def reloaded(self) -> None:
        """No reload is under way any more, whether it succeeded or failed."""
        if self._reloading:
            self._reloading = False
            self._notifier.ready()

    def stopping(self, patience: float) -> None:
        """The end has begun, and takes at most these seconds. The timers were cleared before."""
        self._sends_again = self._reloading = False
        self._notifier.stopping(patience)
        self.status()

    def status(self) -> None:
        """Send the status, and a sign of life, again and again if systemd listens."""
        if self._notifier.interval is None:
            return
        self._notifier.status(self._summary())
        self._notifier.watchdog()
        self._timers.after(self._notifier.interval, self.status)

    def look(self) -> None:
        """Called after each round: send later what was not taken."""
        if self._notifier.unsent and not self._sends_again:
            self._sends_again = True
            self._timers.after(NOTIFY_AGAIN, self._send_again)

    def _send_again(self) -> None:
        self._sends_again = False
        self._notifier.send()
