"""Rows of the table of limits: what is measured, what it must reach and should reach, and whether it did.

    limit = Limit("drain", "rates", "noops drained in batches, against batches of one", "/s",
                  "drain.rate", "ones.rate", must=10, aim=14)
    row = Row(limit, values=(18_000, 17_500), others=(1_400, 1_450))

A row with a denominator is judged by the paired ratio of its rounds, any other by the median of its values.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from math import isnan, nan
from typing import Any, Final, Self

from bench.figure import shown
from bench.stats import Ratio, paired, spread

HEADERS: Final = ("What", "Measured", "Against", "Ratio", "Must", "Aim", "")
OK: Final = "ok"
AIM_MISSED: Final = "aim missed"
MUST_MISSED: Final = "MUST MISSED"


@dataclass(frozen=True, slots=True)
class Limit:
    """What one row measures and what it must reach.

    Attributes:
        name: What `--only` and records call it.
        topic: The group of measurements that it comes from.
        title: What it is, for a reader.
        unit: Of the values.
        of: The measure, as `arm.measure`.
        against: The measure of the denominators, "" if the values stand for themselves.
        must: The bound that decides the exit code; None if nothing is promised.
        aim: The bound that the row should keep; None if there is none.
        at_most: The bounds are upper ones; else lower ones.
    """

    name: str
    topic: str
    title: str
    unit: str
    of: str
    against: str = ""
    must: float | None = None
    aim: float | None = None
    at_most: bool = False

    @property
    def measures(self) -> tuple[str, ...]:
        """The measures that it needs."""
        return (self.of, self.against) if self.against else (self.of,)

    def keeps(self, figure: float, bound: float | None) -> bool:
        """Whether a figure keeps a bound; what is not a number keeps none."""
        return bound is None or (figure <= bound if self.at_most else figure >= bound)


@dataclass(frozen=True, slots=True)
class Row:
    """A limit as it was measured: one value a round, and as many denominators if it has them."""

    limit: Limit
    values: tuple[float, ...]
    others: tuple[float, ...] = ()

    @classmethod
    def of(cls, limit: Limit, rounds: Sequence[Mapping[str, float]]) -> Self:
        """From the measures of all rounds."""
        values, *others = (tuple(each[measure] for each in rounds) for measure in limit.measures)
        return cls(limit, values, *others)

    @classmethod
    def missing(cls, limit: Limit) -> Self:
        """A limit that could not be measured: it keeps no bound."""
        return cls(limit, (nan,), (nan,) if limit.against else ())

    @property
    def ratio(self) -> Ratio | None:
        """The paired ratio; None without denominators, not a number where one of them is not above 0."""
        if not self.others:
            return None
        positive = all(value > 0 for value in (*self.values, *self.others))
        return paired(self.values, self.others) if positive else Ratio(nan, nan, nan)

    @property
    def figure(self) -> float:
        """What is judged."""
        return self.ratio.value if self.ratio else spread(self.values).median

    @property
    def verdict(self) -> str:
        """OK, AIM_MISSED or MUST_MISSED; "" if there is no bound to keep."""
        if not self.limit.keeps(self.figure, self.limit.must):
            return MUST_MISSED
        if not self.limit.keeps(self.figure, self.limit.aim):
            return AIM_MISSED
        return "" if self.limit.must is None and self.limit.aim is None else OK

    def cells(self) -> tuple[str, ...]:
        """The row as text, in the order of HEADERS."""
        limit = self.limit
        return (
            limit.title,
            _spread(self.values, limit.unit),
            _spread(self.others, limit.unit) if self.others else "",
            _ratio(self.ratio) if self.ratio else "",
            self._bound(limit.must),
            self._bound(limit.aim),
            self.verdict,
        )

    def _bound(self, bound: float | None) -> str:
        if bound is None:
            return ""
        sign = "≤" if self.limit.at_most else "≥"
        return f"{sign} {bound:g}×" if self.others else f"{sign} {bound:,g} {self.limit.unit}".rstrip()

    def data(self) -> dict[str, Any]:
        """As JSON has it; `read` takes it back."""
        ratio = self.ratio
        return {
            **asdict(self.limit),
            "values": [_rounded(value) for value in self.values],
            "others": [_rounded(value) for value in self.others],
            "figure": _rounded(self.figure),
            "interval": [_rounded(ratio.low), _rounded(ratio.high)] if ratio else None,
            "verdict": self.verdict,
        }

    @classmethod
    def read(cls, data: Mapping[str, Any]) -> Self:
        """From what `data` made. What was worked out from the values is worked out again."""
        limit = Limit(**{name: data[name] for name in Limit.__dataclass_fields__})
        return cls(limit, *(tuple(nan if v is None else v for v in data[k]) for k in ("values", "others")))


def markdown(rows: Sequence[Row]) -> str:
    """The table, aligned, as Markdown that a terminal shows well, too."""
    return aligned(HEADERS, [row.cells() for row in rows])


def aligned(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table whose columns line up."""
    cells = [heads, *rows]
    widths = [max(len(row[i]) for row in cells) for i in range(len(heads))]
    cells.insert(1, ["-" * width for width in widths])
    lines = (" | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in cells)
    return "\n".join(f"| {line} |" for line in lines)


def table(made: Mapping[str, Any]) -> str:
    """The table of a record that keeps its rows."""
    return markdown([Row.read(row) for row in made["result"]["rows"]])


def _spread(values: Sequence[float], unit: str) -> str:
    middle, low, high = spread(values)
    if isnan(middle):
        return "not measured"
    return shown(middle, unit) if low == high else f"{shown(middle, unit)} ({shown(low)}..{shown(high)})"


def _ratio(ratio: Ratio) -> str:
    value, low, high = ratio
    if isnan(value):
        return ""
    unclear = "" if ratio.clear else " ~"
    return f"{value:.2f}×{unclear}" if low == high else f"{value:.2f}× ({low:.2f}..{high:.2f}){unclear}"


def _rounded(value: float) -> float | None:
    """To six digits that count; what is not a number is null, as JSON knows no NaN."""
    return None if isnan(value) else float(f"{value:.6g}")
