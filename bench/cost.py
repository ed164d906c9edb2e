"""Cost: what a task costs in commands, statements, log and CPU while a fleet drains noops, and what changed.

Counts and CPU are what a busy neighbour changes little; see `meter.py` for their names. The fleet is ready,
and frozen, when the tasks come in; from its thaw to the last end everything counts, polling too.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from bench import meter, record
from bench.burst import drain, metrics, ran_once, send
from bench.progress import told
from bench.rates import frozen
from bench.rounds import SETTINGS, SLOTS
from bench.system import System, system
from bench.workload import Mix, deck

WITHIN: Final = 0.02
CPU_WITHIN: Final = 0.4

_NOOPS: Final = Mix(noop=100)
_STRAY: Final = 0.005
"""Calls a task that mean nothing: some in all, as a connection needs them that is opened on the way."""


def changes(found: Mapping[str, float], reference: Mapping[str, float]) -> list[str]:
    """What costs more or less than it did, one line each; CPU only where it costs much more."""
    lines = []
    for name in sorted(found.keys() | reference.keys()):
        now, then = found.get(name, 0.0), reference.get(name, 0.0)
        if name.startswith("cpu"):
            changed = now > then * (1 + CPU_WITHIN)
        else:
            changed = abs(now - then) > max(then * WITHIN, _STRAY)
        if changed:
            lines.append(f"{name}: {now:.3f} a task, and it was {then:.3f}")
    return lines


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `cost` to `parser`."""
    parser.add_argument("--tasks", type=int, default=100_000, help="noops of the drain (100000)")
    parser.add_argument("--workers", type=int, default=3, help="worker processes (3)")
    parser.add_argument("--out", type=Path, help="write a record here")


def main(args: argparse.Namespace) -> int:
    """Always 0: `bench limits` judges."""
    costs = measure(args.tasks, args.workers)
    print(f"\na noop's cost in a drain of {args.tasks:,} by {args.workers} × {SLOTS}\n")
    print("\n".join(f"{name:<26}{value:>12,.3f}" for name, value in costs.items()))
    if args.out is not None:
        result = {"tasks": args.tasks, "workers": args.workers, "slots": SLOTS, "per_task": costs}
        command = ["bench cost", f"--tasks {args.tasks}", f"--workers {args.workers}"]
        record.write(args.out, record.make(command, result))
    return 0


def measure(tasks: int, workers: int) -> dict[str, float]:
    """The costs a task of one drain on servers of its own."""
    with system(SETTINGS, say=print, postgres=meter.SETTINGS) as me, told(f"{tasks:,} noops") as tell:
        _burst(me, max(tasks // 10, 1000), workers, tell)  # warm-up, not counted
        return _burst(me, tasks, workers, tell)


def _burst(me: System, tasks: int, workers: int, tell: Any) -> dict[str, float]:
    postgres, redis = me.stack.postgres, me.stack.redis
    assert postgres is not None
    assert redis is not None
    with me.with_fleet(workers) as fleet:
        page = metrics(me)
        with frozen(fleet):
            sent = send(me, deck(_NOOPS, tasks), tell)
            parts = {"workers": [m.pid for m in fleet], "postgres": [postgres.pid], "redis": [redis.pid]}
            counters = meter.Meter(postgres.admin_url, redis.url, parts)
            before = counters.read()
        with counters:
            drain(me, tasks, page, tell)
            spent = counters.read().since(before)
        ran_once(me, sent.ids)
        return spent.per(tasks)
