"""Repeats: what a record keeps of each repeat of a scenario, carried out or simulated, and how it is told.

A record's result is one schema, whichever command has made it:

    source, name, hash, scenario   what was repeated; `measured` or `simulated`
    session, build, environment    which records were made in turns, of which commit, on what; else null
    costs                          what the simulator charged
    runs                           the repeats, each with
        block, seed, control       which repeat it is; a control is the same thing once more in its block
        counts, drain_s, wait ...  the figures: see `summary.py`
        expected, exact            the deck's counts; whether they came to the unit, null where none are due
        timeline, shares, history  instants; what share was taken of the drain, and of what there is; the runs
        samples, load, cost, prices, scores, company, verdict, sources, predicted
                                   what only a real run has, else null or empty: scraped series, the client's
                                   figures, costs a task, what it told of the twin's costs, the machine's
                                   scores, the neighbours, the audit, how client, Postgres and metrics agree,
                                   and what was foreseen
        flags, valid               what speaks against it: see `validity.py`
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from math import isnan, nan
from pathlib import Path
from typing import Any, Final, Literal

from bench import record, scenario, theory
from bench.figure import lined_up, shown
from bench.history import History
from bench.report import Snapshot, seconds
from bench.scenario import Scenario
from bench.stats import spread
from bench.summary import Summary
from bench.workload import PRIORITIES, Expected
from scheduler.errors import StartError

Run = dict[str, Any]
"""One repeat as JSON has it."""

_ONLY_LIVE: Final[Run] = {
    "samples": None,
    "load": None,
    "cost": {},
    "prices": {},
    "scores": {},
    "company": None,
    "verdict": None,
    "sources": None,
    "predicted": None,
    "flags": [],
    "valid": True,
}


@dataclass(frozen=True, slots=True)
class Measure:
    """One figure of a repeat.

    Attributes:
        key: Where it is: names parted by slashes.
        title: What it is, for a reader.
        unit: `s` (told with a unit that suits it), `/s`, `µs`, `B`, `%`, or nothing.
        spoiled: Whether a flag on times spoils it; else only one on all does.
    """

    key: str
    title: str
    unit: str = ""
    spoiled: bool = True

    def of(self, run: Mapping[str, Any]) -> float:
        """Its value; nan if the repeat has none."""
        found: Any = run
        for name in self.key.split("/"):
            found = found.get(name) if isinstance(found, Mapping) else None
        return nan if found is None else float(found)

    def stands(self, run: Mapping[str, Any]) -> bool:
        """Whether nothing speaks against its value."""
        against = {"times", "all"} if self.spoiled else {"all"}
        return not any(flag["spoils"] in against for flag in run["flags"])

    def words(self, value: float) -> str:
        """A value for a reader."""
        if self.unit == "s":
            return seconds(value)
        if self.unit == "/s":
            return f"{shown(value)}/s"
        return shown(100 * value, "%") if self.unit == "%" else shown(value, self.unit)


TIMES: Final = (
    Measure("drain_s", "drain", "s"),
    Measure("throughput", "throughput", "/s"),
    Measure("wait/p50_s", "p50 wait", "s"),
    Measure("wait/p95_s", "p95 wait", "s"),
    *(Measure(f"waits/{name}/p95_s", f"  {name}", "s") for name in PRIORITIES),
    Measure("p95_run_s", "p95 run", "s"),
    Measure("in_flight", "in flight"),
    Measure("utilisation", "slots in use", "%"),
)
COSTS: Final = (
    Measure("cost/cpu_us.all", "CPU a task", "µs"),
    Measure("cost/cpu_us.workers", "  workers", "µs"),
    Measure("cost/cpu_us.api", "  API", "µs"),
    Measure("cost/cpu_us.postgres", "  Postgres", "µs"),
    Measure("cost/cpu_us.redis", "  Redis", "µs"),
    Measure("cost/redis.commands", "Redis commands a task", spoiled=False),
    Measure("cost/postgres.statements", "statements a task", spoiled=False),
    Measure("cost/postgres.commits", "commits a task", spoiled=False),
    Measure("cost/postgres.wal_bytes", "log a task", "B", spoiled=False),
)


def content(
    planned: Scenario,
    block: int,
    history: History,
    figures: Summary,
    *,
    expected: Expected | None = None,
    live: Mapping[str, Any] | None = None,
) -> Run:
    """One repeat as a record keeps it; `live` is what only a real run has."""
    due = expected or theory.forecast(planned, block).counts
    certain = not planned.faults and not theory.undecided(planned)
    begin, drain_s = min(history.enqueued), figures.drain_s
    arrival_s = max(history.enqueued) - begin
    starts = [
        claimed if isnan(started) else started
        for claimed, started in zip(history.claimed, history.started, strict=True)
    ]
    own = {
        "block": block,
        "seed": planned.seed + block,
        "control": False,
        **figures.content(),
        "expected": asdict(due),
        "exact": figures.counts == due if certain else None,
        "timeline": {
            "last_commit_s": arrival_s,
            "first_start_s": min(starts) - begin,
            "last_start_s": max(starts) - begin,
            "last_end_s": drain_s,
        },
        "shares": {"arrival": arrival_s / drain_s if drain_s else 0.0, "slots": figures.utilisation},
        "history": history.content(),
    }
    more = dict(live or {})
    for name in ("timeline", "shares"):
        own[name] |= more.pop(name, {})
    own["limited_by"] = max(own["shares"], key=own["shares"].__getitem__)
    return own | _ONLY_LIVE | more


def result(
    source: Literal["measured", "simulated"], planned: Scenario, runs: Sequence[Run], **about: Any
) -> dict[str, Any]:
    """What a record keeps of a scenario's repeats; `about` replaces what is null otherwise."""
    return {
        "source": source,
        "name": planned.name,
        "hash": planned.hash,
        "scenario": planned.content(),
        "session": None,
        "build": None,
        "environment": None,
        "costs": None,
        **about,
        "runs": list(runs),
    }


