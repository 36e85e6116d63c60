"""What is permitted, what is said of what is not, and that no answer of DNS is a surprise."""

from __future__ import annotations

import contextlib
import ipaddress
import re
import socket
from pathlib import Path
from typing import Any, Tuple

import pytest
import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from tests.support.timing import at_full_length
from vsock_proxy import cli
from vsock_proxy.config import loading
from vsock_proxy.config.allowlist import Allowlist
from vsock_proxy.endpoint import policy
from vsock_proxy.endpoint.addresses import AddressTable, make_address
from vsock_proxy.errors import UsageError
from vsock_proxy.settings import Endpoint, ServiceOptions, ServiceSettings

pytestmark = pytest.mark.hybrid_only  # no transport has a part in it

MANY = settings(
    max_examples=int(at_full_length(2_000, 200)),
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
)
LABELS = st.one_of(
    st.from_regex(r"[a-zA-Z0-9_-]{1,12}", fullmatch=True),
    st.sampled_from(
        ["no", "yes", "on", "null", "true", "y", "1e3", "0x1", "b\u00fccher", "\u00df"]
    ),
    st.text(st.characters(blacklist_categories=["Cs"]), min_size=1, max_size=4),
)
NAMES = st.lists(LABELS, min_size=1, max_size=4).map(".".join)
IPV6 = st.ip_addresses(v=6).map(str)
ZONED = st.tuples(
    st.integers(0, (1 << 64) - 1), st.text(st.characters(), min_size=1, max_size=6)
).map(lambda parts: f"{ipaddress.IPv6Address((0xFE80 << 112) | parts[0])}%{parts[1]}")
MAPPED = st.ip_addresses(v=4).map(lambda ip: f"::ffff:{ip}")
HOSTS = st.one_of(NAMES, st.ip_addresses(v=4).map(str), IPV6, ZONED, MAPPED)


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("policy") / "allowlist.yaml"


@MANY
@given(host=HOSTS, port=st.integers(1, 65535))
@example(host="no", port=1)
@example(host="::1", port=443)
@example(host="fe80::1%lo", port=443)
@example(host="fe80::1%a'\"\\", port=443)
@example(host="::ffff:127.0.0.1", port=443)
@example(host="b\u00fccher.example.", port=443)
def test_the_hint_for_an_endpoint_that_is_not_permitted_permits_it(
    file: Path, host: str, port: int
) -> None:
    try:
        asked = cli.parse(["--", "8000", host, str(port)]).service
    except UsageError:
        return
    if "{" in host:
        return
    assert asked is not None
    nothing = Allowlist(str(file), ())
    message = str(policy.not_permitted(policy.make_policy(asked, nothing)))
    hint = message[message.index("'- {") + 1 : -1]
    file.write_text(f"allowlist:\n{hint}\n", encoding="utf-8")
    assert yaml.safe_load(hint)[0]["port"] == port
    assert isinstance(yaml.safe_load(hint)[0]["address"], str)
    permitting = policy.make_policy(asked, loading.load(str(file)).allowlist)
    assert permitting.any_address or permitting.permits_literal()


KMS, KMS_CN = "kms.us-east-1.amazonaws.com", "kms.cn-north-1.amazonaws.com"
CLOSEST = {
    "a misspelt name": ("kms.us-eats-1.amazonaws.com", KMS),
    "another port": (f"{KMS} port 8443", KMS),
    "the bare domain of a wildcard": ("example.com", "*.example.com"),
    "the end of a name": (KMS_CN, f"{KMS_CN}.cn"),
    "letter case": ("KMS.US-EATS-1.amazonaws.com", KMS),
    "an address": ("192.0.2.1", "192.0.2.2"),
    "an IPv6 address": ("2001:db8::1", "2001:db8::2"),
    "an address beside a network": ("10.1.2.3", "10.1.3.0/24"),
    "another CID": ("vsock:17", "vsock:16"),
    "another path": ("unix:/run/vm1/v.sock", "unix:/run/vm2/v.sock"),
}


def told_of(host: str, file: Path, *entries: str) -> str:
    """What is said of an endpoint that these entries do not permit; each may have a port."""
    lines = []
    for entry in entries:
        address, _, port = entry.partition(" port ")
        lines.append(f"- {{address: '{address}', port: {port or 443}}}")
    file.write_text("\n".join(["allowlist:", *lines]) if lines else "allowlist: []")
    name, _, asked_port = host.partition(" port ")
    asked = ServiceSettings(8000, Endpoint(name, int(asked_port or 443)))
    return str(policy.not_permitted(policy.make_policy(asked, loading.load(str(file)).allowlist)))


