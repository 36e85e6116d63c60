"""A resolver alone, with the parts of a master that it needs: its tables and its lifeline.

As a program, this module is that master. It takes one command a line, and answers with one line:

    pid         the resolver's
    show N      the addresses in table N
    wait N      the same, once table N has been published
    nudge N     ask for another lookup, as a worker does
    replace     kill the resolver, and start another
"""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import subprocess
import sys
from typing import Dict, List, Sequence, Tuple

from tests.support.namespaces import Namespace
from tests.support.program import Log as Lines
from vsock_proxy.config.allowlist import Allowlist
from vsock_proxy.endpoint.addresses import AddressTable
from vsock_proxy.endpoint.policy import Policy
from vsock_proxy.endpoint.resolver import Lookup, Resolver
from vsock_proxy.observing.logs import Log
from vsock_proxy.observing.stderr import Stderr
from vsock_proxy.observing.untold import Untold
from vsock_proxy.process.forking import fork
from vsock_proxy.process.lifeline import Lifeline
from vsock_proxy.process.signals import Signals
from vsock_proxy.process.titles import set_title
from vsock_proxy.settings import Endpoint

# Host, port, and seconds from one lookup to the next.
Service = Tuple[str, int, float]


class Resolving:
    """A resolver for some services, in a network of its own."""

    def __init__(self, network: Namespace, services: Sequence[Service]) -> None:
        self._process = subprocess.Popen(
            [*network.wrapper, sys.executable, "-m", __name__, json.dumps(services)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self._process.stderr is not None
        self.log = Lines(self._process.stderr)

    @property
    def pid(self) -> int:
        """The resolver's."""
        return int(self.ask("pid"))

    def ask(self, command: str) -> str:
        """The answer to a command."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{command}\n")
        self._process.stdin.flush()
        return self._process.stdout.readline().rstrip("\n")

    def kill_master(self) -> None:
        """Kill the master, as may happen at any moment."""
        self._process.kill()

    def close(self) -> None:
        """End both."""
        self._process.kill()
        self._process.communicate()


class _Master:
    def __init__(self, services: Sequence[Service]) -> None:
        self._signals = Signals()
        self._lifeline = Lifeline()
        self._log = Log("info", Stderr(), Untold())
        nothing = Allowlist("list", ())
        self._lookups = [
            Lookup(
                AddressTable(port),
                Policy(Endpoint(host, port), socket.AF_UNSPEC, True, nothing),
                interval,
            )
            for host, port, interval in services
        ]
        self._pid = self._start()

    def answer(self, words: List[str]) -> str:
        tables: Dict[str, AddressTable] = {
            str(number): lookup.table for number, lookup in enumerate(self._lookups)
        }
        if words[0] == "replace":
            os.kill(self._pid, signal.SIGKILL)
            os.waitpid(self._pid, 0)
            self._pid = self._start()
        elif words[0] == "nudge":
            tables[words[1]].nudge()
        elif words[0] in ("show", "wait"):
            table = tables[words[1]]
            if words[0] == "wait":
                select.select([table.published], [], [])
            return " ".join(map(str, table.current()))
        return str(self._pid)

    def _start(self) -> int:
        return fork(self._signals, self._be_resolver)

    def _be_resolver(self) -> None:
        os.close(self._lifeline.writer)
        self._log.name("resolver")
        resolver = Resolver(self._lookups)
        set_title(resolver.title)
        resolver.run(self._lifeline.reader)


def main() -> None:
    """See the module's text."""
    master = _Master(json.loads(sys.argv[1]))
    for line in sys.stdin:
        print(master.answer(line.split()), flush=True)


if __name__ == "__main__":
    main()
