"""A reload that cannot be done, or not yet: a line says why, and clients are served as before."""

from __future__ import annotations

import os
import re
import resource
import signal
import socket
import time
from typing import Callable, Dict, Iterator, List, Tuple

import pytest

from tests.program.services.conftest import Scene
from tests.support import processes
from tests.support.clients import is_refused
from tests.support.limited import lift_limit, limited_to
from tests.support.namespaces import needs_namespace
from tests.support.program import Proxy
from tests.support.services import (
    READER,
    Service,
    ServicesFile,
    all_idle,
    letter,
    letter_at,
    say,
    service,
)
from tests.support.timing import AT_ONCE, SLOWNESS, wait_until
from tests.support.transports import Hybrid

# A file that cannot be put into force


Fault = Callable[[ServicesFile, List[Service]], None]


def replaced(key: str, value: object) -> Fault:
    """The second service has another value."""

    def write(file: ServicesFile, services: List[Service]) -> None:
        permitted = [(str(one["address"]), int(str(one["port"]))) for one in services]
        file.write([services[0], {**services[1], key: value}], permitted)

    return write


def text(content: str) -> Fault:
    """The file has this in it."""

    def write(file: ServicesFile, services: List[Service]) -> None:
        file.path.write_text(content)

    return write


def twice(file: ServicesFile, services: List[Service]) -> None:
    file.write([*services, services[0]])


def not_permitted(file: ServicesFile, services: List[Service]) -> None:
    file.write(services, [(str(services[0]["address"]), int(str(services[0]["port"])))])


def no_services(file: ServicesFile, services: List[Service]) -> None:
    file.path.write_text(file.path.read_text().split("services:")[0])


def is_gone(file: ServicesFile, services: List[Service]) -> None:
    file.path.unlink()


def is_a_folder(file: ServicesFile, services: List[Service]) -> None:
    file.path.unlink()
    file.path.mkdir()


# What is wrong, and how the error begins: with the key that it is about, if it is about one.
FAULTS: Dict[str, Tuple[Fault, str]] = {
    "no YAML": (text("services: ["), "file FILE, line 2: not valid YAML"),
    "empty": (text(""), "file FILE: empty"),
    "no text": (text("\0"), "file FILE, line 1: not valid YAML"),
    "no allowlist": (text("services: []"), "file FILE, line 1: no 'allowlist:' key"),
    "a list": (text("- services"), "file FILE, line 1: a list where 'allowlist:' is expected"),
    "an empty allowlist": (
        text("allowlist:\nservices: []"),
        "allowlist FILE, line 1: allowlist is ",
    ),
    "a bad entry": (text("allowlist:\n- a\nservices: []"), "allowlist FILE, line 2: entry is 'a'"),
    "an unknown key": (
        replaced("surprise", 1),
        "services FILE, line 6: unknown key the text 'surprise'",
    ),
    "no workers": (replaced("workers", 0), "services FILE, line 6: workers is '0'"),
    "text for a number": (replaced("idle_timeout", "soon"), "services FILE, line 6: idle_timeout "),
    "a bad port": (replaced("port", 70000), "services FILE, line 6: port is '70000'"),
    "a bad name": (replaced("address", "no host name"), "services FILE, line 6: address is "),
    "a port twice": (twice, "services FILE, line 8: a second service on "),
    "not permitted": (not_permitted, "services FILE, line 5: service PORT: 127.0.0.1:"),
    "no services": (no_services, "file FILE: no 'services:' key; expected it with a list of "),
    "no service": (
        lambda file, _: file.write([], [("a.test", 443)]),
        "services FILE, line 3: services is nothing",
    ),
    "gone": (is_gone, "file FILE: No such file or directory; the services stay as they were"),
    "a folder": (is_a_folder, "file FILE: is a directory, where a regular file is expected; the "),
}


