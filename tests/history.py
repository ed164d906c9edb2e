"""Histories made by hand: rows as Scheduler leaves them, with instants that a test can reckon with."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from itertools import count
from typing import Any, NamedTuple

import psycopg

START = datetime(2030, 1, 1, 12, tzinfo=UTC)
"""Second 0 of every history."""


def at(seconds: float | None) -> datetime | None:
    """The instant so many seconds after START."""
    return None if seconds is None else START + timedelta(seconds=seconds)


class Run(NamedTuple):
    """One ended attempt, in seconds after START. `started` is None if it never was or the run was lost."""

    outcome: str
    claimed: float
    started: float | None
    finished: float
    worker: str = "host:1:a"
    error: str | None = None


class History:
    """Writes tasks and their runs into a database that it empties first."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._numbers = count(1)
        self.ids: list[str] = []
        """The tasks in the order in which they were written."""
        self.execute("TRUNCATE tasks, task_runs")

    def task(
        self,
        status: str,
        *runs: Run,
        kind: str = "noop",
        priority: str = "default",
        created: float = 0.0,
        due: float | None = None,
        finished: float | None = None,
        reason: str | None = None,
        **columns: Any,
    ) -> str:
        """A task with its runs; what is not given follows from them. `columns` overrule whatever follows."""
        id_ = f"00000000-0000-7000-8000-{next(self._numbers):012d}"
        ended = status in {"succeeded", "dead", "cancelled"}
        end = at(finished if finished is not None else runs[-1].finished if runs else created)
        outcomes = [run.outcome for run in runs]
        row = {
            "id": id_,
            "type": kind,
            "priority": priority,
            "status": status,
            "attempts": len(runs),
            "failures": outcomes.count("failed") + outcomes.count("timed_out"),
            "losses": outcomes.count("lost"),
            "created_at": at(created),
            "due_at": at(created if due is None else due),
            "claimed_at": at(runs[-1].claimed) if runs else None,
            "finished_at": end if ended else None,
            "dead_at": end if status == "dead" else None,
            "dead_reason": reason,
        } | columns
        with psycopg.connect(self._url) as connection:
            _insert(connection, "tasks", row)
            for attempt, run in enumerate(runs, 1):
                self._run(connection, id_, attempt, run)
        self.ids.append(id_)
        return id_

    def run(self, id_: str, attempt: int, run: Run) -> None:
        """One more run of a task, whose row does not know of it."""
        with psycopg.connect(self._url) as connection:
            self._run(connection, id_, attempt, run)

    def execute(self, sql: str, *parameters: object) -> None:
        """Change what was written."""
        with psycopg.connect(self._url) as connection:
            connection.execute(sql.encode(), parameters)

    def _run(self, connection: psycopg.Connection[Any], id_: str, attempt: int, run: Run) -> None:
        row = {
            "task_id": id_,
            "attempt": attempt,
            "outcome": run.outcome,
            "worker": run.worker,
            "error": run.error,
            "claimed_at": at(run.claimed),
            "started_at": at(run.started),
            "finished_at": at(run.finished),
        }
        _insert(connection, "task_runs", row)


def _insert(connection: psycopg.Connection[Any], table: str, row: dict[str, Any]) -> None:
    places = ", ".join(f"%({name})s" for name in row)
    connection.execute(f"INSERT INTO {table} ({', '.join(row)}) VALUES ({places})".encode(), row)
