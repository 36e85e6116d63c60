"""A worker that gets a signal at one given instruction of a connection, again and again.

Run as a program, which has no other thread: python -m tests.support.interrupting FOLDER GRAIN HOW

A worker is forked for each instruction between a client's arrival and the end of its connection. It
gets the signal at that instruction, and a line of JSON tells what became of the connection. GRAIN
is `line` or `opcode`. HOW is `once`: SIGQUIT; `again`: SIGQUIT, also at each call and return after
that, as when a terminal and the master both send it; or `kill`: SIGKILL.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import select
import signal
import socket
import sys
from pathlib import Path
from types import FrameType
from typing import Dict, Optional

import vsock_proxy
from vsock_proxy.endpoint.addresses import AddressTable, make_address
from vsock_proxy.observing.limiter import Limiter
from vsock_proxy.observing.saturation import Alarm
from vsock_proxy.observing.scoreboard import Scoreboard
from vsock_proxy.observing.untold import Untold
from vsock_proxy.process.forking import fork
from vsock_proxy.process.lifeline import Lifeline
from vsock_proxy.process.signals import Signals
from vsock_proxy.serving import worker as worker_module
from vsock_proxy.serving.listener import open_listener
from vsock_proxy.serving.route import Route
from vsock_proxy.serving.upstream import Upstream
from vsock_proxy.serving.worker import Duty, Worker
from vsock_proxy.settings import Endpoint, ServiceOptions, ServiceSettings

PACKAGE = os.path.dirname(vsock_proxy.__file__)
# Modules that handle signals. A signal may come in them, but they are not part of a connection.
ELSEWHERE = ("signals.py", "forking.py")
SIGNALS = {"kill": signal.SIGKILL, "retire": signal.SIGTERM}
UPLOAD, ANSWER = b"12345", b"123"
PATIENCE = 10_000


class Injector:
    """Raises the signal at the instruction of that number."""

    def __init__(self, at: int, grain: str, how: str) -> None:
        self._left = at
        self._grain = grain
        self._again = how == "again"
        self._signal = SIGNALS.get(how, signal.SIGQUIT)

    def trace(self, frame: FrameType, event: str, argument: object) -> object:
        """For sys.settrace()."""
        code = frame.f_code
        if not code.co_filename.startswith(PACKAGE) or code.co_filename.endswith(ELSEWHERE):
            return None
        frame.f_trace_opcodes = self._grain == "opcode"
        if event == self._grain:
            self._left -= 1
            if not self._left:
                if self._again:
                    sys.setprofile(self._repeat)
                os.kill(os.getpid(), self._signal)
        return self.trace

    def _repeat(self, frame: FrameType, event: str, argument: object) -> None:
        if frame.f_code.co_filename.startswith(PACKAGE):
            os.kill(os.getpid(), self._signal)

    @property
    def fired(self) -> bool:
        return self._left <= 0


class Site:
    """What a master makes once for its workers, and an endpoint."""

    def __init__(self, folder: Path) -> None:
        self.server = socket.create_server(("127.0.0.1", 0))
        address = self.server.getsockname()
        options = ServiceOptions(uds_path=str(folder / "v"), connect_timeout=5)
        settings = ServiceSettings(8000, Endpoint(*address), options)
        self.path = str(settings.path)
        self.listener = open_listener(settings)
        self.folder = folder
        table = AddressTable(address[1])
        table.publish([make_address(socket.AF_INET, address)])
        self.board = Scoreboard(1)
        self.signals = Signals()
        alarm = os.pipe()[1]
        route = Route("8000", self.listener, settings.endpoint, Upstream(table, 5))
        self.duty = Duty((route,), self.board, Alarm(self.board, alarm))
        self.worker = Worker(self.signals, Lifeline(), Untold())
        self.worker.rehearse(self.duty)


def main() -> None:
    """See the module's text."""
    folder, grain, how = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
    # A worker looks at it when it is made.
    logging.getLogger().setLevel(logging.INFO)
    site = Site(folder)
    number = 0
    fired = True
    while fired:
        number += 1
        told = one_connection(site, Injector(number, grain, how))
        fired = bool(told["fired"])
        print(json.dumps({"number": number, **told}), flush=True)


def one_connection(site: Site, injector: Injector) -> Dict[str, object]:
    """Fork a worker, be its client and its endpoint, and tell what became of it."""
    log = site.folder / "log"
    log.touch()
    before = site.board.rows()[0]
    pid = fork(site.signals, lambda: be_worker(site, injector, log))
    ended = os.pidfd_open(pid)
    up, down = b"", b""
    seen = ""
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(site.path)
        with contextlib.suppress(BrokenPipeError):
            # A worker may already be gone.
            client.sendall(UPLOAD)
        endpoint: Optional[socket.socket] = None
        if wait(site.server, ended):
            endpoint, _ = site.server.accept()
            try:
                if wait(endpoint, ended):
                    up = endpoint.recv(4096)
                endpoint.sendall(ANSWER)
            except OSError:
                seen = "reset"
            else:
                down = receive(client)
    # If the instruction was never reached, nothing else ends it.
    os.kill(pid, signal.SIGTERM)
    _, status = os.waitpid(pid, 0)
    os.close(ended)
    accepted = not refuse_who_waits(site)
    if endpoint:
        seen = seen or how_it_ended(endpoint)
        endpoint.close()
    after = site.board.rows()[0]
    return {
        "fired": not (site.folder / "spared").exists(),
        "status": status,
        "accepted": accepted,
        "up": len(up),
        "down": len(down),
        "counted": [after.total_up - before.total_up, after.total_down - before.total_down],
        "seen": seen,
        "log": log.read_text().splitlines(),
    }


def be_worker(site: Site, injector: Injector, log: Path) -> None:
    """In the child: serve, traced from a client's arrival on."""
    logging.basicConfig(filename=log, filemode="w", level=logging.INFO, format="%(message)s")
    # There are more connections than may have lines in a second.
    site.worker._limiter = Limiter()
    serve = worker_module.Worker._serve

    def traced(self: Worker, route: Route) -> None:
        sys.settrace(injector.trace)  # type: ignore[arg-type]
        try:
            serve(self, route)
        finally:
            sys.settrace(None)
            sys.setprofile(None)
            if not injector.fired:
                (site.folder / "spared").touch()

    worker_module.Worker._serve = traced  # type: ignore[method-assign]
    site.worker.run(site.duty, 1, lambda: None)


def refuse_who_waits(site: Site) -> bool:
    """Whether there was a client that no worker had accepted."""
    try:
        site.listener.accept()[0].close()
    except BlockingIOError:
        return False
    return True


def wait(sock: socket.socket, ended: int) -> bool:
    """Wait until a socket is readable or the worker has ended; whether it is readable."""
    poll = select.poll()
    for fd in (sock.fileno(), ended):
        poll.register(fd, select.POLLIN)
    ready = [fd for fd, _ in poll.poll(PATIENCE)]
    assert ready, "neither came"
    return sock.fileno() in ready


def receive(sock: socket.socket) -> bytes:
    try:
        return sock.recv(4096)
    except OSError:
        return b""


def how_it_ended(endpoint: socket.socket) -> str:
    """What the endpoint sees at the end, once what was sent is read."""
    endpoint.settimeout(PATIENCE / 1000)
    try:
        while endpoint.recv(4096):
            pass
    except OSError:
        return "reset"
    return "reset" if endpoint.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) else "end"


if __name__ == "__main__":
    main()
