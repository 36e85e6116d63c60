"""One way's measurement from beginning to end: which parts, how much, beside which peers."""

from __future__ import annotations

import subprocess
import tempfile
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Iterator, List, Optional, Sequence, Tuple

from . import accounting, footprint, machine, metrics, native, proxies, services
from .accounting import Accounting
from .places import TCP, UNIX, VSOCK
from .proxies import PROXYD, Proxy, Site
from .results import Results
from .rounds import LOADS, MIB, Bench, Report, run_rounds
from .ways import Way

ROOT = Path(__file__).resolve().parent.parent
BACKEND_THREADS = 64
SPARE_THREADS = 64


@dataclass(frozen=True)
class Extent:
    """How much is measured."""

    rounds: int
    seconds: float
    size: int
    counts: Tuple[int, ...]
    starts: int
    held: int
    held_rounds: int
    connections: int
    idle_seconds: float


# Rather many rounds than long ones: where the scheduler puts a connection's processes can change a
# rate twofold, and stays so for the rest of a round.
FULL = Extent(
    rounds=15,
    seconds=1.0,
    size=8 * MIB,
    counts=(4, 100, 1000),
    starts=10,
    held=1000,
    held_rounds=3,
    connections=2000,
    idle_seconds=10.0,
)
# The emulated machine is some ten times slower, and too small for a thousand interpreters.
VIRTUAL = replace(
    FULL, rounds=5, seconds=3.0, size=MIB // 2, counts=(4, 100), starts=3, held=100, connections=200
)
SHORT = Extent(
    rounds=1,
    seconds=0.3,
    size=MIB,
    counts=(4, 100),
    starts=1,
    held=100,
    held_rounds=1,
    connections=100,
    idle_seconds=1.0,
)


@dataclass(frozen=True)
class Choice:
    """What the command line asked for."""

    way: Way
    extent: Extent
    parts: Tuple[str, ...]
    loads: Tuple[str, ...]
    peers: bool
    python: str
    baseline: Optional[Path]


def measure(choice: Choice, notes: Sequence[str], report: Report) -> Results:
    """notes: what is to stand beside the results."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="benchmark-")))
        accounts = stack.enter_context(accounting.accounting())
        return _measure(choice, notes, report, folder, accounts)


def _measure(
    choice: Choice, known: Sequence[str], report: Report, folder: Path, accounts: Accounting
) -> Results:
    programs = native.build(folder)
    site = proxies.new_site(choice.way.listens, folder, choice.python, ROOT, accounts)
    peers, notes = _peers(choice)
    notes += [note for note in (accounts.why_not, *known) if note]
    for note in (choice.way.title, *notes):
        report(note)
    empty = Results(
        way=choice.way.name,
        machine=machine.describe(choice.python, ROOT),
        seconds=choice.extent.seconds,
        size=choice.extent.size,
        burner=accounting.check(accounts),
        notes=notes,
    )
    with _bench(choice, programs, site, report, BACKEND_THREADS) as bench:
        results = _under_load(choice, bench, empty, peers)
    with _bench(choice, programs, site, report, _most_connections(choice.extent)) as bench:
        return _beside_the_traffic(choice, bench, results, peers)


def _most_connections(extent: Extent) -> int:
    many = services.SERVICES * services.WORKERS_EACH
    return max(*extent.counts, extent.held, footprint.HELD_FOR_MEMORY, many) + SPARE_THREADS


@contextmanager
def _bench(
    choice: Choice, programs: native.Programs, site: Site, report: Report, threads: int
) -> Iterator[Bench]:
    extent = choice.extent
    kind = choice.way.connects
    with native.backend(programs, site.accounts, kind, threads) as backend:
        yield Bench(programs, backend, site, extent.seconds, extent.size, report)


def _peers(choice: Choice) -> Tuple[List[Proxy], List[str]]:
    """The peers there are, and for each that is missing why."""
    if not choice.peers:
        return [], []
    missing = proxies.missing_peers()
    notes = [f"{name} is missing: install the package {missing[name]}" for name in missing]
    if choice.way.connects == VSOCK:
        missing[PROXYD] = ""
        notes = [note for note in notes if PROXYD not in note]
        notes.append(f"{PROXYD} cannot connect to AF_VSOCK")
    asks = choice.way.connects == UNIX
    peers = [proxies.socat(asks), proxies.proxyd(asks=asks)]
    return [peer for peer in peers if peer.name not in missing], notes


def _under_load(choice: Choice, bench: Bench, results: Results, peers: Sequence[Proxy]) -> Results:
    extent = choice.extent
    if "loads" in choice.parts:
        logging = proxies.ours(level="info", name=proxies.OURS_LOGGING, loads=("short",))
        own = [proxies.ours(), logging]
        if choice.baseline is not None and _is_able(choice.baseline, choice):
            own.append(proxies.ours(name=proxies.BASELINE, source=choice.baseline.resolve()))
        if choice.way.connects == UNIX and any(peer.name == PROXYD for peer in peers):
            own.append(proxies.proxyd(name=proxies.PROXYD_PLAIN, loads=("short",)))
        loads = [load for load in LOADS if load.name in choice.loads]
        samples = run_rounds(bench, [*own, *peers], loads, extent.rounds)
        results = replace(results, samples=samples)
    if "scale" in choice.parts:
        scale = footprint.measure_scale(bench, extent.counts, extent.rounds)
        results = replace(results, scale=scale)
    if "metrics" in choice.parts and _has_extra(choice):
        results = replace(results, metrics=metrics.measure(bench, extent.rounds))
    return results


def _has_extra(choice: Choice) -> bool:
    """Whether the interpreter has what metrics need."""
    command = [choice.python, "-c", "import prometheus_client"]
    return subprocess.run(command, stderr=subprocess.DEVNULL, check=False).returncode == 0


def _is_able(baseline: Path, choice: Choice) -> bool:
    """Whether another checkout goes that way too: older ones do not listen on TCP."""
    if choice.way.listens != TCP:
        return True
    command = [choice.python, "-m", "vsock_proxy", "--help"]
    done = subprocess.run(command, cwd=baseline, capture_output=True, text=True, check=True)
    return "--listen-tcp" in done.stdout


def _beside_the_traffic(
    choice: Choice, bench: Bench, results: Results, peers: Sequence[Proxy]
) -> Results:
    extent, parts = choice.extent, choice.parts
    if "memory" in parts:
        memory = footprint.measure_memory(bench, extent.counts, peers)
        results = replace(results, memory=memory)
    if "starts" in parts:
        starts = footprint.measure_starts(bench, extent.counts, peers, extent.starts)
        results = replace(results, starts=starts)
    if "held" in parts:
        held = footprint.measure_held(bench, extent.held, peers, extent.held_rounds)
        results = replace(results, held=held)
    if "switches" in parts:
        counts = extent.counts[:2]
        results = replace(
            results, switches=footprint.measure_switches(bench, counts, extent.connections)
        )
    if "services" in parts:
        found = services.measure(bench, peers, extent.starts, extent.rounds, extent.idle_seconds)
        results = replace(results, services=found)
    return results
