"""A comparison of times tells noise from a difference."""

from __future__ import annotations

import random
from typing import Callable, List

import pytest

from tests.support.comparing import Turn, compare

pytestmark = pytest.mark.hybrid_only  # no transport has a part in it

TURNS, CONNECTIONS, SEEDS = 24, 50, 2
MOST = 1.2
Machine = Callable[[random.Random], List[float]]


def quiet(draw: random.Random) -> List[float]:
    return [draw.gauss(1.0, 0.05) for _ in range(CONNECTIONS)]


def with_a_neighbour(draw: random.Random) -> List[float]:
    """In one sample of four, someone else has the processor again and again."""
    often = 0.3 if draw.random() < 0.25 else 0.0
    return [draw.gauss(1.0, 0.05) * (8 if draw.random() < often else 1) for _ in range(CONNECTIONS)]


def turns_of(
    machine: Machine, seed: int, slowed: Callable[[random.Random, float], float]
) -> List[Turn]:
    draw = random.Random(seed)
    return [(machine(draw), [slowed(draw, each) for each in machine(draw)]) for _ in range(TURNS)]


def not_at_all(_: random.Random, each: float) -> float:
    return each


def all_a_little(_: random.Random, each: float) -> float:
    return each * 1.1


def all_by_half(_: random.Random, each: float) -> float:
    return each * 1.5


def one_of_25_much(draw: random.Random, each: float) -> float:
    return each * (20 if draw.random() < 0.04 else 1)


MACHINES = [quiet, with_a_neighbour]


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize("slowed", [not_at_all, all_a_little])
def test_noise_is_never_taken_for_a_difference(
    machine: Machine, slowed: Callable[[random.Random, float], float]
) -> None:
    for seed in range(SEEDS):
        turns = turns_of(machine, seed, slowed)
        assert not any(compare(turns, MOST, percent).is_slower for percent in (99, 50))


@pytest.mark.parametrize(
    ("machine", "slowed", "percent"),
    [
        (quiet, all_by_half, 99),
        (quiet, all_by_half, 50),
        (quiet, one_of_25_much, 99),
        (with_a_neighbour, one_of_25_much, 99),
        # Where the p99 is the neighbour's.
        (with_a_neighbour, all_by_half, 50),
    ],
)
def test_a_difference_is_found(
    machine: Machine, slowed: Callable[[random.Random, float], float], percent: int
) -> None:
    for seed in range(SEEDS):
        assert compare(turns_of(machine, seed, slowed), MOST, percent).is_slower


def test_what_a_single_turn_says_is_no_difference() -> None:
    turns = turns_of(quiet, 1, not_at_all)
    turns[7] = (turns[7][0], [9.0] * CONNECTIONS)
    found = compare(turns, MOST)
    assert found.second > 5 * found.first
    assert not found.is_slower


def test_too_few_turns_are_refused() -> None:
    with pytest.raises(AssertionError, match="too few"):
        compare(turns_of(quiet, 1, not_at_all)[:11], MOST)
