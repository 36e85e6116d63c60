"""What is seen of the machine, from files as the kernel writes them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Dict

import pytest

from tests.support.python import printed_by
from vsock_proxy.process import machine
from vsock_proxy.process.machine import ProcessLimit

pytestmark = pytest.mark.hybrid_only  # no transport has a part in it


def write(root: Path, files: Dict[str, str]) -> None:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def test_transports_are_those_that_are_loaded_and_those_that_are_built_in(tmp_path: Path) -> None:
    assert machine.transports(tmp_path) == ()
    write(
        tmp_path,
        {
            "proc/modules": "vsock 61440 3 vhost_vsock, Live 0x0\nvhost_vsock 28672 0 - Live 0x0\n",
            "sys/module/vsock_loopback/uevent": "",
            "sys/module/vsock/uevent": "",
        },
    )
    assert machine.transports(tmp_path) == ("vhost_vsock", "vsock_loopback")


@pytest.mark.parametrize("name", machine.TRACES)
def test_a_transport_that_is_built_in_shows_by_what_it_registers(name: str, tmp_path: Path) -> None:
    (tmp_path / machine.TRACES[name]).mkdir(parents=True)
    assert machine.transports(tmp_path) == (name,)


def test_a_cid_that_cannot_be_seen_is_an_error_that_says_why(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        machine.own_cid(tmp_path)


@pytest.mark.parametrize(("text", "backlog"), [("4096\n", 4096), ("", None), ("x", None)])
def test_the_longest_backlog(text: str, backlog: int, tmp_path: Path) -> None:
    assert machine.longest_backlog(tmp_path) is None
    write(tmp_path, {"proc/sys/net/core/somaxconn": text})
    assert machine.longest_backlog(tmp_path) == backlog


def group(folder: str, most: str, now: str) -> Dict[str, str]:
    return {f"{folder}/pids.max": f"{most}\n", f"{folder}/pids.current": f"{now}\n"}


TASKS = "TasksMax= in the unit"


def limits_of_groups(root: Path) -> Dict[str, int]:
    found = list(machine._limits_of_groups(root))
    assert all(limit.remedy == TASKS for limit in found)
    return {limit.name: limit.left for limit in found}


def test_each_control_group_above_has_a_limit(tmp_path: Path) -> None:
    top = "sys/fs/cgroup"
    write(
        tmp_path,
        {
            "proc/self/cgroup": "0::/system.slice/proxy.service\n",
            **group(f"{top}/system.slice/proxy.service", "20", "3"),
            **group(f"{top}/system.slice", "max", "40"),
            **group(top, "50", "60"),
        },
    )
    assert limits_of_groups(tmp_path) == {
        "the limit of 20 processes for the control group proxy.service": 17,
        "the limit of 50 processes for the control group cgroup": 0,
    }


def test_control_groups_of_the_older_kind_have_a_folder_for_processes(tmp_path: Path) -> None:
    write(
        tmp_path,
        {
            "proc/self/cgroup": "9:name=systemd:/x\n8:pids:/a\n7:memory:/a/b\n0::/\n",
            **group("sys/fs/cgroup/pids/a", "30", "10"),
            **group("sys/fs/cgroup/memory/a/b", "1", "1"),
        },
    )
    assert limits_of_groups(tmp_path) == {"the limit of 30 processes for the control group a": 20}


def test_what_cannot_be_seen_limits_nothing(tmp_path: Path) -> None:
    assert list(machine._limits_of_groups(tmp_path)) == []
    write(tmp_path, {"proc/self/cgroup": "0::/a\n", "sys/fs/cgroup/a/pids.max": "7\n"})
    assert list(machine._limits_of_groups(tmp_path)) == []


def test_the_machine_has_a_limit_of_all_its_threads(tmp_path: Path) -> None:
    assert list(machine._limits_of_machine(tmp_path)) == []
    write(
        tmp_path,
        {
            "proc/loadavg": "0.00 0.01 0.05 1/123 4567\n",
            "proc/sys/kernel/threads-max": "1000\n",
            "proc/sys/kernel/pid_max": "100\n",
        },
    )
    assert list(machine._limits_of_machine(tmp_path)) == [
        ProcessLimit("the limit of 1000 for this machine", 877, "sysctl kernel.threads-max"),
        ProcessLimit("the limit of 100 for this machine", 0, "sysctl kernel.pid_max"),
    ]


@pytest.mark.skipif(os.getuid() != 0, reason="needs root, to become another user")
def test_the_limit_of_the_user_counts_what_the_user_has() -> None:
    code = (
        "import os, resource, threading\n"
        "from vsock_proxy.process import machine\n"
        "resource.setrlimit(resource.RLIMIT_NPROC, (10, 10))\n"
        "os.setuid(54321)\n"
        "done = threading.Event()\n"
        "threading.Thread(target=done.wait).start()\n"
        "(limit,) = machine._limit_of_user(machine.ROOT)\n"
        "done.set()\n"
        "print(limit)\n"
    )
    expected = ProcessLimit(
        "the limit of 10 processes for this user", 8, "LimitNPROC= in the unit, ulimit -u"
    )
    assert printed_by(code) == f"{expected}\n"
