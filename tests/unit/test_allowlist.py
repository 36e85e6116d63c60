"""The allowlist: what it permits, and what it says of a file that is wrong."""

from __future__ import annotations

import contextlib
import ipaddress
import logging
import socket
import time
from pathlib import Path
from typing import Tuple

import pytest
import yaml

from tests.support.timing import SLOWNESS
from vsock_proxy.config import loading
from vsock_proxy.config.allowlist import Allowlist
from vsock_proxy.errors import ConfigurationError

pytestmark = pytest.mark.hybrid_only


KMS = (
    "kms.us-east-1.amazonaws.com",
    "kms.us-east-1.api.aws",
    "kms-fips.us-east-1.api.aws",
    "kms-fips.ap-east-2.amazonaws.com",
    "kms-fips.ap-southeast-6.amazonaws.com",
    "kms-fips.us-gov-west-1.amazonaws.com",
    "kms-fips.us-gov-west-1.api.aws",
    "kms.cn-north-1.amazonaws.com.cn",
    "kms.cn-northwest-1.amazonaws.com.cn",
    "kms.cn-northwest-1.api.amazonwebservices.com.cn",
    "kms.eusc-de-east-1.amazonaws.eu",
    "kms.eusc-de-east-1.api.amazonwebservices.eu",
)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "allowlist.yaml"


def load(file: Path, *entries: str) -> Allowlist:
    file.write_text("allowlist:\n" + "".join(f"- {entry}\n" for entry in entries))
    return loading.load(str(file)).allowlist


def error_of(file: Path, content: bytes) -> str:
    file.write_bytes(content)
    with pytest.raises(ConfigurationError) as caught:
        loading.load(str(file))
    message = str(caught.value)
    assert "\n" not in message
    assert str(file) in message
    return message


def test_a_name_is_permitted_at_its_port_only(file: Path) -> None:
    loaded = load(file, "{address: kms.us-east-1.amazonaws.com, port: 443}")
    assert loaded.permits_name("kms.us-east-1.amazonaws.com", 443)
    assert not loaded.permits_name("kms.us-east-1.amazonaws.com", 80)
    assert not loaded.permits_name("kms.us-east-2.amazonaws.com", 443)


@pytest.mark.parametrize("spelling", ["KMS.Example.COM", "kms.example.com.", "kms.example.com"])
def test_letter_case_and_a_trailing_dot_make_no_difference(file: Path, spelling: str) -> None:
    assert load(file, "{address: Kms.example.com, port: 1}").permits_name(spelling, 1)
    assert load(file, f"{{address: {spelling}, port: 1}}").permits_name("kms.example.com", 1)


def test_an_international_name_is_equal_to_its_ascii_form(file: Path) -> None:
    loaded = load(file, "{address: bücher.example, port: 1}")
    assert loaded.permits_name("xn--bcher-kva.example", 1)
    assert loaded.permits_name("BÜCHER.example", 1)


def test_an_address_is_permitted_whatever_its_spelling(file: Path) -> None:
    loaded = load(file, "{address: '2001:db8:0:0::1', port: 1}", "{address: 10.0.0.1, port: 1}")
    assert loaded.permits_address(ipaddress.ip_address("2001:db8::1"), 1)
    assert loaded.permits_address(ipaddress.ip_address("10.0.0.1"), 1)
    assert not loaded.permits_address(ipaddress.ip_address("10.0.0.2"), 1)
    assert not loaded.permits_address(ipaddress.ip_address("10.0.0.1"), 2)


def test_an_unquoted_ipv6_address_of_decimal_groups_is_an_address(file: Path) -> None:
    # To YAML 1.1 this is an integer to the base 60.
    loaded = load(file, "{address: 1:2:3:4:5:6:7:8, port: 1}")
    assert loaded.permits_address(ipaddress.ip_address("1:2:3:4:5:6:7:8"), 1)


def test_a_network_permits_the_addresses_in_it(file: Path) -> None:
    loaded = load(file, "{address: 10.0.0.0/8, port: 1}")
    assert loaded.permits_address(ipaddress.ip_address("10.200.0.1"), 1)
    assert not loaded.permits_address(ipaddress.ip_address("11.0.0.1"), 1)


def test_a_wildcard_permits_every_name_below_and_not_the_domain_itself(file: Path) -> None:
    loaded = load(file, '{address: "*.amazonaws.com", port: 443}')
    assert loaded.permits_name("kms.amazonaws.com", 443)
    assert loaded.permits_name("kms.us-east-1.amazonaws.com", 443)
    assert not loaded.permits_name("amazonaws.com", 443)
    assert not loaded.permits_name("evilamazonaws.com", 443)


