"""Validation: what the simulator says of a cell beforehand, and what a real run then says of it.

A prediction is made of several draws: the deck is the run's own, and what a seed decides beside it (when each
pump and reaper looks) is drawn anew. It is sealed by the time and a hash of itself before the run begins.

What must hold of a run that was not disturbed:

    counts          of tasks and runs are predicted to the unit
    slot-bound      drain and p95 wait are within 5 % of the prediction, p95 wait by priority within 10 %
    core-bound      drain and p95 wait are within 15 % of it, or inside the interval of its draws

Priorities are judged where there are several and slots are short; elsewhere the first waits of a burst are as
long as its own requests take, and they are told only. A cell is slot-bound if its slots are in use nearly all
the time on a machine where nothing but the work costs time, and its CPU takes little of that time. A run that
was disturbed neither holds nor breaches anything; nor does a run of a core-bound cell if the machine was
faster or slower than when it was calibrated to. But where more than half of the runs are left out, or all of
one kind, nothing is proven.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Final, Literal

from bench import job, scenario
from bench.costs import FREE, Costs
from bench.repeats import Run
from bench.report import seconds
from bench.scenario import Scenario
from bench.simulate import summary
from bench.stats import Interval, another
from bench.summary import Summary
from bench.twin import Twin
from bench.workload import PRIORITIES, Expected
from scheduler.errors import StartError

Bound = Literal["slots", "cores"]

WITHIN: Final[Mapping[Bound, float]] = {"slots": 0.05, "cores": 0.15}
"""So far a time may be from what was predicted, as a share of what was measured."""

WITHIN_PRIORITY: Final = 0.10
"""The same of the p95 wait of one priority, where slots are short."""

IN_USE: Final = 0.8
"""The share of their time for which the slots of a slot-bound cell must be in use."""

IDLE: Final = 0.2
"""The share of that time that its runs' CPU may take at the most."""

SAME_SPEED: Final = 0.15
"""So far the machine's scores may be from those of the calibration, as a share; `compare` takes the same."""

COMMAND: Final = "bench validate results/calibration.json --repeats 2 --out docs/records/validation.json"
"""What makes the record whose table is in docs/benchmarks.md, after the calibration that is told there."""

_FIGURES: Final = {"drain_s": "drain", "p95_wait_s": "p95 wait"}


@dataclass(frozen=True, slots=True)
class Prediction:
    """What was foreseen of a cell.

    Attributes:
        planned: The cell; only its first repeat counts.
        draws: How many simulations it is made of.
        bound: What there is too few of.
        counts: To the unit.
        drain_s, p95_wait_s: The mean of the draws, and where another one would lie.
        waits: The same of the p95 wait of each priority that occurs.
    """

    planned: Scenario
    draws: int
    bound: Bound
    counts: Expected
    drain_s: Interval
    p95_wait_s: Interval
    waits: Mapping[str, Interval]

    def content(self) -> dict[str, Any]:
        """As JSON has it."""
        return {
            "name": self.planned.name,
            "hash": self.planned.hash,
            "scenario": self.planned.content(),
            "draws": self.draws,
            "bound": self.bound,
            "counts": asdict(self.counts),
            "drain_s": self.drain_s._asdict(),
            "p95_wait_s": self.p95_wait_s._asdict(),
            "p95_waits_s": {name: wait._asdict() for name, wait in self.waits.items()},
        }


def predict(planned: Scenario, priced: Costs, draws: int) -> Prediction:
    """Simulate a cell `draws` times, at least twice.

    Raises:
        StartError: the draws do not agree on the counts, so that nothing can be held to the unit.
    """
    found = [_drawn(planned, priced, draw) for draw in range(draws)]
    counts = found[0].counts
    if any(each.counts != counts for each in found):
        raise StartError(f"{planned.name}: its counts hang on chance, and no cell's may: change its settings")
    return Prediction(
        planned,
        draws,
        _bound(_drawn(planned, FREE, 0), priced),
        counts,
        another([each.drain_s for each in found]),
        another([each.wait.p95_s for each in found]),
        {name: another([each.waits[name].p95_s for each in found]) for name in found[0].waits},
    )


