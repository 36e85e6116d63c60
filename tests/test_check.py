"""--check: all that comes before serving, a verdict a line, and nothing is changed by it."""

from __future__ import annotations

import os
import pty
import re
import signal
import socket
import subprocess
import threading
from pathlib import Path
from typing import Callable, Dict, List, Sequence, Tuple, Union

import pytest

from tests.conftest import StartProxy, StartServer
from tests.support import processes
from tests.support.dns import NameServer
from tests.support.json_log import JSON, SCHEMA, lines_of
from tests.support.metadata import Behaviour, MetadataService
from tests.support.namespaces import Namespace, why_not
from tests.support.program import PROJECT, command, run
from tests.support.servers import Server, exchange
from tests.support.services import ServicesFile, service
from tests.support.systemd import NotifySocket, passing
from tests.support.timing import SLOWNESS
from tests.support.transports import Hybrid, Tcp, Vsock
from tests.support.vmm import Firecracker
from vsock_proxy.supervision import checking

Way = Union[Hybrid, Tcp, Vsock]
WriteAllowlist = Callable[..., Path]
OK, WARNING, FAULT = "ok      ", "warning ", "fault   "
needs_namespace = pytest.mark.skipif(bool(why_not()), reason=why_not())


class Checked:
    """What a check has said."""

    def __init__(self, done: subprocess.CompletedProcess[str]) -> None:
        self.code = done.returncode
        self.stderr = done.stderr
        self.lines = done.stdout.splitlines()

    def of(self, word: str) -> List[str]:
        """The texts of one verdict."""
        return [line[len(word) :] for line in self.lines if line.startswith(word)]

    def has(self, word: str, pattern: str) -> bool:
        """Whether a verdict of that kind matches."""
        return any(re.search(pattern, text) for text in self.of(word))


def check(*arguments: str, **process: object) -> Checked:
    return Checked(run("--check", *arguments, **process))  # type: ignore[arg-type]


@pytest.fixture
def words(transport: Way, write_allowlist: WriteAllowlist) -> Callable[..., List[str]]:
    """The words for an endpoint that the allowlist permits."""

    def make(endpoint: Union[Server, Tuple[str, int]], *entries: Tuple[str, int]) -> List[str]:
        host, port = (endpoint.host, endpoint.port) if isinstance(endpoint, Server) else endpoint
        return [
            *("--config", str(write_allowlist(*(entries or ((host, port),))))),
            *transport.options(),
            *(str(transport.port), host, str(port)),
        ]

    return make


Words = Callable[..., List[str]]


# All is well


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
        r"open files: 70 are needed for a process, there is ",
        r"processes: 7 are needed, ",
        r"^(Unix socket|TCP|vsock port) \S+ is free$",
        r"^1 service can be served by 4 workers",
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
    assert checked.has(FAULT, "^this cannot be served: exit code 69$")
    with proxy.connect() as client:
        assert exchange(client, b"x") == b"x"


# The code and the words of serving


def config(folder: Path, text: str) -> List[str]:
    path = folder / "config.yaml"
    path.write_text(text)
    return ["--config", str(path)]


ONE = ("8000", "127.0.0.1", "1")
LIST = "allowlist:\n- {address: 127.0.0.1, port: 1}\n"
LISTEN_TCP = ("--listen-tcp", "127.0.0.1")
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
    own = () if "--listen-tcp" in arguments or "--uds-path" in arguments else ("--uds-path",)
    words = [
        *config(tmp_path, text),
        *(own and (*own, str(tmp_path / "v"))),
        *arguments,
    ]
    region = {"AWS_REGION": "no region"} if "x.{region}.test" in arguments else {}
    environment = {**os.environ, **region}
    served = run(*words, environment=environment)
    checked = check(*words, environment=environment)
    assert (served.returncode, checked.code) == (code, code)
    # Who holds what the other would hold itself is not known to be itself.
    message = re.sub("(; another|, held by) .*", "", served.stderr.splitlines()[-1])
    message = message[len("vsock-proxy: ") :]
    assert any(message in text for text in checked.of(FAULT)), checked.lines
    assert checked.of(FAULT)[-1] == f"this cannot be served: exit code {code}"
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
    assert [text.split(" ")[0] for text in checked.of(FAULT)] == ["127.0.0.2:1", "cannot", "this"]


