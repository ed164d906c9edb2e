"""The values that travel between the modules: plain, without behaviour.

They are frozen, but for those made once per task on the hot paths, where that would cost microseconds.
"""

from __future__ import annotations

import os
import random
import threading
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, Literal

from scheduler import clock
from scheduler.lifecycle import DeadReason, RunOutcome, Status

Priority = Literal["critical", "high", "default", "low"]
PRIORITIES: Final[tuple[Priority, ...]] = ("critical", "high", "default", "low")
"""Highest first. The order is the one in which every script and table names them."""

DEFAULT_TENANT: Final = "default"
DEFAULT_QUEUE: Final = "default"
NAME_PATTERN: Final = r"[a-z0-9][a-z0-9_.-]{0,62}"
"""Names of queues: they become parts of Redis keys, so they stay plain."""

TYPE_PATTERN: Final = r"[A-Za-z0-9][A-Za-z0-9_.:-]{0,127}"
"""Names of types: they become values of metric labels and parts of log lines."""

Where = Literal["gone", "head", "tail", "retry", "dead", "held"]


_rng = random.Random()
"""Seeded by the system, and not asked for every id: these must differ, and are no secrets."""
os.register_at_fork(after_in_child=_rng.seed)
_last_id = (0, 0)
_id_lock = threading.Lock()


def new_id() -> str:
    """A UUIDv7 (RFC 9562, section 5.7): 48 bits of milliseconds, then a counter, then randomness.

    Ids from one process rise strictly, so rows are inserted at the right edge of the index and a batch is
    in id order already.
    """
    global _last_id  # noqa: PLW0603 - one process, one sequence
    with _id_lock:
        ms, counter = clock.wall_ms(), 0
        last_ms, last_counter = _last_id
        if ms <= last_ms:
            ms, counter = last_ms, last_counter + 1
            if counter > 0xFFF:
                ms, counter = last_ms + 1, 0
        _last_id = (ms, counter)
    tail = _rng.getrandbits(62)
    text = f"{ms:012x}7{counter:03x}{0x8000_0000_0000_0000 | tail:016x}"
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"


@dataclass(slots=True)
class NewTask:
    """A validated task on its way in. `payload` and `backoff` are JSON texts, checked already."""

    id: str
    type: str
    priority: Priority = "default"
    queue: str = DEFAULT_QUEUE
    tenant: str = DEFAULT_TENANT
    payload: str = "{}"
    max_retries: int = 3
    timeout_ms: int | None = None
    backoff: str | None = None
    delay_ms: int | None = None
    run_at: datetime | None = None
    idempotency_key: str | None = None
    fingerprint: str | None = None
    trace_context: str | None = None


@dataclass(slots=True)
class Accepted:
    """What became of a NewTask: committed now, known already, or refused because its key is another's."""

    task: Task
    result: Literal["created", "existing", "conflict"]
    delay_ms: int = 0
    """Milliseconds until it is due, by Postgres' clock at the commit; 0 if it is due now."""


@dataclass(slots=True)
class Task:
    """A row of `tasks` for readers: `payload` and `backoff` are JSON texts, instants carry their zone."""

    id: str
    tenant: str
    queue: str
    type: str
    priority: Priority
    payload: str
    status: Status
    attempts: int
    failures: int
    losses: int
    redrives: int
    max_retries: int
    timeout_ms: int | None
    backoff: str | None
    idempotency_key: str | None
    due_at: datetime
    created_at: datetime
    claimed_at: datetime | None
    finished_at: datetime | None
    dead_at: datetime | None
    dead_reason: DeadReason | None
    worker: str | None
    lease_expires_at: datetime | None
    last_error: str | None


@dataclass(frozen=True, slots=True)
class Run:
    """A row of `task_runs`: one ended attempt."""

    task_id: str
    attempt: int
    outcome: RunOutcome
    worker: str | None
    claimed_at: datetime
    started_at: datetime | None
    finished_at: datetime
    error: str | None
    late_outcome: str | None
    late_at: datetime | None


