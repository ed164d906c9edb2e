"""The command `calibrate`: costs with which the twin comes out as measured runs did.

Each record brings the cores of its machine and the costs that its runs told (see `measured.prices`). Of each
the median is taken; of CPU the least, since an idle fleet uses some, too, and of latencies and of the time
between the tasks of a bulk load also the least, since they are longer where tasks or calls have to queue. So
one of the records should be of a busy fleet, as `noops` makes one, and another of an idle one, as `steady`
does. What a failure costs besides is told by one whose runs fail, as those of `failures` do. What no record
tells keeps its default.

One number is free: `inflation`, by what CPU costs more than its price while the machine is busy. It is set so
that drains and p95 waits come out best, by the squares of their relative errors, and the errors that are left
are printed.

Records given with `--check` are not fitted to but predicted. The exit code is 1 if a drain among them is not
predicted within `--within` percent.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import exp, fsum, log
from pathlib import Path
from typing import Any, Final

from bench import cells, record, repeats
from bench.costs import Costs
from bench.figure import lined_up
from bench.report import seconds
from bench.scenario import Scenario
from bench.simulate import simulate, summary
from scheduler.errors import StartError

LEAST_INFLATION: Final = 0.2
MOST_INFLATION: Final = 5.0
_CLOSE: Final = 0.02
_PLACES: Final = 9
_FIGURES: Final = ("drain_s", "p95_wait_s")
_HEADERS: Final = ("Run", "Drain", "Predicted", "Error", "p95 wait", "Predicted", "Error")
_FAILING: Final = 0.5
"""From this share of failed runs on a run tells what a failure costs."""

_CPU: Final = ("worker_us", "postgres_us", "redis_us")
_LEAST: Final = (*_CPU, "wake_ms", "bulk_us", "bulk_ms", "lease_ms", "settle_ms")


@dataclass(frozen=True, slots=True)
class Measured:
    """One run of a record: the scenario, which repeat, its figures, and the costs and scores that it told.

    `failed` is the share of its runs that failed.
    """

    planned: Scenario
    repeat: int
    drain_s: float
    p95_wait_s: float
    prices: Mapping[str, float]
    scores: Mapping[str, float]
    failed: float = 0.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `calibrate` to `parser`."""
    parser.add_argument("records", type=Path, nargs="+", metavar="RECORD", help="a record of measured runs")
    parser.add_argument(
        "--check", type=Path, action="append", metavar="RECORD", help="predict these runs; repeatable"
    )
    parser.add_argument("--within", type=float, default=15.0, help="how far off a drain may be, in %% (15)")
    parser.add_argument("--out", type=Path, help="write a record here, for `simulate --costs` and `validate`")


def main(args: argparse.Namespace) -> int:
    """Fit, print the costs and what is left of errors; 1 if a drain that was to be checked is far off."""
    fitted_to = [run for path in args.records for run in read(path)]
    checked = [run for path in args.check or () for run in read(path)]
    fitted = fit(fitted_to)
    errors = compare(fitted_to, fitted)
    predictions = compare(checked, fitted)
    print(lined_up(("Cost", ""), [(name, f"{value:,.4g}") for name, value in fitted.content().items()]))
    print(f"\n{lined_up(_HEADERS, [_cells(each) for each in errors])}")
    if predictions:
        print(f"\nNot fitted to:\n{lined_up(_HEADERS, [_cells(each) for each in predictions])}")
    if args.out is not None:
        words = [*map(str, args.records), *(f"--check {path}" for path in args.check or ())]
        result = {
            "costs": fitted.content(),
            "fitted_to": sorted({cells.identity(run.planned) for run in fitted_to}),
            "scores": speed(fitted_to),
            "errors": errors,
            "predictions": predictions,
        }
        record.write(args.out, record.make(["bench calibrate", *words], result))
    far = [
        each
        for each in predictions
        if 100 * abs(each["predicted_drain_s"] / each["drain_s"] - 1) > args.within
    ]
    return 1 if far else 0


