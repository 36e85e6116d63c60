"""What the service manager is told, and when."""

from __future__ import annotations

from typing import Callable

from vsock_proxy.supervision.systemd import Notifier
from vsock_proxy.supervision.timers import Timers

# Seconds until what the service manager did not take is sent again.
NOTIFY_AGAIN = 0.5


class Announcing:
    """Tells it through a notifier, again and again where that is needed."""

    def __init__(self, notifier: Notifier, timers: Timers, summary: Callable[[], str]) -> None:
        """summary: the status line as it is now."""
        self._notifier = notifier
        self._timers = timers
        self._summary = summary
        self._ready = self._sends_again = False
        # Whether a reload was announced that is not over.
        self._reloading = False

    @property
    def is_ready(self) -> bool:
        """Whether it was told that all is ready."""
        return self._ready

    def ready(self) -> None:
        """Each service is served."""
        self._ready = True
        self._notifier.ready()
        self.status()

    def reloading(self) -> None:
        """A reload has begun. Before the start is complete, that is part of it."""
        if self._ready:
            self._reloading = True
            self._notifier.reloading()

    def reloaded(self) -> None:
        """Nothing is being read, and what was read is in force or never will be."""
        if self._reloading:
            self._reloading = False
            self._notifier.ready()

    def stopping(self, patience: float) -> None:
        """The end has begun and takes at most these seconds; what was to be done is done anew."""
        self._sends_again = self._reloading = False
        self._notifier.stopping(patience)
        self.status()

    def status(self) -> None:
        """Tell how it goes, again and again where there is somebody to be told."""
        if self._notifier.interval is None:
            return
        self._notifier.status(self._summary())
        self._notifier.watchdog()
        self._timers.after(self._notifier.interval, self.status)

    def look(self) -> None:
        """After anything may have been told: see to what was not taken."""
        if self._notifier.unsent and not self._sends_again:
            self._sends_again = True
            self._timers.after(NOTIFY_AGAIN, self._send_again)

    def _send_again(self) -> None:
        self._sends_again = False
        self._notifier.send()
