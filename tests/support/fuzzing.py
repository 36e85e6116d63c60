"""How much fuzzing tries, and what must be true of the program for every input."""

from __future__ import annotations

import os
import subprocess
from typing import Dict, List, Optional, Sequence

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from tests.support.program import PROJECT, Log, command
from tests.support.timing import SLOWNESS, at_full_length, wait_until

# sysexits.h: 64 to 78. --help and a proxy that a signal ends give 0.
SYSEXITS = {os.EX_OK, *range(os.EX_USAGE, os.EX_CONFIG + 1)}
MANY = settings(
    max_examples=int(at_full_length(10_000, 500)),
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
)
FEW = settings(MANY, max_examples=int(at_full_length(24, 8)))


def choices(pieces: Sequence[str], count: int) -> st.SearchStrategy[List[str]]:
    """Lists of pieces, each picked by one byte: much quicker to draw than a list of strategies."""
    return st.binary(max_size=count).map(
        lambda picks: [pieces[pick % len(pieces)] for pick in picks]
    )


def is_one_line(message: str) -> bool:
    return bool(message) and "\n" not in message


def assert_civil(
    arguments: Sequence[str],
    environment: Optional[Dict[str, str]] = None,
    wrapper: Sequence[str] = (),
    going: str = r" workers?$",
) -> None:
    """Run the program to its end. If it serves, end it by a signal.

    going: what it logs if it serves.
    """
    with subprocess.Popen(
        [*wrapper, *command(*arguments)],
        cwd=PROJECT,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stderr is not None
        log = Log(process.stderr)
        wait_until(
            lambda: process.poll() is not None or log.matching(going),
            "an end or a beginning",
            20,
        )
        process.terminate()
        code = process.wait(20 * SLOWNESS)
        log.join()
    assert code in SYSEXITS, (arguments, code, log.lines)
    assert not log.matching("Traceback"), (arguments, log.lines)
    if code:
        assert log.lines[-1].startswith("vsock-proxy: "), (arguments, log.lines)
