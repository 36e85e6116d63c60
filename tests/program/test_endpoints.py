"""What an endpoint's text is, on the command line, in the allowlist and in the services."""

from __future__ import annotations

import os
import random
import socket
from pathlib import Path
from typing import List, Optional, Tuple

import pytest
import yaml

from tests.support.program import run
from vsock_proxy.cli import parse
from vsock_proxy.config import loading
from vsock_proxy.config.endpoints import check_endpoint, normal_place, port_rule
from vsock_proxy.config.hostnames import NoHost
from vsock_proxy.endpoint.policy import NotPermitted
from vsock_proxy.errors import ConfigurationError, UsageError
from vsock_proxy.printable import printable
from vsock_proxy.settings import Endpoint, ServiceOptions, ServiceSettings
from vsock_proxy.supervision.judging import Judged, Wanted, judge, leads_to_itself

pytestmark = pytest.mark.hybrid_only  # no transport has a part in it

LONGEST = "unix:/" + "x" * 106
PLACES = {
    "vsock:16": "vsock:16",
    "vsock:0": "vsock:0",
    "vsock:1": "vsock:1",
    "vsock:4294967294": "vsock:4294967294",
    "vsock:016": "vsock:16",
    "unix:/run/vm1/v.sock": "unix:/run/vm1/v.sock",
    "unix:v.sock": "unix:v.sock",
    "unix:./v.sock": "unix:v.sock",
    "unix:/run//vm1/./v.sock": "unix:/run/vm1/v.sock",
    "unix://run/v.sock": "unix:/run/v.sock",
    "unix:///run/v.sock": "unix:/run/v.sock",
    "unix:////run/v.sock": "unix:/run/v.sock",
    # What comes behind a link is another folder's parent, so it stays.
    "unix:/run/../v.sock": "unix:/run/../v.sock",
    "unix:/run/a b:c,{region}#'\"\\": "unix:/run/a b:c,{region}#'\"\\",
    "unix:/run/ä": "unix:/run/ä",
    "unix:@name": "unix:@name",
    LONGEST: LONGEST,
}
# A name of a file that is no text (PEP 383).
NOT_UTF_8 = os.fsdecode(b"unix:/\xff")
NO_CID = "has no CID after vsock:, an integer from 0 to 4294967294"
NO_PATH = "has no path after unix:, a path of at most 107 bytes"
NO_PLACES = {
    "vsock:": NO_CID,
    "vsock:x": NO_CID,
    "vsock:-1": NO_CID,
    "vsock:+1": NO_CID,
    "vsock:1.0": NO_CID,
    "vsock: 16": NO_CID,
    "vsock:16 ": NO_CID,
    "vsock:1_6": NO_CID,
    "vsock:0x10": NO_CID,
    "vsock:\u0661": NO_CID,
    "vsock:4294967295": NO_CID,
    "vsock:99999999999999999999": NO_CID,
    "vsock:*": NO_CID,
    "vsock://16": NO_CID,
    "vsock:16:5000": f"{NO_CID}; the port is given apart from it",
    "VSOCK:16": "is no host name; vsock: is written in lower case",
    "Unix:/run/v.sock": "is no host name; unix: is written in lower case",
    "unix:": NO_PATH,
    LONGEST + "x": NO_PATH,
    "unix:/" + "ä" * 54: NO_PATH,
    "unix:/run\0": NO_PATH,
    NOT_UTF_8: "has a path that is not UTF-8; no allowlist can name it",
    "unix:*": "has a * in its path; a path is no pattern, write each one out",
    "unix:/run/*/v.sock": "has a * in its path; a path is no pattern, write each one out",
}
NO_KIND = {
    "/run/v.sock": "is no host name; a Unix socket is written unix:PATH",
    "16": "is a number; a guest is written vsock:CID",
    "unix": None,
    "vsock": None,
    "vsock.example": None,
}


@pytest.mark.parametrize(("text", "normal"), PLACES.items(), ids=ascii)
def test_a_place_is_taken_as_it_is_written_and_compared_in_one_form(text: str, normal: str) -> None:
    check_endpoint(text)
    assert normal_place(text) == normal
    assert parse(["8000", text, "5000"]).service == ServiceSettings(8000, Endpoint(text, 5000))


