"""Which places on TCP are in each other's way: what is said of two agrees with the kernel."""

from __future__ import annotations

import itertools
import socket
from typing import Iterator

import pytest

from tests.support.namespaces import Namespace, why_not
from vsock_proxy.config.places import overlap
from vsock_proxy.errors import UnavailableError
from vsock_proxy.serving.listener import open_listener
from vsock_proxy.settings import Endpoint, ServiceOptions, ServiceSettings

pytestmark = pytest.mark.hybrid_only  # no transport has a part in it

V6_ONLY = socket.AF_INET6
ANY = socket.AF_UNSPEC
LISTENING = [
    ("127.0.0.1", ANY),
    ("127.0.0.2", ANY),
    ("0.0.0.0", ANY),
    ("::1", ANY),
    ("::", ANY),
    ("::", V6_ONLY),
]


def on_tcp(address: str, family: socket.AddressFamily, port: int = 8000) -> ServiceSettings:
    options = ServiceOptions(family=family, listen_tcp=address)
    return ServiceSettings(port, Endpoint("vsock:16", 1), options)


@pytest.fixture(scope="module")
def namespace(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Namespace]:
    """Where no other program has a port."""
    if why_not():
        pytest.skip(why_not())
    made = Namespace(tmp_path_factory.mktemp("places"))
    yield made
    made.close()


@pytest.mark.parametrize(("one", "other"), list(itertools.product(LISTENING, repeat=2)))
def test_two_overlap_if_the_kernel_lets_only_one_listen(
    one: tuple[str, socket.AddressFamily],
    other: tuple[str, socket.AddressFamily],
    namespace: Namespace,
) -> None:
    first, second = on_tcp(*one), on_tcp(*other)

    def only_one_listens() -> bool:
        listener = open_listener(first)
        try:
            open_listener(second).close()
        except UnavailableError:
            return True
        finally:
            listener.close()
        return False

    assert overlap(first, second) is namespace.call(only_one_listens)


def test_another_port_and_another_transport_are_in_nobodys_way() -> None:
    one = on_tcp("0.0.0.0", ANY)
    assert not overlap(one, on_tcp("0.0.0.0", ANY, 8001))
    for options in (ServiceOptions(), ServiceOptions(uds_path="/run/v")):
        other = ServiceSettings(8000, Endpoint("127.0.0.1", 1), options)
        assert not overlap(one, other)
        assert not overlap(other, one)
        assert not overlap(other, other)
