"""Time bounds for tests that may run on an emulated machine, and waiting without guessing."""

from __future__ import annotations

import os
import time
from typing import Callable, Optional, TypeVar

# Whether faults last as long as in real life, and all examples are tried.
FULL_LENGTH = bool(os.environ.get("VSOCK_PROXY_TEST_FULL_LENGTH"))
# How much slower than an ordinary machine this one is; the virtual machine says so itself.
SLOWNESS = float(os.environ.get("VSOCK_PROXY_TEST_SLOWNESS", "1"))
POLL_INTERVAL = 0.005
# Seconds that an immediate action takes at most, even if others have the processor for a while. For
# tests in which an action that is not immediate takes ten seconds or more.
AT_ONCE = 2.0
# In all of this number of tries, others hardly take the processor longer than a test allows.
TRIES = 5

T = TypeVar("T")


def wait_until(condition: Callable[[], Optional[T]], what: str, timeout: float = 10.0) -> T:
    """The first true value of a condition; fails after these seconds (times the slowness)."""
    deadline = time.monotonic() + timeout * SLOWNESS
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {timeout * SLOWNESS:g} s: {what}")
        time.sleep(POLL_INTERVAL)


def let_pass(seconds: float, why: str) -> None:
    """Wait where there is no event to wait for: why says what happens meanwhile, or must not."""
    assert why
    time.sleep(seconds)


def is_within(seconds: float, take: Callable[[], float]) -> bool:
    """Whether something takes at most these seconds (times the slowness) in one of a few tries.

    Other load on the machine delays some tries, but not all. A delay by the program itself is in
    every try. `take` does it, and returns the seconds that it took.
    """
    return any(take() <= seconds * SLOWNESS for _ in range(TRIES))


def at_full_length(value: float, otherwise: float = 2.0) -> float:
    """The value for tests at full length; otherwise the shorter one."""
    return value if FULL_LENGTH else otherwise
