"""The services of the file: what they say, and which shape they have."""

from __future__ import annotations

import logging
import re
import socket
from pathlib import Path

import pytest

from tests.support.loading import DEFAULTS, GOOD, error_of, service, services
from tests.support.program import PROJECT
from vsock_proxy.config import loading
from vsock_proxy.errors import ConfigurationError, UsageError
from vsock_proxy.settings import Endpoint, ServiceOptions, ServiceSettings

pytestmark = pytest.mark.hybrid_only  # no transport has a part in it

KEYS = (
    "listen, address, port, workers, family, uds_path, listen_tcp, allow_cid, connect_timeout, "
    "idle_timeout, resolve_interval"
)


def test_a_service_is_a_port_and_an_endpoint(file: Path) -> None:
    assert service(file, GOOD) == ServiceSettings(8000, Endpoint("a.example", 443), DEFAULTS)


def test_every_option_of_a_service_can_stand_in_the_file(file: Path) -> None:
    on_vsock, on_unix = services(
        file,
        f"""
- {{{GOOD}, workers: 16, family: ipv6, allow_cid: [16, 17], connect_timeout: .5}}
- {{{GOOD}, uds_path: /run/v.sock, idle_timeout: 60, resolve_interval: 1.5, family: ipv4}}""",
    )
    assert on_vsock.workers == 16
    assert on_vsock.path is None
    assert on_vsock.options == ServiceOptions(
        family=socket.AF_INET6, allowed_cids=frozenset({16, 17}), connect_timeout=0.5
    )
    assert on_unix.workers is None
    assert on_unix.path == "/run/v.sock_8000"
    assert on_unix.options == ServiceOptions(
        family=socket.AF_INET, uds_path="/run/v.sock", idle_timeout=60, resolve_interval=1.5
    )


def test_what_a_service_does_not_say_is_as_on_the_command_line(file: Path) -> None:
    options = ServiceOptions(
        family=socket.AF_INET6,
        uds_path="/run/v.sock",
        connect_timeout=1,
        idle_timeout=2,
        resolve_interval=3,
    )
    assert service(file, GOOD, options).options == options
    changed = service(file, f"{GOOD}, family: ipv4, uds_path: /run/w, idle_timeout: 0", options)
    assert changed.options == ServiceOptions(
        family=socket.AF_INET,
        uds_path="/run/w",
        connect_timeout=1,
        idle_timeout=0,
        resolve_interval=3,
    )


def test_services_are_in_the_order_of_the_file(file: Path) -> None:
    found = services(file, "".join(f"\n- {{listen: {n}, address: a, port: 1}}" for n in (9, 5, 7)))
    assert [each.local_port for each in found] == [9, 5, 7]


@pytest.mark.parametrize(
    "address", ["'kms.{region}.{domain}'", "'{region}'", "10.0.0.1", "'fe80::1%lo'", "bücher.de"]
)
def test_an_endpoint_of_the_command_line_may_stand_in_the_file(file: Path, address: str) -> None:
    found = service(file, f"listen: 8000, address: {address}, port: 443")
    assert found.endpoint.host == address.strip("'")


def test_an_unquoted_ipv6_address_of_decimal_groups_is_an_address(file: Path) -> None:
    (found,) = services(file, "\n- listen: 8000\n  address: 1:2:3:4:5:6:7:8\n  port: 443")
    assert found.endpoint.host == "1:2:3:4:5:6:7:8"


