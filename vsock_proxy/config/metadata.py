"""`{region}` and `{domain}` of endpoints' names, from the EC2 instance metadata service.

An instance knows where it runs, so one unit file serves every region. The proxy asks once for all
endpoints. It asks with a session (IMDSv2), and without one only if the service knows no sessions.
It asks over IPv4, and over IPv6 if nobody answers there. It is patient, because at boot the network
may not be up yet.

http.client ignores the proxies of the environment. That is right, because the metadata of another
machine is of no use. But it limits neither the time nor the length of a whole answer, so its socket
does that. Nothing can limit a lookup of the service's name. So all this runs in a process of its
own, which can be killed. Only that process imports http.client.
"""

from __future__ import annotations

import io
import ipaddress
import logging
import os
import re
import socket
import time
from typing import (
    TYPE_CHECKING,
    Any,
    Callable,
    Dict,
    Iterable,
    List,
    Mapping,
    NamedTuple,
    Optional,
    Sequence,
    Tuple,
)

from vsock_proxy.config.hostnames import NoHost, check_host, normal_name, parse_address
from vsock_proxy.errors import TryAgainError, UsageError
from vsock_proxy.process.apart import Apart, Died
from vsock_proxy.process.signals import Signals

if TYPE_CHECKING:
    from http.client import HTTPResponse

ENDPOINTS = ("http://169.254.169.254", "http://[fd00:ec2::254]")
ENDPOINT_VARIABLE = "VSOCK_PROXY_IMDS_ENDPOINT"
REGION_VARIABLE = "AWS_REGION"
TOKEN_PATH = "/latest/api/token"
PATHS = {
    "{region}": "/latest/meta-data/placement/region",
    "{domain}": "/latest/meta-data/services/domain",
}
LABEL = r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?"
FORMS = {"{region}": LABEL, "{domain}": rf"{LABEL}(\.{LABEL}){{0,9}}"}
URL = re.compile(
    r"http://(\[(?P<ip>[0-9a-f:.]+)(%(25)?(?P<zone>[a-z0-9._-]+))?\]"
    rf"|(?P<name>{LABEL}(\.{LABEL})*))(:(?P<port>[0-9]{{1,5}})?)?/?",
    re.IGNORECASE | re.ASCII,
)
TOKEN_LIFETIME = 60
# The answers of a service without IMDSv2 to the request for a token.
NO_TOKENS = (404, 405)
LONGEST_ANSWER = 1024
# All bytes of an answer, with status lines and headers, also those of a 100 Continue before it.
MOST_BYTES = 1 << 16
# Seconds: for one answer; for the whole search; after that, until a search that goes on is killed;
# and between two rounds.
ANSWER_TIMEOUT = 1.0
PATIENCE = 28.0
GRACE = 2.0
FIRST_PAUSE = 0.25
LONGEST_PAUSE = 4.0

log = logging.getLogger(__name__)


class _Unusable(Exception):
    """The service answered, but not what was asked for."""


class _Address(NamedTuple):
    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def without_placeholders(host: str) -> str:
    """The host name with an ordinary word for each placeholder, to check the rest."""
    for placeholder in PATHS:
        host = host.replace(placeholder, "x")
    return host


Search = Callable[[Sequence[str], Sequence[str], float], Dict[str, str]]


def placeholders(hosts: Iterable[str]) -> Tuple[str, ...]:
    """The placeholders that occur in any of the host names."""
    found = tuple(hosts)
    return tuple(name for name in PATHS if any(name in host for host in found))


def values(
    names: Sequence[str],
    known: Optional[Mapping[str, str]] = None,
    environment: Mapping[str, str] = os.environ,
    search: Optional[Search] = None,
) -> Dict[str, str]:
    """The values of placeholders. Asks for all unknown ones together.

    known: values from before; they stay true, because an instance does not move.
    search: look_up(), or a function that does the same.

    Raises TryAgainError if they cannot be found out. Raises UsageError if an environment variable
    that overrides them is malformed.
    """
    found = {**(known or {}), **_known(environment)}
    unknown = [name for name in names if name not in found]
    if unknown:
        found.update((search or look_up)(unknown, _endpoints(environment), PATIENCE))
    return found


