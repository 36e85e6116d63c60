"""A reload of the allowlist while the endpoint has a name, and while DNS does not answer."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Tuple

import pytest

from tests.program.names.conftest import Scene
from tests.support import processes
from tests.support.clients import answers
from tests.support.dns import Mood, NameServer
from tests.support.named import HERE, NAME, THERE
from tests.support.namespaces import needs_namespace
from tests.support.program import Proxy
from tests.support.servers import exchange
from tests.support.systemd import NotifySocket
from tests.support.timing import wait_until

pytestmark = [
    pytest.mark.hybrid_only,
    needs_namespace,
]


def test_a_reload_that_forbids_the_address_ends_no_live_connection(
    scene: Scene, dns: NameServer
) -> None:
    server = scene.server(host=HERE)
    dns.set(NAME, HERE)
    proxy = scene.start(server.port, permitted=[(HERE, server.port)])
    with proxy.connect() as live:
        assert exchange(live, b"before") == b"before"
        scene.reload(proxy, (THERE, server.port))
        proxy.log.wait_for(f"error master: {NAME}:{server.port} is not permitted")
        assert exchange(live, b"after") == b"after"
    assert proxy.wait(timeout=2) == os.EX_CONFIG


def test_a_reload_that_permits_other_addresses_leads_new_clients_there(
    scene: Scene, dns: NameServer
) -> None:
    here, there = scene.servers(HERE, THERE)
    dns.set(NAME, HERE, THERE)
    proxy = scene.start(
        here.port, "--resolve-interval", "1000", permitted=[(HERE, here.port), (THERE, here.port)]
    )
    with proxy.connect() as live:
        exchange(live, b"x")
        scene.reload(proxy, (THERE, here.port))
        wait_until(lambda: answers(proxy) and there.accepted, "a connection to the other address")
        old = len(here.accepted)
        assert all(answers(proxy) for _ in range(8))
        assert len(here.accepted) == old
        assert exchange(live, b"after") == b"after"


def test_a_reload_that_permits_more_addresses_makes_use_of_them(
    scene: Scene, dns: NameServer
) -> None:
    here, _ = scene.servers(HERE, THERE)
    dns.set(NAME, HERE, THERE)
    proxy = scene.start(here.port, "--resolve-interval", "1000", permitted=[(HERE, here.port)])
    assert answers(proxy)
    here.close()
    assert not answers(proxy)
    scene.reload(proxy, (HERE, here.port), (THERE, here.port))
    wait_until(lambda: answers(proxy), "a connection to the other address")


def test_after_a_reload_dns_cannot_lead_to_what_the_old_list_permitted(
    scene: Scene, dns: NameServer
) -> None:
    here, there = scene.servers(HERE, THERE)
    dns.set(NAME, THERE)
    proxy = scene.start(
        here.port, "--resolve-interval", "0.1", permitted=[(HERE, here.port), (THERE, here.port)]
    )
    assert answers(proxy)
    scene.reload(proxy, (THERE, here.port))
    proxy.log.wait_for("allowlist read again")
    dns.set(NAME, HERE)
    proxy.log.wait_for(f"not permitted: {HERE}; keeping the 1 known before")
    assert all(answers(proxy) for _ in range(8))
    assert len(there.accepted) == 9
    assert not here.accepted


def test_a_reload_that_replaces_the_resolver_is_no_trouble_to_warn_of(
    scene: Scene, dns: NameServer
) -> None:
    server = scene.server(host=HERE)
    dns.set(NAME, HERE)
    proxy = scene.start(server.port)
    assert answers(proxy)
    questions = dns.questions
    scene.reload(proxy)
    wait_until(lambda: dns.questions > questions, "the question of the new resolver")
    proxy.log.wait_for("allowlist read again")
    assert answers(proxy)
    assert not proxy.log.matching("warning")


IN_FORCE_UNTIL = "warning master: .* the list from before stays in force until DNS answers$"
IN_FORCE_NOW = "info master: .* it is in force now$"


@pytest.mark.parametrize("noticed", [False, True], ids=["unnoticed", "noticed"])
def test_a_reload_that_permits_the_new_address_of_a_name_leads_there(
    noticed: bool, scene: Scene, dns: NameServer
) -> None:
    here, there = scene.servers(HERE, THERE)
    dns.set(NAME, HERE)
    interval = "0.1" if noticed else "1000"
    proxy = scene.start(here.port, "--resolve-interval", interval, permitted=[(HERE, here.port)])
    assert answers(proxy)
    dns.set(NAME, THERE)
    if noticed:
        proxy.log.wait_for(f"not permitted: {THERE}")
    scene.reload(proxy, (THERE, here.port))
    proxy.log.wait_for(IN_FORCE_NOW)
    wait_until(lambda: answers(proxy) and there.accepted, "a connection to the new address")
    old = len(here.accepted)
    assert all(answers(proxy) for _ in range(8))
    assert len(here.accepted) == old


def reload_while_dns_is_down(
    scene: Scene, dns: NameServer, proxy: Proxy, *permitted: Tuple[str, int]
) -> None:
    """Let the proxy read a list that only DNS can judge, and that is not in force yet."""
    dns.mood = Mood.NXDOMAIN
    scene.reload(proxy, *permitted)
    proxy.log.wait_for(IN_FORCE_UNTIL)


def test_a_reload_that_needs_dns_changes_nothing_until_dns_answers(
    scene: Scene, dns: NameServer
) -> None:
    here, there = scene.servers(HERE, THERE)
    dns.set(NAME, HERE)
    proxy = scene.start(here.port, permitted=[(HERE, here.port)])
    assert answers(proxy)
    reload_while_dns_is_down(scene, dns, proxy, (THERE, here.port))
    assert all(answers(proxy) for _ in range(8))
    assert not there.accepted
    dns.set(NAME, THERE)
    dns.mood = Mood.ANSWERING
    proxy.log.wait_for(IN_FORCE_NOW)
    wait_until(lambda: answers(proxy) and there.accepted, "a connection to the new address")


@pytest.mark.parametrize("answer", [HERE, THERE])
def test_a_reload_before_the_first_answer_of_dns_is_judged_by_that(
    answer: str, scene: Scene
) -> None:
    here = scene.server(host=HERE)
    proxy = scene.start(here.port, permitted=[(NAME, here.port)])
    scene.reload(proxy, (HERE, here.port))
    proxy.log.wait_for(IN_FORCE_UNTIL)
    assert not proxy.has_ended()
    scene.start_name_server().set(NAME, answer)
    if answer == HERE:
        wait_until(lambda: answers(proxy), "it serves")
    else:
        assert proxy.wait() == os.EX_CONFIG
        proxy.log.wait_for(f"error master: {NAME}:{here.port} is not permitted by .*; ending")


def test_a_further_reload_takes_the_place_of_one_that_is_not_judged_yet(
    scene: Scene, dns: NameServer
) -> None:
    here = scene.server(host=HERE)
    dns.set(NAME, HERE)
    proxy = scene.start(here.port, permitted=[(HERE, here.port)])
    assert answers(proxy)
    reload_while_dns_is_down(scene, dns, proxy, (THERE, here.port))
    scene.write_allowlist((HERE, here.port))
    questions = dns.questions
    scene.reload(proxy)
    proxy.log.wait_for(IN_FORCE_NOW)
    dns.mood = Mood.ANSWERING
    wait_until(lambda: dns.questions > questions, "the question of the new resolver")
    assert all(answers(proxy) for _ in range(8))


def test_a_bad_file_leaves_a_list_that_is_not_judged_yet_to_be_judged(
    scene: Scene, dns: NameServer
) -> None:
    here = scene.server(host=HERE)
    dns.set(NAME, HERE)
    config = scene.write_allowlist((HERE, here.port))
    proxy = scene.start(here.port, config=config)
    reload_while_dns_is_down(scene, dns, proxy, (THERE, here.port))
    config.write_text("nonsense")
    scene.reload(proxy)
    proxy.log.wait_for("the allowlist stays as it was$")
    dns.mood = Mood.ANSWERING
    assert proxy.wait() == os.EX_CONFIG


def test_a_process_that_dies_before_it_has_judged_leaves_that_to_the_next(
    scene: Scene, dns: NameServer
) -> None:
    here, _ = scene.servers(HERE, THERE)
    dns.set(NAME, HERE)
    proxy = scene.start(here.port, permitted=[(HERE, here.port)])
    reload_while_dns_is_down(scene, dns, proxy, (THERE, here.port))
    dns.mood = Mood.SILENT
    title = "vsock-proxy: reload"
    (judge,) = wait_until(
        lambda: [pid for pid in proxy.children() if processes.title(pid) == title], "it is judged"
    )
    os.kill(judge, signal.SIGKILL)
    dns.set(NAME, THERE)
    dns.mood = Mood.ANSWERING
    proxy.log.wait_for(IN_FORCE_NOW)
    wait_until(lambda: answers(proxy), "it serves")
    assert not proxy.log.matching("error")


def test_a_list_that_waits_for_dns_is_told_once_and_judged_by_one_process(
    scene: Scene, dns: NameServer
) -> None:
    here = scene.server(host=HERE)
    dns.set(NAME, HERE)
    config = scene.write_allowlist((HERE, here.port))
    proxy = scene.start(here.port, config=config)
    reload_while_dns_is_down(scene, dns, proxy, (THERE, here.port))
    # What is in the file now is not asked for by any SIGHUP.
    config.unlink()
    dns.wait_for_questions(6)
    assert proxy.titles().count("vsock-proxy: reload") <= 1
    assert len(proxy.log.matching(IN_FORCE_UNTIL)) == 1
    assert len(proxy.log.matching("allowlist")) == 2
    assert answers(proxy)


def test_a_reload_is_over_for_systemd_before_dns_answers(
    scene: Scene, dns: NameServer, tmp_path: Path
) -> None:
    systemd = NotifySocket(str(tmp_path / "notify"))
    here = scene.server(host=HERE)
    dns.set(NAME, HERE)
    environment = {**os.environ, "NOTIFY_SOCKET": systemd.address}
    proxy = scene.start(here.port, permitted=[(HERE, here.port)], environment=environment)
    systemd.wait_for("^READY=1$")
    dns.mood = Mood.SILENT
    scene.reload(proxy, (THERE, here.port))
    systemd.wait_for("^RELOADING=1\n")
    systemd.wait_for("^READY=1$")
    assert not proxy.log.matching(IN_FORCE_NOW)
    systemd.close()
