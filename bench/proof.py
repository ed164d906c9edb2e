"""Proof: what the records of reliability say, as docs/reliability.md tells it.

A record that is not there, or that was made with `--quick`, says nothing: its figures are not measured yet.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from bench import figure, leaks, record

NOT_YET: Final = "not measured yet"
COMMANDS: Final = {
    "reliability": "bench reliability --out docs/records/reliability.json",
    "amnesia": "bench amnesia --seeds 1-50 --out docs/records/amnesia.json",
    "soak": "bench soak --out docs/records/soak.json",
    "chaos": "bench chaos --seeds 1-40 --out docs/records/chaos.json",
}
"""What makes each record."""

Table = tuple[Sequence[str], Sequence[Sequence[str]]]
Record = dict[str, Any]


class Proofs:
    """The records of a folder."""

    def __init__(self, folder: Path) -> None:
        self._records = {name: _read(folder / f"{name}.json") for name in COMMANDS}

    def figure(self, key: str) -> str:
        """One figure in a few words: of `reliability` by its key, or another record as a whole by its name.

        Raises:
            ValueError: the record has no such figure.
        """
        name = key if key in COMMANDS else "reliability"
        found = self._records[name]
        if found is None:
            return NOT_YET
        if key in _WHOLE:
            return _WHOLE[key](found["result"])
        figures = {each["key"]: each for each in found["result"]["figures"]}
        if key not in figures:
            raise ValueError(f"there is no figure {key!r} in the record of `bench reliability`")
        return _told(figures[key])

    def source(self, name: str) -> str:
        """Where the figures of one record come from; how to get them if there is no record."""
        found = self._records[name]
        return record.told(found) if found else f"Not measured yet: run `{COMMANDS[name]}`."

    def table(self, name: str) -> Table | None:
        """The headers and rows of one record; None if there is no record."""
        found = self._records[name]
        if found is None:
            return None
        result = found["result"]
        if name in {"reliability", "amnesia"}:
            return figure.HEADERS, [figure.cells(each) for each in result["figures"]]
        if name == "soak":
            return leaks.HEADERS, [_trend(each).cells() for each in result["trends"]]
        return ("Fault", "Planned", "Landed"), [
            (kind, str(n["planned"]), str(n["landed"])) for kind, n in result["faults"].items()
        ]


def _read(path: Path) -> Record | None:
    found = record.read(path) if path.exists() else None
    return None if found is None or found["result"].get("quick") else found


def _told(each: Mapping[str, Any]) -> str:
    _, median, range_, n, must, verdict = figure.cells(dict(each))
    if "median" not in each:
        return range_
    within = f"{range_}, n={n}" if range_ != median and int(n) > 1 else ""
    if verdict == "MISSED":
        return f"{median} (**missed**: must be {must})"
    told = "; ".join(part for part in (within, f"must be {must}" if must else "") if part)
    return f"{median} ({told})" if told else median


def _trend(each: Mapping[str, Any]) -> leaks.Trend:
    return leaks.Trend(**{name: value for name, value in each.items() if name != "flat"})


def _soak(result: Mapping[str, Any]) -> str:
    grown = [each["name"] for each in result["trends"] if not each["flat"]]
    grown += [] if result["redis"]["flat"] else ["Redis"]
    most = max(each["rise"] for each in result["trends"] if each["name"].endswith("memory")) / leaks.MIB
    words = "all flat" if result["holds"] else f"**failed**: {', '.join(grown) or 'see the record'}"
    return (
        f"{words}; memory rose by {most:.2f} MiB at most in {result['minutes'] * leaks.JUDGED:g} of"
        f" {result['minutes']:g} minutes at {result['rate']:,.0f} tasks/s"
    )


def _chaos(result: Mapping[str, Any]) -> str:
    planned, landed = (sum(n[what] for n in result["faults"].values()) for what in ("planned", "landed"))
    failed = f", **failed**: {', '.join(map(str, result['failed_seeds']))}" if result["failed_seeds"] else ""
    return (
        f"{result['counted']} of {result['runs']} seeds counted, {result['passed']} of these passed{failed}:"
        f" {landed} of {planned} faults landed, {result['accepted']:,} tasks accepted"
    )


def _amnesia(result: Mapping[str, Any]) -> str:
    told = f"{result['passed']} of {result['asked']} seeds passed"
    failed = [*map(str, result["failed_seeds"]), *([result["why"]] if result["why"] else [])]
    told += f", **failed**: {', '.join(failed)}" if failed else ""
    if not result["seeds"]:
        return told
    most = {each["key"]: figure.shown(each["high"], each["unit"]) for each in result["figures"]}
    worst = result["worst"]
    return (
        f"{told}: at worst {worst['extra']:,} extra runs with {worst['leased']:,} tasks in flight,"
        f" {most['amnesia.depth']} as many ids as waiting rows, whole after {most['amnesia.whole']}"
    )


_WHOLE: Final[dict[str, Callable[[Mapping[str, Any]], str]]] = {
    "amnesia": _amnesia,
    "soak": _soak,
    "chaos": _chaos,
}
"""A record in a few words."""