def fill(host: str, values: Mapping[str, str]) -> str:
    """The host name with its placeholders filled in. Raises UsageError if that is no host name."""
    filled = host
    for placeholder, value in values.items():
        filled = filled.replace(placeholder, value)
    try:
        check_host(filled)
    except NoHost as error:
        raise UsageError(
            f"{host} must become a host name or an IP address; {filled!r} {error}"
        ) from None
    return filled


def look_up_apart(signals: Signals) -> Search:
    """look_up() in a process of its own, which ends in time even if a name server hangs."""

    def search(names: Sequence[str], endpoints: Sequence[str], patience: float) -> Dict[str, str]:
        try:
            with Apart(signals, "metadata", lambda: look_up(names, endpoints, patience)) as asking:
                if asking.wait(patience + GRACE):
                    return asking.result()
        except (OSError, Died) as error:
            raise TryAgainError(
                f"no instance metadata for {' and '.join(names)}: the process that asks for it: "
                f"{error}"
            ) from None
        raise TryAgainError(
            f"no instance metadata for {' and '.join(names)} within {patience + GRACE:g} s; does "
            f"the name in {ENDPOINT_VARIABLE} resolve?"
        )

    return search


def look_up(names: Sequence[str], endpoints: Sequence[str], patience: float) -> Dict[str, str]:
    """The values of placeholders, from the first endpoint that answers. Raises TryAgainError.

    It takes at most the patience, or the time of one answer, unless a name server hangs.
    """
    addresses = [_address(endpoint) for endpoint in endpoints]
    deadline = time.monotonic() + max(patience, ANSWER_TIMEOUT)
    pause = FIRST_PAUSE
    while True:
        problems: List[str] = []
        values = _ask_in_turn(addresses, names, deadline, problems)
        if values is not None:
            return values
        if not patience or time.monotonic() + pause > deadline:
            raise TryAgainError(
                f"no instance metadata for {' and '.join(names)} ({'; '.join(problems)}); is this "
                "an EC2 instance with the metadata service enabled and, in a container, a hop "
                "limit of 2?"
            )
        log.info(
            "no instance metadata yet (%(reason)s); trying again",
            {"event": "metadata_awaited", "reason": "; ".join(problems)},
        )
        time.sleep(pause)
        pause = min(pause * 2, LONGEST_PAUSE)


def _known(environment: Mapping[str, str]) -> Dict[str, str]:
    """The values that the environment gives, without asking the service."""
    region = environment.get(REGION_VARIABLE, "")
    if not region:
        return {}
    if not re.fullmatch(FORMS["{region}"], region):
        raise UsageError(f"{REGION_VARIABLE} must be a region such as eu-west-1, not {region!r}")
    return {"{region}": region}


def _endpoints(environment: Mapping[str, str]) -> Sequence[str]:
    endpoint = environment.get(ENDPOINT_VARIABLE)
    return [endpoint] if endpoint else ENDPOINTS


def _address(endpoint: str) -> _Address:
    found = URL.fullmatch(endpoint)
    port = int(found["port"] or 80) if found else 0
    if (
        found
        and 0 < port < 65536
        and (_is_ipv6(found["ip"]) if found["ip"] else _is_host(found["name"]))
    ):
        zone = f"%{found['zone']}" if found["zone"] else ""
        return _Address(found["name"] or found["ip"] + zone, port)
    raise UsageError(f"{ENDPOINT_VARIABLE} must be of the form http://HOST:PORT, not {endpoint!r}")


def _is_host(text: str) -> bool:
    """Whether it is an ordinary IPv4 address or a name, and not a number such as 127.1."""
    try:
        return parse_address(text) is not None or bool(normal_name(text))
    except NoHost:
        return False


def _is_ipv6(text: str) -> bool:
    try:
        ipaddress.IPv6Address(text)
    except ValueError:
        return False
    return True


