"""Objects whose references are not counted, so that workers share the pages they are in."""

from __future__ import annotations

import sys

import pytest

from tests.support.python import printed_by

pytestmark = pytest.mark.hybrid_only

BEFORE = """
import gc, sys
from vsock_proxy.process.immortal import make_all_immortal

class Thing:
    def value(self):
        return 3.25, "not a name"

def counts():
    code = Thing.value.__code__
    objects = Thing, Thing.value, code, [c for c in code.co_consts if c], Thing.__dict__
    return [sys.getrefcount(o) for o in objects]

before = counts()
make_all_immortal()
"""
# After it, what there was can be used, changed and collected as before.
AFTER = """
things = [Thing() for _ in range(1000)]
assert {thing.value() for thing in things} == {(3.25, "not a name")}
Thing.more = 1
sys.modules.pop("gc")
gc.collect()
gc.freeze()
gc.unfreeze()
del things, Thing
gc.collect()
"""


def test_what_there_is_is_not_counted_any_more() -> None:
    held = printed_by(BEFORE + "keep = [Thing, Thing] * 100\nprint(before == counts())")
    # Without immortal objects, a hundred references more are counted.
    assert held == "False\n"
    more = printed_by(BEFORE + "a = counts()\nkeep = [Thing] * 100\nprint(a == counts())")
    assert more == f"{sys.version_info >= (3, 12)}\n"


def test_what_there_is_serves_as_before() -> None:
    assert printed_by(BEFORE + AFTER + "print('ended')") == "ended\n"


@pytest.mark.parametrize(
    "unknown",
    [
        "sys.modules['_ctypes'] = None",
        "sys.maxsize = (1 << 31) - 1",
        "import vsock_proxy.process.immortal as module; module.KNOWN = ()",
    ],
    ids=["without ctypes", "on 32 bits", "counted in another way"],
)
def test_where_it_cannot_be_done_everything_stays_as_it_is(unknown: str) -> None:
    assert printed_by(f"import sys\n{unknown}\n" + BEFORE + "print(before == counts())") == "True\n"