@pytest.mark.parametrize(("host", "entry"), CLOSEST.values(), ids=CLOSEST.keys())
def test_an_endpoint_that_is_not_permitted_names_the_closest_entry(
    host: str, entry: str, file: Path
) -> None:
    others = ("other.test", "198.51.100.0/24", "vsock:4000000000", "unix:/x")
    told = told_of(host, file, *others, entry)
    assert f"; the closest entry is '{entry}', port 443 in line 6; to permit it add '- {{" in told


def test_of_entries_that_are_equally_close_the_one_with_the_port_is_named(file: Path) -> None:
    told = told_of("kms.us-eats-1.amazonaws.com", file, f"{KMS} port 80", KMS, f"{KMS} port 81")
    assert f"'{KMS}', port 443 in line 3;" in told


@pytest.mark.parametrize("entries", [(), ("other.test",), ("10.0.0.0/8", "vsock:*")])
def test_where_no_entry_is_close_none_is_named(entries: Tuple[str, ...], file: Path) -> None:
    assert "closest" not in told_of("endpoint.test", file, *entries)


# getaddrinfo()

PORT = 443

HOST_TEXTS = st.one_of(
    st.ip_addresses(v=4).map(str),
    IPV6,
    MAPPED,
    st.ip_addresses(v=4).map(lambda ip: f"::{ip}"),
    st.integers(0, 1 << 32).map(lambda n: f"{ipaddress.IPv6Address((0xFE80 << 112) | n)}%lo"),
    st.sampled_from(["", "nonsense", "0", "1.2.3.4.5"]),
)
SOCKADDRS = st.one_of(
    st.tuples(HOST_TEXTS, st.just(PORT)),
    st.tuples(HOST_TEXTS, st.just(PORT), st.integers(0, (1 << 20) - 1), st.integers(0, 9)),
    # Of a Python that was built without IPv6, and of a family that it does not know.
    st.tuples(st.integers(0, 99), st.binary(max_size=26)),
)
FAMILIES = st.sampled_from([socket.AF_INET, socket.AF_INET6, socket.AF_UNIX, 99])


@pytest.fixture(scope="module")
def table() -> AddressTable:
    """One for all examples: it has no end but that of its process."""
    return AddressTable(PORT)


@MANY
@given(family=FAMILIES, sockaddr=SOCKADDRS)
@example(family=socket.AF_INET6, sockaddr=("::ffff:127.0.0.1", PORT, 0, 0))
@example(family=socket.AF_INET6, sockaddr=("::127.0.0.1", PORT, 7, 0))
def test_whatever_getaddrinfo_returns_the_table_gives_a_usable_address(
    table: AddressTable, family: int, sockaddr: Tuple[Any, ...]
) -> None:
    try:
        address = make_address(family, sockaddr)
    except ValueError:
        return
    table.publish([address])
    (known,) = table.current()
    assert known == address
    assert re.fullmatch(r"[0-9a-f.:\[\]]+:[0-9]+", str(known))
    # A datagram socket connects without a packet. Not every address has a route, but none may be
    # malformed or of another family than the socket.
    with socket.socket(known.family, socket.SOCK_DGRAM) as sock, contextlib.suppress(OSError):
        sock.connect(known.sockaddr)


def test_an_answer_of_ipv4_mapped_into_ipv6_is_ipv4() -> None:
    address = make_address(socket.AF_INET6, ("::ffff:127.0.0.1", 443, 0, 0))
    assert (address.family, address.sockaddr) == (socket.AF_INET, ("127.0.0.1", 443))


@pytest.mark.parametrize("family", [socket.AF_UNSPEC, socket.AF_INET])
def test_an_endpoint_of_ipv4_mapped_into_ipv6_is_ipv4(family: socket.AddressFamily) -> None:
    asked = ServiceSettings(8000, Endpoint("::ffff:127.0.0.1", 443), ServiceOptions(family))
    (address,) = policy.literal_address(asked)
    assert (address.family, address.sockaddr) == (socket.AF_INET, ("127.0.0.1", 443))


def test_an_endpoint_of_ipv4_mapped_into_ipv6_is_not_of_ipv6() -> None:
    asked = ServiceSettings(
        8000, Endpoint("::ffff:127.0.0.1", 443), ServiceOptions(socket.AF_INET6)
    )
    with pytest.raises(UsageError, match="is not an address of the family that -6 asks for"):
        policy.literal_address(asked)


def test_an_endpoint_in_another_zone_is_not_permitted(file: Path) -> None:
    file.write_text("allowlist:\n- {address: 'fe80::1%lo', port: 443}\n")
    permitted = loading.load(str(file)).allowlist
    for host, expected in (("fe80::1%lo", True), ("fe80::1%eth0", False)):
        asked = ServiceSettings(8000, Endpoint(host, 443))
        assert policy.make_policy(asked, permitted).permits_literal() is expected