@pytest.mark.parametrize(("text", "reason"), NO_PLACES.items(), ids=lambda text: ascii(text)[:30])
def test_what_can_be_no_place_is_explained(text: str, reason: str) -> None:
    with pytest.raises(NoHost) as caught:
        check_endpoint(text)
    assert str(caught.value) == reason
    with pytest.raises(UsageError) as refused:
        parse(["8000", text, "5000"])
    assert str(refused.value) == (
        f"<remote_addr> must be a host name, an IP address, vsock:CID or unix:PATH; {text!r} "
        f"{reason}"
    )


@pytest.mark.parametrize(("text", "reason"), NO_KIND.items())
def test_anything_else_is_a_host_or_nothing(text: str, reason: Optional[str]) -> None:
    assert normal_place(text) is None
    if reason is None:
        check_endpoint(text)
        return
    with pytest.raises(NoHost) as caught:
        check_endpoint(text)
    assert str(caught.value) == reason


@pytest.mark.parametrize(
    ("host", "is_tcp", "cid", "path", "shown"),
    [
        ("vsock:16", False, 16, None, "vsock:16:5000"),
        ("unix:/run/v.sock", False, None, "/run/v.sock", "unix:/run/v.sock:5000"),
        ("kms.example", True, None, None, "kms.example:5000"),
        ("::1", True, None, None, "[::1]:5000"),
    ],
)
def test_an_endpoint_knows_what_it_is(
    host: str, is_tcp: bool, cid: Optional[int], path: Optional[str], shown: str
) -> None:
    endpoint = Endpoint(host, 5000)
    assert (endpoint.is_tcp, endpoint.cid, endpoint.path) == (is_tcp, cid, path)
    assert str(endpoint) == shown


@pytest.mark.parametrize(
    ("host", "port", "expected"),
    [
        ("vsock:16", "0", ""),
        ("vsock:16", "4294967294", ""),
        ("vsock:16", "4294967295", "an integer from 0 to 4294967294"),
        ("unix:/v", "0", ""),
        ("unix:/v", "4294967294", ""),
        ("unix:/v", "-1", "an integer from 0 to 4294967294"),
        ("kms.example", "0", "an integer from 1 to 65535"),
        ("kms.example", "65536", "an integer from 1 to 65535"),
    ],
)
def test_the_port_is_one_of_what_the_endpoint_is(host: str, port: str, expected: str) -> None:
    words = ["--", "8000", host, port]
    if not expected:
        assert port_rule(host).parse(port) == int(port)
        assert parse(words).service
        return
    with pytest.raises(UsageError) as caught:
        parse(words)
    assert str(caught.value) == f"<remote_port> must be {expected}, not {port!r}"


# Options of lookups


@pytest.mark.parametrize("host", ["vsock:16", "unix:/run/v.sock"])
@pytest.mark.parametrize(
    ("words", "option"),
    [
        (["-4"], "--ipv4"),
        (["-6"], "--ipv6"),
        (["--ipv6"], "--ipv6"),
        (["-4w4"], "--ipv4"),
        (["--resolve-interval", "15"], "--resolve-interval"),
        (["--resolve-interval=15"], "--resolve-interval"),
        (["--resolve", "9"], "--resolve-interval"),
        (["-6", "--listen-tcp", "::1"], "--ipv6"),
        (["-4", "--listen-tcp", "::"], "--ipv4"),
    ],
    ids=" ".join,
)
def test_an_option_of_lookups_is_refused_where_nothing_is_looked_up(
    words: List[str], option: str, host: str
) -> None:
    with pytest.raises(UsageError) as caught:
        parse([*words, "8000", host, "5000"])
    assert str(caught.value) == (
        f"{option} is for a host name or an IP address, and {host} is neither; leave {option} out"
    )


@pytest.mark.parametrize(
    "words",
    [
        ["--connect-timeout", "3", "8000", "vsock:16", "5000"],
        # The value of another option.
        ["--config", "--resolve-interval", "8000", "vsock:16", "5000"],
        ["--resolve-interval", "9", "8000", "kms.example", "443"],
        # It says where to listen.
        ["-6", "--listen-tcp", "::", "8000", "vsock:16", "5000"],
        ["-4"],
    ],
    ids=" ".join,
)
def test_otherwise_it_is_taken(words: List[str]) -> None:
    parse(words)


