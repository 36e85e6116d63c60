"""What a reload has changed, for the log."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Dict, List, Mapping, Sequence, Tuple

from vsock_proxy.settings import ServiceSettings

# How many services the log names for each kind of change.
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
    """What has changed. Both map the place where a service listens to its name and its settings.

    A service that keeps its name and moves to another place counts as one added and one removed.
    Both are then named by their places.
    """
    added, removed = _only_in(after, before), _only_in(before, after)
    moved = set(added.values()) & set(removed.values())
    return Changes(
        tuple(place if name in moved else name for place, name in added.items()),
        tuple(place if name in moved else name for place, name in removed.items()),
        tuple(
            name
            for place, (name, settings) in after.items()
            if place in before and before[place][1] != settings
        ),
    )


def _only_in(
    one: Mapping[str, Tuple[str, ServiceSettings]], other: Mapping[str, object]
) -> Dict[str, str]:
    """The names of the services that only the first has, by the place where they listen."""
    return {place: name for place, (name, _) in one.items() if place not in other}


def _in_words(names: Sequence[str]) -> str:
    shown: List[str] = list(names[:MOST_NAMED])
    more = len(names) - len(shown)
    return ", ".join(shown) + (f" and {more} more" if more else "")
