"""All that one run of the benchmark has found, as records that go to JSON and back."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Dict, List, Optional

from . import services
from .footprint import Held, Memory, Start, Switches
from .rounds import Sample


@dataclass(frozen=True)
class Results:
    """One way's results; `burner` is what the check of the accounting returned."""

    way: str
    machine: Dict[str, str]
    seconds: float
    size: int
    burner: Optional[float]
    notes: List[str] = field(default_factory=list)
    samples: List[Sample] = field(default_factory=list)
    scale: List[Sample] = field(default_factory=list)
    memory: List[Memory] = field(default_factory=list)
    starts: List[Start] = field(default_factory=list)
    held: List[Held] = field(default_factory=list)
    switches: List[Switches] = field(default_factory=list)
    services: Optional[services.Found] = None
    metrics: List[Sample] = field(default_factory=list)

    def to_json(self) -> str:
        """One line, so that it can be told from what else is printed."""
        return json.dumps(asdict(self))


def from_record(record: Dict[str, Any]) -> Results:
    parts: Dict[str, Any] = {
        "samples": [Sample(**each) for each in record["samples"]],
        "scale": [Sample(**each) for each in record["scale"]],
        "memory": [Memory(**each) for each in record["memory"]],
        "starts": [Start(**each) for each in record["starts"]],
        "metrics": [Sample(**each) for each in record.get("metrics", ())],
        "held": [Held(**each) for each in record["held"]],
        "switches": [Switches(**each) for each in record["switches"]],
    }
    if record.get("services") is not None:
        parts["services"] = services.from_record(record["services"])
    return Results(**{**record, **parts})


def load(path: Path) -> Dict[str, Results]:
    """The results kept in a file, by way; none when there is no such file."""
    if not path.exists():
        return {}
    kept = json.loads(path.read_text())
    return {way: from_record(record) for way, record in kept.items()}


def save(path: Path, found: Dict[str, Results]) -> None:
    """Keep the results in a file that has a line for each record, so that a change shows."""
    kept = {way: asdict(results) for way, results in found.items()}
    path.write_text(_lines(kept) + "\n")


def _lines(value: object, indent: str = "") -> str:
    """As JSON: what holds records goes over several lines, a record or a value in one."""
    if not _holds_records(value):
        return json.dumps(value)
    inside = indent + " "
    if isinstance(value, dict):
        parts = [f"{json.dumps(key)}: {_lines(each, inside)}" for key, each in value.items()]
        opening, closing = "{}"
    else:
        assert isinstance(value, list)
        parts = [_lines(each, inside) for each in value]
        opening, closing = "[]"
    body = ",\n".join(inside + each for each in parts)
    return f"{opening}\n{body}\n{indent}{closing}"


def _holds_records(value: object) -> bool:
    if isinstance(value, dict):
        return any(_holds_records(each) for each in value.values())
    return isinstance(value, list) and any(isinstance(each, dict) for each in value)