def test_values_may_be_repeated_by_aliases(file: Path) -> None:
    first, second = services(
        file,
        """
- {listen: 8000, address: &a a.example, port: &p 443, allow_cid: &c [16]}
- {listen: 8001, address: *a, port: *p, allow_cid: *c}""",
    )
    assert first.endpoint == second.endpoint
    assert first.options == second.options


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "line 2: services is nothing; expected a list of services"),
        (" ~", "line 2: services is '~'; expected a list of services"),
        (" yes", "line 2: services is 'yes'; expected a list of services"),
        (" []", "line 2: services is an empty list; expected at least one service"),
        (f" {{{GOOD}}}", "line 2: services is a mapping; expected a list of services"),
        (f"\n  {GOOD.replace(', ', chr(10) + '  ')}", "line 3: services is a mapping; expected a"),
        (
            "\n- 8000",
            "line 3: service is '8000'; expected {listen: PORT, address: HOST, port: N}",
        ),
        ("\n-", "line 3: service is nothing; expected {listen: PORT, address: HOST, port: N}"),
        ("\n- - a", "line 3: service is a list; expected {listen: PORT, address: HOST, port: N}"),
        ("\n- {}", "line 3: service without listen; expected listen, address and port"),
        (
            "\n- {address: a, port: 1}",
            "line 3: service without listen; expected listen, address and port",
        ),
        (
            "\n- {listen: 8000, port: 1}",
            "line 3: service without address; expected listen, address and port",
        ),
        (
            "\n- {listen: 8000, address: a}",
            "line 3: service without port; expected listen, address and port",
        ),
        (
            f"\n- {{{GOOD}, listen: 8001}}",
            "line 3: a second listen in one service; expected one",
        ),
        (
            f"\n- {{{GOOD},\n   idle_timeout: 1,\n   idle_timeout: 1}}",
            "line 5: a second idle_timeout in one service; expected one",
        ),
        (f"\n- {{{GOOD}, worker: 4}}", f"line 3: unknown key 'worker'; expected one of {KEYS}"),
        (
            f"\n- {{{GOOD}, allow-cid: [1]}}",
            f"line 3: unknown key 'allow-cid'; expected one of {KEYS}",
        ),
        (f"\n- {{{GOOD}, Port: 1}}", f"line 3: unknown key 'Port'; expected one of {KEYS}"),
        (f"\n- {{{GOOD}, ? [a] : 1}}", f"line 3: unknown key a list; expected one of {KEYS}"),
        (f"\n- {{<<: &a {{}}, {GOOD}}}", f"line 3: unknown key '<<'; expected one of {KEYS}"),
        (f"\n- {{{GOOD}, ~: 1}}", f"line 3: unknown key '~'; expected one of {KEYS}"),
        (
            f"\n- {{{GOOD}}}\nservices:\n- {{{GOOD}}}",
            "line 4: a second 'services:'; put all services in one list",
        ),
    ],
)
def test_services_of_another_shape_are_explained(file: Path, content: str, said: str) -> None:
    assert error_of(file, content).startswith(said)


EXAMPLE = re.compile(r"^(?:# |    )services:((?:\n(?:# |    )[- ] .*)+)", re.MULTILINE)


@pytest.mark.parametrize(
    "name",
    [
        "README.md",
        "docs/install.md",
        "docs/migrating.md",
        "docs/reference.md",
        "docs/vsock-proxy.yaml.5.rst",
        "etc/nitro_enclaves/vsock-proxy.yaml",
    ],
)
def test_what_is_shown_as_an_example_may_stand_in_the_file(file: Path, name: str) -> None:
    examples = EXAMPLE.findall((PROJECT / name).read_text(encoding="utf-8"))
    assert examples
    for example in examples:
        content = re.sub("^(# |    )", "", example, flags=re.MULTILINE)
        assert len(services(file, content)) == content.count("listen: ")


def test_without_services_both_ways_to_serve_are_told(file: Path) -> None:
    file.write_text("allowlist: []\n")
    with pytest.raises(UsageError) as caught:
        loading.load(str(file)).services(DEFAULTS, 4)
    assert str(caught.value) == (
        "there is nothing to serve: give <local_port> <remote_addr> <remote_port>, or list "
        f"services in {file} (--config), 'services:' beside 'allowlist:'"
    )


@pytest.mark.parametrize(
    "content", ["services: 7", "services: [{listen: 0}]", "services: []\nservices: []"]
)
def test_services_that_are_not_asked_for_are_not_looked_at(
    file: Path, content: str, caplog: pytest.LogCaptureFixture
) -> None:
    file.write_text(f"{content}\nallowlist:\n- {{address: a.example, port: 1}}\n")
    with caplog.at_level(logging.WARNING):
        assert loading.load(str(file)).allowlist.permits_name("a.example", 1)
    assert caplog.messages == []


def test_a_file_with_services_must_be_yaml_all_the_same(file: Path) -> None:
    file.write_text("allowlist: []\nservices: [\n")
    with pytest.raises(ConfigurationError, match="not valid YAML"):
        loading.load(str(file))


@pytest.mark.parametrize("address", ["kms.{region}.{domain}", "{region}.example"])
def test_a_placeholder_that_lacks_its_quotes_is_asked_about(file: Path, address: str) -> None:
    file.write_text(f"services:\n- {{listen: 8000, address: {address}, port: 443}}\n")
    with pytest.raises(ConfigurationError) as caught:
        loading.load(str(file))
    assert f"{file}, line 2: not valid YAML: " in str(caught.value)
    assert str(caught.value).endswith("; an address with {region} or {domain} must be in quotes")


def test_unknown_keys_beside_the_services_are_warned_of(
    file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        assert services(file, f"\n- {{{GOOD}}}\nservice: 1")
    assert caplog.messages == [f"file {file}, line 4: unknown key 'service' ignored"]
