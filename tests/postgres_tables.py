"""All rows of a real database as `reference_tables` has them: written and read by SQL of the tests' own."""

from __future__ import annotations

import json
from dataclasses import asdict, fields
from datetime import datetime
from typing import Any
from uuid import UUID

from fix_store import Database
from reference_tables import Ended, Key, Leader, QueueRow, Registered, Row, Tables, instant, ms_of

KINDS = {
    "tasks": Row,
    "task_runs": Ended,
    "idempotency_keys": Key,
    "workers": Registered,
    "leaders": Leader,
    "queues": QueueRow,
}
KEYS = {"tasks": ["id"], "task_runs": ["task_id", "attempt"], "idempotency_keys": ["tenant", "key"]}


def is_instant(name: str) -> bool:
    """Does the column of that name hold an instant?"""
    return name.endswith("_at") or name == "alive_until"


def now_ms(db: Database) -> float:
    """The time by the database's clock."""
    return ms_of(db.value("SELECT now()"))


def write(db: Database, tables: Tables) -> None:
    """Make the database hold these rows and no others."""
    db.clear()
    for name, kind in KINDS.items():
        rows = [_sent(row) for row in getattr(tables, name).values()]
        columns = ", ".join(f.name for f in fields(kind))
        if rows:
            db.rows(
                f"INSERT INTO {name} ({columns})"
                f" SELECT {columns} FROM jsonb_populate_recordset(NULL::{name}, %s)",
                json.dumps(rows),
            )


def _sent(row: Any) -> dict[str, Any]:
    return {
        name: instant(value).isoformat() if is_instant(name) and value is not None else value
        for name, value in asdict(row).items()
    }


def read(db: Database) -> Tables:
    """All rows of the database."""
    tables = Tables()
    for name, kind in KINDS.items():
        columns = ", ".join(f.name for f in fields(kind))
        for found in db.rows(f"SELECT {columns} FROM {name}"):
            row = {column: _read(value) for column, value in found.items()}
            key = tuple(row[column] for column in KEYS.get(name, list(row)[:1]))
            getattr(tables, name)[key[0] if len(key) == 1 else key] = kind(**row)
    return tables


def _read(value: Any) -> Any:
    if isinstance(value, datetime):
        return ms_of(value)
    return str(value) if isinstance(value, UUID) else value