@pytest.mark.hybrid_only
def test_without_the_file_the_port_and_the_machine_are_looked_at_all_the_same(
    transport: Hybrid,
) -> None:
    checked = check("--config", "/nonexistent", *transport.options(), *ONE)
    assert checked.code == os.EX_CONFIG
    assert checked.has(FAULT, "^file /nonexistent: No such file or directory")
    assert checked.has(OK, r"_8000 is free$")
    assert checked.has(OK, "^processes: ")


@pytest.mark.hybrid_only
def test_a_folder_that_may_not_be_written_to_has_the_words_of_serving(
    words: Words, tmp_path: Path
) -> None:
    arguments = words(("127.0.0.1", 9))
    tmp_path.chmod(0o555)
    # Root may write to any folder, by a capability.
    without = ["setpriv", "--bounding-set=-dac_override"]
    wrapper = without if os.geteuid() == 0 else []
    served = run(*arguments, wrapper=wrapper)
    checked = check(*arguments, wrapper=wrapper)
    assert served.returncode == checked.code == os.EX_UNAVAILABLE
    assert "Permission denied" in served.stderr
    assert checked.has(FAULT, f"^{re.escape(served.stderr[len('vsock-proxy: ') :].rstrip())}$")


@pytest.mark.hybrid_only
def test_too_few_files_are_a_fault(words: Words, start_server: StartServer) -> None:
    wrapper = ["prlimit", "--nofile=40:40"]
    checked = check(*words(start_server()), wrapper=wrapper)
    assert checked.code == os.EX_UNAVAILABLE
    assert checked.has(FAULT, "^the limit of open files is 40, 70 are needed")


@pytest.mark.hybrid_only
def test_a_bad_command_line_is_one_line_on_stderr_as_ever() -> None:
    checked = check("--config")
    assert (checked.code, checked.lines) == (os.EX_USAGE, [])
    assert checked.stderr.count("\n") == 1


# Endpoints


@pytest.mark.tcp_too
def test_an_endpoint_that_refuses_is_a_warning_since_the_proxy_would_serve(words: Words) -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    checked = check(*words(("127.0.0.1", port)))
    assert checked.code == os.EX_OK
    assert checked.has(
        WARNING,
        rf"^cannot connect to 127\.0\.0\.1:{port}: Connection refused; nothing listens on that "
        r"port there, or a firewall refuses \(after \d\.\d{3} s\)$",
    )
    assert checked.has(OK, "^1 service can be served by 4 workers; 1 warning$")


KINDS = {
    "name": ("localhost", "LOCALHOST.", "the name 'localhost'"),
    "wildcard": ("a.localhost", "*.localhost", r"the wildcard '\*\.localhost'"),
    "address": ("127.0.0.1", "127.0.0.1", r"the address '127\.0\.0\.1'"),
    "network": ("127.0.0.1", "127.0.0.0/8", r"the network '127\.0\.0\.0/8'"),
    "path": ("unix:/nonexistent", "unix:/nonexistent", "the path 'unix:/nonexistent'"),
}


@pytest.mark.hybrid_only
@pytest.mark.parametrize(("host", "entry", "words_of_it"), KINDS.values(), ids=KINDS.keys())
def test_the_entry_that_permits_is_named_and_how_it_does(
    host: str, entry: str, words_of_it: str, words: Words
) -> None:
    checked = check(*words((host, 9), ("other.test", 9), (entry, 9)))
    assert checked.has(OK, rf"^{host}:9 is permitted by {words_of_it}, port 9 in line 3$")


@pytest.mark.hybrid_only
def test_the_entry_of_every_cid_is_named(words: Words) -> None:
    # AF_VSOCK is not touched: the port is not permitted.
    checked = check(*words(("vsock:16", 9), ("vsock:*", 8)))
    assert checked.code == os.EX_CONFIG
    assert checked.has(FAULT, r"the closest entry is 'vsock:\*', port 8 in line 2;")


