"""Whether one thing takes longer than another, on a machine that others use too.

Both are measured many times, in turns: each turn has a sample of the one and a sample of the other.
Other load on the machine slows both, so the two samples of a turn could be exchanged. The
comparison exchanges them at random, some thousand times (a permutation test). If noise alone makes
the difference, many of these exchanges make one as large. If it is real, hardly any does. So a
comparison needs no second attempt and no quiet machine: noise may hide a difference, but makes
none.
"""

from __future__ import annotations

import random
from typing import NamedTuple, Sequence, Tuple

Turn = Tuple[Sequence[float], Sequence[float]]

# With this number of turns there are enough ways to exchange them.
FEWEST_TURNS = 12
EXCHANGES = 1999
# How often noise may be taken for a difference.
CHANCE = 0.001
SEED = 1


class Comparison(NamedTuple):
    """What was found: a percentile of both, and whether their difference may be noise.

    chance: how often noise makes a difference this large if the second is exactly at its limit.
    """

    percent: int
    first: float
    second: float
    chance: float

    @property
    def is_slower(self) -> bool:
        """Whether the second takes longer than it may, beyond noise."""
        return self.chance < CHANCE


def compare(turns: Sequence[Turn], factor: float, percent: int = 99) -> Comparison:
    """Whether this percentile of the second is above `factor` times that of the first."""
    assert len(turns) >= FEWEST_TURNS, "too few to tell anything from noise"
    # Divided by the factor, a second at its limit is like the first.
    alike = _Exchangeable(turns, factor, percent)
    found = alike.ratio([0] * len(turns))
    draw = random.Random(SEED)
    ratios = (alike.ratio(draw.choices((0, 1), k=len(turns))) for _ in range(EXCHANGES))
    # The measured order is itself one of the exchanges.
    chance = (sum(ratio >= found for ratio in ratios) + 1) / (EXCHANGES + 1)
    first, second = ([each for turn in turns for each in turn[side]] for side in (0, 1))
    return Comparison(percent, at_most(first, percent), at_most(second, percent), chance)


def at_most(times: Sequence[float], percent: int) -> float:
    """The percentile."""
    return sorted(times)[-_place(len(times), percent)]


def _place(count: int, percent: int) -> int:
    """The percentile's place among that many times, counted from the largest."""
    return count - count * percent // 100


class _Exchangeable:
    """All times sorted, the largest first, so that each exchange looks at few of them."""

    def __init__(self, turns: Sequence[Turn], factor: float, percent: int) -> None:
        scaled = (
            (time / (factor if side else 1.0), turn, side)
            for turn, samples in enumerate(turns)
            for side, sample in enumerate(samples)
            for time in sample
        )
        self._times = sorted(scaled, reverse=True)
        self._place = _place(sum(len(first) for first, _ in turns), percent)

    def ratio(self, exchanged: Sequence[int]) -> float:
        """The second's percentile divided by the first's, after the exchange of some turns."""
        counts, found = [0, 0], [0.0, 0.0]
        for time, turn, side in self._times:
            owner = side ^ exchanged[turn]
            counts[owner] += 1
            if counts[owner] == self._place:
                found[owner] = time
                if all(found):
                    break
        return found[1] / found[0]
