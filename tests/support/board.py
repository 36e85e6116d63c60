"""The scoreboard as the log shows it on SIGUSR1, read back from there."""

from __future__ import annotations

import re
import signal
from dataclasses import dataclass
from typing import Dict, List, Optional

from tests.support.program import Proxy

HEADINGS = (["worker", "pid"], ["worker", "service"])
TOTALS = r"info master: \d+ connections served"


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
    texts = [line.split(" master: ", 1)[1] for line in list(proxy.log.lines) if " master: " in line]
    return rows_of(texts)


def rows_of(texts: List[str]) -> List[Row]:
    """The last table that the master has written, of all that it has said."""
    # The master also says of a worker that it has ended.
    heading = max(index for index, text in enumerate(texts) if text.split()[:2] in HEADINGS)
    columns, *rows = [re.split(r" {2,}", text.strip()) for text in texts[heading:]]
    return [_row(dict(zip(columns, cells))) for cells in rows if len(cells) == len(columns)]


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
    """The line below the table, of the last time that it was asked for."""
    return proxy.log.matching(TOTALS)[-1]
