"""Which places on TCP are in each other's way: what is said of two agrees with the kernel."""

from __future__ import annotations

import itertools
import socket
from typing import Any, Iterator, Optional

import pytest

from tests.support.namespaces import Namespace, why_not
from vsock_proxy.config.places import TcpPlace, tcp_place_of
from vsock_proxy.errors import UnavailableError
from vsock_proxy.serving.listener import listen_tcp
from vsock_proxy.settings import Endpoint, ServiceOptions, ServiceSettings

pytestmark = pytest.mark.hybrid_only  # no transport has a part in it

PLACES = [
    *(TcpPlace(address, 8000) for address in ("127.0.0.1", "127.0.0.2", "0.0.0.0", "::1", "::")),
    TcpPlace("::", 8000, v6_only=True),
]


@pytest.fixture(scope="module")
def namespace(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Namespace]:
    """Where no other program has a port."""
    if why_not():
        pytest.skip(why_not())
    made = Namespace(tmp_path_factory.mktemp("places"))
    yield made
    made.close()


@pytest.mark.parametrize(("one", "other"), list(itertools.product(PLACES, repeat=2)))
def test_two_overlap_if_the_kernel_lets_only_one_listen(
    one: TcpPlace, other: TcpPlace, namespace: Namespace
) -> None:
    def only_one_listens() -> bool:
        listener = listen_tcp(*one)
        try:
            listen_tcp(*other).close()
        except UnavailableError:
            return True
        finally:
            listener.close()
        return False

    assert one.overlaps(other) is namespace.call(only_one_listens)


def test_another_port_does_not_overlap() -> None:
    assert not TcpPlace("0.0.0.0", 8000).overlaps(TcpPlace("0.0.0.0", 8001))


def test_only_a_service_on_tcp_has_a_place_there() -> None:
    def place(**options: Any) -> Optional[TcpPlace]:
        return tcp_place_of(
            ServiceSettings(8000, Endpoint("127.0.0.1", 1), ServiceOptions(**options))
        )

    assert place() is None
    assert place(uds_path="/run/v") is None
    assert place(listen_tcp="::") == TcpPlace("::", 8000)
    assert place(listen_tcp="::", family=socket.AF_INET6) == TcpPlace("::", 8000, v6_only=True)
