"""Medians over the rounds, and ratios taken within each round before their median is."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import median
from typing import Callable, Dict, Iterable, List, Optional, Sequence

from .rounds import Sample

Value = Callable[[Sample], Optional[float]]


@dataclass(frozen=True)
class Ratio:
    """The median of the rounds' ratios, and the least and greatest of them."""

    median: float
    least: float
    greatest: float
    rounds: int

    def __str__(self) -> str:
        return f"{self.median:.2f} ({self.least:.2f} to {self.greatest:.2f})"


def rate(sample: Sample) -> Optional[float]:
    return sample.rate


def cpu(sample: Sample) -> Optional[float]:
    return sample.cpu


def p99(sample: Sample) -> Optional[float]:
    return sample.p99_us


def of(samples: Iterable[Sample], load: str, proxy: str) -> List[Sample]:
    return [sample for sample in samples if sample.load == load and sample.proxy == proxy]


def median_of(samples: Sequence[Sample], value: Value) -> Optional[float]:
    values = [v for v in map(value, samples) if v is not None]
    return median(values) if values else None


def ratio(
    samples: Sequence[Sample], load: str, value: Value, over: str, under: str
) -> Optional[Ratio]:
    """`over`'s value divided by `under`'s, round by round."""
    above = _by_round(of(samples, load, over), value)
    below = _by_round(of(samples, load, under), value)
    ratios = [above[n] / below[n] for n in sorted(above) if below.get(n)]
    if not ratios:
        return None
    return Ratio(median(ratios), min(ratios), max(ratios), len(ratios))


def errors(samples: Iterable[Sample]) -> Dict[str, int]:
    """All errors of the samples, by proxy, load and cause."""
    found: Dict[str, int] = {}
    for sample in samples:
        for cause, count in sample.errors.items():
            what = f"{sample.proxy}, {sample.load}: {cause}"
            found[what] = found.get(what, 0) + count
    return found


def _by_round(samples: Iterable[Sample], value: Value) -> Dict[int, float]:
    found = {}
    for sample in samples:
        measured = value(sample)
        if measured is not None:
            found[sample.round] = measured
    return found