def test_unknown_keys_are_warned_of_and_ignored(
    file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        loaded = load(file, "{address: a.example, port: 1, comment: hello}")
    assert loaded.permits_name("a.example", 1)
    assert f"{file}, line 2: unknown key 'comment' ignored" in caplog.text


def test_unknown_keys_are_warned_of_a_bounded_number_of_times(
    file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    entry = "{address: a.example, port: 1, x: y}"
    with caplog.at_level(logging.WARNING):
        file.write_text("allowlist:\n" + f"- {entry}\n" * 5_000)
        loaded = loading.load(str(file)).allowlist
    assert loaded.permits_name("a.example", 1)
    assert len(caplog.messages) == 11
    assert caplog.messages[-1] == f"file {file}: 4990 more unknown keys ignored"


SLOW = {
    "an entry of many keys again and again": (
        "x: &a {address: a, port: 1, "
        + ", ".join(f"k{number}: v" for number in range(12_000))
        + "}\nallowlist:\n"
        + "- *a\n" * 25_000
    ),
    "international names": "allowlist:\n" + f"- {{address: {'ü.' * 18}e, port: 1}}\n" * 9_990,
    "one international name again and again": (
        f"x: &n {'a.' * 120}ü\nallowlist:\n" + "- {address: *n, port: 1}\n" * 9_990
    ),
    "one long network again and again": (
        f"x: &n 10.0.0.0/{'0' * 500_000}8\nallowlist:\n" + "- {address: *n, port: 1}\n" * 9_990
    ),
    "names": "allowlist:\n" + "- {address: a.b, port: 1}\n" * 9_999,
    "networks": "allowlist:\n" + "- {address: '2001:db8::/32', port: 1}\n" * 9_999,
}


@pytest.mark.parametrize("content", SLOW.values(), ids=SLOW.keys())
def test_a_file_takes_less_than_a_second_whatever_is_in_it(file: Path, content: str) -> None:
    file.write_text(content, encoding="utf-8")
    began = time.process_time()
    with contextlib.suppress(ConfigurationError):
        loading.load(str(file))
    assert time.process_time() - began < (1 if yaml.__with_libyaml__ else 10) * SLOWNESS


def test_more_international_names_than_idna_has_time_for_are_refused(file: Path) -> None:
    entry = "- {address: bücher.example, port: 1}\n"
    message = error_of(file, ("allowlist:\n" + entry * 1_001).encode())
    assert ", line 1002: more than 1000 names that are not ASCII" in message
    loaded = load(file, *["{address: bücher.example, port: 1}"] * 1_000)
    assert len(loaded.entries) == 1_000


def test_an_empty_list_permits_nothing(file: Path) -> None:
    file.write_text("allowlist: []\n")
    assert not loading.load(str(file)).allowlist.permits_name("a.example", 1)


@pytest.mark.parametrize(
    ("port", "shown"),
    [
        ("0443", "'0443'"),
        ("4_43", "'4_43'"),
        ("1" * 1_000_000, f"'{'1' * 60}'"),
        ("'443'", "the text '443'"),
        ("https", "'https'"),
        ("0", "'0'"),
        ("-1", "'-1'"),
        ("65536", "'65536'"),
        ("443.0", "'443.0'"),
        ("true", "'true'"),
        ("", "nothing"),
        ("[443]", "a list"),
        ("{a: 1}", "a mapping"),
        ("0x1bb", "'0x1bb'"),
        ("7:23", "'7:23'"),
        ("99999999999999999999999", "'99999999999999999999999'"),
    ],
)
def test_a_bad_port_is_named_with_its_line(file: Path, port: str, shown: str) -> None:
    content = f"allowlist:\n- address: good.example\n  port: 1\n- address: a\n  port: {port}\n"
    message = error_of(file, content.encode())
    assert message.endswith(f"line 5: port is {shown}; expected an integer from 1 to 65535")


@pytest.mark.parametrize(
    "address",
    [
        *("''", "", "[a]", "'a b'", "'10.0.0.1/8'", "'*'", "'a.*.example'", "true", '"\\0"'),
        # What can never permit anything.
        *("'[::1]'", "x:443", "10.0.0.1:443", "'{region}'", "'kms.{region}.amazonaws.com'"),
        *("'*..com'", "'*.'", "'*..'", "http://x", "'*.*.com'", "'*com'", "'.com'", "a..b", "a.."),
        *("'-a'", "x" * 64, "x." * 127 + "y", "'*.0.0.1'", "'*.1'", "'*.0x1'", "16", "127.1"),
        *("0177.0.0.1", "2130706433", "0x7f.1", "1.2.3.4.", "1.2.3.4.5", "\uff11.0.0.1", "10.0.0"),
        *("fe80::1%", "'fe80::1%a b'", "::ffff:10.0.0.1%lo", "'ß'" * 100_000),
    ],
    ids=lambda address: ascii(address)[:20],
)
def test_a_bad_address_is_named_with_its_line(file: Path, address: str) -> None:
    message = error_of(file, f"allowlist:\n- address: {address}\n  port: 1\n".encode())
    assert ", line 2: address is " in message
    assert "expected a host name, *.DOMAIN, an IP address, a network" in message


def test_a_number_for_an_address_is_asked_about(file: Path) -> None:
    assert "address is '16', which is a number; a guest is written vsock:CID" in error_of(
        file, b"allowlist:\n- {address: 16, port: 1}\n"
    )


def test_an_address_in_an_unusual_form_is_given_in_the_usual_one(file: Path) -> None:
    assert "; as an IP address that is 127.0.0.1; " in error_of(
        file, b"allowlist:\n- {address: 0177.0.0.1, port: 1}\n"
    )


def test_a_wildcard_never_permits_an_address(file: Path) -> None:
    loaded = load(file, '{address: "*.example", port: 1}', '{address: "*.x", port: 1}')
    for host in ("127.0.0.1", "::1", "127.0.0.1.", "1.x.1"):
        assert not loaded.permits_name(host, 1)


def test_an_ipv4_address_mapped_into_ipv6_is_that_ipv4_address(file: Path) -> None:
    loaded = load(
        file, "{address: '::ffff:10.0.0.1', port: 1}", "{address: '::ffff:10.1.0.0/112', port: 1}"
    )
    assert loaded.permits_address(ipaddress.ip_address("10.0.0.1"), 1)
    assert loaded.permits_address(ipaddress.ip_address("10.1.255.255"), 1)
    assert not loaded.permits_address(ipaddress.ip_address("10.2.0.0"), 1)


def test_an_address_with_a_zone_is_permitted_in_that_zone_only(file: Path) -> None:
    loaded = load(file, "{address: 'fe80::1%lo', port: 1}", "{address: 'fe80::%nope/64', port: 1}")
    assert loaded.permits_address(ipaddress.ip_address("fe80::1%lo"), 1)
    assert loaded.permits_address(ipaddress.ip_address("fe80::2%nope"), 1)
    for other in ("fe80::1%eth0", "fe80::1%lo0", "fe80::1", "fe80::2%lo", "fe80::2"):
        assert not loaded.permits_address(ipaddress.ip_address(other), 1)


def test_a_zone_may_be_the_name_or_the_number_of_an_interface(file: Path) -> None:
    number = socket.if_nametoindex("lo")
    loaded = load(
        file, "{address: 'fe80::1%lo', port: 1}", f"{{address: 'fe80::2%{number}', port: 1}}"
    )
    assert loaded.permits_address(ipaddress.ip_address(f"fe80::1%{number}"), 1)
    assert loaded.permits_address(ipaddress.ip_address("fe80::2%lo"), 1)
    assert not loaded.permits_address(ipaddress.ip_address(f"fe80::1%{number + 1}"), 1)


def test_an_address_without_a_zone_is_permitted_in_any(file: Path) -> None:
    loaded = load(file, "{address: 'fe80::1', port: 1}", "{address: 'fe80:0:0:1::/64', port: 1}")
    assert loaded.permits_address(ipaddress.ip_address("fe80::1%lo"), 1)
    assert loaded.permits_address(ipaddress.ip_address("fe80::1"), 1)
    assert loaded.permits_address(ipaddress.ip_address("fe80:0:0:1::1%eth0"), 1)


@pytest.mark.parametrize(
    ("content", "part", "problem"),
    [
        (b"", "file", ": empty; expected 'allowlist:' and a list"),
        (b"# only a comment\n", "file", ": empty; expected 'allowlist:' and a list"),
        (
            b"allow: []\n",
            "file",
            ", line 1: no 'allowlist:' key; expected it with a list of endpoints",
        ),
        (b"- a\n", "file", ", line 1: a list where 'allowlist:' is expected"),
        (
            b"allowlist:\n- \xff\n",
            "file",
            ", line 2: byte 0xff is not UTF-8; save the file as UTF-8",
        ),
        (
            b"\nallowlist: yes\n",
            "allowlist",
            ", line 2: allowlist is 'yes'; expected a list of endpoints",
        ),
        (
            b"allowlist:\n",
            "allowlist",
            ", line 1: allowlist is nothing; expected a list of endpoints",
        ),
        (
            b"allowlist:\n- a\n",
            "allowlist",
            ", line 2: entry is 'a'; expected {address: HOST, port: N}",
        ),
        (
            b"allowlist:\n- {address: a}\n",
            "allowlist",
            ", line 2: entry without port; expected address and port",
        ),
        (
            b"allowlist:\n- {port: 1}\n",
            "allowlist",
            ", line 2: entry without address; expected address and port",
        ),
        (
            b"allowlist: []\nallowlist: []\n",
            "allowlist",
            ", line 2: a second 'allowlist:'; put all endpoints in one list",
        ),
        (
            b"allowlist:\n- {address: a, port: 1, port: 2}\n",
            "allowlist",
            ", line 2: a second port in one entry; expected one",
        ),
    ],
)
def test_a_file_of_another_shape_is_explained(
    file: Path, content: bytes, part: str, problem: str
) -> None:
    assert error_of(file, content) == f"{part} {file}{problem}"


@pytest.mark.parametrize(
    "content",
    [b"allowlist: [\n", b"\tallowlist:\n", b"a: b: c\n", b"---\na\n---\nb\n", b"{" * 10, b"\x00"],
)
def test_what_is_not_yaml_is_said_to_be_so(file: Path, content: bytes) -> None:
    assert "not valid YAML" in error_of(file, content)


def test_a_python_object_in_the_file_is_never_made(file: Path) -> None:
    message = error_of(file, b"allowlist: !!python/object/apply:os.system ['true']\n")
    assert "allowlist is a list" in message or "entry is" in message


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="No such file or directory"):
        loading.load(str(tmp_path / "none.yaml"))


def test_a_folder_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="Is a directory"):
        loading.load(str(tmp_path))


