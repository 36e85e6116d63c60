"""Whether the proxy is alive, and whether it serves: a verdict and one line that says why.

Pure functions: the caller hands in what was seen.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import List, Sequence, Tuple

from vsock_proxy.observing.account import Scene
from vsock_proxy.observing.closing import NANOSECONDS
from vsock_proxy.observing.scoreboard import State
from vsock_proxy.observing.vitals import Stage
from vsock_proxy.words import counted

Verdict = Tuple[bool, str]


@dataclass(frozen=True)
class Condition:
    """The state of one service.

    workers: how many workers of its pool run.
    accepts: whether one of them has waited for clients.
    connected, failed: when the last connect succeeded, and when one last failed; 0: never.
    """

    name: str
    endpoint: str
    workers: int
    accepts: bool
    connected: int = 0
    failed: int = 0


def conditions(scene: Scene) -> List[Condition]:
    """The conditions of all services in force.

    What a pool has learnt of an endpoint stays valid when another pool replaces it.
    """
    tried = scene.account().tried
    found = []
    for pool in scene.pools:
        workers = sum(row.state is not State.ABSENT for row in pool.board.rows())
        for name in pool.services:
            last = tried[name]
            found.append(
                Condition(
                    name,
                    str(last.endpoint),
                    workers,
                    pool.board.serving,
                    last.connected,
                    last.failed,
                )
            )
    return found


def healthy(stage: Stage, master_answers: bool, services: Sequence[Condition]) -> Verdict:
    """Whether the master supervises and every service has a worker."""
    if not master_answers:
        return False, "not healthy: the master does not answer"
    if stage is Stage.DRAINING:
        return True, "healthy: draining"
    alone = [service.name for service in services if not service.workers]
    if alone:
        return False, f"not healthy: no worker for {_list(alone)}"
    return True, f"healthy: {_served(services)}"


def ready(stage: Stage, services: Sequence[Condition], now: int) -> Verdict:
    """Whether each service accepts, and its last connect succeeded.

    now: by time.monotonic_ns().
    """
    if stage is Stage.DRAINING:
        return False, "not ready: draining"
    closed = [service.name for service in services if not (service.accepts and service.workers)]
    if closed:
        return False, f"not ready: no worker accepts clients of {_list(closed)}"
    failing = [
        f"{service.name} to {service.endpoint} {(now - service.failed) / NANOSECONDS:.1f} s ago"
        for service in services
        if service.failed > service.connected
    ]
    if failing:
        return False, f"not ready: the last connect failed, of {_list(failing)}"
    return True, f"ready: {_served(services)}"


def _served(services: Sequence[Condition]) -> str:
    return counted(len(services), "service")


# How many names a line for people may have.
MOST_NAMED = 8


def _list(names: Sequence[str]) -> str:
    more = len(names) - MOST_NAMED
    return ", ".join(names[:MOST_NAMED]) + (f" and {more} more" if more > 0 else "")
