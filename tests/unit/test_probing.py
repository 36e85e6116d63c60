"""Looking up and connecting for --check, where there is less than it would like."""

from __future__ import annotations

import resource
import socket
import threading
from typing import Iterator, NoReturn

import pytest

from vsock_proxy.endpoint.addresses import make_address
from vsock_proxy.process.signals import Signals
from vsock_proxy.settings import Endpoint
from vsock_proxy.supervision import probing
from vsock_proxy.supervision.probing import Target

pytestmark = pytest.mark.hybrid_only  # no transport has a part in it


def targets(port: int, count: int) -> set[Target]:
    """Different addresses of the same server, on all of which it listens."""
    return {
        Target(
            Endpoint("name.test", port),
            make_address(socket.AF_INET, (f"127.0.1.{number}", port)),
            5.0,
        )
        for number in range(1, count + 1)
    }


def test_all_are_connected_to_where_there_can_be_no_thread(
    signals: Signals, monkeypatch: pytest.MonkeyPatch
) -> None:
    def start(thread: threading.Thread) -> NoReturn:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", start)
    with socket.create_server(("0.0.0.0", 0)) as server:
        outcomes = probing.connect_timed(signals, targets(server.getsockname()[1], 3))
    assert [outcome.error for outcome in outcomes.values()] == ["", "", ""]


@pytest.fixture
def few_files() -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (70, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_no_more_are_tried_at_the_same_time_than_there_may_be_files(few_files: None) -> None:
    assert probing._at_once(1000) == (70 - probing.SPARE_FILES) // probing.FILES_OF_EACH - 1
    assert probing._at_once(3) == 2
    assert probing._at_once(1) == 0


def test_nothing_to_do_takes_no_process(signals: Signals) -> None:
    assert probing.connect_timed(signals, ()) == {}
    assert probing.look_up_timed(signals, set(), None) == {}
