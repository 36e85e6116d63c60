"""The sockets that the service manager has passed: whose each is, and that none is given up."""

from __future__ import annotations

import contextlib
import socket
from pathlib import Path
from typing import Callable, Iterator, List, Sequence

import pytest

from vsock_proxy.errors import UnavailableError
from vsock_proxy.serving.passed import Passed, unasked
from vsock_proxy.settings import Endpoint, ServiceOptions, ServiceSettings

pytestmark = pytest.mark.hybrid_only  # where the sockets come from does not matter
Sockets = Callable[..., List[socket.socket]]


def services(*places: str | int) -> List[ServiceSettings]:
    """A service for each vsock port, or for each path that ends in _8000."""
    return [
        ServiceSettings(place, Endpoint("192.0.2.1", 443))
        if isinstance(place, int)
        else ServiceSettings(
            8000,
            Endpoint("192.0.2.1", 443),
            ServiceOptions(uds_path=place[: -len("_8000")]),
        )
        for place in places
    ]


@pytest.fixture
def bound(tmp_path: Path) -> Iterator[Sockets]:
    """Makes listening Unix sockets, of names in the test's folder."""
    made: List[socket.socket] = []

    def bind(*names: str) -> List[socket.socket]:
        for name in names:
            made.append(socket.socket(socket.AF_UNIX))
            made[-1].bind(str(tmp_path / name))
            made[-1].listen()
        return made[-len(names) :]

    yield bind
    for sock in made:
        sock.close()


@pytest.mark.parametrize(
    ("passed", "asked", "left"),
    [
        ([], [8000], []),
        (["vsock port 8000"], [8000], []),
        (["vsock port 8000"], [8001, 8000], []),
        (["vsock port 8000", "vsock port 8001"], [8001], ["vsock port 8000"]),
        (["vsock port 8000"], ["/run/v_8000"], ["vsock port 8000"]),
        (["Unix socket /run/v_8000"], ["/run/v_8000"], []),
        # systemd has such a path in its simplest form.
        (["Unix socket /run/v_8000"], ["/run/.//v_8000"], []),
        (["Unix socket /run/v_8000"], ["//run/v_8000"], []),
        (["Unix socket /run/v_8000"], ["/run/w_8000", 8000], ["Unix socket /run/v_8000"]),
        (["vsock port 1", "vsock port 2"], [], ["vsock port 1", "vsock port 2"]),
    ],
)
def test_a_socket_is_asked_for_by_the_service_that_listens_at_its_address(
    passed: Sequence[str], asked: Sequence[str | int], left: List[str]
) -> None:
    assert unasked(passed, services(*asked)) == left


def test_every_socket_that_no_service_asks_for_is_named(bound: Sockets, tmp_path: Path) -> None:
    passed = Passed(bound("a_8000", "b_8000", "c_8000"))
    with pytest.raises(UnavailableError) as raised:
        passed.check(services(f"{tmp_path}/b_8000", 8000))
    assert f"Unix socket {tmp_path}/a_8000, Unix socket {tmp_path}/c_8000, but" in str(raised.value)


def test_two_sockets_for_one_place_are_an_error_that_names_it(
    bound: Sockets, tmp_path: Path
) -> None:
    first = bound("a_8000")
    (tmp_path / "a_8000").unlink()
    with pytest.raises(UnavailableError, match=r"two sockets for Unix socket \S+/a_8000;"):
        Passed(first + bound("a_8000"))


def test_a_service_has_the_socket_of_its_address_and_one_without_is_bound(
    bound: Sockets, tmp_path: Path
) -> None:
    sockets = bound("a_8000", "b_8000")
    passed = Passed(sockets)
    asked = services(*(f"{tmp_path}/{name}_8000" for name in "cba"))
    listeners = [passed.open(service) for service in asked]
    with contextlib.closing(listeners[0]):
        assert [listener.sock for listener in listeners[1:]] == [sockets[1], sockets[0]]
        assert [listener.passed for listener in listeners] == [False, True, True]
        assert listeners[0].name == f"Unix socket {tmp_path}/c_8000"
        listeners[0].remove()


def test_the_path_of_a_passed_socket_is_not_removed(bound: Sockets, tmp_path: Path) -> None:
    passed = Passed(bound("a_8000"))
    passed.open(services(f"{tmp_path}/a_8000")[0]).remove()
    assert (tmp_path / "a_8000").is_socket()


def test_a_socket_is_taken_up_again_by_a_service_that_comes_back(
    bound: Sockets, tmp_path: Path
) -> None:
    sockets = bound("a_8000")
    passed = Passed(sockets)
    (service,) = services(f"{tmp_path}/a_8000")
    passed.open(service)
    assert passed.open(service).sock is sockets[0]


def test_a_reload_that_leaves_a_socket_without_a_service_is_warned_of(
    bound: Sockets, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    passed = Passed(bound("a_8000", "b_8000"))
    passed.warn(services(f"{tmp_path}/a_8000"))
    (warning,) = (record.getMessage() for record in caplog.records)
    assert warning.startswith(f"systemd holds Unix socket {tmp_path}/b_8000, but no service")
