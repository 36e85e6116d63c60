"""The command line, and one run from its beginning to its end."""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import time
from pathlib import Path
from typing import List

from tests.soak.faults import Faults
from tests.soak.invariants import Invariants
from tests.soak.tally import Tally
from tests.soak.traffic import Traffic
from tests.soak.world import World
from tests.support.namespaces import Namespace, why_not

# Seconds from one time that the log is left unread to the next, and how long it is at most.
UNREAD_EVERY, UNREAD_FOR = 120.0, 20.0


def soak(world: World, tally: Tally, seconds: float, chance: random.Random) -> List[str]:
    """Soak for so long; returns what did not hold."""
    traffic = Traffic(world, tally, chance)
    faults = Faults(world, tally, chance, unread=min(UNREAD_FOR, seconds / 5))
    invariants = Invariants(world, tally, traffic)
    traffic.start()
    try:
        inject(faults, seconds)
    except AssertionError as error:
        # What a fault waited for in vain; another one could not be undone either.
        tally.unexplained(str(error))
    finally:
        traffic.stop()
    print("connections:", dict(tally.results))
    print("faults:", dict(tally.faults))
    return invariants.broken()


def inject(faults: Faults, seconds: float) -> None:
    """One fault after the other, for so long."""
    began = unread = time.monotonic()
    while time.monotonic() < began + seconds:
        faults.inject()
        if time.monotonic() > unread + min(UNREAD_EVERY, seconds / 2):
            unread = time.monotonic()
            faults.leave_log_unread()


def main() -> int:
    """Parse the command line, soak, say what did not hold."""
    parser = argparse.ArgumentParser(description="Mixed traffic with random faults.")
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    arguments = parser.parse_args()
    print(f"seed {arguments.seed}, {arguments.seconds:g} s")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        network = None if why_not() else Namespace(folder)
        tally = Tally()
        world = World(folder, network, tally)
        try:
            broken = soak(world, tally, arguments.seconds, random.Random(arguments.seed))
        finally:
            world.close()
            if network:
                network.close()
    for text in broken:
        print("BROKEN:", text)
    print("all invariants hold" if not broken else f"{len(broken)} do not hold")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
