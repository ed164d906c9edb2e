"""The command `advise`: which settings are at odds with what runs have shown, and how large a fleet must be.

What it looks at is a record of runs, or a scenario, which is simulated. The rules are in `advice.py`. With
`--target-wait` it also looks for the cheapest fleet whose p95 wait meets the target, by simulation, under the
load of the scenario or under `--rate` tasks a second. The simulator charges `--costs`; without them it is
calibrated to the record, or takes the defaults for a scenario. With `--confirm` that fleet runs for real.

The exit code is 1 if no fleet meets the target, or if the one that was confirmed did not hold it; advice on
settings alone is 0.
"""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import inf
from pathlib import Path
from typing import Any

from bench import advice, calibrate, costs, evidence, record, repeats, scenario, schema, sizing
from bench.advice import Advice
from bench.costs import Costs
from bench.evidence import Seen
from bench.figure import lined_up
from bench.history import History
from bench.repeats import Record, Run
from bench.report import seconds
from bench.scenario import Open, Scenario
from bench.simulate import simulate
from bench.sizing import Tried
from bench.stats import spread
from bench.tape import Replay
from bench.turn import Arm, records
from scheduler.errors import ConfigError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `advise` to `parser`."""
    parser.add_argument(
        "source",
        type=Path,
        metavar="RECORD",
        help="a record that `run` or `simulate` wrote (.json), or a scenario, which is simulated",
    )
    parser.add_argument(
        "--costs", type=Path, help="what the simulator charges, as `calibrate --out` wrote it"
    )
    parser.add_argument("--target-wait", type=float, metavar="MS", help="find a fleet with this p95 wait")
    parser.add_argument(
        "--rate", type=float, help="tasks a second, at random, instead of the scenario's load"
    )
    parser.add_argument("--seconds", type=float, default=20.0, help="how long they come (20)")
    parser.add_argument("--confirm", action="store_true", help="run the fleet that was found")
    parser.add_argument("--out", type=Path, help="write a record here")


def main(args: argparse.Namespace) -> int:
    """Advise; 1 if a target was asked for and not reached."""
    if args.target_wait is None and (args.rate is not None or args.confirm):
        raise ConfigError("--rate and --confirm go with --target-wait")
    if args.target_wait is not None and not 0 < args.target_wait < inf:
        raise ConfigError(f"--target-wait is {args.target_wait:g}; it must be a time above 0 ms")
    seen, found = _seen(args.source, args.costs)
    said = advice.given(seen)
    print("\n".join(told(seen, said)))
    result: dict[str, Any] = {
        "scenario": {"name": seen.planned.name, "hash": seen.planned.hash},
        "advice": [each.content() for each in said],
        "fleet": None,
    }
    code = 0
    if args.target_wait is not None:
        planned = _loaded(seen.planned, args.rate, args.seconds)
        priced = _fitted(args, found)
        sized = size(planned, priced, args.target_wait / 1000, confirm=args.confirm)
        result["fleet"] = sized.content()
        code = 0 if sized.reached else 1
    if args.out is not None:
        record.write(args.out, record.make(_command(args), result))
    return code


def told(seen: Seen, said: Sequence[Advice]) -> list[str]:
    """The advice on settings for a reader."""
    runs = sum(seen.outcomes.values())
    lines = [seen.planned.heading, f"{runs:,} runs were looked at by {len(advice.RULES)} rules"]
    if not said:
        return [*lines, "no setting is at odds with them"]
    return [*lines, "", *(each.line for each in said)]


@dataclass(frozen=True, slots=True)
class Sized:
    """The search for a fleet, and what a real run of it has said.

    Attributes:
        planned: The load, on the fleet that was found.
        target_s: The p95 wait that was asked for.
        priced: What the simulator charged.
        best: The cheapest that meets it; None if there is none.
        tried: Everything that was tried.
        run: The real run of it; None if nobody asked for one.
    """

    planned: Scenario
    target_s: float
    priced: Costs
    best: Tried | None
    tried: Sequence[Tried]
    run: Run | None = None

    @property
    def against(self) -> str:
        """Why the real run does not count; "" if it does."""
        flags = self.run["flags"] if self.run else ()
        return "; ".join(flag["why"] for flag in flags if flag["spoils"] != "nothing")

    @property
    def held(self) -> bool:
        """Whether the real run has met the target, undisturbed."""
        return self.run is not None and not self.against and self.run["wait"]["p95_s"] <= self.target_s

    @property
    def reached(self) -> bool:
        """Whether there is a fleet, and a real run of it has met the target if there was one."""
        return self.best is not None and (self.run is None or self.held)

    def verdict(self) -> str:
        """What came of it, in a line."""
        target = seconds(self.target_s)
        if self.best is None:
            most = f"{sizing.MOST_PROCESSES} × {sizing.MOST_SLOTS}"
            return f"no fleet of up to {most} slots has a p95 wait of at most {target}"
        on = f"{self.best.processes} × {self.best.slots}"
        if self.run is None:
            return f"cheapest: {on}, p95 wait {seconds(self.best.p95_wait_s)} for a target of {target}"
        if self.against:
            return f"{on}: cannot tell, the run was disturbed: {self.against}"
        word = "held" if self.held else "did NOT hold"
        measured, due = seconds(self.run["wait"]["p95_s"]), seconds(self.best.p95_wait_s)
        return f"{on} {word}: p95 wait {measured}, predicted {due}, target {target}"

    def content(self) -> dict[str, Any]:
        """As JSON has it; of the real run without its single tasks and series."""
        kept = self.run and {k: v for k, v in self.run.items() if k not in {"history", "samples"}}
        return {
            "scenario": self.planned.content(),
            "hash": self.planned.hash,
            "target_s": self.target_s,
            "costs": self.priced.content(),
            "tried": [each.content() for each in self.tried],
            "best": self.best and self.best.content(),
            "run": kept,
            "reached": self.reached,
            "verdict": self.verdict(),
        }


def size(planned: Scenario, priced: Costs, target_s: float, *, confirm: bool) -> Sized:
    """Find the fleet, tell what was tried, and run it if that is wanted."""
    best, tried = sizing.cheapest(planned, priced, target_s)
    on = planned if best is None else sizing.with_fleet(planned, best.processes, best.slots)
    sized = Sized(replace(on, repeats=1), target_s, priced, best, tried)
    print(f"\n{lined_up(sizing.HEADERS, [each.cells() for each in tried])}\n\n{sized.verdict()}", flush=True)
    if confirm and best is not None:
        [kept] = records([Arm(sized.planned)], 1, priced, ["bench advise"])
        sized = replace(sized, run=kept["result"]["runs"][0])
        print(f"\n{sized.verdict()}")
    return sized


def _seen(source: Path, given: Path | None) -> tuple[Seen, Record | None]:
    """What there is to look at, and the record if it is one."""
    if source.suffix != ".json":
        planned, priced = scenario.read(source), costs.read(given) if given else Costs()
        return evidence.seen_in(planned, [simulate(planned, priced)], priced), None
    found = repeats.read(source)
    histories = [History.of(run["history"]) for run in found.runs]
    about = found.result["environment"]
    most = about and about["postgres"]["settings"].get("max_connections")
    priced = costs.read(given) if given else _prices(found)
    most_connections = int(most) if most else None
    return evidence.seen_in(found.planned, histories, priced, most_connections=most_connections), found


def _prices(found: Record) -> Costs:
    """What the runs of a record have told of costs; the rest as it was charged."""
    base = schema.read(Costs, found.result["costs"] or {}, f"{found.path}: costs")
    told = {name for run in found.runs for name in run["prices"]}
    prices = {n: spread([run["prices"][n] for run in found.runs if n in run["prices"]]).median for n in told}
    return replace(base, **prices)


def _fitted(args: argparse.Namespace, found: Record | None) -> Costs:
    """What the search for a fleet charges."""
    if args.costs is not None:
        return costs.read(args.costs)
    if found is None:
        print("\nthe default costs are an order of magnitude: calibrate, and give --costs")
        return Costs()
    if found.result["source"] == "simulated":
        return _prices(found)
    return calibrate.fit(calibrate.read(args.source))


def _loaded(planned: Scenario, rate: float | None, lasting_s: float) -> Scenario:
    if rate is None:
        return planned
    if isinstance(planned.load, Replay):
        raise ConfigError("--rate: a replay has its own arrivals; leave it out, or change the load's speed")
    try:
        return replace(planned, load=Open(rate, lasting_s, "random"))
    except ValueError as error:
        raise ConfigError(f"--rate and --seconds: {error}") from None


def _command(args: argparse.Namespace) -> list[str]:
    """What a reader types to be advised again."""
    return [
        "bench advise",
        shlex.quote(str(args.source)),
        *([f"--costs {shlex.quote(str(args.costs))}"] if args.costs else []),
        *([f"--target-wait {args.target_wait:g}"] if args.target_wait is not None else []),
        *([f"--rate {args.rate:g} --seconds {args.seconds:g}"] if args.rate is not None else []),
        *(["--confirm"] if args.confirm else []),
    ]