@pytest.mark.hybrid_only
def test_a_guest_behind_a_vmm_is_connected_to_as_for_a_client(
    words: Words, start_vmm: StartServer
) -> None:
    vmm = start_vmm(kind=Firecracker)
    checked = check(*words(vmm))
    assert checked.has(OK, rf"^connected to {re.escape(vmm.host)}:{vmm.port} in ")
    checked = check(*words((vmm.host, vmm.port + 1)))
    assert checked.code == os.EX_OK
    assert checked.has(
        WARNING,
        rf"^cannot connect to .*:{vmm.port + 1}: refused by the VMM, which closed the connection; "
        "does the guest listen on vsock port",
    )


@pytest.mark.hybrid_only
def test_a_name_that_is_not_listed_is_permitted_address_by_address(words: Words) -> None:
    checked = check(*words(("localhost", 9), ("127.0.0.0/8", 9)), "-4")
    assert checked.has(OK, "^localhost:9 is not listed itself, but addresses of it are$")
    assert checked.has(OK, r"^localhost resolves to IPv4 127\.0\.0\.1, in \d\.\d{3} s$")
    assert checked.has(OK, r"^127\.0\.0\.1:9 is permitted by the network '127\.0\.0\.0/8', ")
    assert checked.has(WARNING, r"^cannot connect to 127\.0\.0\.1:9: Connection refused; ")


@pytest.mark.hybrid_only
def test_a_name_of_which_no_address_is_permitted_says_which_addresses_it_has(words: Words) -> None:
    checked = check(*words(("localhost", 9), ("192.0.2.0/24", 9)), "-4")
    assert checked.code == os.EX_CONFIG
    assert checked.has(OK, r"^localhost resolves to IPv4 127\.0\.0\.1, in ")
    assert checked.has(FAULT, "^localhost:9 is not permitted by ")
    assert not checked.has(WARNING, "connect")


@needs_namespace
@pytest.mark.hybrid_only
def test_each_address_of_a_name_is_judged_and_connected_to_by_itself(
    words: Words, network: Namespace, dns: NameServer, start_inside: StartServer
) -> None:
    for address in ("192.0.2.10", "2001:db8:1::10"):
        network.add_address(address)
    hole = "192.0.2.99"
    network.add_black_holes(hole)
    first = start_inside(host="192.0.2.10")
    start_inside(host="2001:db8:1::10", port=first.port)
    dns.set("endpoint.test", "192.0.2.10", "2001:db8:1::10", hole, "169.254.169.254", "127.0.0.9")
    endpoint = ("endpoint.test", first.port)
    checked = check(*words(endpoint), "--connect-timeout", "0.3", wrapper=network.wrapper)
    assert checked.code == os.EX_OK
    (resolved,) = [text for text in checked.of(OK) if " resolves to " in text]
    found = re.fullmatch(
        r"endpoint\.test resolves to IPv4 (.*) and IPv6 2001:db8:1::10, in \d\.\d{3} s", resolved
    )
    assert found
    assert {*found[1].split(", ")} == {"192.0.2.10", hole, "169.254.169.254", "127.0.0.9"}
    assert checked.has(OK, rf"^connected to 192\.0\.2\.10:{first.port} in ")
    assert checked.has(OK, rf"^connected to \[2001:db8:1::10\]:{first.port} in ")
    assert checked.has(WARNING, rf"^cannot connect to {hole}:{first.port}: no answer in time; look")
    assert checked.has(WARNING, r"^cannot connect to 127\.0\.0\.9:\d+: Connection refused; ")
    assert checked.has(WARNING, r"^169\.254\.169\.254 is never connected to: ")
    first.wait_for_connections(1)


