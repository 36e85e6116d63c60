"""Looking up and connecting for --check: all at the same time, each timed.

Each of the two runs in a process of its own. It may have threads, and a signal ends it at once. To
try an address, it makes a worker's upstream with only this address in the table. So the check finds
what a worker would find.
"""

from __future__ import annotations

import os
import queue
import resource
import socket
import threading
import time
from dataclasses import dataclass
from typing import Dict, Iterable, List, Mapping, Optional, Set, Tuple

from vsock_proxy.endpoint.addresses import Address, AddressTable
from vsock_proxy.endpoint.lookup import Answer, LookupFailed, Question, look_up, look_up_all
from vsock_proxy.process.apart import Apart, Died
from vsock_proxy.process.lifeline import Lifeline
from vsock_proxy.process.signals import Signals
from vsock_proxy.serving.presence import SILENT
from vsock_proxy.serving.race import ConnectFailed
from vsock_proxy.serving.waiting import Meanwhile
from vsock_proxy.settings import Endpoint
from vsock_proxy.supervision.service import upstream_of

TITLE = "check"
# Connections tried at the same time, and the descriptors that each may take.
MOST_AT_ONCE = 50
FILES_OF_EACH = 3
# Descriptors left for everything else.
SPARE_FILES = 20

# An answer, and the seconds until it came.
Timed = Tuple[Answer, float]


@dataclass(frozen=True)
class Target:
    """What to connect to. address: None if the endpoint is not reached by an address."""

    endpoint: Endpoint
    address: Optional[Address]
    timeout: float


@dataclass(frozen=True)
class Outcome:
    """The result. error: empty if it connected; code: the errno, 0 if there is none."""

    seconds: float
    error: str = ""
    code: int = 0


def look_up_timed(
    signals: Signals, questions: Set[Question], patience: Optional[float]
) -> Mapping[Question, Timed]:
    """Ask DNS for all at the same time."""
    if not questions:
        return {}
    try:
        with Apart(signals, TITLE, lambda: _look_up_all(questions, patience)) as asking:
            return asking.result()
    except Died as error:
        failed = LookupFailed(f"the process that looks it up {error}")
        return dict.fromkeys(questions, (failed, 0.0))


def connect_timed(signals: Signals, targets: Iterable[Target]) -> Mapping[Target, Outcome]:
    """Connect to each target once, and close the connection at once."""
    wanted = set(targets)
    if not wanted:
        return {}
    lifeline = Lifeline()
    try:
        with Apart(signals, TITLE, lambda: _connect_all(wanted, lifeline)) as connecting:
            return connecting.result()
    except Died as error:
        return dict.fromkeys(wanted, Outcome(0.0, f"the process that connects {error}"))
    finally:
        os.close(lifeline.reader)
        os.close(lifeline.writer)


def _look_up_all(questions: Set[Question], patience: Optional[float]) -> Dict[Question, Timed]:
    seconds: Dict[Question, float] = {}

    def timed(endpoint: Endpoint, family: socket.AddressFamily) -> List[Address]:
        began = time.monotonic()
        try:
            return look_up(endpoint, family)
        finally:
            seconds[endpoint, family] = time.monotonic() - began

    answers = look_up_all(questions, patience, timed)
    # A lookup without an answer has used up its time.
    return {asked: (answer, seconds.get(asked, patience or 0)) for asked, answer in answers.items()}


def _connect_all(targets: Set[Target], lifeline: Lifeline) -> Dict[Target, Outcome]:
    os.close(lifeline.writer)
    waiting: queue.SimpleQueue[Target] = queue.SimpleQueue()
    for target in targets:
        waiting.put(target)
    outcomes: Dict[Target, Outcome] = {}
    # A client that waits and says nothing.
    client, _guest = socket.socketpair()

    def work() -> None:
        while True:
            try:
                target = waiting.get_nowait()
            except queue.Empty:
                return
            outcomes[target] = _connect(target, client, lifeline)

    threads = [threading.Thread(target=work, daemon=True) for _ in range(_at_once(len(targets)))]
    started = list(_started(threads))
    # This thread works too. So the check also goes on if no other thread can be started.
    work()
    for thread in started:
        thread.join()
    return outcomes


def _at_once(targets: int) -> int:
    """How many threads to start besides the first."""
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    bound = MOST_AT_ONCE
    if files != resource.RLIM_INFINITY:
        bound = min(bound, (files - SPARE_FILES) // FILES_OF_EACH)
    return max(0, min(bound, targets) - 1)


def _started(threads: List[threading.Thread]) -> Iterable[threading.Thread]:
    for thread in threads:
        try:
            thread.start()
        except RuntimeError:
            # No more threads can be started.
            return
        yield thread


def _connect(target: Target, client: socket.socket, lifeline: Lifeline) -> Outcome:
    table = None
    if target.address is not None:
        table = AddressTable(target.endpoint.port)
        table.publish((target.address,))
    upstream = upstream_of(target.endpoint, table, target.timeout)
    meanwhile = Meanwhile(lifeline.reader, lambda: None, lambda: os._exit(os.EX_OK))
    began = time.monotonic()
    try:
        sock, _, _ = upstream.connect(client, SILENT, meanwhile)
        sock.close()
        return Outcome(time.monotonic() - began)
    except ConnectFailed as error:
        return Outcome(time.monotonic() - began, str(error), error.code)
    finally:
        if table is not None:
            table.close()
