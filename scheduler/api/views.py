"""What answers look like: ids as strings, instants in RFC 3339 UTC with milliseconds, durations in `*_ms`.

The models describe the answers. Tasks are written by `task_json`, which puts the payload's text as it comes
from Postgres where it belongs: to parse it only to write it again would cost time and change its numbers.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime
from functools import lru_cache
from typing import Annotated, Any, ClassVar, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, PlainSerializer, WithJsonSchema
from pydantic_core import to_json

from scheduler.lifecycle import DeadReason, RunOutcome, Status
from scheduler.model import PRIORITIES, Accepted, Depths, Priority, Task

EXAMPLE_ID: Final = "0192f5c1-7a3e-7000-8b3c-4d2a9e6f1b07"


@lru_cache(maxsize=64)  # the tasks of one commit share theirs
def rfc3339(instant: datetime) -> str:
    """`2026-01-02T03:04:05.678Z`: UTC, milliseconds, rounded down."""
    return instant.astimezone(UTC).isoformat(timespec="milliseconds")[:-6] + "Z"


Instant = Annotated[
    datetime,
    PlainSerializer(rfc3339, return_type=str),
    WithJsonSchema({"type": "string", "format": "date-time"}),
]


EXAMPLE_TASK: Final[dict[str, Any]] = {
    "id": EXAMPLE_ID,
    "type": "noop",
    "queue": "default",
    "priority": "high",
    "status": "queued",
    "attempts": 0,
    "failures": 0,
    "losses": 0,
    "redrives": 0,
    "max_retries": 3,
    "timeout_ms": None,
    "idempotency_key": "demo-123",
    "due_at": "2026-01-02T03:04:05.678Z",
    "created_at": "2026-01-02T03:04:05.678Z",
    "claimed_at": None,
    "finished_at": None,
    "dead_at": None,
    "dead_reason": None,
    "worker": None,
    "lease_expires_at": None,
    "last_error": None,
    "backoff": None,
    "payload": {"example": True},
}
_EXAMPLE_RUN: Final = {
    "attempt": 1,
    "outcome": "succeeded",
    "worker": "host:4711:5f0c6a1e",
    "claimed_at": "2026-01-02T03:04:05.680Z",
    "started_at": "2026-01-02T03:04:05.681Z",
    "finished_at": "2026-01-02T03:04:05.693Z",
    "error": None,
    "late_outcome": None,
    "late_at": None,
}
_EXAMPLE_DEPTHS: Final = {"critical": 0, "high": 12, "default": 340, "low": 5}


class Answer(BaseModel):
    """What a route may answer, with examples for the document."""

    EXAMPLES: ClassVar[list[dict[str, Any]]]


class TaskView(Answer):
    """A task as it stands."""

    EXAMPLES: ClassVar[list[dict[str, Any]]] = [EXAMPLE_TASK]

    id: str = Field(description="A UUIDv7.")
    type: str
    queue: str
    priority: Priority
    status: Status
    attempts: int = Field(description="Times that a worker claimed it.")
    failures: int = Field(description="Failed or timed out runs since the last redrive.")
    losses: int = Field(description="Runs lost with their worker or lease since the last redrive.")
    redrives: int = Field(description="Times that it was taken back from the dead letters.")
    max_retries: int = Field(description="It is dead when `failures` exceed this.")
    timeout_ms: int | None = Field(
        description="Longest run of the handler; null: as the worker's settings say."
    )
    idempotency_key: str | None
    due_at: Instant = Field(description="Not run before this instant.")
    created_at: Instant
    claimed_at: Instant | None = Field(description="When the last attempt began.")
    finished_at: Instant | None
    dead_at: Instant | None = Field(description="When it became a dead letter; null again after a purge.")
    dead_reason: DeadReason | None
    worker: str | None = Field(description="Who runs it now.")
    lease_expires_at: Instant | None
    last_error: str | None
    backoff: dict[str, Any] | None = Field(description="What was asked for; null: as the settings say.")
    payload: dict[str, Any]


class TaskPage(Answer):
    """Some tasks, newest first."""

    EXAMPLES: ClassVar[list[dict[str, Any]]] = [{"items": [EXAMPLE_TASK], "next_cursor": EXAMPLE_ID}]

    items: list[TaskView]
    next_cursor: str | None = Field(description="`cursor` of the next page; null on the last one.")


class RunView(Answer):
    """An attempt that has ended."""

    model_config = ConfigDict(from_attributes=True)
    EXAMPLES: ClassVar[list[dict[str, Any]]] = [_EXAMPLE_RUN]

    attempt: int
    outcome: RunOutcome
    worker: str | None
    claimed_at: Instant
    started_at: Instant | None = Field(description="Null where the handler never started.")
    finished_at: Instant
    error: str | None
    late_outcome: str | None = Field(description="What a worker reported after it had lost the task.")
    late_at: Instant | None


class RunPage(Answer):
    """The ended attempts of one task, oldest first; never more than one page."""

    EXAMPLES: ClassVar[list[dict[str, Any]]] = [{"items": [_EXAMPLE_RUN], "next_cursor": None}]

    items: list[RunView]
    next_cursor: None = None


class TaskRef(BaseModel):
    """No more than which task it is."""

    id: str


class BulkItem(BaseModel):
    """What became of one task of a bulk request."""

    result: Literal["created", "existing", "conflict"] = Field(
        description="`existing`: its idempotency key came with the same request before. "
        "`conflict`: the key belongs to another request, and nothing was created."
    )
    task: TaskView | TaskRef = Field(description="For `conflict` only the id of the task that has the key.")


class BulkResults(Answer):
    """One item for each task, in the order of the request."""

    EXAMPLES: ClassVar[list[dict[str, Any]]] = [
        {
            "items": [
                {"result": "created", "task": EXAMPLE_TASK},
                {"result": "conflict", "task": {"id": EXAMPLE_ID}},
            ]
        }
    ]

    items: list[BulkItem]


class PriorityDepths(BaseModel):
    """A number for each priority."""

    critical: int
    high: int
    default: int
    low: int


class QueueView(BaseModel):
    """How much a queue holds, by Redis."""

    name: str
    depth: PriorityDepths = Field(description="Tasks ready to run.")
    retry: PriorityDepths = Field(description="Tasks that wait for their due time.")
    dlq: PriorityDepths = Field(description="Dead letters.")
    in_flight: int = Field(description="Tasks that workers hold.")


class QueuePage(Answer):
    """All queues, by name; never more than one page."""

    EXAMPLES: ClassVar[list[dict[str, Any]]] = [
        {
            "items": [
                {
                    "name": "default",
                    "depth": _EXAMPLE_DEPTHS,
                    "retry": _EXAMPLE_DEPTHS,
                    "dlq": _EXAMPLE_DEPTHS,
                    "in_flight": 36,
                }
            ],
            "next_cursor": None,
        }
    ]

    items: list[QueueView]
    next_cursor: None = None


class HealthView(Answer):
    """The process answers."""

    EXAMPLES: ClassVar[list[dict[str, Any]]] = [{"status": "ok"}]

    status: Literal["ok"] = "ok"


class PollAges(BaseModel):
    """Seconds since each store last answered this process; null if it never did."""

    postgres: float | None
    redis: float | None


class ReadyView(Answer):
    """The process can do its work."""

    EXAMPLES: ClassVar[list[dict[str, Any]]] = [
        {
            "status": "ready",
            "postgres": "up",
            "redis": "up",
            "last_poll_s": 0.021,
            "last_poll_age_s": {"postgres": 0.002, "redis": 0.004},
        }
    ]

    status: Literal["ready"] = "ready"
    postgres: Literal["up"] = "up"
    redis: Literal["up"] = "up"
    last_poll_s: float | None = Field(
        description="Seconds since any worker last looked into a queue; null if none is known to have."
        " While Postgres is away, counted on from its last answer to this question."
    )
    last_poll_age_s: PollAges


def task_json(task: Task) -> str:
    """A task as JSON text, in the shape of TaskView."""
    # Written by hand: of a created task, the most frequent answer, hardly anything needs a general writer.
    return (
        f'{{"id":"{task.id}","type":{_text(task.type)},"queue":{_text(task.queue)},"priority":"{task.priority}"'
        f',"status":"{task.status}","attempts":{task.attempts},"failures":{task.failures}'
        f',"losses":{task.losses},"redrives":{task.redrives},"max_retries":{task.max_retries}'
        f',"timeout_ms":{_text(task.timeout_ms)},"idempotency_key":{_text(task.idempotency_key)}'
        f',"due_at":"{rfc3339(task.due_at)}","created_at":"{rfc3339(task.created_at)}"'
        f',"claimed_at":{_instant(task.claimed_at)},"finished_at":{_instant(task.finished_at)}'
        f',"dead_at":{_instant(task.dead_at)},"dead_reason":{_text(task.dead_reason)}'
        f',"worker":{_text(task.worker)},"lease_expires_at":{_instant(task.lease_expires_at)}'
        f',"last_error":{_text(task.last_error)}'
        f',"backoff":{task.backoff or "null"},"payload":{task.payload}}}'
    )


def _text(value: str | int | None) -> str:
    return "null" if value is None else to_json(value).decode()


def _instant(value: datetime | None) -> str:
    return "null" if value is None else f'"{rfc3339(value)}"'


def page_json(tasks: Iterable[Task], next_cursor: str | None) -> str:
    """Tasks as JSON text, in the shape of TaskPage."""
    return f'{{"items":[{",".join(map(task_json, tasks))}],"next_cursor":{to_json(next_cursor).decode()}}}'


def bulk_json(accepted: Iterable[Accepted]) -> str:
    """Results as JSON text, in the shape of BulkResults."""
    return f'{{"items":[{",".join(map(_item_json, accepted))}]}}'


def _item_json(accepted: Accepted) -> str:
    known = accepted.result != "conflict"
    task = task_json(accepted.task) if known else f'{{"id":"{accepted.task.id}"}}'
    return f'{{"result":"{accepted.result}","task":{task}}}'


def queue_view(name: str, depths: Depths) -> QueueView:
    """A queue and its depths."""
    return QueueView(
        name=name,
        depth=_by_priority(depths.queued),
        retry=_by_priority(depths.retry),
        dlq=_by_priority(depths.dead),
        in_flight=depths.leased,
    )


def _by_priority(counts: tuple[int, ...]) -> PriorityDepths:
    return PriorityDepths(**dict(zip(PRIORITIES, counts, strict=True)))
