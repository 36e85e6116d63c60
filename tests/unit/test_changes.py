"""What the log says that a reload has changed."""

from __future__ import annotations

from dataclasses import replace
from typing import Dict, Tuple

import pytest

from vsock_proxy.settings import Endpoint, ServiceSettings
from vsock_proxy.supervision.changes import compare

pytestmark = pytest.mark.hybrid_only

Known = Dict[str, Tuple[str, ServiceSettings]]


def services(*ports: int, **settings: object) -> Known:
    return {
        f"vsock port {port}": (
            str(port),
            replace(ServiceSettings(port, Endpoint("host", 443)), **settings),  # type: ignore[arg-type]
        )
        for port in ports
    }


@pytest.mark.parametrize(
    ("before", "after", "text"),
    [
        (services(1), services(1), "no service has changed"),
        (services(1), services(1, 2), "2 added"),
        (services(1, 2), services(2), "1 removed"),
        (services(1), services(1, workers=2), "1 changed"),
        (
            services(1, 2),
            {**services(2, workers=2), **services(3)},
            "3 added; 1 removed; 2 changed",
        ),
        (services(1), services(*range(1, 12)), "2, 3, 4, 5, 6, 7, 8, 9 and 2 more added"),
        # A service that moves to another place under the same port is called by its places.
        (
            services(1, 2),
            {**services(2), "TCP 127.0.0.1:1": services(1)["vsock port 1"]},
            "TCP 127.0.0.1:1 added; vsock port 1 removed",
        ),
    ],
)
def test_a_reload_names_what_it_has_changed(before: Known, after: Known, text: str) -> None:
    assert str(compare(before, after)) == text
