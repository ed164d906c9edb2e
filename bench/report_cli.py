"""The command `report`: records of runs as tables, plots, and one HTML file that needs no network.

Every record has a section of its own: the snapshot table with a row for each repeat, the figures with their
range over the repeats that stand, the counts against the deck's, what speaks against a run, and plots of one
repeat. Several records are drawn side by side first, each repeat as a point.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from math import isnan
from pathlib import Path
from typing import Any, Final

import pandas as pd

from bench import plots, record, repeats, sampling
from bench.document import Document
from bench.figure import lined_up
from bench.history import History
from bench.measured import ledger_of
from bench.repeats import COSTS, TIMES, Measure, Record
from bench.report import COLUMNS, MEANINGS, markdown, seconds
from bench.scenario import Scenario
from bench.stats import spread
from bench.tape import Replay
from bench.workload import Expected

OUT: Final = Path("results/report.html")

_ZERO: Final = "2000-01-01T00:00:00+00:00"
"""Where the time of a simulation begins."""

_DRAWN: Final = ("drain_s", "wait/p95_s", "cost/cpu_us.all", "cost/redis.commands")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `report` to `parser`."""
    parser.add_argument(
        "records", type=Path, nargs="+", metavar="RECORD", help="what `run` or `simulate` wrote"
    )
    parser.add_argument("--out", type=Path, default=OUT, help=f"where the HTML file goes ({OUT})")


def main(args: argparse.Namespace) -> int:
    """Print the tables and write the file; 0."""
    found = [repeats.read(path) for path in args.records]
    for each in found:
        rows = [repeats.snapshot(each.planned, run) for run in each.runs]
        print("\n".join([f"{each.path}: {_source(each)}", *repeats.told(each.planned, each.runs)]))
        print(f"\n{markdown(rows)}\n")
    if len(found) > 1:
        print(lined_up(*_beside(found)))
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(document(found).html(), encoding="utf-8")
    print(f"report: {args.out}")
    return 0


def document(found: Sequence[Record]) -> Document:
    """The report."""
    told = Document(f"Runs of {', '.join(dict.fromkeys(each.planned.name for each in found))}")
    if len(found) > 1:
        told.heading("Side by side")
        told.text(
            "Medians of the repeats that stand; each repeat is a point, and a hollow one was disturbed."
        )
        told.table(*_beside(found))
        for measure in (*TIMES, *COSTS):
            if measure.key in _DRAWN:
                _side_by_side(told, measure, found)
    for each in found:
        _section(told, each)
    told.heading("What the columns mean")
    told.table(("Column", "Meaning"), list(MEANINGS.items()))
    return told


def _source(found: Record) -> str:
    build = found.result["build"]
    on = f" on commit {build}" if build else ""
    return f"{found.result['source']}{on}, {record.told(found.made)}"