@needs_namespace
@pytest.mark.hybrid_only
def test_a_name_that_hangs_is_waited_for_as_at_the_start_and_delays_no_other(
    transport: Hybrid, services_file: ServicesFile, network: Namespace, dns: NameServer
) -> None:
    dns.unanswered.add("hangs.test")
    dns.set("known.test", "127.0.0.1")
    services_file.write([service(8000, ("hangs.test", 9)), service(8001, ("known.test", 9))])
    options = ["--config", str(services_file.path), *transport.options()]
    checked = check(*options, wrapper=network.wrapper)
    assert checked.code == os.EX_OK
    assert checked.has(
        WARNING,
        r"^8000: hangs\.test does not resolve: no answer within 5 s, after 5\.0\d\d s; clients "
        "wait until it does: ",
    )
    assert checked.has(OK, r"^8001: known\.test resolves to IPv4 127\.0\.0\.1, in 0\.")


# Several services


@pytest.mark.hybrid_only
def test_a_service_that_is_not_permitted_keeps_no_other_from_being_checked(
    transport: Hybrid, services_file: ServicesFile, start_server: StartServer
) -> None:
    server = start_server()
    refused = ("127.0.0.2", server.port)
    services_file.write(
        [service(8000, refused), service(8001, server, workers=2), service(8002, refused)],
        [("127.0.0.1", server.port)],
    )
    checked = check("--config", str(services_file.path), *transport.options())
    assert checked.code == os.EX_CONFIG
    faults = [text for text in checked.of(FAULT) if "is not permitted" in text]
    assert [re.sub(".*: service (.*?): .*", r"\1", text) for text in faults] == ["8000", "8002"]
    assert checked.has(OK, "^8001: connected to ")
    for port in (8000, 8001, 8002):
        assert checked.has(OK, rf"^{port}: Unix socket \S+_{port} is free$")
    assert checked.has(OK, "^processes: 9 are needed")


@pytest.mark.hybrid_only
def test_an_endpoint_of_several_services_is_connected_to_once(
    transport: Hybrid, services_file: ServicesFile, start_server: StartServer
) -> None:
    server = start_server()
    services_file.write([service(port, server) for port in (8000, 8001)])
    checked = check("--config", str(services_file.path), *transport.options())
    assert checked.code == os.EX_OK
    assert checked.has(OK, "^8000: connected to ")
    assert checked.has(OK, "^8001: connected to ")
    assert checked.has(OK, "^2 services can be served by 4 workers")
    with socket.create_connection((server.host, server.port)):
        # The one of the check, and this one.
        assert len(server.wait_for_connections(2)) == 2


@pytest.mark.hybrid_only
def test_unknown_keys_are_warned_of(words: Words, start_server: StartServer) -> None:
    arguments = words(start_server())
    path = Path(arguments[1])
    path.write_text(path.read_text() + "  comment: x\n")
    path.write_text(path.read_text().replace("}\n  comment: x", ", comment: x}"))
    checked = check(*arguments)
    assert checked.code == os.EX_OK
    assert checked.has(WARNING, "^file .*, line 2: unknown key 'comment' ignored$")


@pytest.mark.hybrid_only
def test_what_the_metadata_service_says_is_filled_in_and_told(
    transport: Hybrid, tmp_path: Path
) -> None:
    metadata = MetadataService(Behaviour(unready=1))
    environment = {**os.environ, "VSOCK_PROXY_IMDS_ENDPOINT": metadata.endpoint}
    environment.pop("AWS_REGION", None)
    text = "allowlist:\n- {address: x.eu-west-1.invalid, port: 9}\n"
    words = [*config(tmp_path, text), *transport.options(), "8000", "x.{region}.invalid", "9"]
    checked = check(*words, environment=environment)
    in_json = check(*words, *JSON, environment=environment)
    metadata.close()
    assert checked.code == os.EX_OK
    assert checked.has(
        WARNING, r"^no instance metadata yet \(.*: status 503 for .*\); trying again$"
    )
    assert checked.has(OK, r"^\{region\} is eu-west-1, in \d\.\d{3} s$")
    assert checked.has(OK, r"^x\.eu-west-1\.invalid:9 is permitted by the name ")
    told = [line["check"] for line in lines_of(in_json.lines)]
    assert told[:3] == ["file", "metadata", "permitted"]


