"""The command `limits`: every row of the table of aims that fits into ten minutes, measured on this machine.

Servers, API and fleet are its own. What is compared is measured in turns within each round, the denominators
with it: pgbench, array inserts over one connection, an ordinary FastAPI route, the same fleet in batches of
one. The exit code is 1 if a row misses what it must reach. The rows are kept as a record; docs/performance.md
is generated from the one under docs/records/.

`--quick` does little of everything, to see that the measurements work; its figures are none to be told.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

from bench import crowd, footprint, latency, occupancy, rates, record, startup
from bench.aims import AIMS
from bench.burst import Stalled
from bench.company import Company, told
from bench.options import count
from bench.rounds import FULL, QUICK, SETTINGS, Round, Size, Topic, arms_of, measured
from bench.rows import MUST_MISSED, Limit, Row, markdown
from bench.system import System, system
from scheduler.errors import ConfigError, StartError

TOPICS: Final[Mapping[str, Topic]] = {
    "startup": startup.arms,
    "footprint": footprint.arms,
    "latency": latency.arms,
    "occupancy": occupancy.arms,
    "rates": rates.arms,
    "crowd": crowd.arms,
}
OUT: Final = Path("results/limits.json")

_LONG_STREAM: Final = 200_000


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `limits` to `parser`."""
    parser.add_argument("--quick", action="store_true", help="little of everything, in a minute")
    parser.add_argument(
        "--only", metavar="NAME", action="append", help=f"a row or a topic ({', '.join(TOPICS)}); repeatable"
    )
    parser.add_argument("--rounds", type=count, help="rounds of what is compared (3)")
    parser.add_argument(
        "--tasks", type=count, help="tasks that stream through while memory is watched (100000)"
    )
    parser.add_argument("--seed", type=int, default=1, help="draws the order within the rounds (1)")
    parser.add_argument("--out", type=Path, default=OUT, help=f"where the record goes ({OUT})")


def main(args: argparse.Namespace) -> int:
    """0 if every row reaches what it must, 1 if one does not."""
    size = _size(args)
    limits = chosen(args.only, size.skips)
    with Company() as company:
        rows, rounds = measure(limits, size, args.seed)
    found = {"quick": args.quick, "only": args.only or [], "rows": [row.data() for row in rows]}
    made = record.make(_command(args), found | company.data() | {"rounds": rounds})
    record.write(args.out, made)
    print(f"\n{markdown(rows)}\n\n{told(made)}")
    return verdict(rows)


def _command(args: argparse.Namespace) -> list[str]:
    """What a reader types to make the record again."""
    given = {"rounds": args.rounds, "tasks": args.tasks, "seed": args.seed}
    return [
        "bench limits",
        *(["--quick"] if args.quick else []),
        *(f"--only {name}" for name in args.only or ()),
        *(f"--{option} {value}" for option, value in given.items() if value is not None),
    ]


def chosen(names: Sequence[str] | None, skips: Collection[str] = ()) -> dict[str, tuple[Limit, ...]]:
    """The limits by topic: all but those of the arms in `skips`, or those that are named or whose topic is.

    Raises:
        ConfigError: there is neither a row nor a topic of that name.
    """
    known = [*AIMS, *(limit.name for limits in AIMS.values() for limit in limits)]
    if unknown := set(names or ()) - set(known):
        raise ConfigError(f"--only {min(unknown)} is no row and no topic; there are {', '.join(known)}")

    def wanted(limit: Limit) -> bool:
        return bool({limit.topic, limit.name} & set(names)) if names else arms_of([limit]).isdisjoint(skips)

    found = {topic: tuple(filter(wanted, limits)) for topic, limits in AIMS.items()}
    return {topic: limits for topic, limits in found.items() if limits}


def _size(args: argparse.Namespace) -> Size:
    size = QUICK if args.quick else FULL
    if args.rounds is not None:
        size = replace(size, rounds=args.rounds, starts=args.rounds)
    return size if args.tasks is None else replace(size, stream=args.tasks)


def measure(
    limits: Mapping[str, Sequence[Limit]], size: Size, seed: int
) -> tuple[list[Row], dict[str, list[Round]]]:
    """Measure topic after topic on one system: the rows, and all measures of each topic's rounds."""
    with system(SETTINGS, say=print) as me:
        rounds = {topic: _rounds(me, topic, limits[topic], size, seed) for topic in limits}
    rows = [
        Row.of(limit, rounds[topic]) if rounds[topic] else Row.missing(limit)
        for topic in limits
        for limit in limits[topic]
    ]
    return rows, rounds


def _rounds(me: System, topic: str, limits: Sequence[Limit], size: Size, seed: int) -> list[Round]:
    """The rounds of one topic. One that breaks off has none, and leaves the others their turn."""
    n = {"startup": size.starts, "footprint": 1 if size.stream > _LONG_STREAM else size.rounds}
    try:
        with TOPICS[topic](me, size) as arms:
            return measured(arms, n.get(topic, size.rounds), seed, title=topic, wanted=arms_of(limits))
    except (Stalled, StartError) as error:
        print(f"{topic}: {error}", file=sys.stderr)
        return []


def verdict(rows: Sequence[Row]) -> int:
    """The exit code: 1 if a row misses what it must reach."""
    return int(any(row.verdict == MUST_MISSED for row in rows))
