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
# Seconds that what is done at once takes at most, even on a machine on which others have the
# processor for a while. For tests where what is not done at once would take ten or more.
AT_ONCE = 2.0
# So often in a row others hardly take the processor away for longer than a test allows.
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
    """Whether something takes at most so long (times the slowness) in one of a few tries.

    Others who use the machine make it take longer, and not in every try; what is due to the program
    itself is in every one. `take` does it, and says how long it took.
    """
    return any(take() <= seconds * SLOWNESS for _ in range(TRIES))


def at_full_length(value: float, otherwise: float = 2.0) -> float:
    """What a test takes where tests take as long as they should, and what it makes do with."""
    return value if FULL_LENGTH else otherwise