def _drawn(planned: Scenario, priced: Costs, draw: int) -> Summary:
    """One simulation; the first has the seed that `bench simulate` has."""
    fleet, seed = planned.fleet, planned.seed + draw
    return summary(planned, Twin(job.of(planned, priced), fleet.processes, fleet.config, priced, seed).run())


def _bound(free: Summary, priced: Costs) -> Bound:
    """What there is too few of, by what the cell comes to where the machine costs nothing."""
    cpu_s = free.counts.runs * priced.cpu_s / priced.cores
    return "slots" if free.utilisation >= IN_USE and cpu_s <= IDLE * free.drain_s else "cores"


def sealed(content: Mapping[str, Any], at: str) -> dict[str, Any]:
    """A prediction's content with the instant at which it was made, and the SHA-256 of both."""
    whole = {**content, "at": at}
    return whole | {"sha256": _digest(whole)}


def intact(content: Mapping[str, Any]) -> bool:
    """Whether nothing was changed since it was sealed."""
    return bool(content["sha256"] == _digest({k: v for k, v in content.items() if k != "sha256"}))


def _digest(whole: Mapping[str, Any]) -> str:
    text = json.dumps(whole, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


def trials(result: Mapping[str, Any]) -> list[Trial]:
    """The cells of a record whose runs have ended."""
    scores = result["calibration"]["scores"]
    return [
        Trial(_read(cell["predicted"]), cell["measured"], scores)
        for cell in result["cells"]
        if "measured" in cell
    ]


def _read(told: Mapping[str, Any]) -> Prediction:
    return Prediction(
        scenario.parse(told["scenario"], told["name"], told["name"]),
        told["draws"],
        told["bound"],
        Expected(**told["counts"]),
        Interval(**told["drain_s"]),
        Interval(**told["p95_wait_s"]),
        {name: Interval(**wait) for name, wait in told["p95_waits_s"].items()},
    )


@dataclass(frozen=True, slots=True)
class Trial:
    """A prediction, the run that it is held against, and the machine's scores when it was calibrated to."""

    prediction: Prediction
    run: Run
    scores: Mapping[str, float] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Of the cell."""
        return self.prediction.planned.name

    @property
    def disturbed(self) -> str:
        """Why the run does not count; "" if it does. A failed audit is no excuse: it is a breach."""
        against = [flag for flag in self.run["flags"] if flag["spoils"] != "nothing"]
        return "; ".join([*(flag["why"] for flag in against if flag["name"] != "audit"), *self._changed()])

    @property
    def breaches(self) -> list[str]:
        """What does not hold, a line each; none if the run was disturbed."""
        return [] if self.disturbed else [*self._counts(), *self._audit(), *self._times()]

    @property
    def word(self) -> str:
        """The verdict."""
        return "left out" if self.disturbed else "BREACH" if self.breaches else "holds"

    def measured(self, figure: str) -> float:
        """A figure of the run, by its name in the prediction."""
        return float(self.run["drain_s"] if figure == "drain_s" else self.run["wait"]["p95_s"])

    def foreseen(self, figure: str) -> Interval:
        """The same as it was predicted."""
        return self.prediction.drain_s if figure == "drain_s" else self.prediction.p95_wait_s

    def _changed(self) -> Iterator[str]:
        """What the machine does at another speed than it did, if that is what decides the cell."""
        if self.prediction.bound == "cores":
            for name in sorted(self.scores.keys() & self.run["scores"].keys()):
                change = self.run["scores"][name] / self.scores[name] - 1
                if abs(change) > SAME_SPEED:
                    yield f"the machine's score {name} was {change:+.0%} from its calibration's"

    def _counts(self) -> Iterator[str]:
        for name, due in asdict(self.prediction.counts).items():
            if (found := self.run["counts"][name]) != due:
                yield f"{found:,} {name.replace('_', ' ')}, predicted {due:,}"

    def _audit(self) -> Iterator[str]:
        if not self.run["verdict"]["passed"]:
            yield "the audit failed"

    def _times(self) -> Iterator[str]:
        bound = self.prediction.bound
        for figure, title in _FIGURES.items():
            yield from self._off(title, self.measured(figure), self.foreseen(figure), WITHIN[bound])
        if bound == "slots" and len(self.prediction.waits) > 1:
            for name, due in self.prediction.waits.items():
                found = float(self.run["waits"][name]["p95_s"])
                yield from self._off(f"p95 wait of {name}", found, due, WITHIN_PRIORITY)

    def _off(self, title: str, found: float, due: Interval, within: float) -> Iterator[str]:
        """The breach if a time is too far from what was predicted."""
        bound, off = self.prediction.bound, error(found, due.value)
        inside = bound == "cores" and due.low <= found <= due.high
        if abs(off) > within and not inside:
            yield (
                f"{title} {seconds(found)}, predicted {seconds(due.value)} ({off:+.1%},"
                f" at most {within:.0%} where {bound} are short)"
            )

    def content(self) -> dict[str, Any]:
        """The verdict, and the run without its single tasks and series, as JSON has it."""
        return {
            "measured": {k: v for k, v in self.run.items() if k not in {"history", "samples"}},
            "errors": {name: error(self.measured(name), self.foreseen(name).value) for name in _FIGURES},
            "left_out": self.disturbed,
            "breaches": self.breaches,
            "word": self.word,
        }

    def cells(self) -> tuple[str, ...]:
        """A row under HEADERS."""
        cells = [self.name, self.prediction.bound]
        off = sum(1 for _ in self._counts())
        cells.append(f"{off} off" if off else "exact")
        for figure in _FIGURES:
            found, due = self.measured(figure), self.foreseen(figure)
            cells += [seconds(found), seconds(due.value), ends(due), f"{error(found, due.value):+.1%}"]
        return (*cells, self.word)

    def by_priority(self) -> tuple[str, ...]:
        """A row under PRIORITY_HEADERS."""
        cells = [self.name]
        for name in PRIORITIES:
            if name not in self.prediction.waits:
                cells += ["-", "-"]
                continue
            found, due = self.run["waits"][name]["p95_s"], self.prediction.waits[name].value
            cells += [seconds(found), f"{error(found, due):+.1%}"]
        return tuple(cells)


HEADERS: Final = (
    *("Cell", "Short of", "Counts", "Drain", "Predicted", "95 %", "Error"),
    *("p95 wait", "Predicted", "95 %", "Error", ""),
)
PRIORITY_HEADERS: Final = ("p95 wait", *(cell for name in PRIORITIES for cell in (name, "Error")))


def error(measured: float, predicted: float) -> float:
    """By how much the prediction is off, as a share of what was measured."""
    return predicted / measured - 1 if measured else 0.0 if not predicted else 1.0


def ends(found: Interval) -> str:
    """An interval for a reader."""
    return f"{seconds(max(found.low, 0.0))} to {seconds(found.high)}"


def unproven(trials: Sequence[Trial]) -> str:
    """Why the runs that count are too few to prove anything, whatever they say; "" if they are enough."""
    counted = [trial for trial in trials if not trial.disturbed]
    if not counted:
        return "no run counts"
    if 2 * len(counted) < len(trials):
        return f"only {len(counted)} of {len(trials)} runs count"
    kinds = {trial.prediction.bound for trial in trials} - {trial.prediction.bound for trial in counted}
    return f"no run counts where {min(kinds)} are short" if kinds else ""


def passed(trials: Sequence[Trial]) -> bool:
    """Whether enough runs count, and every one of them holds."""
    return not unproven(trials) and not any(trial.breaches for trial in trials)
