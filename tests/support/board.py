"""The scoreboard as the log shows it on SIGUSR1, read back from there."""

from __future__ import annotations

import re
import signal
from dataclasses import dataclass
from typing import List

from tests.support.program import Proxy

TOTALS = r"info master: \d+ connections served"


@dataclass(frozen=True)
class Row:
    """One worker's line."""

    worker: str
    pid: int
    state: str
    seconds: float
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
    heading = max(
        index for index, text in enumerate(texts) if text.split()[:2] == ["worker", "pid"]
    )
    cells = [re.split(r" {2,}", text.strip()) for text in texts[heading + 1 :]]
    return [
        Row(
            worker=row[0],
            pid=0 if row[1] == "-" else int(row[1]),
            state=row[2],
            seconds=0.0 if row[3] == "-" else float(row[3]),
            client=row[4],
            endpoint=row[5],
            up=int(row[6]),
            down=int(row[7]),
            served=int(row[8]),
            failed=int(row[9]),
        )
        for row in cells
        if row[0].isdigit() and len(row) == 10
    ]


def totals(proxy: Proxy) -> str:
    """The line below the table, of the last time that it was asked for."""
    return proxy.log.matching(TOTALS)[-1]
