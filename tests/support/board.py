"""The scoreboard as the log shows it on SIGUSR1, read back from there."""

from __future__ import annotations

import json
import re
import signal
from dataclasses import dataclass
from typing import Dict, List, Optional

from tests.support.program import Proxy
from tests.support.timing import wait_until

HEADINGS = (["worker", "pid"], ["worker", "service"])
# As text and as JSON.
TOTALS = r"info master: \d+ connections served|\"event\":\"scoreboard_totals\""


@dataclass(frozen=True)
class Row:
    """One worker's line. service: None where there is only one."""

    worker: str
    service: Optional[str]
    pid: int
    state: str
    seconds: float
    connection: str
    client: str
    endpoint: str
    up: int
    down: int
    served: int
    failed: int


def ask(proxy: Proxy) -> List[Row]:
    """What each worker does now."""
    asked = len(proxy.log.matching(TOTALS))
    proxy.send(signal.SIGUSR1)
    proxy.log.wait_for(TOTALS, count=asked + 1)
    return last(proxy)


def states(proxy: Proxy) -> List[str]:
    """What the workers do now, each in a word."""
    return [row.state for row in ask(proxy)]


def wait_until_idle(proxy: Proxy, workers: int) -> None:
    """Wait until this number of workers are there, and all are idle."""
    wait_until(lambda: states(proxy) == ["idle"] * workers, f"{workers} idle workers")


def last(proxy: Proxy) -> List[Row]:
    """The newest table in the log."""
    texts = [text for text in map(_said_by_master, list(proxy.log.lines)) if text]
    # The master also says of a worker that it has ended.
    heading = max(index for index, text in enumerate(texts) if text.split()[:2] in HEADINGS)
    columns, *rows = [re.split(r" {2,}", text.strip()) for text in texts[heading:]]
    return [_row(dict(zip(columns, cells))) for cells in rows if len(cells) == len(columns)]


def _said_by_master(line: str) -> str:
    """What the master says in this line; nothing if it is not the master's."""
    if line.startswith("{"):
        said = json.loads(line)
        return str(said["message"]) if said["process"] == "master" else ""
    return line.split(" master: ", 1)[1] if " master: " in line else ""


def _row(cells: Dict[str, str]) -> Row:
    return Row(
        worker=cells["worker"],
        service=cells.get("service"),
        pid=0 if cells["pid"] == "-" else int(cells["pid"]),
        state=cells["state"],
        seconds=0.0 if cells["for s"] == "-" else float(cells["for s"]),
        connection=cells["connection"],
        client=cells["client"],
        endpoint=cells["endpoint"],
        up=int(cells["up"]),
        down=int(cells["down"]),
        served=int(cells["served"]),
        failed=int(cells["failed"]),
    )


def totals(proxy: Proxy) -> str:
    """The line below the newest table in the log."""
    return proxy.log.matching(TOTALS)[-1]


def totals_now(proxy: Proxy) -> str:
    """The line below a table that is asked for now."""
    ask(proxy)
    return totals(proxy)
