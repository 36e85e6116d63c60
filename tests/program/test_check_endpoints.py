"""--check: which entry permits an endpoint, its addresses, and connecting to each."""

from __future__ import annotations

import os
import re
import socket
from pathlib import Path

import pytest

from tests.conftest import StartServer
from tests.support.checking import FAULT, OK, WARNING, Words, check, config
from tests.support.dns import NameServer
from tests.support.json_log import JSON, lines_of
from tests.support.metadata import Behaviour, MetadataService
from tests.support.namespaces import Namespace, needs_namespace
from tests.support.program import run
from tests.support.services import ServicesFile, service
from tests.support.transports import Hybrid
from tests.support.vmm import Firecracker

# Endpoints


@pytest.mark.tcp_too
def test_an_endpoint_that_refuses_is_a_warning(words: Words) -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    checked = check(*words(("127.0.0.1", port)))
    assert checked.code == os.EX_OK
    assert checked.has(
        WARNING,
        rf"^cannot connect to 127\.0\.0\.1:{port}: Connection refused; nothing listens on that "
        r"port there, or a firewall refuses \(after \d\.\d{3} s\)$",
    )
    assert checked.has(OK, "^the proxy would start: 1 service, 4 workers; 1 warning$")


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
    assert checked.has(OK, "^localhost:9 is not on the allowlist by its name, but by addresses$")
    assert checked.has(OK, r"^localhost resolves in \d\.\d{3} s to IPv4 127\.0\.0\.1$")
    assert checked.has(OK, r"^127\.0\.0\.1:9 is permitted by the network '127\.0\.0\.0/8', ")
    assert checked.has(WARNING, r"^cannot connect to 127\.0\.0\.1:9: Connection refused; ")


@pytest.mark.hybrid_only
def test_the_addresses_of_a_name_are_told_if_none_is_permitted(words: Words) -> None:
    checked = check(*words(("localhost", 9), ("192.0.2.0/24", 9)), "-4")
    assert checked.code == os.EX_CONFIG
    assert checked.has(OK, r"^localhost resolves in \S+ s to IPv4 127\.0\.0\.1$")
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
    (resolved,) = [text for text in checked.of(OK) if " resolves in " in text]
    found = re.fullmatch(
        r"endpoint\.test resolves in \d\.\d{3} s to IPv4 (.*) and IPv6 2001:db8:1::10", resolved
    )
    assert found
    assert {*found[1].split(", ")} == {"192.0.2.10", hole, "169.254.169.254", "127.0.0.9"}
    assert checked.has(OK, rf"^connected to 192\.0\.2\.10:{first.port} in ")
    assert checked.has(OK, rf"^connected to \[2001:db8:1::10\]:{first.port} in ")
    assert checked.has(WARNING, rf"^cannot connect to {hole}:{first.port}: no answer in time; look")
    assert checked.has(WARNING, r"^cannot connect to 127\.0\.0\.9:\d+: Connection refused; ")
    assert checked.has(WARNING, r"^169\.254\.169\.254 is not used: the proxy refuses ")
    first.wait_for_connections(1)


@needs_namespace
@pytest.mark.hybrid_only
def test_a_name_that_hangs_delays_no_other_name(
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
        r"^8000: hangs\.test does not resolve: no answer within 5 s \(after 5\.0\d\d s\); clients "
        "wait until it has an address; ",
    )
    assert checked.has(OK, r"^8001: known\.test resolves in 0\.\d+ s to IPv4 127\.0\.0\.1$")


@needs_namespace
@pytest.mark.hybrid_only
def test_a_name_without_the_family_that_is_asked_for_says_what_it_has(
    words: Words, network: Namespace, dns: NameServer
) -> None:
    dns.set("endpoint.test", "192.0.2.10")
    checked = check(*words(("endpoint.test", 9)), "-6", wrapper=network.wrapper)
    assert checked.code == os.EX_OK
    assert checked.has(
        WARNING,
        r"^endpoint\.test has no IPv6 address, only IPv4 192\.0\.2\.10; clients wait until it has "
        "an address; leave out -6, or family: ipv6$",
    )


# Several services


@pytest.mark.hybrid_only
def test_beside_a_service_that_is_refused_the_others_are_checked(
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
    assert checked.has(OK, "^processes: the proxy needs 9, ")


@pytest.mark.hybrid_only
def test_beside_a_service_that_is_malformed_the_others_are_checked(
    transport: Hybrid, tmp_path: Path, start_server: StartServer
) -> None:
    server = start_server()
    text = (
        f"allowlist:\n- {{address: {server.host}, port: {server.port}}}\nservices:\n"
        "- {listen: many, address: 127.0.0.1, port: 9}\n"
        f"- {{listen: 8001, address: {server.host}, port: {server.port}}}\n"
        "- {listen: 8002, address: 127.0.0.1}\n"
    )
    words = [*config(tmp_path, text), *transport.options()]
    checked = check(*words)
    faults = [text for text in checked.of(FAULT) if text.startswith("services ")]
    # What is missing is found before what a value is.
    assert [re.sub(r".*line (\d+): .*", r"\1", text) for text in faults] == ["6", "4"]
    assert run(*words).stderr == f"vsock-proxy: {faults[0]}\n"
    assert checked.code == os.EX_CONFIG
    assert checked.has(OK, "^8001: connected to ")
    assert checked.has(OK, r"^8001: Unix socket \S+_8001 is free$")


@pytest.mark.hybrid_only
def test_beside_a_service_without_its_region_the_others_are_checked(
    transport: Hybrid, services_file: ServicesFile, start_server: StartServer
) -> None:
    server = start_server()
    services_file.write(
        [service(8000, ("x.{region}.invalid", 9)), service(8001, server)],
        [(server.host, server.port)],
    )
    words = ["--config", str(services_file.path), *transport.options()]
    checked = check(*words, environment={**os.environ, "AWS_REGION": "no region"})
    assert checked.code == os.EX_USAGE
    assert checked.has(OK, "^8001: connected to ")
    assert not checked.has(WARNING, "region")


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
    assert checked.has(OK, "^the proxy would start: 2 services, 4 workers")
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
    assert checked.has(OK, r"^\{region\} is eu-west-1 \(after \d\.\d{3} s\)$")
    assert checked.has(OK, r"^x\.eu-west-1\.invalid:9 is permitted by the name ")
    told = [line["check"] for line in lines_of(in_json.lines)]
    assert told[:3] == ["file", "metadata", "permitted"]


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
