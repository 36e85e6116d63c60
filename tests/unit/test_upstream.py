"""Connecting, as far as it needs no network of its own; the rest is in ../program/names."""

from __future__ import annotations

import os
import select
import socket
import threading
from typing import List

import pytest

from vsock_proxy.endpoint.addresses import AddressTable, make_address
from vsock_proxy.serving.presence import Presence
from vsock_proxy.serving.race import ConnectFailed
from vsock_proxy.serving.upstream import Upstream
from vsock_proxy.serving.waiting import Meanwhile

pytestmark = pytest.mark.hybrid_only  # no transport has a part in it


def test_an_attempt_that_finds_its_time_over_is_given_up_at_once() -> None:
    with socket.socket() as endpoint:
        endpoint.bind(("127.0.0.1", 0))
        endpoint.listen(0)
        port = endpoint.getsockname()[1]
        # One connection fills the queue; the next one's SYN is dropped, as by a black hole.
        with socket.create_connection(("127.0.0.1", port)):
            table = AddressTable(port)
            table.publish([make_address(socket.AF_INET, ("127.0.0.1", port))])
            # As when the resolver's first answer has taken all of the time.
            upstream = Upstream(table, timeout=0.0)
            assert "no answer in time" in failure_within(5, upstream)
            assert select.select([table.nudges], [], [], 0)[0]
            table.close()


def failure_within(seconds: float, upstream: Upstream) -> str:
    """What connecting fails with."""
    failures: List[str] = []

    lifeline, writer = os.pipe()
    client, far = socket.socketpair()
    meanwhile = Meanwhile(lifeline, lambda: None, lambda: None)

    def connect() -> None:
        with pytest.raises(ConnectFailed) as caught:
            upstream.connect(client, Presence.SILENT, meanwhile)
        failures.append(str(caught.value))

    thread = threading.Thread(target=connect, daemon=True)
    thread.start()
    thread.join(seconds)
    client.close()
    far.close()
    os.close(lifeline)
    os.close(writer)
    assert failures, f"still connecting after {seconds:g} s"
    return failures[0]