@dataclass(slots=True, eq=False)
class Lease:
    """A worker's claim on a task until a deadline, as the worker holds it.

    `attempt` is the fence in Postgres, `token` the one in Redis. The payload is None if it was too large to
    come with the claim: such a lease can only be given back. `expires` and `renewed` are readings of
    clock.monotonic; the heartbeat moves both. `lost` is set once, when the lease is known to have ended.
    """

    id: str
    attempt: int
    token: str
    queue: str
    type: str
    priority: Priority
    payload: Any
    max_retries: int
    failures: int
    losses: int
    refusals: int
    timeout_ms: int | None
    backoff: dict[str, Any] | None
    suspect: bool
    waited_s: float
    """Seconds from the moment the task was due to the claim, by Postgres' clock."""
    claimed: float = 0.0
    expires: float = 0.0
    renewed: float = 0.0
    renews: bool = True
    """False where the handler opted out of the heartbeat."""
    ended: bool = False
    """The run has an outcome; only its settle is outstanding."""
    lost: bool = False


@dataclass(frozen=True, slots=True)
class Refusal:
    """An id that was leased in Redis and whose row could not be claimed, with the place where it belongs."""

    id: str
    reason: Literal["unknown", "terminal", "dead", "not_due", "running", "undecided"]
    where: Where | None
    priority: Priority
    delay_ms: int = 0
    token: str = ""
    """For `running`: the token of the lease that does hold the row."""


Kind = Literal[
    "succeeded", "failed", "rejected", "retry", "timed_out", "unknown_type", "died", "interrupted", "lost"
]


@dataclass(slots=True)
class Result:
    """What a run came to.

    Attributes:
        kind: `died`: the process that ran the task alone is gone. `lost` and `interrupted` are no outcomes:
            the first is not ours to settle any more, the second is given back.
        error: What to tell people; made safe and short.
        after_ms: For `retry`: the wait that the handler asked for. For `interrupted`: how long it is put off.
        wait_us: Microseconds from the claim to the start of the handler.
        run_us: Microseconds that the handler ran; None if it was never called.
    """

    kind: Kind
    error: str | None = None
    after_ms: int = 0
    wait_us: int = 0
    run_us: int | None = None


@dataclass(slots=True)
class Settlement:
    """One outcome on its way into Postgres, decided by lifecycle and backoff."""

    lease: Lease
    outcome: RunOutcome
    status: Status
    reason: DeadReason | None = None
    delay_ms: int = 0
    error: str | None = None
    wait_us: int = 0
    """Microseconds from the claim to the handler's start."""
    run_us: int | None = None
    """Microseconds that the handler ran; None if it never started."""
    refused: bool = False
    """The worker knows no handler for the type: counted apart from failures."""


@dataclass(frozen=True, slots=True)
class Reaped:
    """Where the row of an id with an expired Redis entry says that the id belongs."""

    id: str
    where: Where
    priority: Priority
    type: str
    lost: bool
    """True if this call settled the run as lost."""
    died: bool
    """True if that loss made it a dead letter."""
    delay_ms: int = 0
    token: str = ""


@dataclass(slots=True)
class Move:
    """One `place`: take `id` from the lease `token` to `where`. See protocol, place."""

    id: str
    token: str
    where: Where
    priority: Priority = "default"
    delay_ms: int = 0
    """For `retry`: until due. For `held`: until the lease's end."""
    new_token: str = ""
    """For `held`: the token of the lease that holds the row."""


@dataclass(frozen=True, slots=True)
class Depths:
    """How many ids one shard holds, by collection and priority (in the order of PRIORITIES)."""

    queued: tuple[int, ...] = (0, 0, 0, 0)
    retry: tuple[int, ...] = (0, 0, 0, 0)
    dead: tuple[int, ...] = (0, 0, 0, 0)
    leased: int = 0

    def __add__(self, other: Depths) -> Depths:
        def both(a: tuple[int, ...], b: tuple[int, ...]) -> tuple[int, ...]:
            return tuple(x + y for x, y in zip(a, b, strict=True))

        return Depths(
            both(self.queued, other.queued),
            both(self.retry, other.retry),
            both(self.dead, other.dead),
            self.leased + other.leased,
        )


@dataclass(frozen=True, slots=True)
class OpenRow:
    """What reconcile needs of an open row: where it belongs, in durations by Postgres' clock."""

    id: str
    queue: str
    priority: Priority
    status: Status
    due_in_ms: int
    """Until due; negative once overdue."""
    lease_ms: int
    """Of a running row: until its lease ends; negative once lapsed."""
    token: str


@dataclass(frozen=True, slots=True)
class WorkerInfo:
    """A row of the registry of workers."""

    id: str
    host: str
    pid: int
    queues: list[str]
    slots: int
    running: int
    started_at: datetime
    seen_at: datetime
    alive: bool
    types: list[str]
