"""No answer of DNS leads past the allowlist, or to the instance metadata service."""

from __future__ import annotations

import os

import pytest

from tests.program.names.conftest import Scene
from tests.support.clients import answers
from tests.support.dns import NameServer
from tests.support.named import HERE, NAME, THERE
from tests.support.namespaces import needs_namespace
from vsock_proxy.config.hostnames import parse_address

pytestmark = [
    pytest.mark.hybrid_only,
    needs_namespace,
]

METADATA = {
    "IPv4": "169.254.169.254",
    "link-local": "169.254.0.1",
    "IPv4-mapped": "::ffff:169.254.169.254",
    "NAT64": "64:ff9b::a9fe:a9fe",
    "6to4": "2002:a9fe:a9fe::1",
    "IPv6": "fd00:ec2::254",
    "EKS Pod Identity": "fd00:ec2::23",
    "Alibaba Cloud": "100.100.100.200",
    "IPv6 link-local": "fe80::1",
}


@pytest.mark.parametrize("address", METADATA.values(), ids=METADATA.keys())
def test_a_poisoned_name_does_not_lead_to_the_instance_metadata(
    address: str, scene: Scene, dns: NameServer
) -> None:
    scene.network.add_address("169.254.169.254/32")
    scene.network.add_address("fd00:ec2::254/128")
    metadata, metadata_6 = scene.servers("169.254.169.254", "fd00:ec2::254")
    dns.set(NAME, address)
    proxy = scene.start(metadata.port, "--connect-timeout", "0.3")
    line = proxy.log.wait_for("resolves only to addresses that are not permitted: ")[0]
    assert line.split("permitted: ")[1].split(";")[0] == str(parse_address(address))
    assert not answers(proxy)
    assert not metadata.accepted
    assert not metadata_6.accepted


def test_of_a_poisoned_answer_the_other_addresses_are_used(scene: Scene, dns: NameServer) -> None:
    scene.network.add_address("169.254.169.254/32")
    metadata, server = scene.servers("169.254.169.254", HERE)
    dns.set(NAME, "169.254.169.254", HERE)
    proxy = scene.start(server.port)
    assert all(answers(proxy) for _ in range(8))
    assert len(server.accepted) == 8
    assert not metadata.accepted


def test_a_name_poisoned_later_stays_what_it_was(scene: Scene, dns: NameServer) -> None:
    scene.network.add_address("169.254.169.254/32")
    metadata, _ = scene.servers("169.254.169.254", HERE)
    dns.set(NAME, HERE)
    proxy = scene.start(metadata.port, "--resolve-interval", "0.1")
    assert answers(proxy)
    dns.set(NAME, "169.254.169.254")
    proxy.log.wait_for("not permitted: 169.254.169.254; keeping the 1 known before")
    assert all(answers(proxy) for _ in range(8))
    assert not metadata.accepted


def test_the_metadata_address_is_served_to_who_names_it(scene: Scene) -> None:
    scene.network.add_address("169.254.169.254/32")
    metadata = scene.server(host="169.254.169.254")
    assert answers(scene.start(metadata.port, address=metadata.host))


def test_an_endpoint_permitted_by_its_address_is_connected_to_only_there(
    scene: Scene, dns: NameServer
) -> None:
    here, there = scene.servers(HERE, THERE)
    dns.set(NAME, THERE, HERE)
    proxy = scene.start(here.port, "--resolve-interval", "0.1", permitted=[(HERE, here.port)])
    assert all(answers(proxy) for _ in range(8))
    dns.set(NAME, THERE)
    proxy.log.wait_for(f"not permitted: {THERE}; keeping the 1 known before")
    assert all(answers(proxy) for _ in range(8))
    assert not there.accepted


def test_a_network_of_the_allowlist_permits_the_addresses_within_it(
    scene: Scene, dns: NameServer
) -> None:
    here, outside = scene.servers(HERE, "127.0.1.1")
    dns.set(NAME, "127.0.1.1", HERE)
    proxy = scene.start(here.port, permitted=[("127.0.0.0/24", here.port)])
    assert all(answers(proxy) for _ in range(8))
    assert not outside.accepted


def test_a_name_with_only_forbidden_addresses_is_exit_code_78(
    scene: Scene, dns: NameServer
) -> None:
    dns.set(NAME, "127.0.1.1")
    proxy = scene.start(443, permitted=[("127.0.0.0/24", 443)], ready=False)
    assert proxy.wait() == os.EX_CONFIG
    proxy.log.wait_for(f"^vsock-proxy: {NAME}:443 is not permitted by ")


def test_a_wildcard_permits_the_names_below_it(scene: Scene, dns: NameServer) -> None:
    server = scene.server(host=HERE)
    dns.set(NAME, HERE)
    assert answers(scene.start(server.port, permitted=[("*.test", server.port)]))


@pytest.mark.parametrize("wildcard", ["*.endpoint.test", "*.point.test", "*.other"])
def test_a_wildcard_permits_neither_the_bare_domain_nor_other_names(
    wildcard: str, scene: Scene, dns: NameServer
) -> None:
    dns.set(NAME, HERE)
    proxy = scene.start(443, permitted=[(wildcard, 443)], ready=False)
    assert proxy.wait() == os.EX_CONFIG