@pytest.mark.hybrid_only  # no transport has a part in it
@pytest.mark.parametrize(("fault", "beginning"), FAULTS.values(), ids=FAULTS.keys())
def test_a_file_with_a_fault_is_one_error_line_and_changes_nothing(
    scene: Scene, fault: Fault, beginning: str
) -> None:
    one, two = scene.ports(2)
    services = [
        service(one, scene.server(letter(b"A"))),
        service(two, scene.server(letter(b"B")), workers=1),
    ]
    proxy = scene.start(*services, workers=1)
    before = all_idle(proxy, 2)
    with proxy.connect(two) as live:
        assert say(live) == b"B"
        fault(scene.file, services)
        line = scene.file.reload_in_vain(proxy)
        beginning = beginning.replace("FILE", str(scene.file.path)).replace("PORT", str(two))
        assert line.partition(" error master: ")[2].startswith(beginning)
        # The command line is not read again.
        assert "--config" not in line
        assert "<local_port>" not in line
        assert say(live) == b"B"
    assert len(proxy.log.matching(" error ")) == 1
    assert all_idle(proxy, 2) == before
    assert [letter_at(proxy, port) for port in (one, two)] == [b"A", b"B"]
    if scene.file.path.is_dir():
        scene.file.path.rmdir()
    scene.file.write(services)
    scene.reload(proxy)
    assert all_idle(proxy, 2) == before


@pytest.mark.tcp_too
def test_a_new_port_that_cannot_be_bound_changes_nothing(scene: Scene) -> None:
    one, two, free, used = scene.ports(4)
    old, new = scene.server(letter(b"A")), scene.server(letter(b"B"))
    services = [service(one, old), service(two, old, workers=1)]
    proxy = scene.start(*services, workers=1)
    before = all_idle(proxy, 2)
    with scene.transport.occupy(used):
        scene.file.write([service(one, new), service(free, new), service(used, new)])
        line = scene.file.reload_in_vain(proxy)
        assert re.search(rf"(?<!\d){used}(?!\d)", line)
        assert "use" in line
    assert all_idle(proxy, 2) == before
    assert [letter_at(proxy, port) for port in (one, two)] == [b"A", b"A"]
    assert is_refused(proxy, free)
    if isinstance(scene.transport, Hybrid):
        assert not scene.transport.path_of(free).exists()
        scene.transport.path_of(used).unlink()
    scene.reload(proxy)
    assert [letter_at(proxy, port) for port in (one, free, used)] == [b"B", b"B", b"B"]
    wait_until(lambda: is_refused(proxy, two), "it is gone")


@pytest.mark.hybrid_only  # no transport has a part in it
def test_systemd_learns_that_a_reload_is_over_whether_it_worked_or_not(scene: Scene) -> None:
    systemd = scene.file.systemd
    one, two = scene.ports(2)
    old, new = scene.server(letter(b"A")), scene.server(letter(b"B"))
    proxy = scene.start(service(one, old))
    scene.file.write([service(one, new), service(two, new)])
    proxy.send(signal.SIGHUP)
    systemd.wait_for("^RELOADING=1\nMONOTONIC_USEC=")
    systemd.wait_for("^READY=1$")
    # Whoever comes after `systemctl reload` finds what is new.
    assert [letter_at(proxy, port) for port in (one, two)] == [b"B", b"B"]
    scene.file.path.write_text("nonsense")
    proxy.send(signal.SIGHUP)
    systemd.wait_for("^RELOADING=1\nMONOTONIC_USEC=")
    systemd.wait_for("^READY=1$")
    assert letter_at(proxy, two) == b"B"


@pytest.mark.hybrid_only  # no transport has a part in it
def test_a_reload_that_no_process_can_be_had_for_is_over_at_once(scene: Scene) -> None:
    (one,) = scene.ports(1)
    proxy = scene.start(service(one, scene.server(letter(b"A"))), workers=1)
    all_idle(proxy, 1)
    # One is left, to tell systemd, and not the two of a pipe.
    files = wait_until(lambda: files_in_its_sleep(proxy.pid), "the master sleeps") + 1
    resource.prlimit(proxy.pid, resource.RLIMIT_NOFILE, (files, files))
    began = time.monotonic()
    line = scene.file.reload_in_vain(proxy)
    # It must not wait for whatever wakes the master next.
    assert time.monotonic() - began < AT_ONCE * SLOWNESS
    assert "Too many open files" in line
    assert "LimitNOFILE=" in line
    assert letter_at(proxy, one) == b"A"


