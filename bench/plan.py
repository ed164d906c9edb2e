"""The command `plan`: what a scenario must come to, before anything runs: exact counts, and the floor."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from typing import Any

from bench import scenario, tape, theory
from bench.figure import lined_up, shown
from bench.scenario import Scenario
from bench.theory import Forecast, Part

_HEADERS = ("Type", "Tasks", "Succeed", "Dead", "Runs", "Failed", "Retries", "Lost", "Slot-seconds")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `plan` to `parser`."""
    scenario.add_argument(parser)
    parser.add_argument("--json", action="store_true", help="as JSON")


def main(args: argparse.Namespace) -> int:
    """Print the plan."""
    planned = scenario.read(args.scenario)
    forecast = theory.forecast(planned)
    if args.json:
        print(json.dumps(content(planned, forecast), indent=2, ensure_ascii=False))
    else:
        print("\n".join(told(planned, forecast)))
    return 0


def told(planned: Scenario, forecast: Forecast) -> list[str]:
    """The plan for a reader."""
    rows = [_cells(kind, part) for kind, part in theory.by_type(forecast)]
    rows.append(_cells("all", Part(forecast.counts, forecast.slot_s, 0.0)))
    floor = forecast.floor
    bounds = [
        ("slots", floor.slots_s, f"{shown(forecast.slot_s)} slot-seconds on {_slots(planned)} slots"),
        ("waits", floor.waits_s, "the longest chain of runs, and of waits between them, of one task"),
        ("arrivals", floor.arrivals_s, "from the first task's coming to the last one's"),
    ]
    lines = [planned.heading, "", lined_up(_HEADERS, rows), ""]
    lines.append(
        lined_up(("Bound of the drain", "", "From"), [(n, shown(s, "s"), why) for n, s, why in bounds])
    )
    lines += ["", f"floor of the drain: {shown(floor.drain_s, 's')}, by {floor.binding}"]
    if forecast.offered is not None:
        more = "; the backlog grows while the load lasts" if forecast.offered > 1 else ""
        lines.append(f"load offered: {forecast.offered:.0%} of the slots on average{more}")
    if planned.faults:
        lines.append("there are faults: what a worker loses runs again, so counts may differ")
    elif theory.undecided(planned):
        lines.append("sleep_ms is close to the lease: a sleeper may be lost or not, and counts may differ")
    return lines + tape.told(planned.load, planned.fleet.config.vis_timeout_ms)


def content(planned: Scenario, forecast: Forecast) -> dict[str, Any]:
    """The plan as JSON has it."""
    return {
        "name": planned.name,
        "hash": planned.hash,
        "scenario": planned.content(),
        "counts": asdict(forecast.counts),
        "slot_s": forecast.slot_s,
        "by_type": {kind: asdict(part) for kind, part in theory.by_type(forecast)},
        "floor": asdict(forecast.floor)
        | {"drain_s": forecast.floor.drain_s, "binding": forecast.floor.binding},
        "offered": forecast.offered,
        "exact": not (planned.faults or theory.undecided(planned)),
        "notes": tape.notes(planned.load, planned.fleet.config.vis_timeout_ms),
    }


def _slots(planned: Scenario) -> int:
    return planned.fleet.processes * planned.fleet.slots


def _cells(kind: str, part: Part) -> tuple[str, ...]:
    c = part.counts
    counts = (c.tasks, c.succeeded, c.dead, c.runs, c.failed, c.retries, c.lost)
    return (kind, *(f"{n:,}" for n in counts), shown(part.slot_s))
