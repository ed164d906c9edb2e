"""Cost: what a task costs in commands, statements, log and CPU while a fleet drains noops, and what changed.

Counts and CPU are what a busy neighbour changes little; see `meter.py` for their names. The fleet is ready,
and frozen, when the tasks come in; from its thaw to the last end everything counts, polling too.

`--steps` adds what each step of the way costs in a second drain, the way in included: see `steps.py`.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, Final, TypedDict

from bench import meter, record
from bench.burst import drain, metrics, ran_once, send
from bench.company import Company
from bench.company import told as source
from bench.options import count
from bench.progress import told
from bench.rates import api_pid, frozen
from bench.rounds import SETTINGS, SLOTS
from bench.rows import aligned
from bench.steps import Samples, scripts, statements
from bench.system import System, system
from bench.vitals import cpu_s
from bench.workload import Mix, deck

WITHIN: Final = 0.02
CPU_WITHIN: Final = 0.4

OUT: Final = record.RESULTS / "cost.json"

_NOOPS: Final = Mix(noop=100)
_LEAST_US: Final = 0.05
"""Steps that cost less are not told."""

_STRAY: Final = 0.0004
"""Calls a task that mean nothing: one among some thousand tasks. What is asked once a batch comes to dozens,
so that once more a batch is seen, and so are two percent."""


class Step(TypedDict):
    """A step as a record keeps it: µs a task, and calls a task where there are any to count."""

    when: str
    part: str
    step: str
    us: float
    calls: float | None


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
    parser.add_argument("--tasks", type=count, default=100_000, help="noops of the drain (100000)")
    parser.add_argument("--workers", type=count, default=3, help="worker processes (3)")
    parser.add_argument("--steps", action="store_true", help="what each step costs, too; this needs py-spy")
    parser.add_argument("--out", type=Path, default=OUT, help=f"where the record goes ({OUT})")


def main(args: argparse.Namespace) -> int:
    """Always 0: `bench limits` judges."""
    with Company() as company:
        costs, steps = measure(args.tasks, args.workers, steps=args.steps)
    found = {"tasks": args.tasks, "workers": args.workers, "slots": SLOTS, "per_task": costs, "steps": steps}
    command = ["bench cost", f"--tasks {args.tasks}", f"--workers {args.workers}"]
    made = record.make([*command, *(["--steps"] if args.steps else [])], found | company.data())
    record.write(args.out, made)
    print(f"\n{tables(made)}\n\n{source(made)}")
    return 0


def measure(tasks: int, workers: int, *, steps: bool = False) -> tuple[dict[str, float], list[Step]]:
    """The costs a task of one drain on servers of its own, and, if wanted, the steps of another one."""
    with system(SETTINGS, say=print, postgres=meter.SETTINGS) as me, told(f"{tasks:,} noops") as tell:
        _burst(me, max(tasks // 10, 1000), workers, tell)  # warm-up, not counted
        costs = _burst(me, tasks, workers, tell)
        return costs, _stepped(me, tasks, workers, tell) if steps else []


def tables(made: Mapping[str, Any]) -> str:
    """What a record tells: the costs, and under them the steps if it has them."""
    found = made["result"]
    how = f"A noop in a drain of {found['tasks']:,} by {found['workers']} × {found['slots']}"
    costs = [(f"`{name}`", f"{value:,.3f}") for name, value in found["per_task"].items()]
    text = f"{how}:\n\n{aligned(('What', 'A task'), costs)}"
    if not found["steps"]:
        return text
    heads = ("While tasks", "Part", "Step", "µs a task", "Calls a task")
    rows = [
        (*(step[name] for name in ("when", "part", "step")), f"{step['us']:.2f}", _calls(step["calls"]))
        for step in found["steps"]
    ]
    return f"{text}\n\n{aligned(heads, rows)}"


def _calls(n: float | None) -> str:
    return "" if n is None else f"{n:.4f}"


def _stepped(me: System, tasks: int, workers: int, tell: Any) -> list[Step]:
    """The steps of one burst, on its way in and through the fleet."""
    with me.with_fleet(workers) as fleet:
        page = metrics(me)
        with ExitStack() as cold:
            cold.enter_context(frozen(fleet))
            steps = _watched(
                me, tasks, "come in", "API", [api_pid(me)], lambda: send(me, deck(_NOOPS, tasks), tell)
            )

            def work_off() -> None:
                cold.close()
                drain(me, tasks, page, tell)

            pids = [member.pid for member in fleet]
            return steps + _watched(me, tasks, "are worked off", "workers", pids, work_off)


def _watched(
    me: System, tasks: int, when: str, part: str, pids: list[int], act: Callable[[], object]
) -> list[Step]:
    """What some processes and both servers do in the meantime, by step: CPU in all, then each."""
    postgres, redis = me.stack.postgres, me.stack.redis
    assert postgres is not None
    assert redis is not None
    parts = {part: pids, "Postgres": [postgres.pid], "Redis": [redis.pid]}
    looks = {"Postgres": partial(statements, postgres.admin_url), "Redis": partial(scripts, redis.url)}
    before = {name: look() for name, look in looks.items()}
    used = {name: cpu_s(each) for name, each in parts.items()}
    with Samples(pids) as samples:
        act()
        used = {name: (cpu_s(each) - used[name]) * 1e6 / tasks for name, each in parts.items()}
    steps: list[Step] = [Step(when=when, part=part, step="all, CPU", us=used[part], calls=None)]
    for step, share in samples.shares().items():
        steps.append(Step(when=when, part=part, step=step, us=share * used[part], calls=None))
    for name, look in looks.items():
        spent = look().since(before[name])
        steps.append(Step(when=when, part=name, step="all, CPU", us=used[name], calls=None))
        for step in sorted(spent.us, key=lambda step: -spent.us[step]):
            us, calls = spent.us[step] / tasks, spent.calls[step] / tasks
            steps.append(Step(when=when, part=name, step=step, us=us, calls=calls))
    return [step for step in steps if step["us"] >= _LEAST_US]


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
