"""The unit of all services of the file, on a booted system, beside the service to KMS."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from typing import Dict, Iterator, NamedTuple, Optional

import pytest

from tests.support import processes
from tests.support.recipe import recipe
from tests.system.inside.service import (
    ALLOWLIST,
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
from tests.system.inside.world import DYNAMODB_NAME, KMS_NAME, SECRETS_NAME

ALL = "vsock-proxy.service"
RESTART_DELAY = 2.0


class Endpoint(NamedTuple):
    """What a port of the file leads to, and how many workers it has of its own."""

    name: str
    workers: Optional[int] = None


THREE = {
    8001: Endpoint(KMS_NAME),
    8002: Endpoint(SECRETS_NAME),
    8003: Endpoint(DYNAMODB_NAME, workers=2),
}


def write(services: Dict[int, Endpoint], default_allowlist: str) -> None:
    """A file with these services."""
    text = default_allowlist
    for name in (SECRETS_NAME, DYNAMODB_NAME):
        text += f"- {{address: {name}, port: 443}}\n"
    text += "services:\n"
    for port, endpoint in services.items():
        address = endpoint.name.replace("eu-west-1.amazonaws.com", "{region}.{domain}")
        own = f", workers: {endpoint.workers}" if endpoint.workers else ""
        text += f"- {{listen: {port}, address: '{address}', port: 443{own}}}\n"
    ALLOWLIST.write_text(text)


@pytest.fixture
def sockets() -> Iterator[None]:
    """The ports are held by socket units, as after a boot at which they were enabled."""
    units = [f"vsock-proxy@{port}.socket" for port in THREE]
    run("systemctl", "start", *units)
    yield
    run("systemctl", "stop", ALL, *units)


@pytest.fixture
def many(default_allowlist: str) -> Iterator[Service]:
    """The service of the file, started with three services."""
    write(THREE, default_allowlist)
    run("systemctl", "start", ALL)
    yield Service(ALL)
    run("systemctl", "stop", ALL)
    run("systemctl", "reset-failed", ALL, check=False)
    # The service to KMS has not read it meanwhile.
    ALLOWLIST.write_text(default_allowlist)


def workers(master: int) -> Dict[str, int]:
    """The pids of a master's workers, by what their titles say of which worker each is."""
    words = {pid: processes.title(pid).split() for pid in processes.children(master)}
    return {title[2]: pid for pid, title in words.items() if title[1] == "worker"}


def load(guests: int, port: int) -> Load:
    """Guests that come to a port of the three services."""
    return Load(guests, port, THREE[port].name)


def reload(service: Service) -> None:
    """Reload it, and wait until the new services are in force."""
    since = journal_now(service.name)
    run("systemctl", "reload", service.name)
    wait_until(lambda: "read again" in service.journal(since), "it has reloaded")


def refused(port: int) -> bool:
    """Whether nobody listens on a port."""
    with contextlib.suppress(ConnectionResetError):
        connect_only(port).close()
        return False
    return True


def test_each_port_leads_to_its_endpoint_and_the_status_counts_services(
    many: Service,
) -> None:
    for port, endpoint in THREE.items():
        with connect(port, endpoint.name) as client:
            assert echoes(client, b"x")
    wait_until(
        lambda: (
            many.get("StatusText")
            == "3 services, 0 of 6 workers busy, 3 connections served, 0 failed"
        ),
        "the status tells of all connections",
    )


def test_it_runs_beside_the_service_to_kms(many: Service, service: Service) -> None:
    with connect() as client:
        assert echoes(client, b"x")
    assert many.is_active()
    assert service.is_active()


def test_a_reload_under_load_harms_no_client_of_a_port_that_stays(
    many: Service, default_allowlist: str
) -> None:
    pid, before = many.pid, workers(many.pid)
    with load(2, 8001) as changed, load(2, 8003) as untouched:
        write(
            {8001: THREE[8001], 8003: THREE[8003], 8004: Endpoint(SECRETS_NAME)}, default_allowlist
        )
        reload(many)
        wait_until(lambda: refused(8002), "the service that was taken out is gone")
        with connect(8004, SECRETS_NAME) as client:
            assert echoes(client, b"x")
        changed.wait_for_more()
        untouched.wait_for_more()
    assert changed.failures == []
    assert untouched.failures == []
    assert many.pid == pid
    own = {name: number for name, number in before.items() if name.startswith("8003/")}
    assert len(own) == 2
    assert own.items() <= workers(pid).items()


