"""--check: each verdict, the exit code, and that nothing is changed."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import threading
from pathlib import Path
from typing import Dict, List, Sequence, Tuple

import pytest

from tests.conftest import StartProxy, StartServer
from tests.support import processes
from tests.support.checking import FAULT, LIST, OK, ONE, Words, check, config
from tests.support.dns import NameServer
from tests.support.namespaces import Namespace, needs_namespace
from tests.support.program import PROJECT, command, run
from tests.support.servers import exchange
from tests.support.systemd import NotifySocket
from tests.support.timing import SLOWNESS
from tests.support.transports import Hybrid


@pytest.mark.tcp_too
def test_where_all_is_well_each_thing_is_ok_and_the_exit_code_is_0(
    words: Words, start_server: StartServer
) -> None:
    server = start_server()
    checked = check(*words(server))
    assert (checked.code, checked.stderr) == (os.EX_OK, "")
    assert checked.of(FAULT) == []
    where = re.escape(f"{server.host}:{server.port}")
    for expected in (
        r"file /\S+ is read: the allowlist has 1 entry$",
        rf"{where} is permitted by the address '127\.0\.0\.1', port {server.port} in line 2$",
        rf"connected to {where} in \d\.\d{{3}} s$",
        r"open files: a process needs 70, and may have ",
        r"processes: the proxy needs 7, and ",
        r"^(Unix socket|TCP|vsock port) \S+ is free$",
        r"^the proxy would start: 1 service, 4 workers",
    ):
        assert checked.has(OK, expected), expected
    server.wait_for_connections(1)


@pytest.mark.tcp_too
def test_beside_a_running_proxy_the_port_is_held_by_it_and_it_goes_on(
    words: Words, start_proxy: StartProxy, start_server: StartServer
) -> None:
    server = start_server()
    proxy = start_proxy(server)
    checked = check(*words(server))
    assert checked.code == os.EX_UNAVAILABLE
    assert len(checked.of(FAULT)) == 2
    assert checked.has(FAULT, rf"^cannot listen on .* held by vsock-proxy, pid {proxy.pid}\b")
    assert checked.has(FAULT, "^the proxy would not start: exit code 69$")
    with proxy.connect() as client:
        assert exchange(client, b"x") == b"x"


# Root may read and write any file, by these capabilities.
WITHOUT = ("setpriv", "--bounding-set=-dac_override,-dac_read_search")
NO_ROOT = WITHOUT if os.geteuid() == 0 else ()
LISTEN_TCP = ("--listen-tcp", "127.0.0.1")
# FOLDER is one of the test; FOLDER/link leads to it.
FAULTS: Dict[str, Tuple[int, str, Sequence[str]]] = {
    "not YAML": (os.EX_CONFIG, "allowlist: [", ONE),
    "a bad entry": (os.EX_CONFIG, "allowlist:\n- {address: 16, port: 1}\n", ONE),
    "no services": (os.EX_USAGE, LIST, ()),
    "a bad service": (os.EX_CONFIG, f"{LIST}services:\n- {{listen: 8000}}\n", ()),
    "an endpoint that is not permitted": (os.EX_CONFIG, LIST, ("8000", "127.0.0.2", "1")),
    "a name that no address could permit": (os.EX_CONFIG, LIST, ("8000", "x.invalid", "2")),
    "a name that only DNS can judge": (os.EX_TEMPFAIL, LIST, ("8000", "x.invalid", "1")),
    "a service that leads to itself": (os.EX_USAGE, LIST, (*LISTEN_TCP, "1", "127.0.0.1", "1")),
    "the other family": (os.EX_USAGE, LIST, ("-6", *ONE)),
    "a region that is none": (os.EX_USAGE, LIST, ("8000", "x.{region}.test", "1")),
    "an address of another machine": (
        os.EX_UNAVAILABLE,
        LIST,
        ("--listen-tcp", "192.0.2.1", *ONE),
    ),
    "a path in a folder that is not there": (
        os.EX_UNAVAILABLE,
        LIST,
        ("--uds-path", "/nonexistent/v", *ONE),
    ),
    "a path in a file": (os.EX_UNAVAILABLE, LIST, ("--uds-path", "/dev/null/v", *ONE)),
    "metrics where a service listens": (
        os.EX_UNAVAILABLE,
        LIST,
        ("--metrics", "9999", "--listen-tcp", "0.0.0.0", "9999", *ONE[1:]),
    ),
    "metrics on the path where a service listens": (
        os.EX_UNAVAILABLE,
        LIST,
        ("--metrics", "unix:FOLDER/v_8000", "--uds-path", "FOLDER/v", *ONE),
    ),
    "two services on one path, by a link": (
        os.EX_UNAVAILABLE,
        f"{LIST}services:\n"
        "- {listen: 8000, address: 127.0.0.1, port: 1, uds_path: FOLDER/v}\n"
        "- {listen: 8000, address: 127.0.0.1, port: 1, uds_path: FOLDER/link/v}\n",
        (),
    ),
    "services whose addresses overlap": (
        os.EX_UNAVAILABLE,
        f"{LIST}services:\n"
        "- {listen: 9, address: 127.0.0.1, port: 1, listen_tcp: 127.9.9.9}\n"
        "- {listen: 9, address: 127.0.0.1, port: 1, listen_tcp: 0.0.0.0}\n",
        (),
    ),
}


@pytest.mark.hybrid_only
@pytest.mark.parametrize(("code", "text", "arguments"), FAULTS.values(), ids=FAULTS.keys())
def test_a_fault_has_the_exit_code_and_the_words_of_serving(
    code: int, text: str, arguments: Sequence[str], tmp_path: Path
) -> None:
    (tmp_path / "link").symlink_to(tmp_path)
    own = () if "--listen-tcp" in arguments or "--uds-path" in arguments else ("--uds-path",)
    words = [
        *config(tmp_path, text.replace("FOLDER", str(tmp_path))),
        *(own and (*own, str(tmp_path / "v"))),
        *(word.replace("FOLDER", str(tmp_path)) for word in arguments),
    ]
    region = {"AWS_REGION": "no region"} if "x.{region}.test" in arguments else {}
    environment = {**os.environ, **region}
    served = run(*words, environment=environment)
    checked = check(*words, environment=environment)
    assert (served.returncode, checked.code) == (code, code)
    # The check does not hold the place of another service, so it has no pid to name. And on a busy
    # machine serving may not find the holder in time. Then it says so, and the rest is compared.
    unlike = ", pid .*| by another program;.*|; another socket, .*"
    message = re.sub(unlike, "", served.stderr.splitlines()[-1])
    message = message[len("vsock-proxy: ") :]
    assert any(message in text for text in checked.of(FAULT)), checked.lines
    assert checked.of(FAULT)[-1] == f"the proxy would not start: exit code {code}"
    assert checked.stderr == ""


@pytest.mark.hybrid_only
def test_the_first_fault_is_that_of_serving_whatever_else_is_wrong(
    transport: Hybrid, tmp_path: Path
) -> None:
    words = [*config(tmp_path, LIST), *transport.options(), str(transport.port), "127.0.0.2", "1"]
    with transport.occupy(transport.port):
        checked = check(*words)
        served = run(*words)
    assert served.returncode == checked.code == os.EX_CONFIG
    assert [text.split(" ")[0] for text in checked.of(FAULT)] == ["127.0.0.2:1", "cannot", "the"]


@pytest.mark.hybrid_only
def test_without_the_file_the_port_and_the_machine_are_checked(
    transport: Hybrid,
) -> None:
    checked = check("--config", "/nonexistent", *transport.options(), *ONE)
    assert checked.code == os.EX_CONFIG
    assert checked.has(FAULT, "^file /nonexistent: No such file or directory")
    assert checked.has(OK, r"_8000 is free$")
    assert checked.has(OK, "^processes: ")


@pytest.mark.hybrid_only
def test_a_file_that_may_not_be_read_has_the_words_of_serving(words: Words) -> None:
    arguments = words(("127.0.0.1", 9))
    Path(arguments[1]).chmod(0)
    served, checked = run(*arguments, wrapper=NO_ROOT), check(*arguments, wrapper=NO_ROOT)
    assert served.returncode == checked.code == os.EX_CONFIG
    assert "Permission denied" in served.stderr
    assert checked.of(FAULT)[0] == served.stderr[len("vsock-proxy: ") :].rstrip()


@pytest.mark.hybrid_only
def test_a_path_in_a_folder_that_is_gone_has_the_words_of_serving(tmp_path: Path) -> None:
    paths = ("--uds-path", "v", "--metrics", "unix:m")
    arguments = [*config(tmp_path, LIST), *paths, *ONE]
    gone = ("sh", "-c", 'mkdir "$0" && cd "$0" && rmdir "$0" && exec "$@"', str(tmp_path / "gone"))
    environment = {**os.environ, "PYTHONPATH": str(PROJECT)}
    served = run(*arguments, wrapper=gone, environment=environment)
    checked = check(*arguments, wrapper=gone, environment=environment)
    assert served.returncode == checked.code == os.EX_UNAVAILABLE
    assert "No such file or directory" in served.stderr
    assert checked.of(FAULT)[0] == served.stderr[len("vsock-proxy: ") :].rstrip()


@pytest.mark.hybrid_only
def test_a_folder_that_may_not_be_written_to_has_the_words_of_serving(
    words: Words, tmp_path: Path
) -> None:
    arguments = words(("127.0.0.1", 9))
    tmp_path.chmod(0o555)
    served, checked = run(*arguments, wrapper=NO_ROOT), check(*arguments, wrapper=NO_ROOT)
    assert served.returncode == checked.code == os.EX_UNAVAILABLE
    assert "Permission denied" in served.stderr
    assert checked.has(FAULT, f"^{re.escape(served.stderr[len('vsock-proxy: ') :].rstrip())}$")


@pytest.mark.hybrid_only
def test_too_few_files_are_a_fault(words: Words, start_server: StartServer) -> None:
    wrapper = ["prlimit", "--nofile=40:40"]
    checked = check(*words(start_server()), wrapper=wrapper)
    assert checked.code == os.EX_UNAVAILABLE
    assert [text.split(",")[0] for text in checked.of(FAULT)] == [
        "the limit of open files is 40",
        "the proxy would not start: exit code 69",
    ]


@pytest.mark.hybrid_only
def test_a_bad_command_line_is_one_line_on_stderr_as_ever() -> None:
    checked = check("--config")
    assert (checked.code, checked.lines) == (os.EX_USAGE, [])
    assert checked.stderr.count("\n") == 1


# Nothing is changed


@pytest.mark.hybrid_only
def test_no_file_is_made_or_removed_and_systemd_is_told_nothing(
    words: Words, transport: Hybrid, tmp_path: Path, start_server: StartServer
) -> None:
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(transport.path))
    arguments = words(start_server())
    systemd = NotifySocket(str(tmp_path / "notify"))
    before = {path: path.stat() for path in tmp_path.iterdir()}
    checked = check(*arguments, environment={**os.environ, "NOTIFY_SOCKET": systemd.address})
    after = {path: path.stat() for path in tmp_path.iterdir()}
    nothing_came = systemd.is_empty()
    systemd.close()
    assert checked.code == os.EX_OK
    assert checked.has(OK, "_8000 is free$")
    assert {path: stat.st_ino for path, stat in before.items()} == {
        path: stat.st_ino for path, stat in after.items()
    }
    assert nothing_came


@pytest.mark.hybrid_only
def test_a_standard_output_that_cannot_be_written_is_exit_code_74(words: Words) -> None:
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            command("--check", *words(("127.0.0.1", 9))),
            cwd=PROJECT,
            stdout=full,
            stderr=subprocess.PIPE,
            check=False,
        )
    assert done.returncode == os.EX_IOERR
    assert done.stderr.startswith(b"vsock-proxy: cannot write to the standard output: ")


@pytest.mark.hybrid_only
def test_a_check_that_a_signal_ends_does_not_say_that_all_is_well(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    process = subprocess.Popen(
        command("--check", "--config", str(fifo), *ONE),
        cwd=PROJECT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    # Once that returns, it has the file open and waits for what is written.
    writer = _opened_for_writing(fifo)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=20 * SLOWNESS)
    os.close(writer)
    assert (process.returncode, out) == (os.EX_TEMPFAIL, "")
    assert err == "vsock-proxy: told to end before all was checked\n"


@needs_namespace
@pytest.mark.hybrid_only
def test_a_signal_ends_a_check_and_its_lookup_that_hangs(
    words: Words, network: Namespace, dns: NameServer
) -> None:
    dns.unanswered.add("hangs.test")
    process = subprocess.Popen(
        [*network.wrapper, *command("--check", *words(("hangs.test", 9)))],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    dns.wait_for_name("hangs.test")
    (child,) = processes.children(process.pid)
    assert processes.title(child) == "vsock-proxy: check"
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=20 * SLOWNESS)
    assert process.returncode == os.EX_TEMPFAIL
    assert err == "vsock-proxy: told to end before all was checked\n"
    assert processes.title(child) == ""


def _opened_for_writing(fifo: Path) -> int:
    opened: List[int] = []
    thread = threading.Thread(target=lambda: opened.append(os.open(fifo, os.O_WRONLY)), daemon=True)
    thread.start()
    thread.join(20 * SLOWNESS)
    (writer,) = opened
    return writer