# The file


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "file.yaml"


def services(file: Path, *lines: str, **options: object) -> Tuple[ServiceSettings, ...]:
    file.write_text("allowlist: []\nservices:\n" + "\n".join(lines))
    return loading.load(str(file)).services(ServiceOptions(**options), 4)  # type: ignore[arg-type]


def test_a_service_may_lead_to_such_a_place(file: Path) -> None:
    found = services(
        file,
        "- {listen: 8000, address: 'vsock:16', port: 4294967294}",
        "- {listen: 8001, address: 'unix:/run/{region}/v.sock', port: 0}",
        "- {listen: 8002, address: vsock:3, port: 8000}",
    )
    assert [service.endpoint for service in found] == [
        Endpoint("vsock:16", 4294967294),
        Endpoint("unix:/run/{region}/v.sock", 0),
        Endpoint("vsock:3", 8000),
    ]


def test_the_options_of_lookups_are_defaults_of_the_other_services(file: Path) -> None:
    (one,) = services(file, "- {listen: 1024, address: 'vsock:16', port: 1}", resolve_interval=9.0)
    assert one.options.resolve_interval == 9.0


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (
            "address: 'vsock:x', port: 1",
            f"address is the text 'vsock:x', which {NO_CID}; expected a host name, an IP address, "
            "vsock:CID or unix:PATH",
        ),
        (
            "address: vsock:16:5000, port: 1",
            f"address is 'vsock:16:5000', which {NO_CID}; the port is given apart from it; "
            "expected a host name, an IP address, vsock:CID or unix:PATH",
        ),
        (
            "address: 'vsock:*', port: 1",
            f"address is the text 'vsock:*', which {NO_CID}; expected a host name, an IP address, "
            "vsock:CID or unix:PATH",
        ),
        (
            "address: 'vsock:16', port: 4294967295",
            "port is '4294967295'; expected an integer from 0 to 4294967294",
        ),
        (
            "port: 65536, address: kms.example",
            "port is '65536'; expected an integer from 1 to 65535",
        ),
        *(
            (
                f"address: '{host}', port: 1, {key}: {value}",
                f"{key} together with address the text '{host}'; expected it with a host name or "
                "an IP address alone, because no name is looked up here",
            )
            for host in ("vsock:16", "unix:/v")
            for key, value in (("family", "ipv4"), ("resolve_interval", "15"))
        ),
    ],
)
def test_what_a_service_cannot_have_is_named_with_its_line(
    value: str, said: str, file: Path
) -> None:
    with pytest.raises(ConfigurationError) as caught:
        services(file, f"- {{listen: 8001, {value}}}")
    assert str(caught.value) == f"services {file}, line 3: {said}"


def judged(file: Path, host: str, port: int) -> Judged:
    """Raises NotPermitted; there is nothing to be asked of DNS."""

    def ask(questions: object) -> object:
        raise AssertionError("nothing is looked up")

    wanted = Wanted(
        loading.load(str(file)).allowlist, (ServiceSettings(8000, Endpoint(host, port)),), False
    )
    (one,) = judge(wanted, {}, ask)  # type: ignore[arg-type]
    return one


LISTED = """\
allowlist:
- {address: 'vsock:16', port: 5000}
- {address: 'vsock:*', port: 6000}
- {address: vsock:017, port: 4294967294}
- {address: 'unix:/run/vm1/v.sock', port: 5000}
- {address: 'unix:v.sock', port: 0}
- {address: 10.0.0.0/8, port: 5000}
- {address: '*.example', port: 5000}
"""


