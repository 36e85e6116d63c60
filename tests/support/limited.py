"""A user with a low limit of processes."""

from __future__ import annotations

import os
import subprocess
from typing import List

from tests.support.program import Proxy

# The limit of processes does not bind root, and another user cannot read what the tests run: this
# one can. It has no other process, nor has a user of a test that runs at the same time.
USER = 20_000 + os.getpid() % 30_000
LIMITED_USER = [
    *("setpriv", f"--reuid={USER}", f"--regid={USER}", "--clear-groups"),
    *("--inh-caps=+dac_override", "--ambient-caps=+dac_override"),
]


def limited_to(processes_allowed: int) -> List[str]:
    """What to put before the program so that it has this number of processes at most."""
    return ["prlimit", f"--nproc={processes_allowed}:1000", *LIMITED_USER]


def lift_limit(proxy: Proxy) -> None:
    """Remove the limit. A process of the same user may do that."""
    subprocess.run([*LIMITED_USER, "prlimit", f"--pid={proxy.pid}", "--nproc=1000"], check=True)
