"""What the service manager is told, and when, by a real notify socket."""

from __future__ import annotations

from pathlib import Path
from typing import Iterator, List

import pytest

from tests.support.systemd import NotifySocket
from vsock_proxy.supervision.announcing import Announcing
from vsock_proxy.supervision.systemd import Notifier
from vsock_proxy.supervision.timers import Action, Timers

pytestmark = pytest.mark.hybrid_only  # no transport has a part in it

NEVER = 1e9


class CountingTimers(Timers):
    added = 0

    def at(self, when: float, action: Action) -> None:
        self.added += 1
        super().at(when, action)


class Manager:
    """A service manager, and what tells it."""

    def __init__(self, address: str) -> None:
        self.socket = NotifySocket(address)
        self.summary = "idle"
        self.timers = CountingTimers()
        self.notifier = Notifier({"NOTIFY_SOCKET": address, "WATCHDOG_USEC": "3000000"})
        self.announcing = Announcing(self.notifier, self.timers, lambda: self.summary)

    def told(self) -> List[str]:
        """What it was told since the last time, each by its first line; no status and no sign."""
        lines = []
        while not self.socket.is_empty():
            lines.append(self.socket.receive().split("\n")[0])
        return [line for line in lines if not line.startswith(("STATUS", "WATCHDOG"))]


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[Manager]:
    made = Manager(str(tmp_path / "notify"))
    yield made
    made.socket.close()


def test_a_reload_is_over_when_that_is_said_and_it_is_told_once(manager: Manager) -> None:
    announcing = manager.announcing
    announcing.ready()
    assert manager.told() == ["READY=1"]
    announcing.reloaded()
    announcing.reloading()
    assert manager.told() == ["RELOADING=1"]
    announcing.reloaded()
    announcing.reloaded()
    assert manager.told() == ["READY=1"]


def test_a_reload_during_another_is_over_with_it(manager: Manager) -> None:
    announcing = manager.announcing
    announcing.ready()
    announcing.reloading()
    announcing.reloading()
    assert manager.told() == ["READY=1", "RELOADING=1", "RELOADING=1"]
    announcing.reloaded()
    announcing.reloaded()
    assert manager.told() == ["READY=1"]


def test_a_reload_before_the_start_is_complete_is_part_of_it(manager: Manager) -> None:
    announcing = manager.announcing
    announcing.reloading()
    announcing.reloaded()
    assert (announcing.is_ready, manager.told()) == (False, [])
    announcing.ready()
    announcing.reloaded()
    assert (announcing.is_ready, manager.told()) == (True, ["READY=1"])


def test_the_end_of_a_reload_is_no_news_once_the_service_stops(manager: Manager) -> None:
    announcing = manager.announcing
    announcing.ready()
    announcing.reloading()
    announcing.stopping(30.0)
    announcing.reloaded()
    assert manager.told() == ["READY=1", "RELOADING=1", "STOPPING=1"]


def test_a_changed_status_is_told_again_and_a_sign_of_life_each_time(
    manager: Manager,
) -> None:
    manager.announcing.status()
    manager.timers.look(NEVER)
    manager.summary = "busy"
    manager.timers.look(NEVER)
    assert manager.timers.due is not None
    messages = [manager.socket.receive() for _ in range(5)]
    assert messages == ["STATUS=idle", "WATCHDOG=1", "WATCHDOG=1", "STATUS=busy", "WATCHDOG=1"]
    assert manager.socket.is_empty()


def test_what_was_not_taken_is_sent_again_by_one_timer(manager: Manager) -> None:
    # The kernel keeps only a few datagrams that nobody has read.
    while not manager.notifier.unsent:
        manager.notifier.reloading()
    manager.announcing.look()
    manager.announcing.look()
    assert manager.timers.added == 1
    manager.told()
    manager.timers.look(NEVER)
    assert manager.told() == ["RELOADING=1"]
    manager.announcing.look()
    assert manager.timers.due is None


def test_where_nobody_is_to_be_told_no_time_comes_to_do_so() -> None:
    timers = Timers()
    announcing = Announcing(Notifier({}), timers, lambda: "idle")
    announcing.ready()
    announcing.reloading()
    announcing.reloaded()
    announcing.look()
    announcing.stopping(1.0)
    assert timers.due is None
