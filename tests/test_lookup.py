"""Several lookups at the same time: none waits for another, and none is waited for too long."""

from __future__ import annotations

import socket
import threading
import time
from typing import List

import pytest

from tests.support.timing import SLOWNESS
from vsock_proxy.endpoint.addresses import Address, make_address
from vsock_proxy.endpoint.lookup import LookupFailed, Question, look_up, look_up_all
from vsock_proxy.settings import Endpoint

pytestmark = pytest.mark.hybrid_only  # no transport has a part in it

PORT = 443
FOUND = [make_address(socket.AF_INET, ("192.0.2.1", PORT))]


def question(host: str, family: socket.AddressFamily = socket.AF_UNSPEC) -> Question:
    return Endpoint(host, PORT), family


def test_all_are_asked_at_the_same_time() -> None:
    together = threading.Barrier(25)

    def meet(endpoint: Endpoint, family: socket.AddressFamily) -> List[Address]:
        together.wait(20 * SLOWNESS)
        return FOUND

    questions = [question(f"name{number}.test") for number in range(25)]
    assert look_up_all(questions, look_up=meet) == dict.fromkeys(questions, FOUND)


def test_one_that_hangs_costs_the_others_nothing() -> None:
    may_end = threading.Event()

    def hang_for_one(endpoint: Endpoint, family: socket.AddressFamily) -> List[Address]:
        if endpoint.host == "hangs.test":
            may_end.wait(60)
        return FOUND

    began = time.monotonic()
    answers = look_up_all(
        [question("hangs.test"), question("well.test")], 0.2, look_up=hang_for_one
    )
    assert time.monotonic() - began < 5 * SLOWNESS
    may_end.set()
    assert answers[question("well.test")] == FOUND
    failed = answers[question("hangs.test")]
    assert isinstance(failed, LookupFailed)
    assert str(failed) == "no answer within 0.2 s"


def test_one_question_is_asked_once_and_each_family_is_one_of_its_own() -> None:
    asked = []

    def note(endpoint: Endpoint, family: socket.AddressFamily) -> List[Address]:
        asked.append(family)
        return FOUND

    questions = [question("a.test"), question("a.test"), question("a.test", socket.AF_INET6)]
    assert len(look_up_all(questions, look_up=note)) == 2
    assert sorted(asked) == [socket.AF_UNSPEC, socket.AF_INET6]


def test_a_failure_is_the_answer_to_its_own_question() -> None:
    def fail_for_one(endpoint: Endpoint, family: socket.AddressFamily) -> List[Address]:
        if endpoint.host == "bad.test":
            raise LookupFailed("gone")
        return FOUND

    answers = look_up_all([question("bad.test"), question("well.test")], look_up=fail_for_one)
    assert str(answers[question("bad.test")]) == "gone"
    assert answers[question("well.test")] == FOUND


def test_a_bug_in_a_lookup_is_no_failed_lookup() -> None:
    def stumble(endpoint: Endpoint, family: socket.AddressFamily) -> List[Address]:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        look_up_all([question("a.test")], look_up=stumble)


def test_a_thread_that_cannot_be_started_is_a_failed_lookup(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def start(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", start)
    answers = look_up_all([question("a.test")], 5.0)
    assert str(answers[question("a.test")]) == "can't start new thread"


def test_the_addresses_of_this_machine_are_found() -> None:
    (address,) = look_up(*question("127.0.0.1"))
    assert str(address) == "127.0.0.1:443"
    with pytest.raises(LookupFailed):
        look_up(*question("name.invalid"))
