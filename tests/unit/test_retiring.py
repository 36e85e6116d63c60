"""A pool whose place another takes, at whatever moment: each client is served by one of them."""

from __future__ import annotations

from pathlib import Path
from typing import Dict, List

import pytest

from tests.support.python import reported_by
from tests.support.retiring import CLIENTS, SPARED, WORKERS
from tests.support.timing import FULL_LENGTH

pytestmark = pytest.mark.hybrid_only  # who is woken is decided by epoll, for both alike

GRAIN = "opcode" if FULL_LENGTH else "line"
ROUNDS = 2000 if FULL_LENGTH else 100


def retire(folder: Path, *how: str) -> List[Dict[str, object]]:
    """What became of the clients of each round."""
    return reported_by("tests.support.retiring", str(folder), *how)


def test_a_worker_retired_at_whatever_instruction_abandons_no_client(
    tmp_path: Path,
) -> None:
    rounds = retire(tmp_path, GRAIN)
    for told in rounds:
        assert told["served"] == 1, told
        # With its last connection it has closed its listeners.
        assert told["refused"] in (None, True), told
        assert told["codes"] in ([0, 0], [0, SPARED]), told
    assert {told["by_old"] for told in rounds} == {False, True}
    assert any(told["refused"] for told in rounds)


def test_workers_that_are_retired_as_clients_come_leave_none_to_nobody(tmp_path: Path) -> None:
    rounds = retire(tmp_path, "race", str(ROUNDS))
    for told in rounds:
        assert told["served"] == CLIENTS, told
        assert told["codes"] == [0] * (WORKERS + CLIENTS), told
    # It was a race: neither the old nor the new were always first.
    assert {told["by_old"] for told in rounds} >= {0, CLIENTS}
