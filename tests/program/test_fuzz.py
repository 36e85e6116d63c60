"""Whatever is in the file or on the command line: never a traceback, always a code of sysexits.h.

The parsing functions take thousands of examples in this process; the program itself takes dozens.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Iterator, List, Optional

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.fuzzing import FEW, MANY, assert_civil, choices, is_one_line
from vsock_proxy import cli
from vsock_proxy.config import loading
from vsock_proxy.errors import ConfigurationError, UsageError
from vsock_proxy.settings import Endpoint, ServiceOptions, Settings

pytestmark = pytest.mark.hybrid_only

# What is likely to be near to something that is right, so that not all ends at the first check.
YAML_PIECES = (
    *("allowlist:", "- ", "{", "}", "[", "]", "address: ", "port: ", ", ", "\n", "  ", ": "),
    *("443", "0", "0x1bb", "1e3", "1:30", "-1", "~", "null", "yes", "0o17", "0b1", "9" * 5000),
    *("kms.us-east-1.amazonaws.com", "*.example", "*", "*.", ".", "10.0.0.0/8", "10.0.0.1/8"),
    *("::1", "fe80::1%1", "'a'", '"\\u0000"', '"', "'", "&a ", "*a", "!!binary ", "!!python/x "),
    *("<<: ", "? ", "|\n", ">\n", "# ", "---\n", "...\n", "%YAML 9.9\n", "\t", "\r", "\x85"),
    *("\ufeff", "\u2028", "bücher.example", "xn--", "xn--bcher-kva", "ß" * 70, "\ud7ff"),
    *("fe80::1%lo", "fe80::%lo/64", "::ffff:10.0.0.1", "16", "127.1", "x:443", "[::1]", "{region}"),
    *("%TAG ! x\n", "- " * 30, "[" * 30, "&a {address: *a, port: *b}", "- *a\n" * 20, "*.0.0.1"),
    *("vsock:16", "vsock:*", "unix:/v", "unix:*", "unix:", "4294967294"),
    *("allowlist:\n- {address: a, port: 1}\n", "- {address: '", "', port: 443}\n", "- - "),
)
# Pairs of a service, and ends of one that begin the next.
SERVICE_PIECES = (
    *("workers: 4", "workers: 0", "workers: 9999", "workers: '4'", "worker: 4", "workers: 1.5"),
    *("family: ipv6", "family: ipv4", "family: ip", "uds_path: /v", "uds_path: ''", "uds_path: 1"),
    *("allow_cid: [16, 17]", "allow_cid: []", "allow_cid: 16", "allow_cid: [~]", "allow_cid: *a"),
    *("idle_timeout: 0", "idle_timeout: 1:30", "connect_timeout: .5", "resolve_interval: .inf"),
    *("connect_timeout: 0x10", "resolve_interval: 1_000", f"idle_timeout: {'9' * 5000}", "<<: {}"),
    *("}\n- {listen: 8001, address: b, port: 1", "}\n- {listen: 8000, address: b, port: 2"),
    *("}\n- {listen: 8002, address: 10.0.0.1, port: 1", "}\n- {listen: 3, address: 16, port: 1"),
    *("}\n- {listen: 8003, address: '::1', port: 1", "}\n- {listen: 8004, address: b"),
    *("}\n- {listen: 8005, address: '{region}', port: 1", "}\n- *a\n- {", "}\n- 8000\n- {"),
    *(
        "}\n- &a {listen: 8006, address: &a b, port: 1",
        "}\nservices:\n- {",
        '"\\0": 1',
        "? [a] : b",
    ),
    *("}\n- &a {listen: 8007, address: bücher.example, port: 1", "}\nx: {", "listen: 8008"),
    *("}\nservices:\n- {", "&a ", "}\n- {listen: 8009, address: 'vsock:16', port: 4294967294"),
    *(
        "}\n- {listen: 8010, address: unix:/v, port: 0",
        "}\n- {listen: 8011, address: vsock:x, port: 1",
    ),
)
OPTIONS = (
    *("-4", "--ipv4", "-6", "--ipv6", "-46", "-w", "-w4", "-w=4", "--num_workers", "--num"),
    *("--config", "--uds-path", "--allow-cid", "--connect-timeout", "--idle-timeout"),
    *("--resolve-interval", "--drain-timeout", "--log-level", "--version", "-h", "--help"),
    *("--config=", "--config=x", "--allow-cid=1,,2", "--", "-", "--4", "---", "-x", "--x=y"),
    *("-V", "-w=4", "-w=", "-4w4", "-4w", "-V4", "-4V", "--num_workers=", "--4=", "-w--"),
    *("--vers", "--he", "-4h", "--ip", "--l=info", "--idle=1", "--resolve-interval=.1"),
)
VALUES = (
    *("8000", "443", "0", "1", "-1", "4294967295", "9" * 400, "1e9", "nan", "inf", "0.5", ".5"),
    *("8_000", " 8000", "\u0668", "kms.us-east-1.amazonaws.com", "127.0.0.1", "::1", "fe80::1%1"),
    *("", "a" * 300, "a..b", "\n", "\x00", "\udcff", "info", "debug", "loud", "1,2", ",", "/x"),
    *("16", "127.1", "0x7f000001", "\uff11\uff16", "::ffff:127.0.0.1", "fe80::1%lo", "x:443", "-5"),
    *("a..x", "x" * 64, "http://x", "1.2.3.4.", "*.x"),
    *("vsock:16", "vsock:", "vsock:*", "vsock:16:1", "VSOCK:1", "unix:/x", "unix:", "unix:\udcff"),
    *("bücher.example", "[::1]", "1.2.3", "0x7f.1", "%", "options", "<local_port>"),
)


YAML = choices(YAML_PIECES, 30).map("".join)
FILES = st.one_of(
    st.binary(max_size=200),
    YAML.map(lambda text: text.encode("utf-8", "surrogatepass")),
    st.tuples(YAML, st.binary(max_size=8)).map(
        lambda parts: b"allowlist:\n- {address: " + parts[0].encode("utf-8") + parts[1] + b"}"
    ),
)
SERVICES = choices(SERVICE_PIECES, 5).map(
    lambda pieces: (
        "allowlist: []\nservices:\n- {"
        + ", ".join(["listen: 7999, address: a.example, port: 443", *pieces])
        + "}"
    ).encode()
)
ANYTHING = st.binary(max_size=20).map(lambda data: [data.decode("utf-8", "surrogateescape")])
WORDS = st.one_of(ANYTHING, choices(OPTIONS + VALUES, 9))
NEARLY_GOOD = st.tuples(WORDS, st.permutations(["8000", "127.0.0.1", "443"]), WORDS).map(
    lambda parts: [*parts[0][:2], *parts[1], *parts[2][:2]]
)
COMMAND_LINES = st.one_of(WORDS, NEARLY_GOOD)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "allowlist.yaml"


@pytest.fixture(scope="module")
def memory() -> Iterator[int]:
    """A file that is in no file system, as those take longer than all the rest."""
    fd = os.memfd_create("allowlist")
    yield fd
    os.close(fd)


@MANY
@given(content=FILES)
def test_any_file_is_an_allowlist_or_an_error_of_one_line(memory: int, content: bytes) -> None:
    os.ftruncate(memory, 0)
    os.pwrite(memory, content, 0)
    path = f"/proc/self/fd/{memory}"
    try:
        loaded = loading.load(path).allowlist
    except ConfigurationError as error:
        assert is_one_line(str(error))
        assert path in str(error)
    else:
        assert not loaded.permits_name("", 443)
        assert all(entry.place or 1 <= entry.port <= 65535 for entry in loaded.entries)


@MANY
@given(content=SERVICES, uds_path=st.sampled_from([None, "/run/v"]))
def test_any_services_are_settings_or_an_error_of_one_line(
    memory: int, content: bytes, uds_path: Optional[str]
) -> None:
    os.ftruncate(memory, 0)
    os.pwrite(memory, content, 0)
    path = f"/proc/self/fd/{memory}"
    try:
        found = loading.load(path).services(ServiceOptions(uds_path=uds_path), 4)
    except ConfigurationError as error:
        assert is_one_line(str(error))
        assert path in str(error)
    else:
        assert found
        assert len({(each.path, each.path or each.local_port) for each in found}) == len(found)
        for each in found:
            assert 3 < each.local_port < 2**32 - 1
            assert has_port(each.endpoint)
            assert each.path is None or each.options.allowed_cids is None


@MANY
@given(words=COMMAND_LINES)
def test_any_command_line_is_settings_or_an_error_of_one_line(words: List[str]) -> None:
    try:
        parsed = cli.parse(list(words))
    except UsageError as error:
        assert str(error)
    else:
        assert isinstance(parsed, Settings)
        if parsed.service is not None:
            assert 3 < parsed.service.local_port < 2**32 - 1
            assert has_port(parsed.service.endpoint)
        assert parsed.workers >= 1


@FEW
@given(words=COMMAND_LINES)
def test_the_program_takes_any_command_line(file: Path, words: List[str]) -> None:
    file.write_text("allowlist:\n- {address: 10.255.255.1, port: 1}\n")
    # This file permits nothing that the words name, so that no port of this machine is opened.
    assert_civil(["--config", str(file), *filter(is_passable, words)])


def has_port(endpoint: Endpoint) -> bool:
    """Whether its port is one of what it is."""
    if endpoint.is_tcp:
        return 1 <= endpoint.port <= 65535
    return 0 <= endpoint.port < 2**32 - 1 and bool(endpoint.path or endpoint.cid is not None)


def is_passable(word: str) -> bool:
    """Whether a process can be given this argument at all."""
    try:
        return b"\0" not in os.fsencode(word)
    except UnicodeEncodeError:
        return False


@FEW
@given(content=SERVICES)
def test_the_program_takes_any_services(file: Path, content: bytes) -> None:
    # The allowlist is empty, so that nothing is served. The metadata need not be asked for.
    file.write_bytes(content)
    assert_civil(["--config", str(file)], {**os.environ, "AWS_REGION": "eu-west-1"})


@FEW
@given(content=FILES)
def test_the_program_takes_any_file(file: Path, content: bytes) -> None:
    file.write_bytes(content)
    socket_path = str(file.parent / "v")
    assert_civil(["--config", str(file), "--uds-path", socket_path, "8000", "127.0.0.1", "443"])
