"""Power: how often comparisons of so many blocks err and find, by resampling what a record has measured.

The controls of a record are equal things, measured in pairs on a real machine, with its real noise. From them
come comparisons in which nothing differs, and others in which a change was planted. Of CPU a task it is
demanded that equal things are seldom told apart and that the change is mostly found; the other figures are
told beside it. See `stats.detection`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Self

from bench import repeats
from bench.repeats import Measure, Record
from bench.stats import detection
from scheduler.errors import StartError

LEAST_PAIRS: Final = 60
"""So many blocks with a control must stand, or nothing is resampled."""

FLAGGED: Final = 0.05
FOUND: Final = 0.9
"""The share of equal things that may be told apart, and of planted changes that must be found."""

DEMANDED: Final = "cost/cpu_us.all"
"""The figure of which that is demanded."""

KEPT: Final = (DEMANDED, "drain_s")
"""The figures whose blocks a record of it keeps, so that it can be resampled again."""

TRIALS: Final = 200

RUN: Final = "bench run aa --control --repeats 62 --out results/aa.json"
COMMAND: Final = "bench compare results/aa.json --planted 10 --out docs/records/aa.json"
"""What makes the record whose table is in docs/benchmarks.md; a few blocks more, as some are disturbed."""


@dataclass(frozen=True, slots=True)
class Power:
    """What came of one figure.

    Attributes:
        figure, title: Which, for a record and for a reader.
        pairs: How many blocks were resampled.
        flagged: The share of comparisons of equal things that told them apart.
        found: The share of those that found the change.
    """

    figure: str
    title: str
    pairs: int
    flagged: float
    found: float

    @classmethod
    def of(
        cls, figure: str, title: str, pairs: Sequence[Sequence[float]], *, change: float, blocks: int
    ) -> Self:
        """Resample pairs to comparisons of so many blocks."""
        again, first = [b for _, b in pairs], [a for a, _ in pairs]
        shares = detection(again, first, change=change, rounds=blocks, trials=TRIALS)
        return cls(figure, title, len(pairs), *shares)

    @property
    def enough(self) -> bool:
        """Whether it errs seldom and finds mostly."""
        return self.flagged <= FLAGGED and self.found >= FOUND

    def cells(self) -> tuple[str, str, str, str]:
        """A row under `headers`."""
        return self.title, str(self.pairs), f"{self.flagged:.1%}", f"{self.found:.1%}"


def headers(change: float) -> tuple[str, str, str, str]:
    """Of a table of powers."""
    return "Figure", "Blocks", "Equal, told apart", f"{change:+.0%}, found"


def measured(found: Record, measures: Sequence[Measure], change: float, blocks: int) -> list[Power]:
    """The power of every figure of which enough blocks stand.

    Raises:
        StartError: of CPU a task there are too few.
    """
    rows = []
    for measure in measures:
        pairs = _pairs(found, measure)
        if len(pairs) >= LEAST_PAIRS:
            rows.append(Power.of(measure.key, measure.title, pairs, change=change, blocks=blocks))
        elif measure.key == DEMANDED:
            raise StartError(
                f"{found.path} has {len(pairs)} undisturbed blocks with a control, and {LEAST_PAIRS} are"
                f" needed: make it with `bench run --control --repeats {LEAST_PAIRS}` or a few more"
            )
    return rows


def passed(rows: Sequence[Power]) -> bool:
    """Whether CPU a task was judged, and is enough."""
    return any(row.figure == DEMANDED and row.enough for row in rows)


def content(
    found: Record, measures: Sequence[Measure], rows: Sequence[Power], change: float, blocks: int
) -> dict[str, Any]:
    """What a record keeps: where the blocks are from, those of KEPT, and what came of each figure."""
    kept = {measure.key: _pairs(found, measure) for measure in measures if measure.key in KEPT}
    return {
        "from": {name: found.made[name] for name in ("made", "command", "commit", "machine")},
        "scenario": found.planned.content(),
        "change": change,
        "blocks": blocks,
        "trials": TRIALS,
        "pairs": {key: [list(pair) for pair in pairs] for key, pairs in kept.items()},
        "figures": [
            {
                "figure": row.figure,
                "title": row.title,
                "pairs": row.pairs,
                "flagged": row.flagged,
                "found": row.found,
            }
            for row in rows
        ],
        "passed": passed(rows),
    }


def again(result: Mapping[str, Any], figure: str) -> Power:
    """Resample the blocks that a record has kept."""
    [title] = [row["title"] for row in result["figures"] if row["figure"] == figure]
    pairs = result["pairs"][figure]
    return Power.of(figure, title, pairs, change=result["change"], blocks=result["blocks"])


def table(result: Mapping[str, Any]) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Headers and rows of what a record has kept."""
    rows = [Power(**row).cells() for row in result["figures"]]
    return headers(result["change"]), [tuple(row) for row in rows]


def _pairs(found: Record, measure: Measure) -> list[tuple[float, float]]:
    """The values of each block: of the run, and of its control."""
    return [(a, b) for b, a in zip(*repeats.pairs(measure, found.controls, found.runs), strict=True)]
