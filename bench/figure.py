"""A figure: one promise in numbers, measured several times, against the bound that it must keep.

Every repetition must keep the bound, not only the median: what is promised is promised each time. A figure
that could not be measured has no values and says why; it neither holds nor is missed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

from bench.stats import spread

Sign = Literal["≤", "≥", "="]

HEADERS: Final = ("What", "Median", "Range", "n", "Must be", "")
"""Of the rows that `cells` makes."""


@dataclass(frozen=True, slots=True)
class Figure:
    """What was measured.

    Attributes:
        key: Its name in records and documents, as `crash.claimed`.
        what: What it is, for a reader.
        unit: Of the values: `s`, `ms`, `%`, `×`, or nothing for a count.
        values: One a repetition.
        sign: How the values must stand to the bound; None if nothing is promised.
        bound: See `sign`.
        why: Why there are no values.
        failed: The measurement did not come to its end, which is a promise missed.
    """

    key: str
    what: str
    unit: str = ""
    values: tuple[float, ...] = ()
    sign: Sign | None = None
    bound: float = 0.0
    why: str = ""
    failed: bool = False

    @property
    def holds(self) -> bool:
        """False if a value breaks the bound, or if the measurement failed."""
        keeps = {"≤": float.__le__, "≥": float.__ge__, "=": float.__eq__}
        if self.failed or self.sign is None:
            return not self.failed
        return all(keeps[self.sign](float(value), float(self.bound)) for value in self.values)

    def record(self) -> dict[str, Any]:
        """As JSON has it."""
        told: dict[str, Any] = {"key": self.key, "what": self.what, "unit": self.unit}
        if self.values:
            values = [round(value, 4) for value in self.values]
            told |= spread(values)._asdict() | {"values": values}
        if self.sign:
            told |= {"sign": self.sign, "bound": self.bound}
        if self.why:
            told["why"] = self.why
        return told | {"holds": self.holds}


def failure(key: str, why: str) -> Figure:
    """A measurement that did not come to its end."""
    return Figure(key, f"the measurement `{key}`", why=why, failed=True)


def shown(value: float, unit: str = "") -> str:
    """A number with its unit: counts whole, all else with three digits that matter."""
    if unit == "" and float(value).is_integer():
        return f"{value:,.0f}"
    digits = 2 if abs(value) < 10 else 1 if abs(value) < 100 else 0
    return f"{value:,.{digits}f}{'' if unit in {'', '%', '×'} else ' '}{unit}"


def cells(told: dict[str, Any]) -> tuple[str, str, str, str, str, str]:
    """A figure's record as a row of a table, under HEADERS."""
    unit = told["unit"]
    verdict = "ok" if told["holds"] else "MISSED"
    must = f"{told['sign']} {shown(told['bound'], unit)}" if "sign" in told else ""
    if "median" not in told:
        return told["what"], "-", told["why"], "0", must, "" if told["holds"] else verdict
    low, high = shown(told["low"], unit), shown(told["high"], unit)
    return (
        told["what"],
        shown(told["median"], unit),
        low if low == high else f"{low} to {high}",
        str(len(told["values"])),
        must,
        verdict if must else "",
    )


def table(told: Sequence[dict[str, Any]]) -> str:
    """Figures' records for a terminal, in columns."""
    return lined_up(HEADERS, [cells(figure) for figure in told])


def lined_up(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Rows under their headers, in columns."""
    widths = [max(map(len, column)) for column in zip(headers, *rows, strict=True)]
    lines = (
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in (headers, ["-" * width for width in widths], *rows)
    )
    return "\n".join(lines)
