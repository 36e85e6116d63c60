"""The process that serves metrics and health. It only reads what others have written.

It holds no listener of a service and no connection of a client. If the processor is busy,
connections come first, because its niceness is higher (nice(2)).

It ends with the master, or when the master says in Vitals that another has replaced it. A signal
only makes it look there. So signals to the whole group do not end it, and it runs until the last
connection has drained.
"""

from __future__ import annotations

import logging
import os
import select
import socket
import time
from http import HTTPStatus
from typing import Callable, Optional

from vsock_proxy.observing.account import Scene
from vsock_proxy.observing.health import Verdict, conditions, healthy, ready
from vsock_proxy.observing.http_answers import TEXT, Answer, Answers
from vsock_proxy.observing.untold import Untold
from vsock_proxy.observing.vitals import Vitals
from vsock_proxy.process.signals import Signals

NICENESS = 10
# Seconds: within which the master must give a sign of life, and between two looks for it.
PULSE_TIMEOUT = 1.0
PULSE_LOOK = 0.002

METRICS, HEALTH, READINESS = "/metrics", "/healthz", "/readyz"
NOT_FOUND = f"not found; there are {METRICS}, {HEALTH} and {READINESS}\n".encode()

log = logging.getLogger(__name__)


class Exporter:
    """What the process does."""

    def __init__(
        self, scene: Scene, untold: Untold, vitals: Vitals, wake_master: Callable[[], None]
    ) -> None:
        self._scene = scene
        self._untold = untold
        self._vitals = vitals
        self._wake_master = wake_master

    def run(
        self, listener: socket.socket, serial: int, lifeline: int, signals: Signals
    ) -> Optional[int]:
        """Serve until the lifeline ends or a later exporter runs; returns an exit code."""
        _make_way()
        try:
            from vsock_proxy.observing.exposition import exposition
        except ImportError as error:
            log.error(
                "cannot serve metrics: %(reason)s; install vsock-proxy[metrics] again",
                {"event": "metrics_unavailable", "reason": error},
            )
            return os.EX_UNAVAILABLE

        def respond(path: str, accept: str) -> Answer:
            if path == METRICS:
                body, kind = exposition(accept, self._scene, self._untold, self._vitals)
                return HTTPStatus.OK, kind, body
            if path == HEALTH:
                return _line(self._health())
            if path == READINESS:
                return _line(self._readiness())
            return HTTPStatus.NOT_FOUND, TEXT, NOT_FOUND

        poll = select.poll()
        poll.register(lifeline, select.POLLIN)
        poll.register(signals.reader, select.POLLIN)
        answers = Answers(listener, respond, poll)
        while not answers.is_over:
            ready = [fd for fd, _ in poll.poll(_patience(answers.due))]
            if self._vitals.exporter > serial:
                # Before a client is accepted: the one that waits now is for the later exporter.
                answers.stop_listening()
            for fd in ready:
                if fd == lifeline:
                    return os.EX_OK
                if fd == signals.reader:
                    signals.take()
                else:
                    answers.told_by(fd)
            answers.look(time.monotonic())
        return os.EX_OK

    def _health(self) -> Verdict:
        answers = self._master_answers()
        return healthy(self._vitals.stage, answers, conditions(self._scene))

    def _readiness(self) -> Verdict:
        services = conditions(self._scene)
        return ready(self._vitals.stage, services, time.monotonic_ns())

    def _master_answers(self) -> bool:
        """Whether the master goes round its loop when it is woken."""
        before = self._vitals.rounds
        deadline = time.monotonic() + PULSE_TIMEOUT
        self._wake_master()
        while self._vitals.rounds == before:
            if time.monotonic() >= deadline:
                return False
            time.sleep(PULSE_LOOK)
        return True


def _make_way() -> None:
    try:
        os.nice(NICENESS)
    except OSError:
        # A sandbox may forbid it; that of the units does.
        pass


def _patience(due: Optional[float]) -> Optional[float]:
    """Milliseconds until something is due."""
    return None if due is None else max(0.0, (due - time.monotonic()) * 1000)


def _line(verdict: Verdict) -> Answer:
    is_well, text = verdict
    status = HTTPStatus.OK if is_well else HTTPStatus.SERVICE_UNAVAILABLE
    return status, TEXT, f"{text}\n".encode()
