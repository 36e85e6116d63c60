"""What must be the same before and after, and what must not be at all."""

from __future__ import annotations

from typing import Iterator, List

from tests.soak.figures import disagreements
from tests.soak.tally import Tally
from tests.soak.traffic import Traffic
from tests.soak.world import WORKERS, World
from tests.support import processes
from tests.support.scraping import scrape
from tests.support.timing import wait_until

# Pages that a process writes to for the first time are its own from then on; a leak is more.
MEMORY_TOLERANCE = 1.3
LINES_OF_A_TRACEBACK = 16


class Invariants:
    """Made while the proxy is at rest, before the soak; broken() is asked after it."""

    def __init__(self, world: World, tally: Tally, traffic: Traffic) -> None:
        self._world = world
        self._tally = tally
        self._traffic = traffic
        traffic.warm_up()
        # So that the process that answers has touched what it will touch.
        scrape(world.metrics)
        self._files, self._memory = self._count_files(), self._measure_memory()

    def broken(self) -> List[str]:
        """What does not hold."""
        if self._world.proxy.has_ended():
            return [f"the proxy has ended, {self._world.proxy.wait()}", *self._internal_errors()]
        return [
            *self._not_at_rest(),
            *self._tally.wrong,
            *self._cuts(),
            *self._wrong_figures(),
            *self._leaks(),
        ]

    def _not_at_rest(self) -> Iterator[str]:
        proxy = self._world.proxy
        try:
            wait_until(lambda: len(proxy.workers()) == WORKERS, "all workers", 10)
            self._world.wait_until_idle()
            self._traffic.warm_up()
        except (AssertionError, OSError) as error:
            yield f"not at rest: {error}"
        zombies = [pid for pid in proxy.children() if processes.state(pid) == "Z"]
        if zombies:
            yield f"zombies: {zombies}"

    def _cuts(self) -> Iterator[str]:
        cut, killed = self._tally.cut_without_outage, self._tally.killed
        if cut > killed:
            yield f"{cut} connections cut, but only {killed} workers killed"
        yield from self._internal_errors()

    def _wrong_figures(self) -> Iterator[str]:
        return disagreements(self._world, self._tally)

    def _internal_errors(self) -> Iterator[str]:
        lines = self._world.proxy.log.lines
        for index, line in enumerate(lines):
            if "internal error" in line:
                yield "\n".join(lines[index : index + LINES_OF_A_TRACEBACK])

    def _leaks(self) -> Iterator[str]:
        files, memory = self._count_files(), self._measure_memory()
        if files != self._files:
            yield f"descriptors: {self._files} before, {files} after"
        print(f"memory: {self._memory} KiB before, {memory} KiB after")
        if memory > self._memory * MEMORY_TOLERANCE:
            yield "memory has grown"

    def _count_files(self) -> List[int]:
        return sorted(processes.open_files(pid) for pid in self._world.proxy.workers())

    def _measure_memory(self) -> int:
        pids = [self._world.proxy.pid, *self._world.proxy.children()]
        return sum(processes.anonymous_kib(pid) for pid in pids)
