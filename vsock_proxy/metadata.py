"""`{region}` and `{domain}` of an endpoint's name, from the EC2 instance metadata service.

An instance knows where it runs, so one unit file serves every region. Asked once at start: session-
oriented (IMDSv2), the older way only where the service does not know the newer, over IPv4 or, where
nobody answers there, IPv6. At boot the network may not be up yet, hence the patience.

http.client ignores the proxies of the environment, which is wanted: the metadata of another machine
is of no use. It is imported only when there is something to ask, for the time that takes.
"""

from __future__ import annotations

import logging
import os
import re
import time
from typing import Dict, Iterable, List, Mapping, NamedTuple, Optional, Sequence

from vsock_proxy.errors import TryAgainError, UsageError

ENDPOINTS = ("http://169.254.169.254", "http://[fd00:ec2::254]")
ENDPOINT_VARIABLE = "VSOCK_PROXY_IMDS_ENDPOINT"
REGION_VARIABLE = "AWS_REGION"
TOKEN_PATH = "/latest/api/token"
PATHS = {
    "{region}": "/latest/meta-data/placement/region",
    "{domain}": "/latest/meta-data/services/domain",
}
FORMS = {"{region}": r"[a-z0-9-]{1,63}", "{domain}": r"[a-z0-9-]{1,63}(\.[a-z0-9-]{1,63}){0,9}"}
TOKEN_LIFETIME = 60
# What a service that predates IMDSv2 answers to the request for a token.
NO_TOKENS = (404, 405)
LONGEST_ANSWER = 1024
# Seconds: for one answer, for the whole search, and between two rounds of it.
ANSWER_TIMEOUT = 1.0
PATIENCE = 30.0
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
    """The host name with something ordinary in the place of each placeholder, to check the rest."""
    for placeholder in PATHS:
        host = host.replace(placeholder, "x")
    return host


def expand(host: str, environment: Mapping[str, str] = os.environ) -> str:
    """The host name with region and domain filled in.

    Raises TryAgainError if they cannot be found out, UsageError if a variable of the environment
    that overrides them is malformed.
    """
    values = _known(environment)
    unknown = [name for name in PATHS if name in host and name not in values]
    if unknown:
        values.update(look_up(unknown, _endpoints(environment), PATIENCE))
    for placeholder, value in values.items():
        host = host.replace(placeholder, value)
    return host


def look_up(names: Sequence[str], endpoints: Sequence[str], patience: float) -> Dict[str, str]:
    """The values of placeholders, from the first endpoint that answers. Raises TryAgainError."""
    addresses = [_address(endpoint) for endpoint in endpoints]
    deadline = time.monotonic() + patience
    pause = FIRST_PAUSE
    while True:
        problems: List[str] = []
        values = _ask_in_turn(addresses, names, problems)
        if values is not None:
            return values
        if time.monotonic() + pause > deadline:
            raise TryAgainError(
                f"no instance metadata for {' and '.join(names)} ({'; '.join(problems)}); is this "
                "an EC2 instance with the metadata service enabled and, in a container, a hop "
                "limit of 2?"
            )
        log.info("no instance metadata yet (%s); trying again", "; ".join(problems))
        time.sleep(pause)
        pause = min(pause * 2, LONGEST_PAUSE)


def _known(environment: Mapping[str, str]) -> Dict[str, str]:
    """What the environment says without asking anyone."""
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
    from urllib.parse import urlsplit

    try:
        parts = urlsplit(endpoint)
        if parts.scheme == "http" and parts.hostname and parts.path in ("", "/"):
            return _Address(parts.hostname, parts.port or 80)
    except ValueError:
        pass
    raise UsageError(f"{ENDPOINT_VARIABLE} must be of the form http://HOST:PORT, not {endpoint!r}")


def _ask_in_turn(
    addresses: Iterable[_Address], names: Sequence[str], problems: List[str]
) -> Optional[Dict[str, str]]:
    """Ask the first that answers at all; what is wrong is added to the problems."""
    from http.client import HTTPException

    for address in addresses:
        try:
            return _ask(address, names)
        except OSError as error:
            problems.append(f"{address}: {error.strerror or error}")
        except HTTPException as error:
            problems.append(f"{address}: {type(error).__name__} {str(error)[:60]!r}")
            break
        except _Unusable as error:
            problems.append(f"{address}: {error}")
            break
    return None


def _ask(address: _Address, names: Sequence[str]) -> Dict[str, str]:
    status, token = _request(
        address,
        "PUT",
        TOKEN_PATH,
        {"X-aws-ec2-metadata-token-ttl-seconds": str(TOKEN_LIFETIME)},
    )
    if status != 200 and status not in NO_TOKENS:
        raise _Unusable(f"status {status} for {TOKEN_PATH}")
    if status == 200 and not re.fullmatch(r"[!-~]+", token):
        raise _Unusable("a malformed token")
    headers = {"X-aws-ec2-metadata-token": token} if status == 200 else {}
    return {name: _value(address, name, headers) for name in names}


def _value(address: _Address, name: str, headers: Mapping[str, str]) -> str:
    status, text = _request(address, "GET", PATHS[name], headers)
    if status != 200:
        raise _Unusable(f"status {status} for {PATHS[name]}")
    if not re.fullmatch(FORMS[name], text):
        raise _Unusable(f"{text[:60]!r} for {PATHS[name]}")
    return text


def _request(
    address: _Address, method: str, path: str, headers: Mapping[str, str]
) -> tuple[int, str]:
    from http.client import HTTPConnection

    connection = HTTPConnection(address.host, address.port, timeout=ANSWER_TIMEOUT)
    try:
        connection.request(method, path, headers=dict(headers))
        response = connection.getresponse()
        body = response.read(LONGEST_ANSWER)
        return response.status, body.decode("ascii", "backslashreplace").strip()
    finally:
        connection.close()
