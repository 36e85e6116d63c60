"""Whether all that counts connections and bytes comes to the same: table, metrics and log."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from typing import Iterator, List

from tests.soak.tally import Tally
from tests.soak.world import World
from tests.support import board, json_log
from tests.support.scraping import BYTES, CONNECTIONS, scrape
from tests.support.timing import wait_until

LINES_LOST = "vsock_proxy_log_lines_lost_total"
CLOSED = "connection_closed"


@dataclass(frozen=True)
class Figures:
    """What one of them says of all connections so far."""

    served: int
    not_served: int
    up: int
    down: int


def disagreements(world: World, tally: Tally) -> Iterator[str]:
    """Asked while no connection is there."""
    table, metrics = _of_table(world), _of_metrics(world)
    if table != metrics:
        yield f"the table has {table}, the metrics have {metrics}"
    # A worker that is killed may have counted its connection and not written the line yet, or the
    # other way round. Other lines are lost where nobody read the log, or beyond the bound.
    lost = int(scrape(world.metrics).sum(LINES_LOST))
    try:
        wait_until(lambda: _fits(table, _of_log(world), lost, tally.killed), "the lines")
    except AssertionError:
        yield (
            f"the table has {table}, the lines of the log have {_of_log(world)}, with "
            f"{lost} lost and {tally.killed} workers killed"
        )
    names = Counter(line["connection"] for line in _closing_lines(world))
    twice = [name for name, count in names.items() if count > 1]
    if twice:
        yield f"connections with more than one closing line: {twice}"
    print(f"figures: {table}, {_of_log(world)} in the log, {lost} lines lost")


def _fits(table: Figures, log: Figures, lost: int, killed: int) -> bool:
    missing = table.served + table.not_served - log.served - log.not_served
    bytes_fit = log.up <= table.up and log.down <= table.down
    if not lost and not killed:
        return log == table
    return -killed <= missing <= lost + killed and bytes_fit


def _of_table(world: World) -> Figures:
    board.ask(world.proxy)
    line = json_log.lines_about(world.proxy, "scoreboard_totals")[-1]
    gone = re.search(r"(\d+) with the client gone before", line["message"])
    assert gone
    return Figures(
        line["served"], line["failed"] + int(gone[1]), line["bytes_up"], line["bytes_down"]
    )


def _of_metrics(world: World) -> Figures:
    metrics = scrape(world.metrics)
    served = int(metrics.sum(CONNECTIONS, result="served"))
    return Figures(
        served,
        int(metrics.sum(CONNECTIONS)) - served,
        int(metrics.sum(BYTES, direction="up")),
        int(metrics.sum(BYTES, direction="down")),
    )


def _of_log(world: World) -> Figures:
    lines = _closing_lines(world)
    served = [line for line in lines if line["event"] == CLOSED]
    return Figures(
        len(served),
        len(lines) - len(served),
        sum(line["bytes_up"] for line in served),
        sum(line["bytes_down"] for line in served),
    )


def _closing_lines(world: World) -> List[json_log.Line]:
    return json_log.lines_about(world.proxy, *json_log.CLOSING)