def _ask_in_turn(
    addresses: Iterable[_Address], names: Sequence[str], deadline: float, problems: List[str]
) -> Optional[Dict[str, str]]:
    """Ask the first address that answers at all. Adds what is wrong to the problems."""
    from http.client import HTTPException

    for address in addresses:
        try:
            return _ask(address, names, deadline)
        except OSError as error:
            problems.append(f"{address}: {error.strerror or error}")
        except (HTTPException, ValueError) as error:
            # http.client raises ValueError for a length that it cannot parse.
            problems.append(f"{address}: {type(error).__name__} {str(error)[:60]!r}")
            break
        except _Unusable as error:
            problems.append(f"{address}: {error}")
            break
    return None


def _ask(address: _Address, names: Sequence[str], deadline: float) -> Dict[str, str]:
    status, token = _request(
        address,
        "PUT",
        TOKEN_PATH,
        {"X-aws-ec2-metadata-token-ttl-seconds": str(TOKEN_LIFETIME)},
        deadline,
    )
    if status != 200 and status not in NO_TOKENS:
        raise _Unusable(f"status {status} for {TOKEN_PATH}")
    if status == 200 and not re.fullmatch(r"[!-~]+", token):
        raise _Unusable("a malformed token")
    headers = {"X-aws-ec2-metadata-token": token} if status == 200 else {}
    return {name: _value(address, name, headers, deadline) for name in names}


def _value(address: _Address, name: str, headers: Mapping[str, str], deadline: float) -> str:
    status, text = _request(address, "GET", PATHS[name], headers, deadline)
    if status != 200:
        raise _Unusable(f"status {status} for {PATHS[name]}")
    if not re.fullmatch(FORMS[name], text):
        raise _Unusable(f"{text[:60]!r} for {PATHS[name]}")
    return text


def _request(
    address: _Address, method: str, path: str, headers: Mapping[str, str], deadline: float
) -> Tuple[int, str]:
    """Status and text of an answer. The text is empty unless the status is 200."""
    from http.client import HTTPConnection

    deadline = min(deadline, time.monotonic() + ANSWER_TIMEOUT)
    connection = HTTPConnection(address.host, address.port, timeout=_left(deadline))
    connection.connect()
    with connection.sock as sock:
        connection.sock = _Bounded(sock, deadline)
        connection.request(method, path, headers=dict(headers))
        response = connection.getresponse()
        body = _body(response, path) if response.status == 200 else b""
    return response.status, body.decode("ascii", "backslashreplace").strip()


def _body(response: HTTPResponse, path: str) -> bytes:
    """The body, if it is as long as the answer says. Raises _Unusable if it was cut short."""
    if not response.chunked:
        lengths = set(response.headers.get_all("Content-Length", ()))
        if len(lengths) != 1 or not re.fullmatch("[0-9]{1,9}", lengths.pop()):
            raise _Unusable(f"an answer that does not say how long it is, for {path}")
    from http.client import IncompleteRead

    try:
        body = response.read(LONGEST_ANSWER + 1)
    except IncompleteRead:
        raise _Unusable(f"an answer that was cut short, for {path}") from None
    if len(body) > LONGEST_ANSWER:
        raise _Unusable(f"an answer of more than {LONGEST_ANSWER} bytes for {path}")
    if response.length:
        raise _Unusable(f"an answer that was cut short, for {path}")
    return body


class _Bounded(io.RawIOBase):
    """The socket of an HTTPConnection: reads until a moment, and up to a limit of bytes.

    The socket's own timeout is for each read, and a service may send a byte a second.
    """

    def __init__(self, sock: socket.socket, deadline: float) -> None:
        super().__init__()
        self._sock = sock
        self._deadline = deadline
        self._most = MOST_BYTES

    def sendall(self, data: bytes) -> None:
        self._sock.settimeout(_left(self._deadline))
        self._sock.sendall(data)

    def makefile(self, mode: str) -> io.BufferedReader:
        return io.BufferedReader(self)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        self._sock.settimeout(_left(self._deadline))
        count = self._sock.recv_into(buffer)
        self._most -= count
        if self._most < 0:
            raise _Unusable(f"an answer of more than {MOST_BYTES} bytes")
        return count

    def close(self) -> None:
        """Does nothing, because http.client closes its connection before it reads the answer."""


def _left(deadline: float) -> float:
    """The seconds left. Raises TimeoutError if there are none."""
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError("timed out")
    return left
