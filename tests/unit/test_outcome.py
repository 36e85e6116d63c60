"""How a connection ended, as a function of what was seen of both sides."""

from __future__ import annotations

import itertools

import pytest

from tests.support.program import PROJECT
from vsock_proxy.serving.outcome import BROKEN, CLOSED, ENDS, OPEN, End, Outcome, Seen, Side, judge

pytestmark = pytest.mark.hybrid_only  # no transport has a part in it

CLIENT, ENDPOINT = Side


@pytest.mark.parametrize(
    ("client", "endpoint", "first", "end"),
    [
        (CLOSED, CLOSED, CLIENT, End.CLIENT_CLOSED),
        (CLOSED, CLOSED, ENDPOINT, End.ENDPOINT_CLOSED),
        (CLOSED, OPEN, CLIENT, End.CLIENT_CLOSED),
        (OPEN, CLOSED, ENDPOINT, End.ENDPOINT_CLOSED),
        (BROKEN, OPEN, CLIENT, End.CLIENT_RESET),
        (BROKEN, CLOSED, ENDPOINT, End.CLIENT_RESET),
        (OPEN, BROKEN, ENDPOINT, End.ENDPOINT_RESET),
        (CLOSED, BROKEN, CLIENT, End.ENDPOINT_RESET),
        (BROKEN, BROKEN, CLIENT, End.CLIENT_RESET),
        (BROKEN, BROKEN, ENDPOINT, End.ENDPOINT_RESET),
    ],
)
def test_what_was_seen_makes_the_end(client: Seen, endpoint: Seen, first: Side, end: End) -> None:
    assert judge(client, endpoint, first) is end


def test_every_combination_that_ends_a_connection_is_in_the_table() -> None:
    assert set(ENDS) == set(itertools.product(Seen, Seen)) - {(OPEN, OPEN)}


@pytest.mark.parametrize(("seen", "ends"), ENDS.items(), ids=str)
def test_an_end_is_clean_if_no_side_broke(seen: tuple[Seen, Seen], ends: tuple[End, End]) -> None:
    assert [Outcome(end).clean for end in ends] == [BROKEN not in seen] * 2


@pytest.mark.parametrize("end", [End.IDLE, End.HALF_CLOSED_IDLE, End.CUT])
def test_what_the_proxy_ends_is_not_clean(end: End) -> None:
    assert not Outcome(end).clean


@pytest.mark.parametrize("end", End, ids=lambda end: end.value)
def test_the_reference_has_every_end(end: End) -> None:
    assert f"`{end.value}`" in (PROJECT / "docs" / "reference.md").read_text()
