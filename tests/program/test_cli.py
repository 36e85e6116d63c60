"""The command line, as a user meets it."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Callable, List

import pytest

from tests.support.program import run
from vsock_proxy import __version__
from vsock_proxy.cli import USAGE, parse
from vsock_proxy.errors import UsageError
from vsock_proxy.settings import MetricsAddress, ServiceOptions, ServiceSettings, Settings

pytestmark = pytest.mark.hybrid_only

GOOD = ["8000", "kms.us-east-1.amazonaws.com", "443"]


def service_of(words: List[str]) -> ServiceSettings:
    """The one that a command line with arguments describes."""
    service = parse(words).service
    assert service is not None
    return service


def test_the_usage_text_fits_80_columns() -> None:
    assert max(len(line) for line in USAGE.splitlines()) <= 79


def test_help_is_the_usage_text() -> None:
    done = run("--help")
    assert (done.returncode, done.stdout, done.stderr) == (0, USAGE, "")


@pytest.mark.parametrize("option", ["--version", "-V", "-4V"])
def test_the_version_is_told(option: str) -> None:
    for words in ([option], [option, *GOOD], [*GOOD, option], ["-w", "x", option]):
        done = run(*words)
        assert (done.returncode, done.stdout) == (os.EX_OK, f"vsock-proxy {__version__}\n")


def test_help_is_given_wherever_it_is_asked_for() -> None:
    for words in (["-h"], ["-6h"], ["-hV"], [*GOOD, "--help"], ["x", "-h", "--", "y"]):
        done = run(*words)
        assert (done.returncode, done.stdout) == (os.EX_OK, USAGE)


def test_defaults_are_those_of_the_usage_text() -> None:
    settings, service = parse(GOOD), service_of(GOOD)
    assert service.local_port == 8000
    assert str(service.endpoint) == "kms.us-east-1.amazonaws.com:443"
    assert service.workers is None
    assert service.options == settings.options
    assert settings.options.family == socket.AF_UNSPEC
    assert settings.config == "/etc/nitro_enclaves/vsock-proxy.yaml"
    assert settings.workers == 4
    assert settings.options.uds_path is None
    assert settings.options.allowed_cids is None
    assert settings.options.connect_timeout == 10
    assert settings.options.idle_timeout == 0
    assert settings.options.resolve_interval == 15
    assert settings.drain_timeout == 30
    assert settings.log_level == "info"


def test_the_command_lines_of_aws_are_understood() -> None:
    assert parse(["-w", "20", *GOOD]).workers == 20
    assert parse(["--num_workers", "20", *GOOD]).workers == 20
    assert parse([*GOOD, "--num_workers=20"]).workers == 20
    assert parse(["-4", *GOOD]).options.family == socket.AF_INET
    assert parse([*GOOD, "--ipv6", "--config", "a.yaml"]).options.family == socket.AF_INET6


@pytest.mark.parametrize(
    "words", [["-w20"], ["-w=20"], ["-w", "20"], ["--num_workers=20"], ["--num", "20"]]
)
def test_a_value_may_follow_its_option_in_every_usual_way(words: List[str]) -> None:
    assert parse([*words, *GOOD]).workers == 20
    assert parse([*GOOD, *words]).workers == 20


@pytest.mark.parametrize(
    ("abbreviation", "option", "value"),
    [
        ("--l", "--log-level", "debug"),
        ("--log", "--log-level", "debug"),
        ("--log-l", "--log-level", "debug"),
        ("--log-f", "--log-format", "json"),
        ("--li", "--listen-tcp", "::1"),
        ("--re", "--resolve-interval", "3"),
        ("--u", "--uds-path", "/x"),
    ],
)
def test_an_abbreviation_keeps_its_meaning_though_there_are_more_options(
    abbreviation: str, option: str, value: str
) -> None:
    meant = parse([option, value, *GOOD])
    assert meant != parse(GOOD)
    assert parse([abbreviation, value, *GOOD]) == meant
    assert parse([f"{abbreviation}={value}", *GOOD]) == meant


@pytest.mark.parametrize("words", [["-4w20"], ["-4w=20"], ["-4w", "20"]])
def test_short_options_may_be_joined(words: List[str]) -> None:
    settings = parse([*words, *GOOD])
    assert (settings.options.family, settings.workers) == (socket.AF_INET, 20)


def test_a_value_may_look_like_an_option() -> None:
    assert parse(["--config", "-4", *GOOD]).config == "-4"
    assert parse(["--config", "-w=3", *GOOD]).config == "-w=3"
    assert parse(["--config=-46", *GOOD]).options.family == socket.AF_UNSPEC


@pytest.mark.parametrize("place", range(4))
def test_two_hyphens_end_the_options(place: int) -> None:
    words = ["-4", *GOOD[:place], "--", *GOOD[place:]]
    assert parse(words) == parse(["-4", *GOOD])


def test_behind_two_hyphens_everything_is_an_argument() -> None:
    for option in ("--help", "-h", "--version", "-V", "-4", "--", "--config=x"):
        with pytest.raises(UsageError, match="the arguments do not fit"):
            parse(["--", *GOOD, option])
        assert run("--", *GOOD, option).returncode == os.EX_USAGE
    with pytest.raises(UsageError, match=r"<local_port> must be .*, not '-5'"):
        parse(["--", "-5", "host", "443"])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--", "8000"], "the arguments do not fit"),
        (["-w", "--", *GOOD], "-w requires an argument"),
        (["--conf", "--", *GOOD], "--conf requires an argument"),
        (["--config"], "--config requires an argument"),
        (["--ipv4=x", *GOOD], "--ipv4 must not have an argument"),
        (["-w", "4", "-w5", *GOOD], "--num_workers is given 2 times; give it once"),
        (["--log-level", "info", "--log-l=info", *GOOD], "--log-level is given 2 times"),
        (["-4", "-4", *GOOD], "--ipv4 is given 2 times; give it once"),
        (["-46", *GOOD], "-4 and -6 exclude each other"),
        (["--ip", *GOOD], "--ip may be --ipv4 or --ipv6; write it out"),
        (["--config", "-x", "-z", *GOOD], "there is no option -z"),
        (["-5", *GOOD], "there is no option -5"),
        (["--num_worker", "x", *GOOD], "--num_workers must be an integer from 1 to 10000"),
        (["--vers"], "--help and --version cannot be abbreviated"),
        (["--he", *GOOD], "--help and --version cannot be abbreviated"),
    ],
    ids=str,
)
def test_what_is_wrong_with_the_options_is_said(words: List[str], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse(words)
    assert message in str(caught.value)


def test_options_alone_are_the_defaults_of_the_services_of_the_file() -> None:
    settings = parse(["-6", "-w", "7", "--allow-cid", "16", "--idle-timeout", "5"])
    assert settings.service is None
    assert settings.workers == 7
    assert settings.options == ServiceOptions(
        family=socket.AF_INET6, allowed_cids=frozenset({16}), idle_timeout=5
    )
    for words in ([], ["--"]):
        assert parse(words) == Settings()


@pytest.mark.parametrize("words", [["8000"], GOOD[:2], [*GOOD, "1"], ["-4", "--", "8000"], [""]])
def test_arguments_that_do_not_fit_are_told_both_ways_to_serve(words: List[str]) -> None:
    with pytest.raises(UsageError) as caught:
        parse(words)
    assert str(caught.value) == (
        "the arguments do not fit: expected [options] [-4 | -6] <local_port> <remote_addr> "
        "<remote_port>, or options alone to serve the services of the file; see vsock-proxy --help"
    )


def test_a_unix_path_must_have_room_for_the_port_that_it_gets() -> None:
    assert parse(["--uds-path", "x" * 105]).options.uds_path == "x" * 105
    assert service_of(["--uds-path", "x" * 102, *GOOD]).path == "x" * 102 + "_8000"
    for words in (["--uds-path", "x" * 106], ["--uds-path", "x" * 103, *GOOD]):
        with pytest.raises(UsageError, match="must be a path that with _PORT is at most 107 bytes"):
            parse(words)


@pytest.mark.parametrize(
    ("address", "normal"),
    [
        ("127.0.0.1", "127.0.0.1"),
        ("0.0.0.0", "0.0.0.0"),
        ("::", "::"),
        ("0:0::0", "::"),
        ("2001:DB8:0::1", "2001:db8::1"),
        ("::ffff:127.0.0.1", "127.0.0.1"),
        ("fe80::1%eth0", "fe80::1%eth0"),
        ("fe80::1%1", "fe80::1%lo"),
        ("fe80::1%0", "fe80::1%0"),
        # No machine has that number of interfaces, and no interface a number of that length.
        ("fe80::1%4294967290", "fe80::1%4294967290"),
        ("fe80::1%4294967297", "fe80::1%4294967297"),
        ("fe80::1%999999999999999", "fe80::1%999999999999999"),
        ("fe80::1%\u00b2", "fe80::1%\u00b2"),
        ("fe80::1%\u0661", "fe80::1%\u0661"),
    ],
)
def test_an_address_to_listen_on_has_one_form(address: str, normal: str) -> None:
    assert parse(["--listen-tcp", address]).options.listen_tcp == normal


@pytest.mark.parametrize(
    "address",
    [
        *("", "localhost", "127.1", "[::1]", "10.0.0.0/8", "224.0.0.1", "ff02::1"),
        # The kernel would not heed the interface, and let more clients come than it seems.
        *("255.255.255.255", "::%lo", "::1%lo", "2001:db8::1%eth0"),
    ],
)
def test_what_is_no_address_to_listen_on_is_told_what_one_is(address: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse(["--listen-tcp", address, *GOOD])
    assert str(caught.value) == (
        "--listen-tcp must be an IP address of this machine, with %INTERFACE if it is link-local, "
        "or 0.0.0.0 or :: for all, "
        f"not {address!r}"
    )


@pytest.mark.parametrize("port", ["1", "443", "65535"])
def test_over_tcp_the_local_port_is_a_tcp_port(port: str) -> None:
    service = service_of(["--listen-tcp", "::1", port, "a", "1"])
    assert (service.local_port, service.tcp_place) == (int(port), f"[::1]:{port}")


@pytest.mark.parametrize("port", ["0", "65536", "4294967294"])
def test_over_tcp_the_local_port_must_be_a_tcp_port(port: str) -> None:
    with pytest.raises(UsageError, match=r"<local_port> must be an integer from 1 to 65535"):
        parse(["--listen-tcp", "::1", port, "a", "1"])


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (
            ["--uds-path", "/v", "--listen-tcp", "::1"],
            "--uds-path and --listen-tcp exclude each other; give one of them",
        ),
        (
            ["--allow-cid", "16", "--listen-tcp", "::1"],
            "--allow-cid needs AF_VSOCK: a TCP client has no CID",
        ),
    ],
    ids=lambda words: words[0] if isinstance(words, list) else "",
)
@pytest.mark.parametrize("arguments", [GOOD, []], ids=["one service", "services of the file"])
def test_what_tcp_excludes_is_a_usage_error(
    arguments: List[str], options: List[str], said: str
) -> None:
    with pytest.raises(UsageError) as caught:
        parse([*options, *arguments])
    assert str(caught.value) == said


def test_seconds_may_be_fractions() -> None:
    settings = parse(["--connect-timeout", "0.5", "--idle-timeout=.25", *GOOD])
    assert (settings.options.connect_timeout, settings.options.idle_timeout) == (
        0.5,
        0.25,
    )


def test_cids_are_a_list() -> None:
    assert parse(["--allow-cid", "16,17", *GOOD]).options.allowed_cids == frozenset({16, 17})


@pytest.mark.parametrize(
    "words",
    [
        ["x", "a", "1"],
        ["0", "a", "1"],
        ["3", "a", "1"],
        ["4294967295", "a", "1"],
        ["99999999999999999999", "a", "1"],
        ["-5", "a", "1"],
        ["", "a", "1"],
        ["8_000", "a", "1"],
        ["8000", "a", "0"],
        ["8000", "a", "65536"],
        ["8000", "a", "https"],
        ["8000", "", "443"],
        ["8000", "a b", "443"],
        ["8000", "a\nb", "443"],
        ["8000", "\udcff", "443"],
        ["8000", "a/../b", "443"],
        [*GOOD, "-w", "0"],
        [*GOOD, "-w", "-1"],
        [*GOOD, "-w", "x"],
        [*GOOD, "-w", "10001"],
        [*GOOD, "-w"],
        [*GOOD, "-4", "-6"],
        [*GOOD, "--ipv6", "--ipv4"],
        [*GOOD, "--connect-timeout", "-1"],
        [*GOOD, "--connect-timeout", "0"],
        [*GOOD, "--idle-timeout", "nan"],
        [*GOOD, "--idle-timeout", "inf"],
        [*GOOD, "--drain-timeout", "-0.5"],
        [*GOOD, "--drain-timeout", "1e9"],
        [*GOOD, "--log-level", "loud"],
        [*GOOD, "--config", ""],
        [*GOOD, "--uds-path", ""],
        [*GOOD, "--uds-path", "x" * 120],
        [*GOOD, "--allow-cid", "a"],
        [*GOOD, "--allow-cid", "16", "--uds-path", "/x"],
        [*GOOD, "--no-such-option"],
        [*GOOD, "and more"],
        ["8000"],
        ["8000", "a"],
    ],
    ids=lambda words: " ".join(words).encode("ascii", "backslashreplace").decode()[:40] or "none",
)
def test_a_bad_command_line_is_a_usage_error_of_one_line(words: List[str]) -> None:
    with pytest.raises(UsageError) as caught:
        parse(words)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "words", [["x", "a", "1"], [*GOOD, "-4", "-6"], ["8000", "\udcff", "1"], ["8000"]]
)
def test_a_usage_error_is_one_line_on_stderr_and_exit_code_64(words: List[str]) -> None:
    done = run(*words)
    assert done.returncode == os.EX_USAGE
    assert done.stdout == ""
    assert done.stderr.startswith("vsock-proxy: ")
    assert done.stderr.count("\n") == 1


def test_a_usage_error_names_the_argument_its_value_and_what_is_expected() -> None:
    assert run("3", "a", "1").stderr == (
        "vsock-proxy: <local_port> must be an integer from 4 to 4294967294, not '3'\n"
    )


def test_an_unknown_option_is_named() -> None:
    assert run(*GOOD, "--workers=20").stderr == (
        "vsock-proxy: there is no option --workers; see vsock-proxy --help\n"
    )


def test_a_python_that_warns_of_a_dependency_adds_no_line_to_an_error() -> None:
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1", "PYTHONPYCACHEPREFIX": "/nowhere"}
    assert run("x", "a", "1", environment=environment).stderr.count("\n") == 1


def test_an_allowlist_that_is_not_there_is_exit_code_78() -> None:
    done = run("--config", "/nonexistent.yaml", *GOOD)
    assert done.returncode == os.EX_CONFIG
    assert done.stderr == (
        "vsock-proxy: file /nonexistent.yaml: No such file or directory; "
        "name another file with --config\n"
    )


def test_without_arguments_and_services_both_ways_to_serve_are_told(tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    file.write_text("allowlist: []\n")
    done = run("--config", str(file))
    assert done.returncode == os.EX_USAGE
    assert done.stderr == (
        "vsock-proxy: there is nothing to serve: give <local_port> <remote_addr> <remote_port>, or "
        f"list services in {file} (--config), 'services:' beside 'allowlist:'\n"
    )


def test_services_that_are_malformed_are_exit_code_78(tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    file.write_text("allowlist: []\nservices:\n- {listen: 3, address: a, port: 1}\n")
    done = run("--config", str(file))
    assert done.returncode == os.EX_CONFIG
    assert done.stderr == (
        f"vsock-proxy: services {file}, line 3: listen is '3'; expected an integer from 4 to "
        "4294967294\n"
    )


def test_with_arguments_services_are_not_looked_at(tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    file.write_text("services: [{listen: 3}]\nallowlist:\n- {address: 10.0.0.1, port: 443}\n")
    done = run("--config", str(file), "8000", "10.0.0.2", "443")
    assert done.returncode == os.EX_CONFIG
    assert done.stderr.startswith("vsock-proxy: 10.0.0.2:443 is not permitted")


@pytest.fixture
def allowlist(write_allowlist: Callable[..., Path]) -> str:
    """The path of an allowlist of one endpoint, 10.0.0.1:443."""
    return str(write_allowlist(("10.0.0.1", 443)))


def test_a_forbidden_endpoint_is_exit_code_78_and_says_what_to_add(allowlist: str) -> None:
    done = run("--config", allowlist, "8000", "10.0.0.2", "443")
    assert done.returncode == os.EX_CONFIG
    assert "10.0.0.2:443 is not permitted" in done.stderr
    assert "'- {address: 10.0.0.2, port: 443}'" in done.stderr


def test_an_unlisted_name_that_does_not_resolve_is_exit_code_75(allowlist: str) -> None:
    done = run("--config", allowlist, "8000", "nowhere.invalid", "443")
    assert done.returncode == os.EX_TEMPFAIL
    assert "nowhere.invalid does not resolve" in done.stderr


def test_a_literal_address_of_the_other_family_is_a_usage_error(allowlist: str) -> None:
    done = run("--config", allowlist, "-6", "8000", "10.0.0.1", "443")
    assert done.returncode == os.EX_USAGE
    assert "10.0.0.1 is not an address of the family that -6 asks for" in done.stderr


def test_an_address_whose_zone_is_no_interface_is_a_usage_error(allowlist: str) -> None:
    done = run("--config", allowlist, "8000", "fe80::1%nowhere", "443")
    assert done.returncode == os.EX_USAGE
    assert "what follows % is not a network interface of this machine" in done.stderr


METRICS = [
    ("9550", MetricsAddress("127.0.0.1", 9550)),
    (":9550", MetricsAddress("127.0.0.1", 9550)),
    ("localhost:9550", MetricsAddress("127.0.0.1", 9550)),
    ("0.0.0.0:1", MetricsAddress("0.0.0.0", 1)),
    ("[::]:65535", MetricsAddress("::", 65535)),
    ("[fe80::1%lo]:80", MetricsAddress("fe80::1%lo", 80)),
    ("unix:/run/metrics", MetricsAddress(path="/run/metrics")),
    ("unix:metrics", MetricsAddress(path="metrics")),
]


@pytest.mark.parametrize(("text", "address"), METRICS)
def test_metrics_are_served_at_a_port_of_an_address_or_at_a_path(
    text: str, address: MetricsAddress
) -> None:
    assert parse(["--metrics", text, *GOOD]).metrics == address
    assert parse([f"--metrics={text}"]).metrics == address


def test_metrics_are_not_served_unless_that_is_asked_for() -> None:
    assert parse(GOOD).metrics is None


NO_ADDRESS = "--metrics must be HOST:PORT with an IP address of this machine"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", NO_ADDRESS),
        ("x", NO_ADDRESS),
        ("0", NO_ADDRESS),
        ("65536", NO_ADDRESS),
        ("host:9550", NO_ADDRESS),
        ("127.0.0.1", NO_ADDRESS),
        ("127.0.0.1:", NO_ADDRESS),
        ("127.0.0.1:9550/metrics", NO_ADDRESS),
        ("http://127.0.0.1:9550", NO_ADDRESS),
        ("[127.0.0.1]:9550", NO_ADDRESS),
        ("::1:9550", NO_ADDRESS),
        ("[::1]", NO_ADDRESS),
        ("[::1:9550", NO_ADDRESS),
        ("224.0.0.1:9550", NO_ADDRESS),
        ("unix:", "--metrics must be a path of at most 107 bytes"),
        ("unix:" + "x" * 108, "--metrics must be a path of at most 107 bytes"),
    ],
)
def test_an_address_that_metrics_cannot_be_served_at_is_refused(text: str, message: str) -> None:
    with pytest.raises(UsageError) as refused:
        parse([f"--metrics={text}", *GOOD])
    assert str(refused.value).startswith(message)
    assert str(refused.value).endswith(f", not {text!r}") or "path" in message
