"""The command `simulate`: a scenario in virtual time, with the product's own rules. See `bench/twin.py`.

The same scenario goes in as into a run, and the same record comes out (see `bench/repeats.py`). A repeat's
seed decides it to the bit.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from bench import costs, job, record, repeats, scenario, tape
from bench.costs import Costs
from bench.history import History
from bench.report import seconds
from bench.scenario import Scenario
from bench.summary import Summary, summarise
from bench.twin import Twin
from scheduler.errors import StartError


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
        found.append(repeats.content(planned, repeat, history, summary(planned, history)))
        if repeat == 0 and args.runs is not None:
            history.write(args.runs)
    took = time.perf_counter() - began
    lines = repeats.told(planned, found) + tape.told(planned.load, planned.fleet.config.vis_timeout_ms)
    print("\n".join(lines))
    print(f"\nsimulated in {seconds(took)}")
    if args.out is not None:
        command = [
            "bench simulate",
            str(args.scenario),
            *(["--costs", str(args.costs)] if args.costs else []),
        ]
        kept = repeats.result("simulated", planned, found, costs=priced.content())
        record.write(args.out, record.make(command, kept))
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