@pytest.mark.parametrize(
    ("host", "port", "permitted"),
    [
        ("vsock:16", 5000, True),
        ("vsock:016", 5000, True),
        ("vsock:16", 5001, False),
        ("vsock:17", 5000, False),
        ("vsock:1", 5000, False),
        ("vsock:17", 6000, True),
        ("vsock:0", 6000, True),
        ("vsock:17", 4294967294, True),
        ("unix:/run/vm1/v.sock", 5000, True),
        ("unix:/run//vm1/v.sock", 5000, True),
        ("unix:/run/vm1/v.sock", 6000, False),
        ("unix:/run/vm1/v.sock_5000", 5000, False),
        ("unix:/run/vm1/V.sock", 5000, False),
        ("unix:/run/vm2/../vm1/v.sock", 5000, False),
        ("unix:v.sock", 0, True),
        ("unix:/v.sock", 0, False),
        ("unix:vsock:16", 5000, False),
        # No network and no wildcard of names has it.
        ("unix:x.example", 5000, False),
    ],
)
def test_a_place_is_permitted_by_an_entry_that_names_it(
    host: str, port: int, permitted: bool, file: Path
) -> None:
    file.write_text(LISTED)
    if permitted:
        assert judged(file, host, port).addresses == ()
        return
    with pytest.raises(NotPermitted):
        judged(file, host, port)


@pytest.mark.parametrize(
    "host",
    [
        *("vsock:16", "vsock:016", "unix:/run/vm1/v.sock", "unix:v.sock", "unix:/a b", "unix:/a#b"),
        *("unix:/'", 'unix:/"', "unix:/\\", "unix:/\\n", "unix:/a: b", "unix:/{}", "unix:/[,]"),
        *("unix:/\n", "unix:/\x1b", "unix:/\x85", "unix:/\u2028", "unix:/ä", "unix:/\U0001f980"),
        *("unix:/\ufeff", "unix:/\ud7ff", "unix:~", "unix:/\x7f"),
    ],
    ids=ascii,
)
def test_the_hint_of_an_endpoint_that_is_not_permitted_permits_it(host: str, file: Path) -> None:
    file.write_text("allowlist: []")
    with pytest.raises(NotPermitted) as caught:
        judged(file, host, 5000)
    # As it is printed, and pasted.
    printed = printable(str(caught.value))
    assert printed.startswith(f"{printable(host)}:5000 is not permitted")
    hint = printed.split("; to permit it add '", 1)[1]
    assert hint.endswith("'")
    file.write_text(f"allowlist:\n{hint[:-1]}\n", encoding="utf-8")
    judged(file, host, 5000)


@pytest.mark.parametrize(("text", "reason"), NO_PLACES.items(), ids=lambda text: ascii(text)[:30])
def test_an_entry_that_is_no_place_is_named_with_its_line(
    text: str, reason: str, file: Path
) -> None:
    if text in ("vsock:*", NOT_UTF_8):
        return
    address = yaml.dump(text, default_style='"', width=1000).strip()
    file.write_text(f"allowlist:\n- {{address: {address}, port: 1}}\n")
    with pytest.raises(ConfigurationError) as caught:
        loading.load(str(file))
    assert str(caught.value) == (
        f"allowlist {file}, line 2: address is the text {text[:60]!r}, which {reason}; expected a "
        "host name, *.DOMAIN, an IP address, a network such as 10.0.0.0/8 with no host bits set, "
        "vsock:CID, vsock:* or unix:PATH"
    )


@pytest.mark.parametrize("address", ["vsock:16", "vsock:*", "unix:/v"])
@pytest.mark.parametrize("port", ["4294967295", "-1", "x"])
def test_the_port_of_an_entry_is_one_of_vsock(address: str, port: str, file: Path) -> None:
    file.write_text(f"allowlist:\n- {{address: '{address}', port: {port}}}\n")
    with pytest.raises(ConfigurationError) as caught:
        loading.load(str(file))
    assert str(caught.value) == (
        f"allowlist {file}, line 2: port is '{port}'; expected an integer from 0 to 4294967294"
    )


def test_an_endpoint_that_is_not_listed_ends_with_78(file: Path) -> None:
    file.write_text("allowlist: []")
    ended = run("--config", str(file), "8000", "vsock:16", "5000")
    assert ended.returncode == 78
    assert ended.stderr == (
        f"vsock-proxy: vsock:16:5000 is not permitted by {file}; to permit it add "
        "'- {address: \"vsock:16\", port: 5000}'\n"
    )


ON_SOCKET = ServiceOptions(uds_path="/run/v.sock")


def over_tcp(address: str, family: int = socket.AF_UNSPEC) -> ServiceOptions:
    return ServiceOptions(family=socket.AddressFamily(family), listen_tcp=address)


