"""What is made after the gaps were filled lies side by side, and not where others were before."""

from __future__ import annotations

import pytest

from tests.support.python import printed_by

pytestmark = pytest.mark.hybrid_only

PAGES = """
import os, sys
from vsock_proxy.process.gaps import fill_gaps

what, size = sys.argv[1], int(sys.argv[2])
made = [make() for _ in range(5000) for make in (list, dict, lambda: bytes(size))]
del made[::7]
if what == "fill":
    fillers = fill_gaps()
new = [bytes(size) for _ in range(20)]
print(len({id(one) // os.sysconf("SC_PAGE_SIZE") for one in new}))
"""


def _pages(size: int, what: str) -> int:
    """How many pages twenty objects are in."""
    return int(printed_by(PAGES, what, str(size)))


@pytest.mark.parametrize("size", [100, 200, 450, 600, 900, 1500])
def test_objects_of_any_size_are_in_few_pages_once_the_gaps_are_filled(size: int) -> None:
    # A pool or two of the small ones, and the end of the heap.
    least = 20 * size // 4096
    assert _pages(size, "fill") <= least + 3
    assert _pages(size, "leave") > least + 3
