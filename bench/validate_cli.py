"""The command `validate`: holds the simulator against real runs of cells that it was not calibrated to.

It takes what `bench calibrate --out` wrote, or records of measured runs and calibrates itself. Every cell is
predicted first. The predictions, each with its time and its SHA-256, are in the record before the first run
begins; then each cell is run as `bench run` does it, on a system of its own, and the errors are told. What
must hold is said in `validation.py`. The cells that come along are `bench/cells.toml`.

The record is written again after each run, and its result is

    calibration   `from` which files, the `costs`, the cells `fitted_to`, by hash, and the machine's `scores`
    within        how far a time may be off, by what is short; `within_priority` by priority
    cells         each `predicted`, and after its run `measured`, `errors`, `left_out`, `breaches` and `word`
    passed        the verdict; null until the last run has ended
"""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from bench import calibrate, cells, costs, record, validation
from bench.costs import Costs
from bench.figure import lined_up
from bench.record import RESULTS
from bench.report import seconds
from bench.scenario import Scenario
from bench.turn import Arm, records
from bench.validation import Prediction, Trial
from scheduler.errors import ConfigError, StartError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `validate` to `parser`."""
    parser.add_argument(
        "calibration",
        type=Path,
        nargs="+",
        metavar="RECORD",
        help="what `calibrate --out` wrote, or records of measured runs to calibrate to",
    )
    parser.add_argument(
        "--cells",
        type=Path,
        action="append",
        metavar="CELLS.toml",
        help="the cells, or a scenario that is one; repeatable (those that come along)",
    )
    parser.add_argument("--draws", type=int, default=10, help="simulations behind each prediction (10)")
    parser.add_argument(
        "--repeats", type=int, default=1, help="runs of each cell, each with its own seed (1)"
    )
    parser.add_argument("--out", type=Path, help=f"where the record goes ({RESULTS}/validation-TIME.json)")


def main(args: argparse.Namespace) -> int:
    """Predict, record, run, tell; 0 if every run that counts holds, and enough of them count."""
    if args.draws < 2:
        raise ConfigError(f"--draws is {args.draws}; an interval needs at least 2")
    if args.repeats < 1:
        raise ConfigError(f"--repeats is {args.repeats}; it must be at least 1")
    held_out = [cell for path in args.cells or [cells.SHIPPED] for cell in cells.read(path)]
    known = calibration(args.calibration)
    apart(held_out, known)
    trials = [_repeat(cell, k, args.repeats) for k in range(args.repeats) for cell in held_out]
    predictions = [validation.predict(trial, known.costs, args.draws) for trial in trials]
    made = record.make(_command(args), _result(known, predictions))
    path = args.out or record.default_path("validation", made)
    record.write(path, made)
    print("\n".join(_foretold(made["result"]["cells"])))
    print(f"the predictions are in {path}; now the runs\n", flush=True)
    return _carried_out(predictions, known, path, made)


def _repeat(cell: Scenario, number: int, of: int) -> Scenario:
    """A repeat as a cell of its own: it has its own deck, and so its own prediction."""
    seed = cell.seed + number
    name = cell.name if of == 1 else f"{cell.name}, seed {seed}"
    return replace(cell, name=name, seed=seed, repeats=1)


@dataclass(frozen=True, slots=True)
class Calibration:
    """Costs, the cells that they were fitted to, by `cells.identity`, and how fast the machine was then."""

    costs: Costs
    fitted_to: frozenset[str]
    scores: Mapping[str, float]
    paths: tuple[Path, ...]


def calibration(paths: Sequence[Path]) -> Calibration:
    """The calibration in a record, or one that is made now from records of measured runs.

    Raises:
        StartError: one line: a file is neither.
    """
    if len(paths) == 1 and (kept := _kept(paths[0])) is not None:
        fitted_to = frozenset(map(str, kept["fitted_to"]))
        return Calibration(costs.read(paths[0]), fitted_to, kept.get("scores", {}), tuple(paths))
    runs = [run for path in paths for run in calibrate.read(path)]
    fitted_to = frozenset(cells.identity(run.planned) for run in runs)
    return Calibration(calibrate.fit(runs), fitted_to, calibrate.speed(runs), tuple(paths))


def _kept(path: Path) -> dict[str, Any] | None:
    """The result of a calibration's record; None of any other file."""
    try:
        found = record.read(path)["result"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return found if isinstance(found, dict) and isinstance(found.get("fitted_to"), list) else None


def apart(held_out: Sequence[Scenario], known: Calibration) -> None:
    """Refuse cells that prove nothing.

    Raises:
        StartError: the costs were fitted to one of them.
    """
    for cell in held_out:
        if cells.identity(cell) in known.fitted_to:
            raise StartError(
                f"the calibration was fitted to the cell {cell.name} ({cell.hash}): hold out another one"
            )


def _carried_out(
    predictions: Sequence[Prediction], known: Calibration, path: Path, made: dict[str, Any]
) -> int:
    """The runs, one after the other; the record has each as soon as it has ended."""
    trials = []
    for number, prediction in enumerate(predictions):
        [kept] = records([Arm(prediction.planned)], 1, known.costs, [made["command"]])
        trial = Trial(prediction, kept["result"]["runs"][0], known.scores)
        made["result"]["cells"][number] |= trial.content()
        record.write(path, made)
        trials.append(trial)
    passed = validation.passed(trials)
    made["result"]["passed"] = passed
    record.write(path, made)
    print("\n" + "\n".join(told(trials)))
    print(f"record: {path}")
    return 0 if passed else 1


def told(trials: Sequence[Trial]) -> list[str]:
    """Errors and verdicts for a reader."""
    left_out = [trial for trial in trials if trial.disturbed]
    breached = [trial for trial in trials if trial.breaches]
    held = len(trials) - len(left_out) - len(breached)
    lines = [
        lined_up(validation.HEADERS, [trial.cells() for trial in trials]),
        "",
        lined_up(validation.PRIORITY_HEADERS, [trial.by_priority() for trial in trials]),
        "",
        *(f"{trial.name}: left out, as it was disturbed: {trial.disturbed}" for trial in left_out),
        *(f"{trial.name}: BREACH: {breach}" for trial in breached for breach in trial.breaches),
    ]
    if why := validation.unproven(trials):
        lines.append(f"{why}, so nothing is proven: repeat it on a quiet machine")
    return [*lines, f"{held} of {len(trials) - len(left_out)} runs that count hold, {len(left_out)} left out"]


def _result(known: Calibration, predictions: Sequence[Prediction]) -> dict[str, Any]:
    # Postgres, whose clock stamps the first commit of each run, runs on this machine, too.
    at = datetime.now(UTC).isoformat(timespec="milliseconds")  # noqa: TID251 - nothing is decided by it
    return {
        "calibration": {
            "from": [str(path) for path in known.paths],
            "costs": known.costs.content(),
            "fitted_to": sorted(known.fitted_to),
            "scores": dict(known.scores),
        },
        "within": dict(validation.WITHIN),
        "within_priority": validation.WITHIN_PRIORITY,
        "cells": [{"predicted": validation.sealed(each.content(), at)} for each in predictions],
        "passed": None,
    }


def _foretold(kept: Sequence[dict[str, Any]]) -> list[str]:
    """The predictions for a reader, with their seals."""
    rows = []
    for predicted in (each["predicted"] for each in kept):
        times = [seconds(predicted[name]["value"]) for name in ("drain_s", "p95_wait_s")]
        rows.append((predicted["name"], predicted["bound"], *times, predicted["sha256"]))
    return [lined_up(("Cell", "Short of", "Drain", "p95 wait", "SHA-256 of the prediction"), rows), ""]


def _command(args: argparse.Namespace) -> list[str]:
    """What a reader types to make the record again."""
    return [
        "bench validate",
        *(shlex.quote(str(path)) for path in args.calibration),
        *(f"--cells {shlex.quote(str(path))}" for path in args.cells or ()),
        f"--draws {args.draws}",
        f"--repeats {args.repeats}",
    ]
