"""The log as a program reads it, each line checked by the schema that is in the documentation."""

from __future__ import annotations

import json
from typing import Any, Dict, Iterable, List

import jsonschema  # type: ignore[import-untyped]

from tests.support.program import PROJECT, Proxy

JSON = ("--log-format", "json")
SCHEMA: Dict[str, Any] = json.loads((PROJECT / "docs" / "log.schema.json").read_text("utf-8"))
EVENTS: List[str] = SCHEMA["properties"]["event"]["enum"]
KEYS: List[str] = list(SCHEMA["properties"])
CLOSING = ("connection_closed", "connection_failed", "connection_refused")

_validator = jsonschema.Draft202012Validator(SCHEMA)

Line = Dict[str, Any]


def lines_of(texts: Iterable[str]) -> List[Line]:
    """The lines as objects, all of which the schema allows."""
    lines = [json.loads(text) for text in texts]
    for line in lines:
        _validator.validate(line)
    return lines


def lines_about(proxy: Proxy, *events: str) -> List[Line]:
    """What a proxy has said of such events so far."""
    return [line for line in lines_of(list(proxy.log.lines)) if line["event"] in events]


def wait_for(proxy: Proxy, event: str, count: int = 1) -> List[Line]:
    """The lines about an event, once there are `count` of them."""
    return lines_of(proxy.log.wait_for(f'"event":"{event}"', count=count))
