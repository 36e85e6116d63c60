"""Measure this proxy beside its peers and write the page and the plot.

    python3 -m benchmarks           both directions on hybrid sockets; writes docs/benchmark.md and
                                    .svg, benchmarks/results/ and README.md's table
    python3 -m benchmarks --vm      that, and both on AF_VSOCK in a virtual machine
    python3 -m benchmarks --short   a round of everything, to see that it works; writes nothing
    python3 -m benchmarks --ways to-hybrid --parts loads --only short,up --rounds 3
                                    while working on the speed; writes nothing

What each figure is, and which module has which duty, is in benchmarks/README.md.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Dict, List, Optional, Tuple

from . import measurement, native, network, plot, proxies, readme, report, results, targets, virtual
from .measurement import FULL, ROOT, SHORT, VIRTUAL, Choice
from .results import Results
from .rounds import LOADS
from .ways import PARTS, WAYS, Way

DOCS = ROOT / "docs"
KEPT = ROOT / "benchmarks" / "results" / "samples.json"
FAILURES = (
    proxies.StartFailed,
    native.CompilerMissing,
    virtual.NoMachine,
    subprocess.CalledProcessError,
    subprocess.TimeoutExpired,
)


def main() -> int:
    arguments = _parse()
    try:
        fresh = _measure(arguments)
    except FAILURES as error:
        _say(f"benchmark: {error}")
        return 1
    if arguments.json == "-":
        for found in fresh.values():
            print(found.to_json(), flush=True)
    else:
        _show(arguments, fresh)
    return 1 if any(targets.all_errors(found) for found in fresh.values()) else 0


def _measure(arguments: argparse.Namespace) -> Dict[str, Results]:
    ways = _ways(arguments)
    virtually = [way for way in ways if way.emulated and not arguments.inside]
    fresh = {}
    # First, because measuring here leaves the network from which a kernel may have to be fetched.
    for way in virtually:
        fresh[way.name] = virtual.measure(way, _passed_on(arguments), arguments.python)
    here = [way for way in ways if way not in virtually]
    notes = [network.enter()] if here else []
    for way in here:
        fresh[way.name] = measurement.measure(_choice(arguments, way), notes, _say)
    return fresh


def _ways(arguments: argparse.Namespace) -> List[Way]:
    emulated = arguments.vm_only, arguments.vm or arguments.vm_only
    default = [way.name for way in WAYS.values() if way.emulated in emulated]
    parts = _names(arguments.parts, PARTS, PARTS)
    ways = [WAYS[name] for name in _names(arguments.ways, tuple(WAYS), tuple(default))]
    return [way for way in ways if set(parts) & set(way.parts)]


def _show(arguments: argparse.Namespace, fresh: Dict[str, Results]) -> None:
    for found in fresh.values():
        print(report.part(found))
    if arguments.json is not None:
        results.save(Path(arguments.json), fresh)
    if arguments.out is not None:
        write(Path(arguments.out), Path(arguments.out) / KEPT.name, fresh)
    elif _is_whole(arguments):
        write(DOCS, KEPT, fresh)
        readme.update(ROOT / "README.md", results.load(KEPT))


def write(pages: Path, samples: Path, fresh: Dict[str, Results]) -> None:
    """Write the page, the plot and all samples; a way not measured now stays as it is."""
    pages.mkdir(parents=True, exist_ok=True)
    found = {**results.load(samples), **fresh}
    results.save(samples, found)
    (pages / "benchmark.md").write_text(report.page(found))
    (pages / "benchmark.svg").write_text(plot.draw(found))
    _say(f"written: benchmark.md and benchmark.svg in {pages}, and {samples}")


def _is_whole(arguments: argparse.Namespace) -> bool:
    """Whether the measurement is one that the project's own pages are to show."""
    partial = arguments.short or arguments.only or arguments.parts or arguments.no_peers
    return not (partial or arguments.baseline or arguments.json)


def _choice(arguments: argparse.Namespace, way: Way) -> Choice:
    loads = tuple(load.name for load in LOADS)
    parts = _names(arguments.parts, PARTS, PARTS)
    extent = SHORT if arguments.short else VIRTUAL if way.emulated else FULL
    if arguments.rounds is not None:
        extent = replace(extent, rounds=arguments.rounds)
    if arguments.seconds is not None:
        extent = replace(extent, seconds=arguments.seconds)
    return Choice(
        way=way,
        extent=extent,
        parts=tuple(part for part in way.parts if part in parts),
        loads=_names(arguments.only, loads, loads),
        peers=not arguments.no_peers,
        python=arguments.python,
        baseline=arguments.baseline,
    )


def _names(
    text: Optional[str], all_of_them: Tuple[str, ...], default: Tuple[str, ...]
) -> Tuple[str, ...]:
    if text is None:
        return default
    chosen = tuple(text.split(","))
    unknown = [name for name in chosen if name not in all_of_them]
    if unknown:
        raise SystemExit(f"benchmark: {unknown[0]!r} is none of {', '.join(all_of_them)}")
    return chosen


def _passed_on(arguments: argparse.Namespace) -> List[str]:
    """The arguments that hold in the virtual machine too."""
    passed = ["--python", arguments.python]
    passed += ["--short"] if arguments.short else []
    passed += ["--no-peers"] if arguments.no_peers else []
    for name in ("only", "parts", "rounds", "seconds", "baseline"):
        value = getattr(arguments, name)
        passed += [] if value is None else [f"--{name}", str(value)]
    return passed


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python3 -m benchmarks",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--short", action="store_true", help="one quick round of everything; writes nothing")
    add("--only", metavar="LOADS", help="of short,pingpong,up,down; writes nothing")
    add("--parts", metavar="PARTS", help=f"of {','.join(PARTS)}; writes nothing")
    add("--rounds", type=int, metavar="N", help="interleaved rounds")
    add("--seconds", type=float, metavar="S", help="of each load in each round")
    add("--no-peers", action="store_true", help="this proxy alone; writes nothing")
    add(
        "--baseline",
        type=Path,
        metavar="DIR",
        help="another checkout of this proxy, as a further peer",
    )
    add("--python", default=sys.executable, help="the interpreter that runs the proxy")
    add("--ways", metavar="WAYS", help=f"of {','.join(WAYS)}; the rest of the page stays")
    add("--vm", action="store_true", help="measure AF_VSOCK in a virtual machine as well")
    add("--vm-only", action="store_true", help="measure only that; the rest of the page stays")
    add("--inside", action="store_true", help="this is the virtual machine, with a loopback CID")
    add(
        "--json", metavar="FILE", help="write the samples there (-: print them) instead of the page"
    )
    add("--out", metavar="DIR", help="write the page, the plot and the samples there")
    return parser.parse_args()


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
