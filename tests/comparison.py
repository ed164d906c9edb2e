"""Two answers or two states are the same if their instants and durations are, to half a second.

A server's clock runs on while a call is on its way, so tests keep what they store off whole seconds, or the
other way round, and let time pass by whole seconds: then nothing is due by a hair.
"""

from __future__ import annotations

from dataclasses import asdict, fields, is_dataclass
from datetime import datetime
from typing import Any

from postgres_tables import KINDS, is_instant
from reference import Contents
from reference_tables import Tables, ms_of

OF_THE_PROCESS = {"claimed", "expires", "renewed"}
"""What a lease carries of the clock of the process that holds it."""


def moved_tables(tables: Tables, ms: float) -> Tables:
    """The same rows with every instant moved."""
    for name in KINDS:
        for row in getattr(tables, name).values():
            for column in fields(row):
                value = getattr(row, column.name)
                if is_instant(column.name) and value is not None:
                    setattr(row, column.name, value + ms)
    return tables


def plain(value: Any, now_ms: float, name: str = "") -> Any:
    """An answer, or tables, with instants and durations in half seconds from `now_ms`."""
    if value is None or isinstance(value, bool | str):
        return value
    if is_dataclass(value):
        names = [f.name for f in fields(value) if f.name not in OF_THE_PROCESS]
        return {name: plain(getattr(value, name), now_ms, name) for name in names}
    if isinstance(value, dict):
        return {key: plain(item, now_ms) for key, item in value.items()}
    if isinstance(value, set):
        return sorted(value)
    if isinstance(value, list | tuple):
        return [plain(item, now_ms) for item in value]
    if isinstance(value, datetime):
        return round((ms_of(value) - now_ms) / 500)
    if is_instant(name):
        return round((value - now_ms) / 500)
    if isinstance(value, float):
        return round(value * 2)
    return round(value / 500) if name.endswith("_ms") or value > 400 else value


def plain_contents(held: Contents, now_ms: float) -> dict[str, Any]:
    """All that a shard holds, with its times in half seconds from `now_ms`."""

    def half(ms: float) -> int:
        return round((ms - now_ms) / 500)

    all_ = asdict(held)
    for scores in (*all_["retry"].values(), *all_["dlq"].values(), all_["leases"]):
        scores.update({id_: half(ms) for id_, ms in scores.items()})
    all_["credit"] = (held.credit.credit, tuple(ms and half(ms) for ms in held.credit.served_ms))
    return all_
