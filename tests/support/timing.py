"""Time bounds for tests that may run on an emulated machine, and waiting without guessing."""

from __future__ import annotations

import os
import time
from typing import Callable, Optional, TypeVar

# Whether faults last as long as in life, and examples are as many as they should be.
FULL_LENGTH = bool(os.environ.get("VSOCK_PROXY_TEST_FULL_LENGTH"))
# How much slower than an ordinary machine this one is; the virtual machine says so itself.
SLOWNESS = float(os.environ.get("VSOCK_PROXY_TEST_SLOWNESS", "1"))
POLL_INTERVAL = 0.005

T = TypeVar("T")


def wait_until(condition: Callable[[], Optional[T]], what: str, timeout: float = 10.0) -> T:
    """The first true value of a condition; fails after so many seconds (times the slowness)."""
    deadline = time.monotonic() + timeout * SLOWNESS
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {timeout * SLOWNESS:g} s: {what}")
        time.sleep(POLL_INTERVAL)


def at_full_length(value: float, otherwise: float = 2.0) -> float:
    """What a test takes where tests take as long as they should, and what it makes do with."""
    return value if FULL_LENGTH else otherwise
