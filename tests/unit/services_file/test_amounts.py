"""How many services, workers and CIDs the file may have, and how long it takes to load."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path

import pytest
import yaml

from tests.support.loading import GOOD, error_of, services
from tests.support.timing import SLOWNESS
from vsock_proxy.errors import ConfigurationError

pytestmark = pytest.mark.hybrid_only  # no transport has a part in it


def many(count: int, more: str = "") -> str:
    return "".join(
        f"\n- {{listen: {number}, address: a.example, port: 443{more}}}"
        for number in range(1000, 1000 + count)
    )


def test_there_may_be_a_thousand_services_and_no_more(file: Path) -> None:
    assert len(services(file, many(1000))) == 1000
    assert error_of(file, many(1001)) == "line 1003: more than 1000 services"
    assert error_of(file, f"\n- &a {{{GOOD}}}" + "\n- *a" * 20_000) == (
        "line 3: more than 1000 services"
    )


def test_all_pools_together_have_no_more_workers_than_one_may_have(file: Path) -> None:
    assert services(file, many(10, ", workers: 1000"), workers=10_000)
    assert error_of(file, many(11, ", workers: 1000")) == (
        "line 13: workers is '1000', which makes 11000 with those of the services before it; "
        "expected at most 10000 in all"
    )
    shared = many(1, ", workers: 9000") + "\n- {listen: 8000, address: a, port: 1}"
    assert services(file, shared, workers=1000)
    assert (
        "makes 10001 with those of the services before it and the 1001 that others share (-w)"
        in error_of(file, shared, workers=1001)
    )


SLOW = {
    "one long list of CIDs again and again": (
        "\n- {listen: 8000, address: a, port: 1, allow_cid: &c [" + "16, " * 45_000 + "]}"
    )
    + "".join(
        f"\n- {{listen: {number}, address: a, port: 1, allow_cid: *c}}"
        for number in range(9000, 9400)
    ),
    "one long text for a list of CIDs": many(900, f", allow_cid: {'1' * 900}"),
    "one long address again and again": (
        f"\n- {{listen: 8000, address: &a {'x.' * 400_000}, port: 1}}"
    )
    + "".join(f"\n- {{listen: {number}, address: *a, port: 1}}" for number in range(9000, 9900)),
    "international names": many(999).replace("a.example", "ü." * 18 + "e"),
    "many keys": "\n- {" + "listen: 8000, " * 20_000 + "}",
    "long numbers": f"\n- {{listen: {'1' * 900_000}, address: a, port: 1}}",
}


@pytest.mark.parametrize("content", SLOW.values(), ids=SLOW.keys())
def test_services_take_less_than_a_second_whatever_is_in_them(file: Path, content: str) -> None:
    began = time.process_time()
    with contextlib.suppress(ConfigurationError):
        services(file, content)
    assert time.process_time() - began < (1 if yaml.__with_libyaml__ else 10) * SLOWNESS


def test_too_many_cids_in_all_are_refused(file: Path) -> None:
    assert error_of(file, SLOW["one long list of CIDs again and again"]) == (
        "line 3: more than 50000 CIDs in all services"
    )
