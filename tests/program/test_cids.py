"""Which guests may connect, by their CID."""

from __future__ import annotations

import pytest

from tests.conftest import StartProxy, StartServer
from tests.support import board
from tests.support.clients import end_of
from tests.support.program import ID
from tests.support.servers import exchange


@pytest.mark.vsock_only
def test_a_guest_whose_cid_is_allowed_is_served(
    start_proxy: StartProxy, start_server: StartServer
) -> None:
    proxy = start_proxy(start_server(), "--allow-cid", "1,16")
    with proxy.connect() as client:
        assert exchange(client, b"x") == b"x"


@pytest.mark.vsock_only
def test_a_guest_whose_cid_is_not_allowed_is_closed_logged_and_counted(
    start_proxy: StartProxy, start_server: StartServer
) -> None:
    server = start_server()
    proxy = start_proxy(server, "--allow-cid", "16,17")
    with proxy.connect() as client:
        assert end_of(client) == b""
    proxy.log.wait_for(rf"warning worker \d: {ID}1:\d+ refused: its CID is not allowed")
    assert sum(row.failed for row in board.ask(proxy)) == 1
    assert "1 denied" in board.totals(proxy)
    assert not server.accepted
