"""Services of which some lead to guests and others to TCP endpoints, under one master."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from tests.conftest import StartProxy, StartServer
from tests.program.services.conftest import Scene
from tests.support import board
from tests.support.clients import end_of
from tests.support.servers import exchange
from tests.support.services import letter, letter_at, say, service


def test_a_pool_serves_guests_and_tcp_endpoints_in_turn(
    scene: Scene, start_vmm: StartServer
) -> None:
    one, two = scene.ports(2)
    tcp, guest = scene.server(letter(b"T")), start_vmm(letter(b"G"))
    proxy = scene.start(service(one, tcp), service(two, guest), workers=1)
    for _ in range(5):
        assert letter_at(proxy, one) == b"T"
        assert letter_at(proxy, two) == b"G"
    for port, where in ((one, tcp.host), (two, f"{guest.host}:5000"), (one, tcp.host)):
        with proxy.connect(port) as client:
            say(client)
            (row,) = board.ask(proxy)
            assert (row.service, row.endpoint) == (str(port), where)


@pytest.mark.hybrid_only  # no transport has a part in it
def test_options_of_lookups_are_no_fault_beside_a_service_that_has_none(
    scene: Scene, start_vmm: StartServer
) -> None:
    one, two = scene.ports(2)
    proxy = scene.start(
        service(one, scene.server(letter(b"T"))),
        service(two, start_vmm(letter(b"G"))),
        options=["-4", "--resolve-interval", "9"],
    )
    assert (letter_at(proxy, one), letter_at(proxy, two)) == (b"T", b"G")


def test_a_reload_leads_a_port_from_tcp_to_a_guest_and_back(
    scene: Scene, start_vmm: StartServer
) -> None:
    one, two = scene.ports(2)
    tcp, guest = scene.server(letter(b"T")), start_vmm(letter(b"G"))
    proxy = scene.start(service(one, tcp), service(two, tcp))
    with proxy.connect(one) as live:
        assert say(live) == b"T"
        for endpoint, name in ((guest, b"G"), (tcp, b"T"), (guest, b"G")):
            scene.reload(proxy, service(one, endpoint), service(two, tcp))
            assert letter_at(proxy, one) == name
        assert say(live) == b"T"


def test_a_reload_of_an_unchanged_file_touches_no_guest(
    scene: Scene, start_vmm: StartServer
) -> None:
    (one,) = scene.ports(1)
    proxy = scene.start(service(one, start_vmm(letter(b"G"))), workers=2)
    before = sorted(proxy.wait_for_workers(2, "idle"))
    scene.reload(proxy)
    assert sorted(proxy.workers()) == before
    assert letter_at(proxy, one) == b"G"


@pytest.mark.hybrid_only  # no transport has a part in it
def test_a_guest_that_is_not_listed_any_more_changes_nothing_on_a_reload(
    scene: Scene, start_vmm: StartServer
) -> None:
    (one,) = scene.ports(1)
    guest = start_vmm(letter(b"G"))
    proxy = scene.start(service(one, guest))
    scene.file.write([service(one, guest)], permitted=[("vsock:*", 5000)])
    assert f"{guest.host}:5000 is not permitted by" in scene.file.reload_in_vain(proxy)
    assert letter_at(proxy, one) == b"G"


@pytest.mark.hybrid_only  # no transport has a part in it
def test_the_guest_of_the_command_line_drains_once_the_list_omits_it(
    start_proxy: StartProxy, start_vmm: StartServer, tmp_path: Path
) -> None:
    proxy = start_proxy(start_vmm())
    with proxy.connect() as client:
        assert exchange(client, b"x") == b"x"
        (tmp_path / "allowlist.yaml").write_text("allowlist: []")
        proxy.send(signal.SIGHUP)
        proxy.log.wait_for("is not permitted by .*; ending")
        assert exchange(client, b"x") == b"x"
    assert proxy.wait() == 78


@pytest.mark.hybrid_only  # no transport has a part in it
def test_a_guest_that_is_not_started_yet_harms_no_other_service(
    scene: Scene, tmp_path: Path
) -> None:
    one, two = scene.ports(2)
    nobody = (f"unix:{tmp_path}/vm", 5000)
    proxy = scene.start(service(one, nobody, workers=1), service(two, scene.server(letter(b"T"))))
    with proxy.connect(one) as client:
        assert end_of(client) == b""
    line = proxy.log.wait_for(f" {one}: .* closed: cannot connect to {nobody[0]}:5000: ")[0]
    assert line.endswith("the VM is not started yet, or its vsock device has another path")
    assert letter_at(proxy, two) == b"T"