# The machine


@needs_namespace
@pytest.mark.hybrid_only
def test_a_backlog_that_is_shorter_than_the_workers_is_a_warning(
    words: Words, network: Namespace
) -> None:
    network.run("sysctl", "-q", "-w", "net.core.somaxconn=3")
    checked = check(*words(("127.0.0.1", 9)), wrapper=network.wrapper)
    assert checked.has(
        WARNING,
        "^backlog: only 3 clients may wait at a listener, fewer than there are workers; sysctl "
        "net.core.somaxconn=4$",
    )


@pytest.mark.hybrid_only
def test_where_no_service_is_on_vsock_nothing_is_said_of_it(words: Words) -> None:
    assert not [line for line in check(*words(("127.0.0.1", 9))).lines if "vsock" in line.lower()]


@needs_namespace
@pytest.mark.hybrid_only
def test_what_serving_would_warn_of_is_a_warning(words: Words) -> None:
    # In a network that is new, as in an enclave that has just booted.
    arguments = words(("192.0.2.1", 443))
    tcp = [*arguments[:2], "--listen-tcp", "127.0.0.1", *arguments[-3:]]
    wrapper = ["unshare", "--net"]
    checked = check(*tcp, wrapper=wrapper)
    assert checked.code == os.EX_OK
    assert checked.has(WARNING, "^nobody can connect to TCP 127.0.0.1:8000: Network is unreachable")
    assert checked.has(
        WARNING,
        "^cannot connect to 192.0.2.1:443: Network is unreachable; this machine has no route",
    )
    events = [line["event"] for line in lines_of(check(*tcp, *JSON, wrapper=wrapper).lines)]
    assert events.count("loopback_down") == 1


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
def test_a_socket_that_systemd_passes_is_the_listener(
    words: Words, transport: Hybrid, start_server: StartServer
) -> None:
    arguments = words(start_server())
    checked = check(*arguments, wrapper=passing(("unix-listener", transport.path)))
    assert checked.code == os.EX_OK
    assert checked.has(OK, r"^Unix socket \S+_8000 is passed by systemd$")
    transport.path.unlink()
    other = transport.path.with_name("other")
    checked = check(*arguments, wrapper=passing(("unix-listener", other)))
    assert checked.code == os.EX_UNAVAILABLE
    assert checked.has(FAULT, "^systemd passed Unix socket .*other, but no service listens there")


# The form


@pytest.mark.hybrid_only
def test_in_json_each_line_is_an_object_of_the_schema(
    words: Words, transport: Hybrid, start_server: StartServer
) -> None:
    server = start_server()
    with transport.occupy(transport.port):
        checked = check(*words(server), *JSON)
    lines = lines_of(checked.lines)
    assert {line["event"] for line in lines} == {"checked"}
    assert {line["process"] for line in lines} == {"check"}
    by_check = {line["check"]: line for line in lines}
    assert by_check["file"]["count"] == 1
    connected = by_check["connect"]
    assert (connected["level"], connected["service"]) == ("info", "8000")
    assert connected["upstream"] == f"{server.host}:{server.port}"
    assert 0 <= connected["seconds"] < 10
    assert by_check["listener"]["level"] == "error"
    assert by_check["listener"]["exit_code"] == checked.code == os.EX_UNAVAILABLE
    assert by_check["outcome"]["exit_code"] == os.EX_UNAVAILABLE


@pytest.mark.hybrid_only
def test_what_may_be_looked_at_is_what_schema_and_reference_have() -> None:
    source = Path(checking.__file__).read_text("utf-8")
    named = set(re.findall(r'(?:OK|WARNING|FAULT|refused)[(,]\s*"([a-z]+)"', source))
    assert named == {*SCHEMA["properties"]["check"]["enum"]}
    reference = (PROJECT / "docs" / "reference.md").read_text("utf-8")
    assert all(f"| `{check}` |" in reference for check in named)


