"""What a reload has changed, for the log."""

from __future__ import annotations

from dataclasses import dataclass
from typing import List, Mapping, Sequence, Tuple

from vsock_proxy.settings import ServiceSettings

# Of each kind of change, the log names so many services.
MOST_NAMED = 8


@dataclass(frozen=True)
class Changes:
    """The names of the services that were added, removed and changed."""

    added: Tuple[str, ...]
    removed: Tuple[str, ...]
    changed: Tuple[str, ...]

    def __str__(self) -> str:
        kinds = (("added", self.added), ("removed", self.removed), ("changed", self.changed))
        return "; ".join(f"{_in_words(names)} {kind}" for kind, names in kinds if names) or (
            "no service has changed"
        )


def compare(
    before: Mapping[str, Tuple[str, ServiceSettings]],
    after: Mapping[str, Tuple[str, ServiceSettings]],
) -> Changes:
    """Both by where services listen, each with its name and what was asked for."""
    return Changes(
        tuple(name for place, (name, _) in after.items() if place not in before),
        tuple(name for place, (name, _) in before.items() if place not in after),
        tuple(
            name
            for place, (name, settings) in after.items()
            if place in before and before[place][1] != settings
        ),
    )


def _in_words(names: Sequence[str]) -> str:
    shown: List[str] = list(names[:MOST_NAMED])
    more = len(names) - len(shown)
    return ", ".join(shown) + (f" and {more} more" if more else "")
