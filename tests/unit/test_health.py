"""What /healthz and /readyz say, by what was seen."""

from __future__ import annotations

from typing import List, Tuple

import pytest

from vsock_proxy.observing.health import MOST_NAMED, Condition, healthy, ready
from vsock_proxy.observing.vitals import Stage

pytestmark = pytest.mark.hybrid_only  # no transport has a part in it

SECOND = 1_000_000_000
NOW = 100 * SECOND
STARTING, SERVING, DRAINING = Stage


def service(
    name: str = "8000",
    workers: int = 4,
    accepts: bool = True,
    connected: int = 0,
    failed: int = 0,
) -> Condition:
    return Condition(name, "kms.example:443", workers, accepts, connected, failed)


HEALTH: List[Tuple[Stage, bool, List[Condition], bool, str]] = [
    (SERVING, True, [service()], True, "healthy: 1 service"),
    (SERVING, True, [service(), service("8001")], True, "healthy: 2 services"),
    (STARTING, True, [service(accepts=False)], True, "healthy: 1 service"),
    (SERVING, True, [service(failed=NOW)], True, "healthy: 1 service"),
    (SERVING, False, [service()], False, "not healthy: the master does not answer"),
    (DRAINING, False, [service()], False, "not healthy: the master does not answer"),
    (SERVING, True, [service(), service("8001", 0)], False, "not healthy: no worker for 8001"),
    (SERVING, True, [service(workers=0)], False, "not healthy: no worker for 8000"),
    (DRAINING, True, [service(workers=0)], True, "healthy: draining"),
]


@pytest.mark.parametrize(("stage", "master_answers", "services", "well", "line"), HEALTH)
def test_it_is_healthy_while_the_master_answers_and_services_have_workers(
    stage: Stage, master_answers: bool, services: List[Condition], well: bool, line: str
) -> None:
    assert healthy(stage, master_answers, services) == (well, line)


NO_WORKER = "not ready: no worker accepts clients of 8000"
READINESS: List[Tuple[Stage, List[Condition], bool, str]] = [
    (SERVING, [service()], True, "ready: 1 service"),
    (SERVING, [service(connected=1), service("8001")], True, "ready: 2 services"),
    (SERVING, [service(failed=1, connected=2)], True, "ready: 1 service"),
    (STARTING, [service(accepts=False)], False, NO_WORKER),
    (SERVING, [service(workers=0)], False, NO_WORKER),
    (DRAINING, [service()], False, "not ready: draining"),
    (
        SERVING,
        [service(failed=NOW - 3 * SECOND, connected=1), service("8001")],
        False,
        "not ready: the last connect failed, of 8000 to kms.example:443 3.0 s ago",
    ),
]


@pytest.mark.parametrize(("stage", "services", "well", "line"), READINESS)
def test_it_is_ready_while_each_service_accepts_and_could_connect_last(
    stage: Stage, services: List[Condition], well: bool, line: str
) -> None:
    assert ready(stage, services, NOW) == (well, line)


def test_of_many_services_a_line_names_a_few() -> None:
    services = [service(str(port), workers=0) for port in range(8000, 9000)]
    well, line = healthy(SERVING, True, services)
    assert not well
    assert line.endswith(f"8007 and {1000 - MOST_NAMED} more")
    assert len(line) < 200