@pytest.mark.parametrize(
    ("endpoint", "options", "loops"),
    [
        (Endpoint("vsock:1", 8000), ServiceOptions(), True),
        (Endpoint("vsock:1", 8001), ServiceOptions(), False),
        (Endpoint("vsock:3", 8000), ServiceOptions(), False),
        (Endpoint("127.0.0.1", 8000), ServiceOptions(), False),
        (Endpoint("vsock:1", 8000), ON_SOCKET, False),
        (Endpoint("unix:/run/v.sock", 8000), ON_SOCKET, False),
        (Endpoint("unix:/run/v.sock_8000", 8000), ON_SOCKET, True),
        (Endpoint("unix://run/./v.sock_8000", 8000), ON_SOCKET, True),
        (Endpoint("vsock:1", 8000), over_tcp("127.0.0.1"), False),
        (Endpoint("unix:/run/v.sock_8000", 8000), over_tcp("127.0.0.1"), False),
        (Endpoint("127.0.0.1", 8000), over_tcp("127.0.0.1"), True),
        (Endpoint("::ffff:127.0.0.1", 8000), over_tcp("127.0.0.1"), True),
        (Endpoint("127.0.0.1", 443), over_tcp("127.0.0.1"), False),
        (Endpoint("127.0.0.2", 8000), over_tcp("127.0.0.1"), False),
        (Endpoint("127.0.0.2", 8000), over_tcp("0.0.0.0"), True),
        (Endpoint("0.0.0.0", 8000), over_tcp("0.0.0.0"), True),
        # Connecting to no address in particular is connecting to the loopback.
        (Endpoint("0.0.0.0", 8000), over_tcp("127.0.0.1"), True),
        (Endpoint("0.0.0.0", 8000), over_tcp("127.0.0.2"), False),
        (Endpoint("::", 8000), over_tcp("::1"), True),
        (Endpoint("::", 8000), over_tcp("127.0.0.1"), False),
        (Endpoint("0.0.0.0", 8000), over_tcp("::"), True),
        (Endpoint("192.0.2.1", 8000), over_tcp("0.0.0.0"), False),
        (Endpoint("::1", 8000), over_tcp("0.0.0.0"), False),
        (Endpoint("::1", 8000), over_tcp("::"), True),
        (Endpoint("127.0.0.1", 8000), over_tcp("::"), True),
        (Endpoint("127.0.0.1", 8000), over_tcp("::", socket.AF_INET6), False),
        (Endpoint("::1", 8000), over_tcp("::", socket.AF_INET6), True),
        (Endpoint("vsock:1", 8000), over_tcp("::", socket.AF_INET6), False),
    ],
    ids=str,
)
def test_a_service_that_leads_to_itself_is_seen(
    endpoint: Endpoint, options: ServiceOptions, loops: bool
) -> None:
    assert leads_to_itself(ServiceSettings(8000, endpoint, options)) is loops


def test_a_service_that_leads_to_itself_is_refused(file: Path) -> None:
    file.write_text("allowlist:\n- {address: 'vsock:1', port: 8000}\n")
    service = ServiceSettings(8000, Endpoint("vsock:1", 8000), line=3)
    wanted = Wanted(loading.load(str(file)).allowlist, (service,), True)
    with pytest.raises(ConfigurationError) as caught:
        judge(wanted, {}, lambda questions: {})
    assert str(caught.value) == (
        f"services {file}, line 3: service 8000: vsock:1:8000 is where this service listens "
        "itself; give the address and the port of the server"
    )


# Any text


def test_any_text_is_an_endpoint_or_is_refused_in_one_line() -> None:
    chance = random.Random(14)
    letters = "vsock:unix/16 *.\0\n\x1bäß\udce9{}[]%-\U0001f980"
    for _ in range(20_000):
        prefix = chance.choice(["", "vsock:", "unix:", "unix:/", "vsock:1"])
        text = prefix + "".join(chance.choices(letters, k=chance.randrange(12)))
        try:
            check_endpoint(text)
        except NoHost as error:
            assert str(error)
            continue
        place = normal_place(text)
        endpoint = Endpoint(text, 1)
        assert endpoint.is_tcp == (place is None)
        assert str(endpoint)
        if place is not None:
            assert normal_place(place) == place
            assert (endpoint.cid is None) != (endpoint.path is None)