@pytest.mark.hybrid_only
def test_in_json_a_failed_connection_has_its_errno(words: Words) -> None:
    lines = lines_of(check(*words(("127.0.0.1", 9)), *JSON).lines)
    (failed,) = [line for line in lines if line.get("check") == "connect"]
    assert (failed["level"], failed["errno"]) == ("warning", "ECONNREFUSED")


@pytest.mark.hybrid_only
def test_the_level_of_the_log_leaves_out_what_is_below_it(words: Words) -> None:
    arguments = words(("127.0.0.1", 9))
    assert [line[:8] for line in check(*arguments, "--log-level", "warning").lines] == [WARNING]
    assert check(*arguments, "--log-level", "error").lines == []


def on_terminal(arguments: Sequence[str], **variables: str) -> str:
    """What a check writes to a terminal."""
    near, far = pty.openpty()
    environment = {key: value for key, value in os.environ.items() if key != "NO_COLOR"}
    process = subprocess.Popen(
        command("--check", *arguments),
        cwd=PROJECT,
        env={**environment, "TERM": "xterm", **variables},
        stdin=subprocess.DEVNULL,
        stdout=far,
    )
    os.close(far)
    written = b""
    while True:
        try:
            part = os.read(near, 65536)
        except OSError:
            # What a terminal has for an end.
            break
        if not part:
            break
        written += part
    os.close(near)
    process.wait(20 * SLOWNESS)
    return written.decode()


@pytest.mark.hybrid_only
def test_colour_is_for_a_terminal_alone_and_only_if_nobody_objects(words: Words) -> None:
    arguments = words(("127.0.0.1", 9))
    coloured = on_terminal(arguments)
    assert "\x1b[32mok\x1b[0m      file " in coloured
    assert "\x1b[33mwarning\x1b[0m cannot connect to " in coloured
    assert "\x1b" in on_terminal(arguments, NO_COLOR="")
    assert "\x1b" not in on_terminal(arguments, NO_COLOR="1")
    assert "\x1b" not in on_terminal(arguments, TERM="dumb")
    assert "\x1b" not in on_terminal([*arguments, *JSON])
    assert "\x1b" not in "".join(check(*arguments).lines)


@pytest.mark.hybrid_only
def test_what_the_file_holds_cannot_write_to_the_terminal(tmp_path: Path) -> None:
    name = tmp_path / "list\x1b[2J.yaml"
    name.write_text(LIST)
    checked = check("--config", str(name), "--uds-path", str(tmp_path / "v"), *ONE)
    assert checked.has(OK, r"list\\x1b\[2J\.yaml is read")


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
def test_a_signal_ends_a_check_while_a_lookup_hangs_and_nothing_of_it_is_left(
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


# AF_VSOCK


@pytest.mark.vsock_only
def test_on_vsock_the_transports_and_the_cid_are_named(
    words: Words, start_server: StartServer
) -> None:
    checked = check(*words(start_server()))
    assert checked.code == os.EX_OK
    assert checked.has(OK, "^AF_VSOCK is there$")
    assert checked.has(OK, r"^transports of vsock: .*vsock_loopback \(to this machine itself, CID")
    assert checked.has(OK, r"^this machine has CID \d+$") or checked.has(
        WARNING, "^this machine has no CID; "
    )
    assert checked.has(OK, r"^vsock port \d+ is free$")


@pytest.mark.vsock_only
def test_a_guest_on_vsock_is_connected_to_as_for_a_client(
    words: Words, start_vsock_server: StartServer
) -> None:
    server = start_vsock_server()
    checked = check(*words((server.host, server.port), ("vsock:*", server.port)))
    assert checked.has(OK, r"^vsock:1:\d+ is permitted by the wildcard 'vsock:\*', ")
    assert checked.has(OK, rf"^connected to vsock:1:{server.port} in ")
    server.close()
    checked = check(*words((server.host, server.port)))
    assert checked.code == os.EX_OK
    assert checked.has(
        WARNING,
        rf"^cannot connect to vsock:1:{server.port}: Connection reset by peer; nothing listens ",
    )
