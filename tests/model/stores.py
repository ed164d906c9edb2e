"""Postgres and Redis as far as one task sees them: its row, what a shard says of its id, and every call.

Each statement takes the row and gives the row; each script takes what Redis says and gives what it says then;
both give the answer to the caller, too. A call is carried out whole.

Durations are left out, because they decide when something happens and never what: an entry of `leases` or
`retry` may be found due at any moment, whatever the two clocks say, so `nudge` is nothing here. Priorities
and batches are left out, because every call treats each id by itself. A loss in company is left out: every
loss counts to the end. So is the purge.
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple

from scheduler import lifecycle
from scheduler.lifecycle import CLAIMABLE, OPEN, RunOutcome, Status

Token = str
"""`t1`, `t2`, ... name leases; "" means that no lease holds the id."""

Command = tuple[Any, ...]
"""The name of a call and its arguments."""


class Row(NamedTuple):
    """A row of `tasks` and its history. Of an instant only is told whether it has come."""

    status: Status = "queued"
    due: bool = True
    attempts: int = 0
    failures: int = 0
    losses: int = 0
    refusals: int = 0
    token: Token = ""
    lapsed: bool = False
    runs: tuple[tuple[int, RunOutcome], ...] = ()
    """The ended attempts. The fence sees to it that each ended under the token that it was claimed by."""


class Redis(NamedTuple):
    """What a shard says of the id: how often it is in each collection, and its owner in `live`."""

    q: int = 0
    leases: int = 0
    retry: int = 0
    live: Token | None = None
    dlq: int = 0
    damaged: int = 0
    """How many keys were evicted since the last census."""


class Lease(NamedTuple):
    """What a claim tells the worker: its attempt, and how often the task went wrong before."""

    attempt: int
    failures: int
    losses: int
    refusals: int


EMPTY: Final = Redis()
STATEMENTS: Final = frozenset(
    [
        "insert",
        "claim",
        "look",
        "reclaim",
        "settle",
        "renew",
        "reap",
        "cancel",
        "redrive",
        "lapse",
        "fall_due",
    ]
)
READS: Final = frozenset({"look", "reclaim", "listed", "give_up"})
"""Calls that change nothing."""


class Stores:
    """The calls and their guards."""

    def __init__(self, max_losses: int) -> None:
        self.max_losses = max_losses

    def call(self, command: Command, row: Row | None, redis: Redis) -> tuple[Row | None, Redis, Any]:
        """Carry out a call: the row, Redis and the answer."""
        name, *args = command
        if name in STATEMENTS:
            row, answer = getattr(self, name)(row, *args)
        else:
            redis, answer = getattr(self, name)(redis, *args)
        return row, redis, answer

    # Scripts

    def push(self, redis: Redis, due: bool) -> tuple[Redis, int]:
        redis = self.off_dlq(redis)
        if self.known(redis):
            return redis, 0
        return to_q(redis) if due else to_retry(redis), 1

    def adopt(self, redis: Redis, token: Token) -> tuple[Redis, int]:
        if redis.live is not None or not token:
            return redis, 0
        return redis._replace(leases=1, live=token, dlq=0), 1

    def lease(self, redis: Redis, token: Token) -> tuple[Redis, int]:
        if not redis.q:
            return redis, 0
        return redis._replace(q=redis.q - 1, leases=1, live=token), 1

    def place(self, redis: Redis, token: Token, where: str, new_token: Token = "") -> tuple[Redis, int]:
        if not self.held_by(redis, token) or (where == "held" and not new_token):
            return redis, 0
        redis = redis._replace(leases=0)
        match where:
            case "gone":
                redis = redis._replace(live=None)
            case "dead":
                redis = redis._replace(live=None, dlq=1)
            case "held":
                redis = redis._replace(leases=1, live=new_token)
            case "retry":
                redis = to_retry(redis)
            case "head" | "tail":
                redis = to_q(redis)
        return redis, 1

    def expired(self, redis: Redis) -> tuple[Redis, Token | None]:
        """An entry that nobody owns is taken out: then the count is wrong, and the next census mends all."""
        if not redis.live:
            return redis._replace(leases=0), None
        return redis, redis.live if redis.leases else None

    def pump(self, redis: Redis) -> tuple[Redis, int]:
        return redis._replace(retry=0, q=redis.q + redis.retry), redis.retry

    def forget(self, redis: Redis) -> tuple[Redis, int]:
        return (redis._replace(retry=0, live=None), 1) if redis.retry else (redis, 0)

    def dlq_add(self, redis: Redis) -> tuple[Redis, int]:
        return (redis._replace(dlq=1), 1 - redis.dlq) if redis.live is None else (redis, 0)

    def dlq_del(self, redis: Redis) -> tuple[Redis, int]:
        return redis._replace(dlq=0), redis.dlq

    def listed(self, redis: Redis) -> tuple[Redis, int]:
        """`dlq_page`."""
        return redis, redis.dlq

    def census(self, redis: Redis) -> tuple[Redis, bool]:
        whole = (redis.live is not None) == redis.q + redis.leases + redis.retry
        return (redis._replace(damaged=0) if whole else EMPTY), whole

    def give_up(self, redis: Redis) -> tuple[Redis, None]:
        """No call: by the worker's own clock its lease has ended."""
        return redis, None

    # The guards of the scripts

    def known(self, redis: Redis) -> bool:
        return redis.live is not None

    def held_by(self, redis: Redis, token: Token) -> bool:
        return token != "" and redis.live == token

    def off_dlq(self, redis: Redis) -> Redis:
        return redis._replace(dlq=0)

    # Statements

    def insert(self, row: Row | None, due: bool) -> tuple[Row | None, str]:
        return row or Row(due=due), "accepted"

    def claim(self, row: Row | None, token: Token) -> tuple[Row | None, Lease | None]:
        if row and row.status in CLAIMABLE and row.due:
            row = row._replace(status="running", attempts=row.attempts + 1, token=token)
            return row, lease_of(row)
        return row, None

    def reclaim(self, row: Row | None, token: Token) -> tuple[Row | None, Lease | None]:
        mine = row and row.status == "running" and row.token == token
        return row, lease_of(row) if row and mine else None

    def look(self, row: Row | None) -> tuple[Row | None, Row | None]:
        return row, row

    def settle(
        self, row: Row, attempt: int, token: Token, outcome: RunOutcome, status: Status, refused: bool
    ) -> tuple[Row, str]:
        if self.fence(row, attempt):
            row = row._replace(
                failures=row.failures + (outcome == "failed"),
                losses=row.losses + (outcome == "lost"),
                refusals=row.refusals + refused,
                due=status != "retrying" and not (refused and status == "queued"),
            )
            return ended(row, attempt, outcome, status), "settled"
        # Our code asks in a second statement. What it reads never changes, so here it is one step.
        return row, "settled before" if (attempt, outcome) in row.runs else "fenced"

    def renew(self, row: Row, attempt: int) -> tuple[Row, bool]:
        held = self.fence(row, attempt)
        return (row._replace(lapsed=False) if held else row), held

    def reap(self, row: Row | None) -> tuple[Row | None, bool]:
        if row is None or not self.reapable(row):
            return row, False
        verdict = lifecycle.after_loss(row.losses, self.max_losses, in_company=False)
        return ended(row._replace(losses=row.losses + 1), row.attempts, "lost", verdict.status), True

    def cancel(self, row: Row | None) -> tuple[Row | None, bool]:
        if row is None or row.status not in OPEN:
            return row, False
        if row.status == "running":
            return ended(row, row.attempts, "cancelled", "cancelled"), True
        return row._replace(status="cancelled", due=True), True

    def redrive(self, row: Row | None) -> tuple[Row | None, bool]:
        if row is None or row.status != "dead":
            return row, False
        return row._replace(status="queued", failures=0, losses=0, refusals=0), True

    def lapse(self, row: Row | None) -> tuple[Row | None, None]:
        """Time passes: the lease ends."""
        return row and row._replace(lapsed=row.status == "running"), None

    def fall_due(self, row: Row | None) -> tuple[Row | None, None]:
        """Time passes: the task falls due."""
        return row and row._replace(due=True), None

    # The guards of the statements

    def fence(self, row: Row, attempt: int) -> bool:
        return row.status == "running" and row.attempts == attempt

    def reapable(self, row: Row) -> bool:
        return row.status == "running" and row.lapsed


def to_q(redis: Redis) -> Redis:
    """The id is ready."""
    return redis._replace(q=redis.q + 1, live="")


def to_retry(redis: Redis) -> Redis:
    """The id waits."""
    return redis._replace(retry=1, live="")


def lease_of(row: Row) -> Lease:
    """The lease of a running row."""
    return Lease(row.attempts, row.failures, row.losses, row.refusals)


def ended(row: Row, attempt: int, outcome: RunOutcome, status: Status) -> Row:
    """The row and its history after an attempt has ended. What is over is neither early nor late."""
    due = row.due or status not in CLAIMABLE
    return row._replace(status=status, due=due, token="", lapsed=False, runs=(*row.runs, (attempt, outcome)))
