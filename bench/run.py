"""The command `run`: scenarios carried out live, each repeat on a system of its own, and a record of each.

Several scenarios are repeated in turns, block by block, so that `bench compare` can compare their records in
pairs. With `--control` the first one has two turns in each block: how far apart they come out is the floor
below which no difference means anything.
"""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from bench import costs, record, repeats, scenario, tape
from bench.costs import Costs
from bench.record import RESULTS
from bench.scenario import Scenario
from bench.turn import Arm, records
from scheduler.errors import ConfigError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `run` to `parser`."""
    scenario.add_argument(parser, many=True)
    parser.add_argument("--repeats", type=int, help="how often each is repeated (as the scenario says)")
    parser.add_argument(
        "--control", action="store_true", help="repeat the first one twice a block, for `compare`"
    )
    parser.add_argument(
        "--costs", type=Path, help="a JSON file of costs for the outlook, as `simulate` takes it"
    )
    parser.add_argument(
        "--out",
        type=Path,
        action="append",
        help=f"where the record goes, once for each scenario ({RESULTS}/NAME-TIME.json)",
    )


def main(args: argparse.Namespace) -> int:
    """Run, tell and record; 0 if every audit passed and every count is the deck's, 1 if not."""
    plans = [_repeated(scenario.read(path), args.repeats) for path in args.scenario]
    if args.out is not None and len(args.out) != len(plans):
        raise ConfigError(f"--out is given {len(args.out)} times for {len(plans)} scenarios")
    if len({planned.repeats for planned in plans}) > 1:
        told = ", ".join(f"{planned.name} {planned.repeats}" for planned in plans)
        raise ConfigError(f"a block has each scenario once; these differ in repeats ({told}): give --repeats")
    arms = [Arm(planned) for planned in plans]
    if args.control:
        arms.insert(1, replace(arms[0], control=True))
    priced = costs.read(args.costs) if args.costs else Costs()
    made = records(arms, plans[0].repeats, priced, _command(args))
    for number, (planned, each) in enumerate(zip(plans, made, strict=True)):
        path = args.out[number] if args.out else record.default_path(planned.name, each, number)
        record.write(path, each)
        lines = repeats.told(planned, each["result"]["runs"])
        lines += tape.told(planned.load, planned.fleet.config.vis_timeout_ms)
        print("\n" + "\n".join(lines))
        print(f"record: {path}")
    return verdict(made)


def verdict(made: Sequence[dict[str, Any]]) -> int:
    """The exit code: 1 if an audit failed or a count is not the deck's."""
    every = [run for each in made for run in each["result"]["runs"]]
    return int(any(run["exact"] is False or not run["verdict"]["passed"] for run in every))


def _repeated(planned: Scenario, n: int | None) -> Scenario:
    try:
        return planned if n is None else replace(planned, repeats=n)
    except ValueError as error:
        raise ConfigError(f"--repeats: {error}") from None


def _command(args: argparse.Namespace) -> list[str]:
    """What a reader types to make the record again."""
    return [
        "bench run",
        *(shlex.quote(str(path)) for path in args.scenario),
        *([] if args.repeats is None else [f"--repeats {args.repeats}"]),
        *(["--control"] if args.control else []),
        *([f"--costs {shlex.quote(str(args.costs))}"] if args.costs else []),
    ]
