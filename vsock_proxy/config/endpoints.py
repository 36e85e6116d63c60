"""What an endpoint may be: a host for TCP, a guest or parent on vsock, or a VMM's Unix socket.

    text                  connected to                                   ports
    a host (hostnames)    TCP                                            1 to 65535
    vsock:CID             AF_VSOCK                                       0 to 4294967294
    unix:PATH             hybrid vsock: a port of the guest whose VMM    the same, of the guest
                          listens on the Unix socket PATH

The command line, the services and the allowlist share these rules. vsock:CID and unix:PATH name a
place directly. So no lookup stands between what is permitted and what is connected to.
"""

from __future__ import annotations

from typing import Optional

from vsock_proxy.config import rules
from vsock_proxy.config.hostnames import NoHost, check_host
from vsock_proxy.config.metadata import without_placeholders
from vsock_proxy.config.rules import Unfit
from vsock_proxy.settings import UNIX_PREFIX, VSOCK_PREFIX

EXPECTED = "a host name, an IP address, vsock:CID or unix:PATH"
PREFIXES = (VSOCK_PREFIX, UNIX_PREFIX)
# Only in the allowlist.
EVERY_CID = f"{VSOCK_PREFIX}*"


def check_endpoint(text: str) -> None:
    """Raise NoHost if nothing can be connected to by this text."""
    if normal_place(text) is None:
        check_host(without_placeholders(text))


def normal_place(text: str) -> Optional[str]:
    """`vsock:CID` or `unix:PATH` in the one form for comparison; None if the text is neither.

    Raises NoHost if there cannot be such a place.
    """
    for prefix, normal in ((VSOCK_PREFIX, _normal_cid), (UNIX_PREFIX, _normal_path)):
        if text.startswith(prefix):
            return prefix + normal(text[len(prefix) :])
        if text[: len(prefix)].lower() == prefix:
            raise NoHost("is no host name", f"{prefix} is written in lower case")
    return None


def port_rule(text: str) -> rules.Integer:
    """Which ports an endpoint with this text can have."""
    return rules.VSOCK_REMOTE_PORT if text.startswith(PREFIXES) else rules.TCP_PORT


def _normal_cid(text: str) -> str:
    try:
        return str(rules.CID.parse(text))
    except Unfit as error:
        hint = "the port is given apart from it" if ":" in text else ""
        raise NoHost(f"has no CID after {VSOCK_PREFIX}, {error}", hint) from None


def _normal_path(text: str) -> str:
    try:
        rules.check_path(text)
    except Unfit as error:
        raise NoHost(f"has no path after {UNIX_PREFIX}, {error}") from None
    try:
        text.encode()
    except UnicodeEncodeError:
        raise NoHost("has a path that is not UTF-8", "no allowlist can name it") from None
    if "*" in text:
        # It would look like a pattern, but permit nothing.
        raise NoHost("has a * in its path", "a path is no pattern, write each one out")
    return rules.normal_path(text)