@dataclass(frozen=True, slots=True)
class Record:
    """A record of repeats, read."""

    path: Path
    made: dict[str, Any]
    planned: Scenario

    @property
    def result(self) -> dict[str, Any]:
        """See the module."""
        found: dict[str, Any] = self.made["result"]
        return found

    @property
    def runs(self) -> list[Run]:
        """The repeats without their controls."""
        return [run for run in self.result["runs"] if not run["control"]]

    @property
    def controls(self) -> list[Run]:
        """The same thing once more, a block each."""
        return [run for run in self.result["runs"] if run["control"]]


def read(path: Path) -> Record:
    """A record of repeats.

    Raises:
        StartError: one line: it is none.
    """
    try:
        made = record.read(path)
        found = made["result"]
        planned = scenario.parse(found["scenario"], str(path), found["name"])
        whole = {"source", "session", "runs"} <= found.keys() and all("flags" in r for r in found["runs"])
    except OSError as error:
        raise StartError(f"{path} cannot be read: {error.strerror}") from None
    except (ValueError, KeyError, TypeError, AttributeError):
        whole = False
    if not whole or not found["runs"]:
        raise StartError(f"{path} is no record of runs: name one that `bench run` or `bench simulate` wrote")
    return Record(path, made, planned)


def standing(measure: Measure, runs: Sequence[Run]) -> list[float]:
    """The values of a measure that are there and that nothing speaks against."""
    values = [measure.of(run) for run in runs if measure.stands(run)]
    return [value for value in values if not isnan(value)]


def pairs(measure: Measure, ours: Sequence[Run], theirs: Sequence[Run]) -> tuple[list[float], list[float]]:
    """The values of the blocks in which both stand and are above 0."""
    others = {run["block"]: run for run in theirs if measure.stands(run)}
    both = [
        (measure.of(run), measure.of(others[run["block"]]))
        for run in ours
        if run["block"] in others and measure.stands(run)
    ]
    kept = [(x, y) for x, y in both if x > 0 and y > 0]
    return [x for x, _ in kept], [y for _, y in kept]


