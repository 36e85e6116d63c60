"""Which services share a pool, when a reload leaves one as it is, and how many files they need."""

from __future__ import annotations

import resource
import socket
from dataclasses import replace
from typing import Iterator, List, Optional, Sequence, Tuple

import pytest

from vsock_proxy.config.allowlist import Allowlist
from vsock_proxy.endpoint.addresses import AddressTable
from vsock_proxy.endpoint.policy import make_policy
from vsock_proxy.errors import UnavailableError
from vsock_proxy.serving.listener import Listener
from vsock_proxy.settings import Endpoint, ServiceOptions, ServiceSettings
from vsock_proxy.supervision.limits import FILES_OF_A_SERVICE, NEEDED_FILES, ensure_files
from vsock_proxy.supervision.pool import divide
from vsock_proxy.supervision.service import Service

pytestmark = pytest.mark.hybrid_only  # no transport has a part in it


class Services:
    """Makes services that have all but clients."""

    def __init__(self) -> None:
        self._made: List[Service] = []

    def make(self, port: int, workers: Optional[int] = None, host: str = "a.test") -> Service:
        settings = ServiceSettings(port, Endpoint(host, 443), ServiceOptions(), workers)
        sock = socket.socket(socket.AF_UNIX)
        listener = Listener(sock, socket.AF_UNIX, str(port))
        policy = make_policy(settings, Allowlist("allowlist.yaml", ()))
        self._made.append(Service(settings, str(port), listener, AddressTable(443), policy))
        return self._made[-1]

    def close(self) -> None:
        for service in self._made:
            service.listener.close()
            assert service.table is not None
            service.table.close()


@pytest.fixture
def services() -> Iterator[Services]:
    made = Services()
    yield made
    made.close()


# The workers that each service has of its own, and the pools: their services, and their workers.
DIVISIONS: List[Tuple[Sequence[Optional[int]], List[Tuple[List[str], int]]]] = [
    ([None], [(["1"], 4)]),
    ([None, None], [(["1", "2"], 4)]),
    ([3], [(["1"], 3)]),
    ([3, 5], [(["1"], 3), (["2"], 5)]),
    ([None, 3, None], [(["1", "3"], 4), (["2"], 3)]),
    # As many as the others share: its places are its own all the same.
    ([4, None], [(["2"], 4), (["1"], 4)]),
]


@pytest.mark.parametrize(("own", "pools"), DIVISIONS)
def test_a_service_with_workers_has_its_own_pool_and_others_share_one(
    own: Sequence[Optional[int]], pools: List[Tuple[List[str], int]], services: Services
) -> None:
    asked = [services.make(port, workers) for port, workers in enumerate(own, 1)]
    divided = divide(asked, 4)
    assert [([one.name for one in pool.services], pool.workers) for pool in divided] == pools
    assert [pool.own for pool in divided] == [
        asked[int(names[0]) - 1].settings.workers is not None for names, _ in pools
    ]


@pytest.mark.parametrize(
    ("host", "elsewhere", "looked_up"),
    [
        ("a.test", False, True),
        ("b.test", True, True),
        ("10.0.0.1", True, False),
        ("fe80::1", True, False),
        ("fe80::1%lo", True, True),
    ],
)
def test_a_service_leads_elsewhere_if_its_endpoint_is_another_one(
    host: str, elsewhere: bool, looked_up: bool, services: Services
) -> None:
    service = services.make(1)
    assert service.leads_elsewhere(services.make(1, host=host).settings) is elsewhere
    assert services.make(1, host=host).is_looked_up is looked_up


def test_a_service_that_wants_another_family_leads_elsewhere(
    services: Services,
) -> None:
    service = services.make(1)
    options = ServiceOptions(family=socket.AF_INET6)
    assert service.leads_elsewhere(replace(service.settings, options=options))
    options = ServiceOptions(connect_timeout=1.0)
    assert not service.leads_elsewhere(replace(service.settings, options=options))


# The limit of open files


class Limit:
    """Stands for the process's own."""

    def __init__(self, soft: int, hard: int) -> None:
        self.now = (soft, hard)

    def get(self, which: int) -> Tuple[int, int]:
        return self.now

    def set(self, which: int, to: Tuple[int, int]) -> None:
        self.now = to


NEEDED = NEEDED_FILES + 10 * FILES_OF_A_SERVICE
NONE = resource.RLIM_INFINITY


@pytest.mark.parametrize(
    ("limit", "then"),
    [
        ((NEEDED, NEEDED), (NEEDED, NEEDED)),
        ((NEEDED + 1, NONE), (NEEDED + 1, NONE)),
        ((NONE, NONE), (NONE, NONE)),
        ((NEEDED - 1, NEEDED), (NEEDED, NEEDED)),
        ((8, 100_000), (NEEDED, 100_000)),
        ((8, NONE), (NEEDED, NONE)),
    ],
)
def test_the_limit_of_open_files_is_raised_to_what_the_services_need(
    limit: Tuple[int, int], then: Tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    files = Limit(*limit)
    monkeypatch.setattr(resource, "getrlimit", files.get)
    monkeypatch.setattr(resource, "setrlimit", files.set)
    ensure_files(10)
    assert files.now == then


def test_a_limit_that_cannot_be_raised_is_told_with_what_is_needed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    files = Limit(8, NEEDED - 1)
    monkeypatch.setattr(resource, "getrlimit", files.get)
    with pytest.raises(UnavailableError, match=f"open files is {NEEDED - 1}, {NEEDED} are needed"):
        ensure_files(10)
