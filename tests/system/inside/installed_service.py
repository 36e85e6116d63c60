"""The installed service on a booted system, from its first start to its removal."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from pathlib import Path
from typing import Iterator

from tests.system.inside.service import (
    ALLOWLIST,
    DROP_IN,
    SERVICE,
    SOCKET,
    SOCKET_DROP_IN,
    TIMEOUT,
    Load,
    Service,
    connect,
    connect_only,
    echoes,
    journal_now,
    run,
    secure,
    wait_until,
)

NEWER = Path("/srv/packages/newer.deb")
NEWER_VERSION = "99.0.0"
RESTART_DELAY = 2.0
BROKEN = "allowlist:\n- {address: kms.eu-west-1.amazonaws.com, port: many}\n"
# What policy-rc.d says of an action that may not be taken.
NOT_PERMITTED = 101


def configure(text: str, drop_in: Path = DROP_IN) -> None:
    """Override settings of the service, or of another unit."""
    drop_in.parent.mkdir(parents=True, exist_ok=True)
    section = "Socket" if drop_in == SOCKET_DROP_IN else "Service"
    drop_in.write_text(f"[{section}]\n{text}\n")
    run("systemctl", "daemon-reload")


@contextlib.contextmanager
def instance() -> Iterator[Service]:
    """An instance of the template, started, that serves port 8001."""
    environment = Path("/etc/nitro_enclaves/vsock-proxy.d/other.env")
    environment.write_text(
        "LOCAL_PORT=8001\nREMOTE_ADDR=kms.{region}.{domain}\nREMOTE_PORT=443\nOPTIONS=-4 -w 2\n"
    )
    other = Service("nitro-enclaves-vsock-proxy@other.service")
    run("systemctl", "start", other.name)
    try:
        yield other
    finally:
        run("systemctl", "stop", other.name)
        environment.unlink()


@contextlib.contextmanager
def policy(code: int) -> Iterator[None]:
    """An operator's word, in Debian's way, on what packages may start, restart and stop."""
    file = Path("/usr/sbin/policy-rc.d")
    file.write_text(f"#!/bin/sh\nexit {code}\n")
    file.chmod(0o755)
    yield
    file.unlink()


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


def test_a_guest_reaches_the_kms_of_the_region_in_the_metadata() -> None:
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


def test_a_broken_allowlist_stops_it_for_good_with_the_reason(
    service: Service,
) -> None:
    since = journal_now()
    ALLOWLIST.write_text(BROKEN)
    run("systemctl", "restart", SERVICE, check=False)
    wait_until(lambda: service.get("ActiveState") == "failed", "it has failed")
    assert service.get("ExecMainStatus") == str(os.EX_CONFIG)
    assert "line 2: port is 'many'; expected" in service.journal(since)
    time.sleep(2 * RESTART_DELAY)  # it is the absence of a start that is to be seen
    assert service.get("ActiveState") == "failed"
    assert service.journal(since).count("port is 'many'") == 1


def test_a_guest_that_waits_is_served_once_a_broken_allowlist_is_mended(
    service: Service, default_allowlist: str
) -> None:
    # This machine is some ten times slower than most, so the limit is a slower one than 20 in 2 s.
    configure("TriggerLimitIntervalSec=16s\nTriggerLimitBurst=3", SOCKET_DROP_IN)
    since = journal_now()
    ALLOWLIST.write_text(BROKEN)
    run("systemctl", "restart", SERVICE, check=False)
    with connect_only() as guest:
        wait_until(
            lambda: (
                service.journal(since).count("port is 'many'") >= 5
                or Service(SOCKET).get("ActiveState") == "failed"
            ),
            "it has failed five times, or the socket was given up",
            2 * TIMEOUT,
        )
        assert Service(SOCKET).is_active()
        wait_until(lambda: service.get("ActiveState") == "activating", "it is started again")
        ALLOWLIST.write_text(default_allowlist)
        run("systemctl", "reload-or-restart", SERVICE)
        assert service.is_active()
        assert Service(SOCKET).is_active()
        assert echoes(secure(guest), b"x")


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


def test_an_upgrade_restarts_an_instance_that_serves_another_endpoint() -> None:
    with instance() as other:
        with connect(port=8001) as client:
            assert echoes(client, b"x")
        assert " of 2 workers busy" in other.get("StatusText")
        pid = other.pid
        run("dpkg", "-i", NEWER)
        other.wait_for_another(pid)


def test_an_upgrade_restarts_nothing_where_policy_rc_d_forbids_it(service: Service) -> None:
    with instance() as other, policy(NOT_PERMITTED):
        pids = service.pid, other.pid
        run("dpkg", "-i", NEWER)
        assert (service.pid, other.pid) == pids


def test_purge_leaves_nothing(service: Service) -> None:
    run("dpkg", "--purge", "vsock-proxy")
    assert not service.is_active()
    found = run("find", "/etc", "/usr", "/var/lib", "/lib/", "-xdev", "-name", "*vsock?proxy*")
    assert found == ""
    assert not Path("/etc/nitro_enclaves").exists()
