"""The command `reliability`: every figure of recovery and of pressure that can be measured on one machine.

Servers, API and fleet are its own. Each promise is measured several times and must hold each time; one that
is broken, or that could not be measured to its end, makes the exit code 1. With `--out` the figures are kept
as a record, from which docs/reliability.md is generated.

`--quick` does little of everything, to see that the measurements work; its figures are none to be told.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

import psycopg

from bench import meter, record
from bench.arena import Arena
from bench.figure import Figure, failure, table
from bench.recovery import FAULTS, SLOTS, Fault, crashes, flushes, outages, stops
from bench.strain import idle, saturation, storms
from bench.system import OWN_SERVERS, System, system
from scheduler.errors import SchedulerError

_SETTINGS: Final = OWN_SERVERS | {
    "LOG_LEVEL": "warning",
    "HTTP_ADDR": "127.0.0.1:0",
    "METRICS_ADDR": "127.0.0.1:0",
}
_LATER: Final = (
    Figure("soak", "Memory, descriptors and connections over half an hour", why="not here: `bench soak`"),
    Figure("chaos", "Faults drawn from seeds, and an audit", why="not here: `bench chaos`"),
    Figure("amnesia", "FLUSHALL at a random moment of a drain", why="not here: `bench amnesia`"),
)
"""What has a command and a record of its own."""


@dataclass(frozen=True, slots=True)
class Size:
    """How much is measured: rounds, seconds and tasks."""

    crashes: int = 10
    outages: int = 2
    outage_s: float = 10.0
    faults: Sequence[Fault] = FAULTS
    flushes: int = 5
    flushed: int = 10_000
    stops: int = 5
    storms: int = 3
    failing: int = 5_000
    saturation_s: float = 60.0
    idles: int = 3
    idle_s: float = 20.0
    rows: int = 1_000_000


FULL: Final = Size()
QUICK: Final = Size(
    crashes=1,
    outages=1,
    outage_s=2.0,
    faults=FAULTS[:1],
    flushes=1,
    flushed=2_000,
    stops=1,
    storms=1,
    failing=500,
    saturation_s=5.0,
    idles=1,
    idle_s=2.0,
    rows=20_000,
)

Measure = Callable[[], list[Figure]]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `reliability` to `parser`."""
    parser.add_argument("--quick", action="store_true", help="a little of everything, in under 2 minutes")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write a record here")


def main(args: argparse.Namespace) -> int:
    """0 if every promise held, 1 if one did not."""
    began = time.monotonic()
    figures = [figure.record() for figure in (*measure(QUICK if args.quick else FULL), *_LATER)]
    seconds = time.monotonic() - began
    print(f"\n{table(figures)}\n")
    missed = [figure["what"] for figure in figures if not figure["holds"]]
    promised = sum("sign" in figure for figure in figures)
    print(f"{promised} promises, {len(missed)} broken; {seconds:.0f} s in all")
    if args.out is not None:
        command = ["bench reliability", *(["--quick"] if args.quick else [])]
        result = {"quick": args.quick, "seconds": round(seconds), "figures": figures}
        record.write(args.out, record.make(command, result))
    return int(bool(missed))


def measure(size: Size) -> list[Figure]:
    """Measure everything, on two systems of its own."""
    figures: list[Figure] = []
    with _folder() as folder, Arena(folder, SLOTS) as arena:
        figures += told(_harmed(arena, size, folder))
    with system(_SETTINGS, say=print, postgres=meter.SETTINGS) as me:
        figures += told(_pressed(me, size))
    return figures


def _harmed(arena: Arena, size: Size, folder: Path) -> dict[str, Measure]:
    log = folder / "clients.jsonl"
    return {
        "outages": partial(outages, arena, size.outages, size.outage_s, log=log, faults=size.faults),
        "crashes": partial(crashes, arena, size.crashes),
    }


def _pressed(me: System, size: Size) -> dict[str, Measure]:
    return {
        "flushes": partial(flushes, me, size.flushes, size.flushed),
        "stops": partial(stops, me, size.stops),
        "storms": partial(storms, me, size.storms, size.failing),
        "saturation": partial(saturation, me, size.saturation_s),
        "idle": partial(idle, me, size.idles, size.idle_s, size.rows),
    }


def told(measures: dict[str, Measure]) -> Iterator[Figure]:
    """The figures of each measurement, and a line when it has ended."""
    for name, one in measures.items():
        print(f"{name} ...", flush=True)
        began = time.monotonic()
        try:
            found: list[Figure] = one()
        except (SchedulerError, psycopg.Error) as error:
            found = [failure(name, str(error))]
        missed = sum(not figure.holds for figure in found)
        verdict = f"{missed} MISSED" if missed else "ok"
        print(f"{name}: {verdict}, {time.monotonic() - began:.0f} s", flush=True)
        yield from found


@contextmanager
def _folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="scheduler-reliability-") as name:
        Path(name).chmod(0o711)  # where root cannot be mapped, Postgres passes through as another user
        yield Path(name)
