"""A reload of the allowlist while the endpoint has a name, and while DNS does not answer."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Callable

import pytest

from tests.conftest import StartProxy, StartServer
from tests.support import processes
from tests.support.clients import answers
from tests.support.dns import Mood, NameServer
from tests.support.named import HERE, NAME, THERE
from tests.support.namespaces import needs_namespace
from tests.support.servers import exchange
from tests.support.systemd import NotifySocket
from tests.support.timing import wait_until

pytestmark = [
    pytest.mark.hybrid_only,
    needs_namespace,
]


def test_a_reload_that_forbids_the_address_ends_no_live_connection(
    dns: NameServer,
    start_inside: StartServer,
    start_named: StartProxy,
    write_allowlist: Callable[..., Path],
) -> None:
    server = start_inside(host=HERE)
    dns.set(NAME, HERE)
    proxy = start_named(server.port, config=write_allowlist((HERE, server.port)))
    with proxy.connect() as live:
        assert exchange(live, b"before") == b"before"
        write_allowlist((THERE, server.port))
        proxy.send(signal.SIGHUP)
        proxy.log.wait_for(f"error master: {NAME}:{server.port} is not permitted")
        assert exchange(live, b"after") == b"after"
    assert proxy.wait(timeout=2) == os.EX_CONFIG


def test_a_reload_that_permits_other_addresses_leads_new_clients_there(
    dns: NameServer,
    start_inside: StartServer,
    start_named: StartProxy,
    write_allowlist: Callable[..., Path],
) -> None:
    here = start_inside(host=HERE)
    there = start_inside(host=THERE, port=here.port)
    dns.set(NAME, HERE, THERE)
    config = write_allowlist((HERE, here.port), (THERE, here.port))
    proxy = start_named(here.port, "--resolve-interval", "1000", config=config)
    with proxy.connect() as live:
        exchange(live, b"x")
        write_allowlist((THERE, here.port))
        proxy.send(signal.SIGHUP)
        wait_until(lambda: answers(proxy) and there.accepted, "a connection to the other address")
        old = len(here.accepted)
        assert all(answers(proxy) for _ in range(8))
        assert len(here.accepted) == old
        assert exchange(live, b"after") == b"after"


def test_a_reload_that_permits_more_addresses_makes_use_of_them(
    dns: NameServer,
    start_inside: StartServer,
    start_named: StartProxy,
    write_allowlist: Callable[..., Path],
) -> None:
    here = start_inside(host=HERE)
    start_inside(host=THERE, port=here.port)
    dns.set(NAME, HERE, THERE)
    config = write_allowlist((HERE, here.port))
    proxy = start_named(here.port, "--resolve-interval", "1000", config=config)
    assert answers(proxy)
    here.close()
    assert not answers(proxy)
    write_allowlist((HERE, here.port), (THERE, here.port))
    proxy.send(signal.SIGHUP)
    wait_until(lambda: answers(proxy), "a connection to the other address")


def test_after_a_reload_dns_cannot_lead_to_what_the_old_list_permitted(
    dns: NameServer,
    start_inside: StartServer,
    start_named: StartProxy,
    write_allowlist: Callable[..., Path],
) -> None:
    here = start_inside(host=HERE)
    there = start_inside(host=THERE, port=here.port)
    dns.set(NAME, THERE)
    config = write_allowlist((HERE, here.port), (THERE, here.port))
    proxy = start_named(here.port, "--resolve-interval", "0.1", config=config)
    assert answers(proxy)
    write_allowlist((THERE, here.port))
    proxy.send(signal.SIGHUP)
    proxy.log.wait_for("allowlist read again")
    dns.set(NAME, HERE)
    proxy.log.wait_for(f"not permitted: {HERE}; keeping the 1 known before")
    assert all(answers(proxy) for _ in range(8))
    assert len(there.accepted) == 9
    assert not here.accepted


def test_a_reload_that_replaces_the_resolver_is_no_trouble_to_warn_of(
    dns: NameServer, start_inside: StartServer, start_named: StartProxy
) -> None:
    server = start_inside(host=HERE)
    dns.set(NAME, HERE)
    proxy = start_named(server.port)
    assert answers(proxy)
    questions = dns.questions
    proxy.send(signal.SIGHUP)
    wait_until(lambda: dns.questions > questions, "the question of the new resolver")
    proxy.log.wait_for("allowlist read again")
    assert answers(proxy)
    assert not proxy.log.matching("warning")


IN_FORCE_UNTIL = "warning master: .* the list from before stays in force until DNS answers$"
IN_FORCE_NOW = "info master: .* it is in force now$"


@pytest.mark.parametrize("noticed", [False, True], ids=["unnoticed", "noticed"])
def test_a_reload_that_permits_the_new_address_of_a_name_leads_there(
    noticed: bool,
    dns: NameServer,
    start_inside: StartServer,
    start_named: StartProxy,
    write_allowlist: Callable[..., Path],
) -> None:
    here = start_inside(host=HERE)
    there = start_inside(host=THERE, port=here.port)
    dns.set(NAME, HERE)
    interval = "0.1" if noticed else "1000"
    config = write_allowlist((HERE, here.port))
    proxy = start_named(here.port, "--resolve-interval", interval, config=config)
    assert answers(proxy)
    dns.set(NAME, THERE)
    if noticed:
        proxy.log.wait_for(f"not permitted: {THERE}")
    write_allowlist((THERE, here.port))
    proxy.send(signal.SIGHUP)
    proxy.log.wait_for(IN_FORCE_NOW)
    wait_until(lambda: answers(proxy) and there.accepted, "a connection to the new address")
    old = len(here.accepted)
    assert all(answers(proxy) for _ in range(8))
    assert len(here.accepted) == old


def test_a_reload_that_needs_dns_changes_nothing_until_dns_answers(
    dns: NameServer,
    start_inside: StartServer,
    start_named: StartProxy,
    write_allowlist: Callable[..., Path],
) -> None:
    here = start_inside(host=HERE)
    there = start_inside(host=THERE, port=here.port)
    dns.set(NAME, HERE)
    proxy = start_named(here.port, config=write_allowlist((HERE, here.port)))
    assert answers(proxy)
    dns.mood = Mood.NXDOMAIN
    write_allowlist((THERE, here.port))
    proxy.send(signal.SIGHUP)
    proxy.log.wait_for(IN_FORCE_UNTIL)
    assert all(answers(proxy) for _ in range(8))
    assert not there.accepted
    dns.set(NAME, THERE)
    dns.mood = Mood.ANSWERING
    proxy.log.wait_for(IN_FORCE_NOW)
    wait_until(lambda: answers(proxy) and there.accepted, "a connection to the new address")


@pytest.mark.parametrize("answer", [HERE, THERE])
def test_a_reload_before_the_first_answer_of_dns_is_judged_by_that(
    answer: str,
    start_name_server: Callable[[], NameServer],
    start_inside: StartServer,
    start_named: StartProxy,
    write_allowlist: Callable[..., Path],
) -> None:
    here = start_inside(host=HERE)
    proxy = start_named(here.port, config=write_allowlist((NAME, here.port)))
    write_allowlist((HERE, here.port))
    proxy.send(signal.SIGHUP)
    proxy.log.wait_for(IN_FORCE_UNTIL)
    assert not proxy.has_ended()
    start_name_server().set(NAME, answer)
    if answer == HERE:
        wait_until(lambda: answers(proxy), "it serves")
    else:
        assert proxy.wait() == os.EX_CONFIG
        proxy.log.wait_for(f"error master: {NAME}:{here.port} is not permitted by .*; ending")


def test_a_further_reload_takes_the_place_of_one_that_is_not_judged_yet(
    dns: NameServer,
    start_inside: StartServer,
    start_named: StartProxy,
    write_allowlist: Callable[..., Path],
) -> None:
    here = start_inside(host=HERE)
    dns.set(NAME, HERE)
    proxy = start_named(here.port, config=write_allowlist((HERE, here.port)))
    assert answers(proxy)
    dns.mood = Mood.NXDOMAIN
    write_allowlist((THERE, here.port))
    proxy.send(signal.SIGHUP)
    proxy.log.wait_for(IN_FORCE_UNTIL)
    write_allowlist((HERE, here.port))
    questions = dns.questions
    proxy.send(signal.SIGHUP)
    proxy.log.wait_for(IN_FORCE_NOW)
    dns.mood = Mood.ANSWERING
    wait_until(lambda: dns.questions > questions, "the question of the new resolver")
    assert all(answers(proxy) for _ in range(8))


def test_a_bad_file_leaves_a_list_that_is_not_judged_yet_to_be_judged(
    dns: NameServer,
    start_inside: StartServer,
    start_named: StartProxy,
    write_allowlist: Callable[..., Path],
) -> None:
    here = start_inside(host=HERE)
    dns.set(NAME, HERE)
    config = write_allowlist((HERE, here.port))
    proxy = start_named(here.port, config=config)
    dns.mood = Mood.NXDOMAIN
    write_allowlist((THERE, here.port))
    proxy.send(signal.SIGHUP)
    proxy.log.wait_for(IN_FORCE_UNTIL)
    config.write_text("nonsense")
    proxy.send(signal.SIGHUP)
    proxy.log.wait_for("the allowlist stays as it was$")
    dns.mood = Mood.ANSWERING
    assert proxy.wait() == os.EX_CONFIG


def test_a_process_that_dies_before_it_has_judged_leaves_that_to_the_next(
    dns: NameServer,
    start_inside: StartServer,
    start_named: StartProxy,
    write_allowlist: Callable[..., Path],
) -> None:
    here = start_inside(host=HERE)
    start_inside(host=THERE, port=here.port)
    dns.set(NAME, HERE)
    proxy = start_named(here.port, config=write_allowlist((HERE, here.port)))
    dns.mood = Mood.NXDOMAIN
    write_allowlist((THERE, here.port))
    proxy.send(signal.SIGHUP)
    proxy.log.wait_for(IN_FORCE_UNTIL)
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
    dns: NameServer,
    start_inside: StartServer,
    start_named: StartProxy,
    write_allowlist: Callable[..., Path],
) -> None:
    here = start_inside(host=HERE)
    dns.set(NAME, HERE)
    proxy = start_named(here.port, config=write_allowlist((HERE, here.port)))
    dns.mood = Mood.NXDOMAIN
    config = write_allowlist((THERE, here.port))
    proxy.send(signal.SIGHUP)
    proxy.log.wait_for(IN_FORCE_UNTIL)
    # What is in the file now is not asked for by any SIGHUP.
    config.unlink()
    dns.wait_for_questions(6)
    assert proxy.titles().count("vsock-proxy: reload") <= 1
    assert len(proxy.log.matching(IN_FORCE_UNTIL)) == 1
    assert len(proxy.log.matching("allowlist")) == 2
    assert answers(proxy)


def test_a_reload_is_over_for_systemd_before_dns_answers(
    dns: NameServer,
    start_inside: StartServer,
    start_named: StartProxy,
    write_allowlist: Callable[..., Path],
    tmp_path: Path,
) -> None:
    systemd = NotifySocket(str(tmp_path / "notify"))
    here = start_inside(host=HERE)
    dns.set(NAME, HERE)
    environment = {**os.environ, "NOTIFY_SOCKET": systemd.address}
    config = write_allowlist((HERE, here.port))
    proxy = start_named(here.port, config=config, environment=environment)
    systemd.wait_for("^READY=1$")
    dns.mood = Mood.SILENT
    write_allowlist((THERE, here.port))
    proxy.send(signal.SIGHUP)
    systemd.wait_for("^RELOADING=1\n")
    systemd.wait_for("^READY=1$")
    assert not proxy.log.matching(IN_FORCE_NOW)
    systemd.close()