def test_a_file_without_end_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="larger than"):
        loading.load("/dev/zero")


@pytest.mark.parametrize("host", KMS)
def test_the_default_file_permits_kms(host: str) -> None:
    path = Path(__file__).resolve().parents[2] / "etc/nitro_enclaves/vsock-proxy.yaml"
    loaded = loading.load(str(path)).allowlist
    assert loaded.permits_name(host, 443)
    assert not loaded.permits_name("kms.cn-north-1.amazonaws.com", 443)


def test_the_default_file_has_a_dual_stack_name_for_every_other() -> None:
    path = Path(__file__).resolve().parents[2] / "etc/nitro_enclaves/vsock-proxy.yaml"
    names = {entry.name for entry in loading.load(str(path)).allowlist.entries if entry.name}
    # kms.REGION.SUFFIX
    dual_stack = {name for name in names if ".api." in name}
    assert len(names) == 2 * len(dual_stack)
    assert {tuple(name.split(".")[:2]) for name in dual_stack} == {
        tuple(name.split(".")[:2]) for name in names - dual_stack
    }


KINDS = {
    "Kms.Example.": ("kms.example", "name"),
    "'*.example'": ("*.example", "wildcard"),
    "10.0.0.1": ("10.0.0.1", "address"),
    "10.0.0.1/32": ("10.0.0.1", "address"),
    "'::ffff:10.0.0.1'": ("10.0.0.1", "address"),
    "'2001:db8:0::1'": ("2001:db8::1", "address"),
    "10.0.0.0/8": ("10.0.0.0/8", "network"),
    "10.0.0.0/255.0.0.0": ("10.0.0.0/8", "network"),
    "'2001:db8::/32'": ("2001:db8::/32", "network"),
    "'fe80::1%lo'": ("fe80::1%lo", "address"),
    "'fe80::%lo/64'": ("fe80::%lo/64", "network"),
    "'vsock:16'": ("vsock:16", "CID"),
    "'vsock:*'": ("vsock:*", "wildcard"),
    "'unix:/run//v.sock'": ("unix:/run/v.sock", "path"),
}


