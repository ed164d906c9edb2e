"""Ratios: how much the batch path is worth, measured in pairs within one run.

Absolute rates of a small shared machine say little; what is compared here runs on the same servers within
the same minutes, in turns, and the ratios within the rounds are the result:

    drain        noops drained by workers × 12, against the same fleet with batches of one
    pgbench      the same drain against pgbench's single-row commits at 16 clients
    bulk         bulk enqueue over HTTP against one task a request

A drain's rate is taken from Postgres: the tasks between the 5 % and the 95 % completion, over the time
between the two. `bench limits` measures more in the same way; `rates.py` has how.
"""

from __future__ import annotations

import argparse
from typing import Final

from bench import rates
from bench.options import count
from bench.rounds import SETTINGS, SLOTS, Size, arms_of, measured
from bench.rows import MUST_MISSED, Limit, Row
from bench.stats import spread
from bench.system import system
from bench.yardsticks import CLIENTS

_SEED: Final = 1


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `ratios` to `parser`."""
    parser.add_argument("--tasks", type=count, default=20_000, help="noops of a drain (20000)")
    parser.add_argument("--ones", type=count, default=4_000, help="noops of a drain in batches of one (4000)")
    parser.add_argument(
        "--singles", type=count, default=4_000, help="tasks of a round of single requests (4000)"
    )
    parser.add_argument("--rounds", type=count, default=3, help="rounds, each measures everything once (3)")
    parser.add_argument("--workers", type=count, default=3, help="worker processes (3)")


def main(args: argparse.Namespace) -> int:
    """0 if every ratio holds, 1 if one is missed."""
    size = Size(drain=args.tasks, ones=args.ones, singles=args.singles, bulk=args.tasks, workers=args.workers)
    rows = measure(size, args.rounds)
    print("\nmedian of", args.rounds, "rounds, measured in turns; Postgres with its default durability\n")
    print("\n".join(line(row) for row in rows))
    return int(any(row.verdict == MUST_MISSED for row in rows))


def measure(size: Size, rounds: int) -> list[Row]:
    """Measure all rates `rounds` times, in turns."""
    limits = _limits(size)
    with (
        system(SETTINGS, say=print) as me,
        rates.arms(me, size) as arms,
    ):
        found = measured(arms, rounds, _SEED, title="rates", wanted=arms_of(limits))
    return [Row.of(limit, found) for limit in limits]


def _limits(size: Size) -> list[Limit]:
    batch = f"drain, {size.workers} × {SLOTS}, against batches of one"
    pgbench = f"drain against pgbench, {CLIENTS} clients"
    bulk = "bulk enqueue against single requests"
    return [
        Limit("ones", "rates", batch, "/s", "drain.rate", "ones.rate", must=10),
        Limit("pgbench", "rates", pgbench, "/s", "drain.rate", "pgbench.rate", must=1),
        Limit("bulk", "rates", bulk, "/s", "bulk-1000.rate", "single.rate", must=5),
    ]


def line(row: Row) -> str:
    """The ratio, both medians with their ranges, and the verdict."""
    return (
        f"{row.limit.title:<40} {row.figure:>6.1f}x  must be {row.limit.must:>4.1f}x"
        f"  {'MISSED' if row.verdict == MUST_MISSED else 'ok'}"
        f"   {_range(row.values)} against {_range(row.others)}"
    )


def _range(values: tuple[float, ...]) -> str:
    middle, low, high = spread(values)
    return f"{middle:,.0f}/s ({low:,.0f}..{high:,.0f})"