def test_a_file_with_a_fault_changes_nothing_and_says_why(
    many: Service, default_allowlist: str
) -> None:
    pid, before, since = many.pid, workers(many.pid), journal_now(many.name)
    write({**THREE, 8004: Endpoint("kms.example.org")}, default_allowlist)
    run("systemctl", "reload", many.name)
    wait_until(lambda: "kms.example.org" in many.journal(since), "the fault is named")
    for port, endpoint in THREE.items():
        with connect(port, endpoint.name) as client:
            assert echoes(client, b"x")
    assert (many.pid, workers(pid)) == (pid, before)


@pytest.mark.usefixtures("sockets")
def test_a_restart_with_sockets_held_loses_no_connection_and_refuses_none(many: Service) -> None:
    pid = many.pid
    with load(2, 8001) as first, load(2, 8002) as second, load(2, 8003) as third:
        run("systemctl", "restart", ALL)
        for guests in (first, second, third):
            guests.wait_for_more()
    assert many.pid != pid
    assert [guests.failures for guests in (first, second, third)] == [[], [], []]


@pytest.mark.usefixtures("sockets")
def test_a_guest_of_a_removed_service_is_served_once_the_service_is_back(
    many: Service, default_allowlist: str
) -> None:
    since = journal_now(many.name)
    write({8001: THREE[8001], 8003: THREE[8003]}, default_allowlist)
    reload(many)
    wait_until(
        lambda: "systemd holds vsock port 8002, but no" in many.journal(since), "that is warned of"
    )
    with connect_only(8002) as guest:
        write(THREE, default_allowlist)
        reload(many)
        assert echoes(secure(guest, SECRETS_NAME), b"x")


@pytest.mark.usefixtures("sockets")
def test_a_socket_without_a_service_stops_the_start_and_is_named(
    many: Service, default_allowlist: str
) -> None:
    since = journal_now(many.name)
    write({8001: THREE[8001], 8003: THREE[8003]}, default_allowlist)
    run("systemctl", "restart", ALL, check=False)
    wait_until(
        lambda: "systemd passed vsock port 8002, but no" in many.journal(since), "that is told"
    )
    # The cause may be mended any time, so systemd tries again.
    write(THREE, default_allowlist)
    wait_until(many.is_active, "it is active")


def test_a_file_without_services_stops_it_for_good_with_the_reason(
    many: Service, default_allowlist: str
) -> None:
    since = journal_now(many.name)
    ALLOWLIST.write_text(default_allowlist)
    run("systemctl", "restart", ALL, check=False)
    wait_until(lambda: many.get("ActiveState") == "failed", "it has failed")
    assert many.get("ExecMainStatus") == str(os.EX_USAGE)
    time.sleep(2 * RESTART_DELAY)  # it is the absence of a start that is to be seen
    assert many.get("ActiveState") == "failed"
    assert many.journal(since).count("there is nothing to serve") == 1


def test_it_recovers_from_a_master_that_is_killed(many: Service) -> None:
    pid = many.pid
    os.kill(pid, signal.SIGKILL)
    many.wait_for_another(pid)
    for port, endpoint in THREE.items():
        with connect(port, endpoint.name) as client:
            assert echoes(client, b"x")


# --check within the sandbox of the unit


def check() -> subprocess.CompletedProcess[str]:
    """The recipe, as root types it."""
    return subprocess.run(["sh", "-c", recipe()], capture_output=True, text=True, check=False)


def test_what_the_unit_would_serve_is_well(default_allowlist: str) -> None:
    write(THREE, default_allowlist)
    done = check()
    assert (done.returncode, done.stderr) == (os.EX_OK, ""), done.stdout
    for port, endpoint in THREE.items():
        assert f"ok      {port}: connected to 10.11.12." in done.stdout, done.stdout
        assert f"ok      {port}: {endpoint.name} resolves in " in done.stdout
        assert f"ok      {port}: vsock port {port} is free\n" in done.stdout
    assert "ok      vsock transports: vsock_loopback " in done.stdout
    assert "ok      the CID of this machine is not visible from here: /dev/vsock: " in done.stdout


def test_a_file_that_only_root_may_read_is_a_fault(default_allowlist: str) -> None:
    write(THREE, default_allowlist)
    mode = ALLOWLIST.stat().st_mode
    ALLOWLIST.chmod(0o600)
    try:
        done = check()
    finally:
        ALLOWLIST.chmod(mode)
    assert done.returncode == os.EX_CONFIG
    assert f"fault   file {ALLOWLIST}: Permission denied; " in done.stdout


def test_beside_the_service_that_runs_its_ports_are_taken_and_it_goes_on(many: Service) -> None:
    pid = many.pid
    done = check()
    assert done.returncode == os.EX_UNAVAILABLE, done.stdout
    # Within the sandbox the processes of others are not visible.
    assert "vsock port 8001: Address already in use; another program listens " in done.stdout
    assert many.pid == pid
    with connect(8001, THREE[8001].name) as client:
        assert echoes(client, b"x")