def _beside(found: Sequence[Record]) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Headers and rows of the table of all records."""
    rows = []
    for measure in (*TIMES, *COSTS):
        values = [repeats.standing(measure, each.runs) for each in found]
        if any(values):
            cells = [measure.words(spread(v).median) if v else "-" for v in values]
            rows.append((measure.title, *cells))
    return ("Figure", *(each.path.stem for each in found)), rows


def _side_by_side(told: Document, measure: Measure, found: Sequence[Record]) -> None:
    rows = [(each.path.stem, [(measure.of(run), measure.stands(run)) for run in each.runs]) for each in found]
    if not all(isnan(value) for _, values in rows for value, _ in values):
        told.picture(
            f"{measure.title.strip()} of every repeat",
            lambda ax: plots.repeats(ax, rows, measure.title.strip(), measure.unit),
        )


def _section(told: Document, found: Record) -> None:
    told.heading(f"{found.path.stem}: {found.planned.heading}")
    told.text(_source(found))
    for run in found.runs:
        for flag in run["flags"]:
            told.text(f"Block {run['block']}: {flag['name']}: {flag['why']}.", against=True)
    told.table(COLUMNS, [repeats.snapshot(found.planned, run).cells() for run in found.runs])
    told.heading("Figures", 3)
    told.table(repeats.HEADERS, repeats.table(found.runs))
    told.text(f"Limited by {', '.join(sorted({run['limited_by'] for run in found.runs}))}.")
    _counts(told, found)
    _locust(told, found)
    _plots(told, found.planned, _chosen(found.runs))
    _environment(told, found)


def _counts(told: Document, found: Record) -> None:
    told.heading("Counts", 3)
    wrong = any(run["exact"] is False for run in found.runs)
    told.text(f"Counts are {repeats.counted(found.runs)}.", against=wrong)
    names = list(found.runs[0]["counts"])
    rows = [
        (
            name.replace("_", " "),
            *(f"{run['counts'][name]:,} of {run['expected'][name]:,}" for run in found.runs),
        )
        for name in names
    ]
    told.table(("Counted, of what the deck says", *(f"block {run['block']}" for run in found.runs)), rows)
    for run in found.runs:
        if run["verdict"] is not None:
            checks = run["verdict"]["checks"]
            bad = [check["name"] for check in checks if check["offenders"]]
            words = f"FAILED: {', '.join(bad)}" if bad else f"passed, {len(checks)} checks"
            told.text(f"Block {run['block']}: audit {words}.", against=bool(bad))


def _locust(told: Document, found: Record) -> None:
    """What Locust tells of its own requests, where it was the one who sent."""
    rows = [
        (
            f"block {run['block']}",
            f"{row['method']} {row['name']}",
            f"{row['requests']:,}",
            f"{row['failures']:,}",
            *(seconds(row[name]) for name in ("mean_s", "p50_s", "p95_s", "p99_s", "max_s")),
        )
        for run in found.runs
        for row in (run["load"] or {}).get("locust", ())
    ]
    if rows:
        told.heading("Locust's statistics", 3)
        told.text("POST is a request and its answer; E2E a sample of tasks, from acceptance to success.")
        told.table(("", "Row", "Requests", "Failures", "Mean", "p50", "p95", "p99", "Longest"), rows)


def _chosen(runs: Sequence[repeats.Run]) -> repeats.Run:
    """The repeat that is drawn: the first that stands, else the first."""
    return next((run for run in runs if run["valid"]), runs[0])


def _plots(told: Document, planned: Scenario, run: repeats.Run) -> None:
    begin = pd.Timestamp(run["timeline"].get("at", _ZERO))
    ledger = ledger_of(History.of(run["history"]), begin)
    samples = sampling.frame_of(run["samples"])
    expected = Expected(**run["expected"])
    told.heading(f"Block {run['block']}", 3)
    told.picture("Open tasks over time", lambda ax: plots.drain(ax, ledger, samples))
    told.picture("Tasks that ended a second", lambda ax: plots.throughput(ax, ledger, samples))
    told.picture("Waits for the first start, by priority", lambda ax: plots.waits(ax, ledger))
    told.picture("Run times by type", lambda ax: plots.run_times(ax, ledger))
    if planned.mix.flaky or planned.mix.fail or planned.mix.sleep or isinstance(planned.load, Replay):
        told.picture("Retries and lost runs", lambda ax: plots.again(ax, ledger, samples, expected))
    _sources(told, run)


def _sources(told: Document, run: repeats.Run) -> None:
    """What the three sides have seen of the repeat that is drawn, with what a histogram cannot know."""
    if not (found := run.get("sources")):
        return
    told.heading("Client, Postgres, metrics", 3)
    for line in repeats.agreed([run]):
        told.text(f"{line}.", against=not found["agree"])
    rows = [
        (f"p95 {what} of {p95['of']}", *map(seconds, (p95["postgres_s"], p95["scraped_s"])), _bucket(p95))
        for what in ("wait", "run")
        for p95 in found[f"p95_{what}"]
    ]
    told.table(("", "Postgres", "Metrics", "Bucket"), rows)


def _bucket(p95: Mapping[str, Any]) -> str:
    low, high = p95["bucket_s"]
    return f"over {seconds(low)}" if high is None else f"{seconds(low)} to {seconds(high)}"


def _environment(told: Document, found: Record) -> None:
    about = found.result["environment"]
    if about is None:
        return
    told.heading("What it ran on", 3)
    rows = [
        ("Postgres", f"{about['postgres']['version']}, {_pairs(about['postgres']['settings'])}"),
        (about["redis"]["name"], f"{about['redis']['version']}, {_pairs(about['redis']['settings'])}"),
        ("Packages", _pairs(about["packages"])),
        ("Settings", _pairs(found.planned.fleet.settings) or "the defaults"),
    ]
    for name in ("python", "postgres", "redis"):
        values = [run["scores"][name] for run in found.runs if name in run["scores"]]
        if values:
            middle, low, high = spread(values)
            rows.append((f"Score: {name}", f"{middle:,.0f}/s ({low:,.0f} to {high:,.0f})"))
    told.table(("", ""), rows)


def _pairs(values: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {value}" for name, value in values.items() if value != "")
