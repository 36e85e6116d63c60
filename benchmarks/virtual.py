"""The same benchmark in a virtual machine that has an AF_VSOCK of its own.

The tests' virtual machine runs on this machine's files, so the benchmark starts itself in there;
its results come back as the last line of what it prints.
"""

from __future__ import annotations

import io
import json
import sys
from contextlib import redirect_stdout
from typing import Sequence

from tests.vm.boot import MachineFailed, run_in_vm
from tests.vm.kernel import Lacking

from .results import Results, from_record
from .ways import Way

TIMEOUT_SECONDS = 1800.0
MODULES = ("vsock_loopback",)
RESULTS_BEGIN = '{"way"'


class WithoutResults(io.TextIOBase):
    """Shows the progress, up to the results."""

    shown = True

    def write(self, text: str) -> int:
        before, mark, _ = text.partition(RESULTS_BEGIN)
        if self.shown:
            sys.stderr.write(before)
            sys.stderr.flush()
        self.shown = self.shown and not mark
        return len(text)


class NoMachine(Exception):
    """The virtual machine could not be run, or the benchmark failed in it."""


def measure(way: Way, arguments: Sequence[str], python: str) -> Results:
    """Run the benchmark with these arguments in the virtual machine."""
    command = [
        python,
        "-m",
        "benchmarks",
        "--ways",
        way.name,
        "--inside",
        "--json",
        "-",
        *arguments,
    ]
    try:
        with redirect_stdout(WithoutResults()):
            ended = run_in_vm(command, timeout=TIMEOUT_SECONDS, modules=MODULES)
    except (Lacking, MachineFailed) as error:
        raise NoMachine(str(error)) from None
    last = ended.output.rstrip().split("\n")[-1]
    if not last.startswith(RESULTS_BEGIN):
        raise NoMachine(f"the benchmark ended with {ended.status} in the virtual machine")
    return from_record(json.loads(last))
