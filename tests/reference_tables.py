"""The rows behind `reference_store.py`: the columns of the schema, and what readers are shown of them.

In all tables, instants (`*_at`, `alive_until`) are milliseconds of the store's clock. Ids are UUIDv7.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field, fields
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar

from scheduler.lifecycle import MOVES, DeadReason, RunOutcome, Status
from scheduler.model import Lease, Priority, Run, Task, WorkerInfo

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_Shown = TypeVar("_Shown", Task, Run, WorkerInfo)


@dataclass(slots=True)
class Row:
    """A row of `tasks`."""

    id: str
    type: str
    created_at: float
    due_at: float
    tenant: str = "default"
    queue: str = "default"
    priority: Priority = "default"
    payload: Any = field(default_factory=dict)
    status: Status = "queued"
    attempts: int = 0
    failures: int = 0
    losses: int = 0
    refusals: int = 0
    redrives: int = 0
    suspect: bool = False
    max_retries: int = 3
    timeout_ms: int | None = None
    backoff: dict[str, Any] | None = None
    worker: str | None = None
    lease_token: str | None = None
    lease_expires_at: float | None = None
    claimed_at: float | None = None
    finished_at: float | None = None
    dead_at: float | None = None
    dead_reason: DeadReason | None = None
    redriven_at: float | None = None
    last_error: str | None = None
    trace_context: str | None = None
    idempotency_key: str | None = None

    def become(self, status: Status) -> None:
        """Take the next status, one that lifecycle allows from here; a lease ends with the run."""
        assert status in MOVES[self.status], f"{self.id}: {self.status} became {status}"
        self.status = status
        if status != "running":
            self.worker = self.lease_token = self.lease_expires_at = None


@dataclass(slots=True)
class Ended:
    """A row of `task_runs`."""

    task_id: str
    attempt: int
    outcome: RunOutcome
    worker: str | None
    lease_token: str | None
    claimed_at: float
    started_at: float | None
    finished_at: float
    error: str | None
    late_outcome: str | None = None
    late_at: float | None = None


@dataclass(slots=True)
class Key:
    """A row of `idempotency_keys`."""

    tenant: str
    key: str
    fingerprint: str | None
    task_id: str
    expires_at: float


@dataclass(slots=True)
class Registered:
    """A row of `workers`."""

    id: str
    host: str
    pid: int
    queues: list[str]
    types: list[str]
    slots: int
    started_at: float
    running: int = 0
    seen_at: float = 0
    polled_at: float | None = None
    alive_until: float = 0


@dataclass(slots=True)
class Leader:
    """A row of `leaders`."""

    name: str
    holder: str
    expires_at: float


@dataclass(slots=True)
class QueueRow:
    """A row of `queues`."""

    name: str
    epoch: int = 0
    redis_run_id: str | None = None


@dataclass
class Tables:
    """All rows, by their primary keys."""

    tasks: dict[str, Row] = field(default_factory=dict)
    task_runs: dict[tuple[str, int], Ended] = field(default_factory=dict)
    idempotency_keys: dict[tuple[str, str], Key] = field(default_factory=dict)
    workers: dict[str, Registered] = field(default_factory=dict)
    leaders: dict[str, Leader] = field(default_factory=dict)
    queues: dict[str, QueueRow] = field(default_factory=dict)

    def history(self, id_: str) -> list[Ended]:
        """The ended attempts of a task, oldest first."""
        return [self.task_runs[key] for key in sorted(self.task_runs) if key[0] == id_]


def id_at(ms: float) -> str:
    """The smallest UUIDv7 of an instant."""
    text = f"{round(ms):012x}"
    return f"{text[:8]}-{text[8:]}-7000-8000-000000000000"


def instant(ms: float) -> datetime:
    return _EPOCH + timedelta(milliseconds=ms)


def ms_of(at: datetime) -> float:
    return (at - _EPOCH) / timedelta(milliseconds=1)


def task(row: Row) -> Task:
    """What readers see of a task."""
    return _shown(Task, row)


def run(ended: Ended) -> Run:
    """What readers see of an ended attempt."""
    return _shown(Run, ended)


def worker(row: Registered, *, alive: bool) -> WorkerInfo:
    """What readers see of a worker."""
    return _shown(WorkerInfo, row, alive=alive)


def _shown(kind: type[_Shown], row: Row | Ended | Registered, **more: Any) -> _Shown:
    values = {f.name: getattr(row, f.name) for f in fields(kind) if f.name not in more}
    for name, value in values.items():
        if name.endswith("_at") and value is not None:
            values[name] = instant(value)
        elif isinstance(value, dict):
            values[name] = json.dumps(value)
    return kind(**values, **more)


def lease(row: Row) -> Lease:
    """What the holder of a running row is told."""
    return Lease(
        row.id,
        row.attempts,
        row.lease_token or "",
        row.queue,
        row.type,
        row.priority,
        row.payload,
        row.max_retries,
        row.failures,
        row.losses,
        row.refusals,
        row.timeout_ms,
        row.backoff,
        row.suspect,
        waited_s=((row.claimed_at or 0) - row.due_at) / 1000,
    )
