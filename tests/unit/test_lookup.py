"""Several lookups at the same time: none waits for another, and none is waited for too long."""

from __future__ import annotations

import socket
import threading
import time
from typing import Dict, List, Tuple

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


# What the system's resolver answers, and what may be connected to of it

V4, V6 = socket.AF_INET, socket.AF_INET6
ANY = socket.AF_UNSPEC
Answers = List[Tuple[int, Tuple[object, ...]]]
A = (V4, ("192.0.2.1", PORT))
B = (V4, ("192.0.2.2", PORT))
X = (V6, ("2001:db8::1", PORT, 0, 0))
MAPPED = (V6, ("::ffff:192.0.2.1", PORT, 0, 0))
ZONED = (V6, ("fe80::1", PORT, 0, 7))
# Of a Python without IPv6, of a family that is none of the internet, and what is no address.
STRANGE: Answers = [(V6, (10, b"")), (socket.AF_UNIX, ("a", PORT)), (V4, ("name", PORT))]
ANSWERS: Dict[str, Tuple[socket.AddressFamily, Answers, List[str]]] = {
    "in their order": (ANY, [X, B, A], ["2001:db8::1", "192.0.2.2", "192.0.2.1"]),
    "each once": (ANY, [A, B, A, A], ["192.0.2.1", "192.0.2.2"]),
    "IPv4 mapped into IPv6 is IPv4": (ANY, [MAPPED, A], ["192.0.2.1"]),
    "which is none where IPv6 is asked for": (V6, [MAPPED, X], ["2001:db8::1"]),
    "with the index of the zone's interface": (ANY, [ZONED], ["fe80::1"]),
    "none of what is strange": (ANY, [*STRANGE, A, *STRANGE], ["192.0.2.1"]),
}


def answering(monkeypatch: pytest.MonkeyPatch, answers: Answers) -> None:
    """Let the system's resolver answer so."""
    found = [(family, socket.SOCK_STREAM, 6, "", sockaddr) for family, sockaddr in answers]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *asked: found)


@pytest.mark.parametrize(("family", "answers", "hosts"), ANSWERS.values(), ids=ANSWERS.keys())
def test_of_an_answer_there_is_what_can_be_connected_to(
    family: socket.AddressFamily,
    answers: Answers,
    hosts: List[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    answering(monkeypatch, answers)
    found = look_up(*question("name.test", family))
    assert [address.sockaddr[0] for address in found] == hosts


@pytest.mark.parametrize("answers", [[], STRANGE, [MAPPED]], ids=["nothing", "strange", "mapped"])
def test_an_answer_without_an_address_to_connect_to_is_a_failed_lookup(
    answers: Answers, monkeypatch: pytest.MonkeyPatch
) -> None:
    answering(monkeypatch, answers)
    with pytest.raises(LookupFailed, match="no address of a family that can be used"):
        look_up(*question("name.test", V6))


def test_a_name_that_dns_cannot_hold_is_a_failed_lookup() -> None:
    with pytest.raises(LookupFailed, match="not a valid host name"):
        look_up(*question("\u00fc" * 100))