def files_in_its_sleep(pid: int) -> int:
    """How many files a process has open if it sleeps; otherwise 0.

    While the master tells systemd something, it has one more.
    """
    switches = processes.context_switches(pid)
    slept = processes.state(pid) == "S"
    files = processes.open_files(pid)
    sleeps_on = processes.state(pid) == "S" and processes.context_switches(pid) == switches
    return files if slept and sleeps_on else 0


@pytest.fixture
def will_wait_for_metadata(scene: Scene) -> Iterator[Tuple[Proxy, int]]:
    """A proxy whose next reload asks for instance metadata and gets no answer; its port."""
    one, two = scene.ports(2)
    server = scene.server(letter(b"A"))
    with socket.create_server(("127.0.0.1", 0)) as metadata:
        environment = {
            **os.environ,
            "NOTIFY_SOCKET": scene.file.systemd.address,
            "VSOCK_PROXY_IMDS_ENDPOINT": f"http://127.0.0.1:{metadata.getsockname()[1]}",
        }
        proxy = scene.start(service(one, server), environment=environment)
        scene.file.write(
            [service(one, server), service(two, ("kms.{region}.test", 443))],
            [(server.host, server.port)],
        )
        yield proxy, one


@pytest.mark.hybrid_only  # no transport has a part in it
def test_a_reload_that_waits_for_the_instance_metadata_in_vain_says_so(
    scene: Scene, will_wait_for_metadata: Tuple[Proxy, int]
) -> None:
    proxy, port = will_wait_for_metadata
    line = scene.file.reload_in_vain(proxy)
    assert "no instance metadata for {region}" in line
    assert "timed out" in line
    assert letter_at(proxy, port) == b"A"


@pytest.mark.hybrid_only  # no transport has a part in it
def test_no_process_that_reads_outlives_a_master_that_is_killed(
    will_wait_for_metadata: Tuple[Proxy, int],
) -> None:
    proxy, _ = will_wait_for_metadata
    proxy.send(signal.SIGHUP)
    wait_until(lambda: READER in proxy.titles(), "the file is read")
    pids = proxy.children()
    proxy.send(signal.SIGKILL)
    proxy.wait()
    wait_until(lambda: not any(map(processes.is_alive, pids)), "none is left", timeout=2.0)


# Without another process


@pytest.mark.hybrid_only  # no transport has a part in it
@needs_namespace
def test_old_workers_serve_while_a_reload_can_start_no_process(scene: Scene) -> None:
    one, two = scene.ports(2)
    old, new = scene.server(letter(b"A")), scene.server(letter(b"B"))
    # The master, four workers, and the process that reads the file.
    proxy = scene.start(
        service(one, old), service(two, old, workers=2), workers=2, wrapper=limited_to(6)
    )
    all_idle(proxy, 4)
    scene.file.write([service(one, new), service(two, new, workers=2)])
    proxy.send(signal.SIGHUP)
    proxy.log.wait_for("error master: cannot start .* Resource temporarily unavailable")
    for _ in range(20):
        for port in (one, two):
            assert letter_at(proxy, port) in (b"A", b"B")
    lift_limit(proxy)
    wait_until(
        lambda: [letter_at(proxy, port) for port in (one, two)] == [b"B", b"B"], "it is in force"
    )
    all_idle(proxy, 4)


@pytest.mark.hybrid_only  # no transport has a part in it
@needs_namespace
def test_a_reload_with_room_for_one_process_replaces_pool_after_pool(scene: Scene) -> None:
    ports = scene.ports(3)
    old, new = scene.server(letter(b"A")), scene.server(letter(b"B"))
    # The master, six workers, and the process that reads the file.
    proxy = scene.start(*(service(port, old, workers=2) for port in ports), wrapper=limited_to(8))
    all_idle(proxy, 6)
    scene.file.write(service(port, new, workers=2) for port in ports)
    proxy.send(signal.SIGHUP)
    for port in ports:
        wait_until(lambda port=port: letter_at(proxy, port) == b"B", "it is in force")  # type: ignore[misc]
    proxy.log.wait_for("info master: all 6 workers run")
    all_idle(proxy, 6)
    assert [letter_at(proxy, port) for port in ports] == [b"B"] * 3
