"""Shows the proxy at work: python3 examples/demo.py

Installs the proxy into the project's virtual environment, starts a server and the proxy, makes one
connection as a guest does, and shows the processes while it lives. On AF_VSOCK where its loopback
is there, else on the Unix socket of a hybrid vsock. Everything it starts has ended at the end.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Iterator, List, Optional, Tuple, Union

PROJECT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(PROJECT))

from tools import bootstrap  # noqa: E402

VSOCK_LOOPBACK = Path("/sys/module/vsock_loopback")
VMADDR_CID_LOCAL = 1
LOCAL_PORT = 8000
TIMEOUT = 20.0
POLL_INTERVAL = 0.02

Address = Union[str, Tuple[int, int]]


class Server:
    """The endpoint: answers each line, on a port that the system chose."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        connection, _ = self._listener.accept()
        with connection, connection.makefile("rb") as lines:
            for line in lines:
                connection.sendall(b"the server got: " + line)


class Proxy:
    """The program as a process of its own; its log goes to this terminal."""

    def __init__(self, command: List[str]) -> None:
        self._process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        self._ready = threading.Event()
        self._copier = threading.Thread(target=self._copy_log, args=(self._process.stderr,))
        self._copier.start()
        self._ready.wait(TIMEOUT)

    @property
    def pid(self) -> int:
        """The master's pid."""
        return self._process.pid

    @property
    def exit_code(self) -> Optional[int]:
        """None while it runs."""
        return self._process.poll()

    def end(self) -> int:
        """Ask it to end, as systemd does; returns its exit code."""
        self._process.send_signal(signal.SIGTERM)
        exit_code = self._process.wait(TIMEOUT)
        self._copier.join()
        return exit_code

    def _copy_log(self, log: IO[str]) -> None:
        # The line that says it listens comes when it does; the end of the log, when it cannot.
        for line in log:
            show(line)
            if " workers" in line:
                self._ready.set()
        self._process.wait()
        self._ready.set()


def main() -> int:
    """Run the demonstration; returns 0 if it showed what it should."""
    program = str(Path(bootstrap.python_with(str(PROJECT))).with_name("vsock-proxy"))
    with tempfile.TemporaryDirectory(prefix="vsock-proxy-demo-") as folder:
        return demonstrate(program, Path(folder))


def demonstrate(program: str, folder: Path) -> int:
    """The proxy between a guest and a server, on the best transport there is."""
    server = Server()
    bootstrap.say(f"a TCP server, the endpoint, listens on 127.0.0.1:{server.port}")
    allowlist = folder / "allowlist.yaml"
    allowlist.write_text(f"allowlist:\n- {{address: 127.0.0.1, port: {server.port}}}\n")
    bootstrap.say(f"{allowlist} permits it")
    show(allowlist.read_text())

    options = ["--config", str(allowlist), "-w", "2"]
    endpoint = [str(LOCAL_PORT), "127.0.0.1", str(server.port)]
    hybrid = folder / "v.sock"
    on_unix_socket = [program, *options, "--uds-path", str(hybrid), *endpoint]
    unix_address = f"{hybrid}_{LOCAL_PORT}"
    if not VSOCK_LOOPBACK.exists():
        bootstrap.say(
            "this machine has no AF_VSOCK loopback (as root, `modprobe vsock_loopback` may give "
            "it one), so this shows the hybrid vsock of Firecracker and Cloud Hypervisor"
        )
        return relay_one(on_unix_socket, socket.AF_UNIX, unix_address)
    vsock_address = (VMADDR_CID_LOCAL, LOCAL_PORT)
    try:
        return relay_one([program, *options, *endpoint], socket.AF_VSOCK, vsock_address)
    except NotStartedError:
        bootstrap.say("there is no AF_VSOCK here; now the same on the socket of a hybrid vsock")
        return relay_one(on_unix_socket, socket.AF_UNIX, unix_address)


class NotStartedError(Exception):
    """The proxy ended before it listened; it said why."""


def relay_one(command: List[str], family: socket.AddressFamily, address: Address) -> int:
    """Start the proxy, relay one exchange through it, and end it."""
    bootstrap.say("the proxy starts")
    show(f"$ {' '.join(command)}")
    with running(command) as proxy:
        bootstrap.say(f"a guest connects to {family.name} {address} and speaks with the server")
        with socket.socket(family, socket.SOCK_STREAM) as guest:
            guest.settimeout(TIMEOUT)
            guest.connect(address)
            answered = speak(guest, "hello from the guest")
            await_title(proxy.pid)
            bootstrap.say("the processes while the connection lives")
            show(process_list(proxy.pid))
            answered = speak(guest, "and good-bye") and answered
            bootstrap.say("the guest closes; then the proxy is told to end (SIGTERM)")
    if proxy.exit_code or not answered:
        bootstrap.say("that did not go as it should")
        return 1
    bootstrap.say("done; nothing is left running")
    return 0


@contextmanager
def running(command: List[str]) -> Iterator[Proxy]:
    """The proxy, for as long as the context lasts. Raises NotStartedError."""
    proxy = Proxy(command)
    if proxy.exit_code is not None:
        raise NotStartedError
    try:
        yield proxy
    finally:
        proxy.end()


def speak(guest: socket.socket, text: str) -> bool:
    """Send a line and show the answer; whether it is the right one."""
    show(f"guest  > {text}")
    guest.sendall(f"{text}\n".encode())
    with guest.makefile("r") as answers:
        answer = answers.readline().rstrip("\n")
    show(f"server < {answer}")
    return answer == f"the server got: {text}"


def await_title(master: int) -> None:
    """A worker shows a connection in its title once that has lasted a moment."""
    deadline = time.monotonic() + TIMEOUT
    while not any(" [" in title(pid) for pid in family_of(master)):
        if time.monotonic() > deadline:
            raise SystemExit("no worker shows the connection in its title")
        time.sleep(POLL_INTERVAL)


def process_list(master: int) -> str:
    """The master and its children."""
    pids = family_of(master)
    if shutil.which("ps"):
        command = ["ps", "-o", "pid,ppid,args", "-p", ",".join(pids)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        return f"$ {' '.join(command)}\n{done.stdout}"
    return "".join(f"{pid:>7} {title(pid)}\n" for pid in pids)


def family_of(master: int) -> List[str]:
    """The pids of the master and its children."""
    return [str(master), *Path(f"/proc/{master}/task/{master}/children").read_text().split()]


def title(pid: str) -> str:
    """What a process calls itself."""
    return Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ").rstrip()


def show(text: str) -> None:
    """Show what a program said or a user would type, indented."""
    for line in text.rstrip("\n").split("\n"):
        print(f"   {line}", flush=True)


if __name__ == "__main__":
    os.chdir(PROJECT)
    sys.exit(main())
