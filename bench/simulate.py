"""The command `simulate`: a scenario in virtual time, with the product's own rules. See `bench/twin.py`.

The same scenario goes in as into a run, and the same figures come out: a record with a summary for each
repeat. A repeat's seed decides it to the bit.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from bench import costs, job, record, scenario, theory
from bench.costs import Costs
from bench.figure import lined_up, shown
from bench.history import History
from bench.report import seconds
from bench.scenario import Scenario
from bench.stats import spread
from bench.summary import Summary, result, summarise
from bench.twin import Twin
from bench.workload import PRIORITIES
from scheduler.errors import StartError

_PERCENT: Final = 100


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `simulate` to `parser`."""
    scenario.add_argument(parser)
    parser.add_argument("--costs", type=Path, help="a JSON file of costs (see bench/costs.py)")
    parser.add_argument("--out", type=Path, help="write a record here")
    parser.add_argument("--runs", type=Path, help="write the runs of the first repeat here, as CSV")


def main(args: argparse.Namespace) -> int:
    """Simulate, print the figures; 0."""
    planned = scenario.read(args.scenario)
    priced = costs.read(args.costs) if args.costs else Costs()
    began, found = time.perf_counter(), []
    for repeat in range(planned.repeats):
        history = simulate(planned, priced, repeat)
        found.append(summary(planned, history))
        if repeat == 0 and args.runs is not None:
            history.write(args.runs)
    took = time.perf_counter() - began
    print("\n".join(told(planned, found)))
    print(f"\nsimulated in {seconds(took)}")
    if args.out is not None:
        command = [
            "bench simulate",
            str(args.scenario),
            *(["--costs", str(args.costs)] if args.costs else []),
        ]
        record.write(
            args.out, record.make(command, result("simulated", planned, found) | {"costs": priced.content()})
        )
    return 0


def simulate(planned: Scenario, priced: Costs, repeat: int = 0) -> History:
    """One repeat, counted from 0.

    Raises:
        StartError: the scenario has faults, which the twin does not know.
    """
    if planned.faults:
        raise StartError(f"{planned.name} has faults, which cannot be simulated: leave them out")
    fleet, seed = planned.fleet, planned.seed + repeat
    return Twin(job.of(planned, priced, repeat), fleet.processes, fleet.config, priced, seed).run()


def summary(planned: Scenario, history: History) -> Summary:
    """The figures of one repeat."""
    fleet = planned.fleet
    lease_s = fleet.config.vis_timeout_ms / 1000
    return summarise(history, slots=fleet.processes * fleet.slots, lease_s=lease_s)


def told(planned: Scenario, found: Sequence[Summary]) -> list[str]:
    """The figures for a reader: the median of the repeats, and their range."""
    rows = [
        _row("drain", [s.drain_s for s in found]),
        _row("throughput", [s.throughput for s in found], "/s"),
        _row("p50 wait", [s.wait.p50_s for s in found]),
        _row("p95 wait", [s.wait.p95_s for s in found]),
    ]
    rows += [
        _row(f"  {name}", [s.waits[name].p95_s for s in found])
        for name in PRIORITIES
        if all(name in s.waits for s in found)
    ]
    ran = [s.p95_run_s for s in found if s.p95_run_s is not None]
    rows += [_row("p95 run", ran)] if ran else []
    rows.append(_row("in flight", [s.in_flight for s in found], ""))
    rows.append(_row("slots in use", [_PERCENT * s.utilisation for s in found], "%"))
    outcomes = [name for name in found[0].runs if any(s.runs[name] for s in found)]
    rows += [_row(f"runs {name}", [s.runs[name] for s in found], "") for name in outcomes]
    due = [theory.forecast(planned, i).counts for i in range(len(found))]
    agree = all(s.counts == counts for s, counts in zip(found, due, strict=True))
    return [
        planned.heading,
        "",
        lined_up(("Figure", "Median", "Range"), rows),
        "",
        f"counts: {'as theory says, to the unit' if agree else 'NOT those of theory: see `bench plan`'}",
    ]


def _row(name: str, values: Sequence[float], unit: str = "s") -> tuple[str, str, str]:
    def words(value: float) -> str:
        if unit == "s":
            return seconds(value)
        return f"{shown(value)}/s" if unit == "/s" else shown(value, unit)

    middle, low, high = spread(values)
    return name, words(middle), "" if low == high else f"{words(low)} to {words(high)}"