def table(runs: Sequence[Run]) -> list[tuple[str, str, str, str]]:
    """A row a figure: what, its median, its range, and of how many repeats that stand.

    Where not one of them stands, the figure is told of all, and says so.
    """
    rows = []
    for measure in (*TIMES, *COSTS):
        values, disturbed = standing(measure, runs), ""
        if not values:
            values, disturbed = [v for v in map(measure.of, runs) if not isnan(v)], " disturbed"
        if values:
            middle, low, high = spread(values)
            ends = "" if low == high else f"{measure.words(low)} to {measure.words(high)}"
            rows.append((measure.title, measure.words(middle), ends, f"{len(values)}{disturbed}"))
    outcomes = [name for name in runs[0]["runs"] if any(run["runs"][name] for run in runs)]
    for name in outcomes:
        numbers = [run["runs"][name] for run in runs]
        middle, low, high = spread(numbers)
        ends = "" if low == high else f"{shown(low)} to {shown(high)}"
        rows.append((f"runs {name}", shown(middle), ends, str(len(numbers))))
    return rows


HEADERS: Final = ("Figure", "Median", "Range", "n")


def told(planned: Scenario, runs: Sequence[Run]) -> list[str]:
    """The repeats for a reader."""
    lines = [planned.heading, "", lined_up(HEADERS, table(runs)), "", f"counts: {counted(runs)}"]
    limits = sorted({run["limited_by"] for run in runs})
    lines.append(f"limited by: {', '.join(limits)}")
    for run in runs:
        twice = ", control" if run["control"] else ""
        lines += [f"block {run['block']}{twice}: {flag['name']}: {flag['why']}" for flag in run["flags"]]
    return [*lines, *agreed(runs)]


def agreed(runs: Sequence[Run]) -> list[str]:
    """What the three sides of real runs have seen: see `agreement.content`."""
    seen = [(run, run["sources"]) for run in runs if run.get("sources")]
    lines = [
        f"block {run['block']}: APART: {what} {', '.join(f'{n:,} by {side}' for side, n in sides.items())}"
        for run, found in seen
        for what, sides in {"accepted": found["accepted"], **found["counts"]}.items()
        if len(set(sides.values())) > 1
    ]
    if seen:
        alike = sum(found["agree"] for _, found in seen)
        p95s = [p95 for _, found in seen for p95 in (*found["p95_wait"], *found["p95_run"])]
        inside = sum(p95["inside"] for p95 in p95s)
        lines.append(
            f"client, Postgres and metrics: the same counts in {alike} of {len(seen)} runs;"
            f" {inside} of {len(p95s)} p95 of Postgres in the bucket of the metrics'"
        )
    return lines


def counted(runs: Sequence[Run]) -> str:
    """Whether the counts are those of the deck, in words."""
    if any(run["exact"] is False for run in runs):
        return "NOT those of theory: see `bench plan`"
    return "as theory says, to the unit" if all(run["exact"] for run in runs) else "not fixed beforehand"


def snapshot(planned: Scenario, run: Run) -> Snapshot:
    """The row of the snapshot table that a repeat comes to."""
    counts = run["counts"]
    dead = counts["dead_failed"] + counts["dead_lost"]
    return Snapshot(
        tasks=counts["tasks"],
        workers=planned.fleet.processes,
        slots=planned.fleet.slots,
        ended=counts["succeeded"] + dead,
        drain_s=run["drain_s"],
        in_flight=run["in_flight"],
        p95_run_s=run["p95_run_s"],
        p95_wait_s=run["wait"]["p95_s"],
        dead=dead,
        retries=counts["retries"],
        reaped=counts["lost"],
    )
