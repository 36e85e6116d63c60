"""The installed service on a booted system, from its first start to its removal."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

from tests.system.inside.service import (
    ALLOWLIST,
    DROP_IN,
    SERVICE,
    SOCKET,
    Load,
    Service,
    connect,
    echoes,
    journal_now,
    run,
    wait_until,
)

NEWER = Path("/srv/packages/newer.deb")
NEWER_VERSION = "99.0.0"
RESTART_DELAY = 2.0


def configure(text: str) -> None:
    """Override settings of the service."""
    DROP_IN.parent.mkdir(parents=True, exist_ok=True)
    DROP_IN.write_text(f"[Service]\n{text}\n")
    run("systemctl", "daemon-reload")


def test_it_is_active_after_a_clean_boot(service: Service) -> None:
    wait_until(service.is_active, "the service is active")
    assert service.get("NRestarts") == "0"


def test_the_units_are_well_formed() -> None:
    assert "vsock-proxy" not in run("systemd-analyze", "verify", "--man=no", SERVICE, SOCKET)


def test_it_runs_with_no_privilege(service: Service) -> None:
    status = Path(f"/proc/{service.pid}/status").read_text().splitlines()
    facts = dict(line.split(":\t", 1) for line in status if ":\t" in line)
    assert "0" not in facts["Uid"].split()
    for capabilities in ("CapEff", "CapPrm", "CapBnd", "CapAmb"):
        assert int(facts[capabilities], 16) == 0
    assert facts["NoNewPrivs"] == "1"
    assert facts["Seccomp"] == "2"


def test_a_guest_reaches_the_kms_of_the_region_that_the_metadata_service_tells() -> None:
    with connect() as client:
        assert echoes(client, os.urandom(100_000))


def test_the_status_tells_who_is_busy_and_what_was_done(service: Service) -> None:
    run("systemctl", "restart", SERVICE)
    with connect() as client:
        assert echoes(client, b"x")
        wait_until(
            lambda: (
                service.get("StatusText") == "1 of 4 workers busy, 1 connections served, 0 failed"
            ),
            "one worker is busy",
        )
    wait_until(
        lambda: service.get("StatusText") == "0 of 4 workers busy, 1 connections served, 0 failed",
        "no worker is busy",
    )


def test_a_reload_under_load_harms_no_connection(service: Service) -> None:
    pid, since = service.pid, journal_now()
    with Load(guests=4) as load:
        run("systemctl", "reload", SERVICE)
        wait_until(lambda: "allowlist read again" in service.journal(since), "it has reloaded")
        load.wait_for_more()
    assert load.failures == []
    assert service.pid == pid


def test_a_restart_under_load_loses_no_connection_and_refuses_none(service: Service) -> None:
    pid = service.pid
    with connect() as standing, Load(guests=6) as load:
        assert echoes(standing, b"before")
        run("systemctl", "--no-block", "restart", SERVICE)
        wait_until(lambda: service.get("ActiveState") == "deactivating", "it is being stopped")
        assert echoes(standing, b"after")
        standing.close()
        service.wait_for_another(pid)
        load.wait_for_more()
    assert load.failures == []


def test_a_broken_allowlist_stops_it_with_the_reason_and_it_is_not_tried_again(
    service: Service,
) -> None:
    since = journal_now()
    ALLOWLIST.write_text("allowlist:\n- {address: kms.eu-west-1.amazonaws.com, port: many}\n")
    run("systemctl", "restart", SERVICE, check=False)
    wait_until(lambda: service.get("ActiveState") == "failed", "it has failed")
    assert service.get("ExecMainStatus") == str(os.EX_CONFIG)
    assert "line 2: port is 'many'; expected" in service.journal(since)
    time.sleep(2 * RESTART_DELAY)  # it is the absence of a start that is to be seen
    assert service.get("ActiveState") == "failed"
    assert service.journal(since).count("port is 'many'") == 1


def test_it_recovers_from_a_master_that_is_killed(service: Service) -> None:
    pid = service.pid
    os.kill(pid, signal.SIGKILL)
    service.wait_for_another(pid)
    with connect() as client:
        assert echoes(client, b"x")


def test_the_watchdog_restarts_it_when_the_master_is_stopped(service: Service) -> None:
    configure("WatchdogSec=4")
    run("systemctl", "restart", SERVICE)
    pid, since = service.pid, journal_now()
    os.kill(pid, signal.SIGSTOP)
    service.wait_for_another(pid)
    assert "Watchdog timeout" in service.journal(since)
    assert "Failed with result 'watchdog'" in service.journal(since)
    with connect() as client:
        assert echoes(client, b"x")


def test_an_upgrade_keeps_an_edited_allowlist_and_restarts_the_service(service: Service) -> None:
    edited = ALLOWLIST.read_text() + "- {address: 10.0.0.0/8, port: 5432}\n"
    ALLOWLIST.write_text(edited)
    pid = service.pid
    run("dpkg", "-i", NEWER)
    assert ALLOWLIST.read_text() == edited
    service.wait_for_another(pid)
    assert run("vsock-proxy", "--version") == f"vsock-proxy {NEWER_VERSION}\n"
    with connect() as client:
        assert echoes(client, b"x")


def test_an_instance_of_the_template_serves_another_endpoint() -> None:
    environment = Path("/etc/nitro_enclaves/vsock-proxy.d/other.env")
    environment.write_text(
        "LOCAL_PORT=8001\nREMOTE_ADDR=kms.{region}.{domain}\nREMOTE_PORT=443\nOPTIONS=-4 -w 2\n"
    )
    name = "nitro-enclaves-vsock-proxy@other.service"
    run("systemctl", "start", name)
    try:
        with connect(port=8001) as client:
            assert echoes(client, b"x")
        status = run("systemctl", "show", "--value", "--property", "StatusText", name)
        assert " of 2 workers busy" in status
    finally:
        run("systemctl", "stop", name)
        environment.unlink()


def test_purge_leaves_nothing(service: Service) -> None:
    run("dpkg", "--purge", "vsock-proxy")
    assert not service.is_active()
    found = run("find", "/etc", "/usr", "/var/lib", "/lib/", "-xdev", "-name", "*vsock?proxy*")
    assert found == ""
    assert not Path("/etc/nitro_enclaves").exists()
