"""What can be a host: every address and name that there can be, and nothing else."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.support.program import run
from vsock_proxy.cli import parse
from vsock_proxy.config.endpoints import EXPECTED
from vsock_proxy.config.hostnames import NoHost, normal_name, parse_address
from vsock_proxy.errors import UsageError

pytestmark = pytest.mark.hybrid_only  # no transport has a part in it

LABEL = "a" * 63
CID = "is a number; a guest is written vsock:CID"
ENDS_IN_NUMBER = "is no host name, because it ends in a number"
NUMBERS = {
    "16": CID,
    "3": CID,
    "0": CID,
    "0x10": ENDS_IN_NUMBER,
    "2130706433": f"{CID}; as an IP address that is 127.0.0.1",
    "4294967294": f"{CID}; as an IP address that is 255.255.255.254",
    "99999999999": CID,
    "0177.0.0.1": f"{ENDS_IN_NUMBER}; as an IP address that is 127.0.0.1",
    "127.1": f"{ENDS_IN_NUMBER}; as an IP address that is 127.0.0.1",
    "127.0.1": f"{ENDS_IN_NUMBER}; as an IP address that is 127.0.0.1",
    "0x7f.1": f"{ENDS_IN_NUMBER}; as an IP address that is 127.0.0.1",
    "0x7f000001": f"{ENDS_IN_NUMBER}; as an IP address that is 127.0.0.1",
    "0X7F.0.0.1": f"{ENDS_IN_NUMBER}; as an IP address that is 127.0.0.1",
    "1.2.3.4.": f"{ENDS_IN_NUMBER}; as an IP address that is 1.2.3.4",
    "01.02.03.04": f"{ENDS_IN_NUMBER}; as an IP address that is 1.2.3.4",
    "1.2.3.4.5": ENDS_IN_NUMBER,
    "300.1.1.1": ENDS_IN_NUMBER,
    "example.0x": ENDS_IN_NUMBER,
    "kms.1": ENDS_IN_NUMBER,
    # IDNA makes ordinary digits and dots of these.
    "\uff11\uff12\uff17.0.0.1": f"{ENDS_IN_NUMBER}; as an IP address that is 127.0.0.1",
    "127\u30020\u30020\u30021": f"{ENDS_IN_NUMBER}; as an IP address that is 127.0.0.1",
    "\u2460\u2465": CID,
}
IMPOSSIBLE = {
    "a..x": "is no host name: there is nothing before or between its dots",
    ".x": "is no host name: there is nothing before or between its dots",
    "x..": "is no host name: there is nothing before or between its dots",
    "..": "is no host name: there is nothing before or between its dots",
    ".": "is no host name",
    "": "is no host name",
    f"{LABEL}a.x": "is no host name: more than 63 characters without a dot",
    "\u00fc" * 63: "is no host name, nor one that IDNA can write in ASCII",
    ".".join([LABEL] * 4): "is longer than the 253 characters of a host name",
    "a." * 126 + "aa": "is longer than the 253 characters of a host name",
    "a" * 1_000_000: "is longer than the 253 characters of a host name",
    "\u00df" * 1_000_000: "is longer than the 253 characters of a host name",
    "-x.example": "is no host name: it begins with a hyphen",
    "[::1]": "is no host name; an IPv6 address is written without brackets",
    "[::1]:443": "is no host name; an IPv6 address is written without brackets",
    "x:443": "is no host name; the port is given apart from it",
    "10.0.0.1:443": "is no host name; the port is given apart from it",
    "http://x": "is a URL; give the host name alone",
    "HTTPS://x:443/": "is a URL; give the host name alone",
    "*.example": "is no host name",
    "a b": "is no host name",
    "a/b": "is no host name",
    "a\nb": "is no host name",
    "a\x00b": "is no host name",
    "\udcff": "is no host name, nor one that IDNA can write in ASCII",
    # IDNA makes a/c of this.
    "\u2100.example": "is no host name",
    "fe80::1%": "is no host name",
    "fe80::1%a b": "is no host name",
    "fe80::1%a\nb": "is no host name",
    "fe80::1%interface-name-too-long": "is no host name",
    "::ffff:127.0.0.1%lo": "is no host name",
    "127.0.0.1%lo": "is no host name",
}


def shown(text: object) -> str:
    return ascii(text)[:30]


@pytest.mark.parametrize(("text", "reason"), [*NUMBERS.items(), *IMPOSSIBLE.items()], ids=shown)
def test_what_can_be_no_host_is_refused_with_what_may_have_been_meant(
    text: str, reason: str
) -> None:
    assert parse_address(text) is None
    with pytest.raises(NoHost) as caught:
        normal_name(text)
    assert str(caught.value) == reason


@pytest.mark.parametrize("text", [*NUMBERS, *IMPOSSIBLE], ids=shown)
def test_what_can_be_no_host_is_no_endpoint(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse(["--", "8000", text, "443"])
    assert str(caught.value).startswith(f"<remote_addr> must be {EXPECTED}; ")


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("kms.us-east-1.amazonaws.com", "kms.us-east-1.amazonaws.com"),
        ("KMS.Example.", "kms.example"),
        ("localhost", "localhost"),
        ("no", "no"),
        ("4you", "4you"),
        ("1e3", "1e3"),
        ("3com.0xyz", "3com.0xyz"),
        ("1.2.3.4.example", "1.2.3.4.example"),
        ("_service._tcp.example", "_service._tcp.example"),
        ("r3---sn.example", "r3---sn.example"),
        ("ends-.example", "ends-.example"),
        ("b\u00fccher.example", "xn--bcher-kva.example"),
        (f"{LABEL}.{LABEL}.{LABEL}.{LABEL[:61]}", f"{LABEL}.{LABEL}.{LABEL}.{LABEL[:61]}"),
        (f"{LABEL}.{LABEL}.{LABEL}.{LABEL[:61]}.", f"{LABEL}.{LABEL}.{LABEL}.{LABEL[:61]}"),
    ],
    ids=shown,
)
def test_a_name_has_one_form(text: str, name: str) -> None:
    assert normal_name(text) == name
    service = parse(["8000", text, "443"]).service
    assert service is not None
    assert service.endpoint.host == text


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("127.0.0.1", "127.0.0.1"),
        ("2001:DB8:0::1", "2001:db8::1"),
        ("::ffff:127.0.0.1", "127.0.0.1"),
        ("::ffff:7f00:1", "127.0.0.1"),
        ("::127.0.0.1", "::7f00:1"),
        ("fe80::1%eth0", "fe80::1%eth0"),
        ("fe80::1%2", "fe80::1%2"),
    ],
)
def test_an_address_has_one_form(text: str, address: str) -> None:
    assert str(parse_address(text)) == address


@pytest.mark.parametrize("region", ["16", "0x10"])
def test_a_region_that_makes_a_number_of_the_name_is_an_error(tmp_path: Path, region: str) -> None:
    file = tmp_path / "proxy.yaml"
    file.write_text(
        "allowlist: []\nservices:\n- {listen: 8000, address: 'kms.{region}', port: 443}\n"
    )
    words = ["--config", str(file)]
    environment = {**os.environ, "AWS_REGION": region}
    said = (
        "kms.{region} must become a host name or an IP address; "
        f"'kms.{region}' {ENDS_IN_NUMBER}\n"
    )
    done = run(*words, "8000", "kms.{region}", "443", environment=environment)
    assert (done.returncode, done.stderr) == (os.EX_USAGE, f"vsock-proxy: {said}")
    done = run(*words, environment=environment)
    assert (done.returncode, done.stderr) == (
        os.EX_CONFIG,
        f"vsock-proxy: services {file}, line 3: service 8000: {said}",
    )