@pytest.mark.parametrize(("written", "expected"), KINDS.items(), ids=KINDS.keys())
def test_an_entry_knows_what_it_is_and_where(
    written: str, expected: Tuple[str, str], file: Path
) -> None:
    loaded = load(file, "{address: other.test, port: 1}", f"{{address: {written}, port: 2}}")
    entry = loaded.entries[1]
    assert (entry.address, entry.kind, entry.line) == (*expected, 3)


def test_the_entry_that_permits_is_the_first_that_does(file: Path) -> None:
    loaded = load(
        file,
        *(f"{{address: {each}, port: 1}}" for each in ("other.test", "'*.b.test'", "a.b.test")),
        *(f"{{address: {each}, port: 1}}" for each in ("10.0.0.0/8", "10.0.0.1")),
        *(f"{{address: '{each}', port: 1}}" for each in ("vsock:*", "vsock:16", "unix:/v")),
    )
    found = [
        loaded.entry_of_name("a.b.test", 1),
        loaded.entry_of_address(ipaddress.ip_address("10.0.0.1"), 1),
        loaded.entry_of_place("vsock:16", 1),
        loaded.entry_of_place("unix://v", 1),
    ]
    assert [entry.line for entry in found if entry] == [3, 5, 7, 9]
    assert loaded.entry_of_name("a.b.test", 2) is None
    assert loaded.entry_of_address(ipaddress.ip_address("11.0.0.1"), 1) is None
    assert loaded.entry_of_place("unix:/w", 1) is None