def read(path: Path) -> list[Measured]:
    """The runs of a record that nothing speaks against: what was disturbed is not fitted to.

    Raises:
        StartError: it is no record of measured runs, or all of them were disturbed.
    """
    found = repeats.read(path)
    if found.result["source"] != "measured":
        raise StartError(f"{path} is no record of measured runs")
    cores = {"cores": float(found.made["machine"]["cores"])}
    runs = [run for run in found.result["runs"] if run["valid"]]
    if not runs:
        raise StartError(f"{path} holds disturbed runs only: repeat `bench run` on a quiet machine")
    return [
        Measured(
            found.planned,
            run["block"],
            run["drain_s"],
            run["wait"]["p95_s"],
            run["prices"] | cores,
            run["scores"],
            run["counts"]["failed"] / max(run["counts"]["runs"], 1),
        )
        for run in runs
    ]


def fit(runs: Sequence[Measured]) -> Costs:
    """The costs that suit all of these runs best."""
    found: dict[str, float] = {}
    # A task that fails is inserted once and run often, so its runs are cheaper to Postgres than others'.
    usual = [run for run in runs if run.failed < _FAILING] or list(runs)
    for name in Costs.__slots__:
        values = [run.prices[name] for run in (usual if name in _CPU else runs) if name in run.prices]
        if values:
            found[name] = min(values) if name in _LEAST else statistics.median(values)
    base = Costs(**found)
    failures = [
        (run.prices["worker_us"] - base.worker_us) / run.failed
        for run in runs
        if run.failed >= _FAILING and "worker_us" in run.prices
    ]
    if failures:
        base = replace(base, failure_us=max(min(failures), 0.0))

    def misfit(log_inflation: float) -> float:
        return fsum(_squares(each) for each in compare(runs, replace(base, inflation=exp(log_inflation))))

    best = lowest(misfit, log(LEAST_INFLATION), log(MOST_INFLATION))
    return replace(base, inflation=round(exp(best), 3))


def speed(runs: Sequence[Measured]) -> dict[str, float]:
    """The scores of the machine while it ran them: the median of each."""
    names = sorted({name for run in runs for name in run.scores})
    return {n: statistics.median([run.scores[n] for run in runs if n in run.scores]) for n in names}


def lowest(function: Callable[[float], float], low: float, high: float) -> float:
    """Where a function of one valley is lowest: of values all over the range the best, refined around it."""
    while high - low > _CLOSE:
        step = (high - low) / (_PLACES - 1)
        best = min((low + i * step for i in range(_PLACES)), key=function)
        low, high = max(low, best - step), min(high, best + step)
    return (low + high) / 2


def _squares(row: Mapping[str, Any]) -> float:
    pairs = ((row[name], row[f"predicted_{name}"]) for name in _FIGURES)
    return fsum(log(predicted / measured) ** 2 for measured, predicted in pairs if measured and predicted)


def compare(runs: Sequence[Measured], costs: Costs) -> list[dict[str, Any]]:
    """Measured and predicted figures of each run, in seconds."""
    rows = []
    for run in runs:
        twin = summary(run.planned, simulate(run.planned, costs, run.repeat))
        rows.append(
            {
                "run": f"{run.planned.name}, seed {run.planned.seed + run.repeat}",
                "drain_s": run.drain_s,
                "predicted_drain_s": twin.drain_s,
                "p95_wait_s": run.p95_wait_s,
                "predicted_p95_wait_s": twin.wait.p95_s,
            }
        )
    return rows


def _cells(row: Mapping[str, Any]) -> tuple[str, ...]:
    cells = [row["run"]]
    for name in _FIGURES:
        measured, predicted = row[name], row[f"predicted_{name}"]
        error = f"{predicted / measured - 1:+.1%}" if measured else "-"
        cells += [seconds(measured), seconds(predicted), error]
    return tuple(cells)
