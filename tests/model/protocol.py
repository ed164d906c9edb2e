"""The protocol as a model: one task, its row, what Redis says of its id, and every process that touches it.

The rules follow the protocol's words. A store call is one step: a statement or a script, carried out whole.
Between two steps anything else may happen, so a process may stall anywhere and for as long as it likes.

What the model leaves out, because it decides when something happens and never what: durations (an entry of
`leases` or `retry` may be found due at any moment, whatever the two clocks say, so `nudge` is nothing), the
epoch and the pages of reconcile (a pass may look at the row at any moment; its first look into `live` spares
calls and is the guard of `push` once more), priorities and batches. A loss in company is not modelled: here
every loss counts to the end. Purge is not modelled.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final, Literal, NamedTuple

from scheduler import lifecycle
from scheduler.lifecycle import CLAIMABLE, OPEN, RunOutcome, Status, Verdict

Token = str
"""`t1`, `t2`, ... name leases; "" means that no lease holds the id."""

Process = tuple[Any, ...]
Command = tuple[Any, ...]
End = Literal["succeeded", "failed", "rejected", "released", "died", "unknown_type"]


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
    """The ended attempts that somebody may still ask about; an attempt's token is the one it was claimed by."""


class Redis(NamedTuple):
    """What a shard says of the id: how often it is in each collection, and its owner in `live`."""

    q: int = 0
    leases: int = 0
    retry: int = 0
    live: Token | None = None
    dlq: int = 0
    damaged: int = 0
    """How many keys were evicted since the last census."""


@dataclass(frozen=True)
class Config:
    """What one exploration contains. Faults without a number may happen any number of times."""

    workers: int = 1
    reapers: int = 1
    reconcilers: int = 1
    max_retries: int = 0
    max_losses: int = 0
    max_refusals: int = 0
    ends: tuple[End, ...] = ("succeeded", "failed")
    releases: int = 0
    """How many of the first attempts may be given back."""
    delays: bool = False
    """The task may be accepted for later."""
    cancel: bool = False
    redrives: int = 0
    crash: bool = False
    flush: bool = False
    evict: int = 0
    """How many keys may be evicted between two censuses."""
    cut_off: bool = False
    """A worker may lose Postgres for good."""
    old_state: bool = False
    """Once, Redis may come back as it was at an earlier moment."""
    late: int = 0
    """How many calls may go unanswered; each is carried out at once, later or never."""


class Step(NamedTuple):
    """One call of a process: what it becomes by the answer, and what it may become if none comes in time."""

    command: Command
    then: Callable[[Any], Process]
    unanswered: tuple[Process, ...] = ()


WORKER: Final = ("worker",)
REAPER: Final = ("reaper",)
RECONCILER: Final = ("reconciler",)
CLIENT: Final = ("client",)
CANCELLER: Final = ("canceller",)
DONE: Final = ("done",)
PUMP: Final = ("pump",)
TIME: Final = ("time",)

EMPTY: Final = Redis()
STATEMENTS: Final = frozenset(
    "insert claim look reclaim settle renew reap cancel redrive lapse fall_due".split()
)
READS: Final = frozenset({"look", "reclaim", "expired", "listed", "nothing"})


class Protocol:
    """The rules. A broken variant is a subclass that takes one guard out."""

    def __init__(self, config: Config) -> None:
        self.config = config

    def processes(self) -> tuple[Process, ...]:
        """Everybody, at rest."""
        c = self.config
        everybody = [CLIENT, PUMP, TIME, *[WORKER] * c.workers, *[REAPER] * c.reapers]
        everybody += [RECONCILER] * c.reconcilers
        everybody += [("operator", c.redrives)] if c.redrives else []
        everybody += [CANCELLER] if c.cancel else []
        return tuple(everybody)

    def call(self, command: Command, row: Row | None, redis: Redis) -> tuple[Row | None, Redis, Any]:
        """Carry out a command: the row, Redis and the answer."""
        name, *args = command
        if name in STATEMENTS:
            row, answer = getattr(self, name)(row, *args)
        else:
            redis, answer = getattr(self, name)(redis, *args)
        return row, redis, answer

    # Redis: the scripts

    def push(self, redis: Redis, due: bool) -> tuple[Redis, Any]:
        redis = self.off_dlq(redis)
        if self.known(redis):
            return redis, 0
        return to_q(redis) if due else to_retry(redis), 1

    def adopt(self, redis: Redis, token: Token) -> tuple[Redis, Any]:
        if redis.live is not None or not token:
            return redis, 0
        return redis._replace(leases=1, live=token, dlq=0), 1

    def lease(self, redis: Redis, token: Token) -> tuple[Redis, Any]:
        if not redis.q:
            return redis, 0
        return redis._replace(q=redis.q - 1, leases=1, live=token), 1

    def place(self, redis: Redis, token: Token, where: str, new_token: Token) -> tuple[Redis, Any]:
        if not self.held_by(redis, token) or (where == "held" and not new_token):
            return redis, 0
        redis = redis._replace(leases=0)
        match where:
            case "gone":
                return redis._replace(live=None), 1
            case "dead":
                return redis._replace(live=None, dlq=1), 1
            case "held":
                return redis._replace(leases=1, live=new_token), 1
            case "retry":
                return to_retry(redis), 1
        return to_q(redis), 1

    def expired(self, redis: Redis) -> tuple[Redis, Any]:
        return redis, redis.live if redis.leases and redis.live else None

    def pump(self, redis: Redis) -> tuple[Redis, Any]:
        return redis._replace(retry=0, q=redis.q + redis.retry), redis.retry

    def forget(self, redis: Redis) -> tuple[Redis, Any]:
        return (redis._replace(retry=0, live=None), 1) if redis.retry else (redis, 0)

    def dlq_add(self, redis: Redis) -> tuple[Redis, Any]:
        return (redis._replace(dlq=1) if redis.live is None else redis), None

    def listed(self, redis: Redis) -> tuple[Redis, Any]:
        return redis, redis.dlq

    def dlq_del(self, redis: Redis) -> tuple[Redis, Any]:
        return redis._replace(dlq=0), None

    def census(self, redis: Redis) -> tuple[Redis, Any]:
        whole = (redis.live is not None) == redis.q + redis.leases + redis.retry
        return (redis._replace(damaged=0), "whole") if whole else (EMPTY, "damaged")

    def nothing(self, redis: Redis) -> tuple[Redis, Any]:
        """No call: the process decides something by itself."""
        return redis, None

    # The guards of the scripts

    def known(self, redis: Redis) -> bool:
        return redis.live is not None

    def held_by(self, redis: Redis, token: Token) -> bool:
        return token != "" and redis.live == token

    def off_dlq(self, redis: Redis) -> Redis:
        return redis._replace(dlq=0)

    # Postgres: the statements

    def insert(self, row: Row | None, due: bool) -> tuple[Row | None, Any]:
        return row or Row(due=due), "accepted"

    def claim(self, row: Row | None, token: Token) -> tuple[Row | None, Any]:
        if row and row.status in CLAIMABLE and row.due:
            row = row._replace(status="running", attempts=row.attempts + 1, token=token)
            return row, lease_of(row)
        return row, None

    def look(self, row: Row | None) -> tuple[Row | None, Any]:
        return row, row

    def reclaim(self, row: Row | None, token: Token) -> tuple[Row | None, Any]:
        mine = row and row.status == "running" and row.token == token
        return row, lease_of(row) if mine else None

    def settle(
        self, row: Row, attempt: int, token: Token, outcome: RunOutcome, status: Status, refused: bool
    ) -> tuple[Row, Any]:
        if self.fence(row, attempt):
            row = row._replace(
                failures=row.failures + (outcome == "failed"),
                losses=row.losses + (outcome == "lost"),
                refusals=row.refusals + refused,
                due=status != "retrying" and not (refused and status == "queued"),
            )
            return ended(row, attempt, outcome, status), "settled"
        # Asked in a second statement. What it reads never changes, so one step is as good.
        return row, "settled before" if (attempt, outcome) in row.runs else "fenced"

    def renew(self, row: Row, attempt: int) -> tuple[Row, Any]:
        held = self.fence(row, attempt)
        return (row._replace(lapsed=False), True) if held else (row, False)

    def reap(self, row: Row | None) -> tuple[Row | None, Any]:
        if row is None or not self.reapable(row):
            return row, "nothing lapsed"
        verdict = lifecycle.after_loss(row.losses, self.config.max_losses, in_company=False)
        return ended(row._replace(losses=row.losses + 1), row.attempts, "lost", verdict.status), "lost"

    def cancel(self, row: Row | None) -> tuple[Row | None, Any]:
        if row is None or row.status not in OPEN:
            return row, False
        if row.status == "running":
            return ended(row, row.attempts, "cancelled", "cancelled"), True
        return row._replace(status="cancelled", due=True), True

    def redrive(self, row: Row | None) -> tuple[Row | None, Any]:
        if row is None or row.status != "dead":
            return row, False
        return row._replace(status="queued", failures=0, losses=0, refusals=0), True

    def lapse(self, row: Row | None) -> tuple[Row | None, Any]:
        return (row and row._replace(lapsed=row.status == "running")), None

    def fall_due(self, row: Row | None) -> tuple[Row | None, Any]:
        return (row and row._replace(due=True)), None

    # The guards of the statements

    def fence(self, row: Row, attempt: int) -> bool:
        return row.status == "running" and row.attempts == attempt

    def reapable(self, row: Row) -> bool:
        return row.status == "running" and row.lapsed

    # The loops

    def steps(self, process: Process, fresh: Token) -> Iterator[Step]:
        """What a process may do next. `fresh` is a token that nobody has."""
        match process:
            case ("pump",):
                yield Step(("pump",), lambda _: PUMP)
            case ("time",):
                yield Step(("lapse",), lambda _: TIME)
                yield Step(("fall_due",), lambda _: TIME)
            case ("client" | "accepted", *_):
                yield from self.client(process)
            case ("operator" | "redriven" | "canceller" | "cancelled", *_):
                yield from self.steering(process)
            case ("reaper" | "expired" | "reaped" | "moving", *_):
                yield from self.reaper(process)
            case ("reconciler" | "open" | "dead" | "listed" | "not dead", *_):
                yield from self.reconciler(process)
            case ("running" | "ended" | "settled" | "cut off", *_):
                yield from self.run(process)
            case _:
                yield from self.lessor(process, fresh)

    def client(self, process: Process) -> Iterator[Step]:
        """Enqueue: insert, then push. An insert without an answer is sent again, a push is not."""
        match process:
            case ("client",):
                for due in (True, False) if self.config.delays else (True,):
                    yield Step(("insert", due), lambda _, due=due: ("accepted", due), (CLIENT, DONE))
            case ("accepted", due):
                yield Step(("push", due), lambda _: DONE, (DONE,))

    def lessor(self, process: Process, fresh: Token) -> Iterator[Step]:
        """Lease, then claim; what the claim refuses goes where its row says.

        A claim without an answer is sent again, with all its statements, or let go.
        """
        match process:
            case ("worker",):
                yield Step(("lease", fresh), lambda got: ("leased", fresh) if got else WORKER, (WORKER,))
            case ("leased", token):
                unanswered = (process, WORKER)
                yield Step(
                    ("claim", token),
                    lambda lease: ("running", token, *lease) if lease else ("refused", token),
                    unanswered,
                )
            case ("refused", token):
                yield Step(("look",), lambda row: self.refusal(token, row), (("leased", token), WORKER))
            case ("reclaiming", token):
                yield Step(
                    ("reclaim", token),
                    lambda lease: ("running", token, *lease) if lease else ("misplaced", token, "held", token),
                    (("leased", token), WORKER),
                )
            case ("misplaced", token, where, new_token):
                yield Step(("place", token, where, new_token), lambda _: WORKER, (WORKER,))

    def refusal(self, token: Token, row: Row | None) -> Process:
        """What the lessor does about an id whose claim was refused, by the row as it is after the claim."""
        if row and row.status == "running" and row.token == token:
            return ("reclaiming", token)
        if row and row.status in CLAIMABLE and row.due:
            return WORKER  # undecided: the reaper will see
        return ("misplaced", token, *belongs(row))

    def run(self, process: Process) -> Iterator[Step]:
        """Run, settle, then place. Meanwhile the heartbeat renews; a lease that is lost ends the run.

        A settle without an answer is sent again or let go at the lease's end; so is a place.
        """
        match process:
            case ("running", token, attempt, counts):
                yield Step(("renew", attempt), lambda held: process if held else WORKER, (process,))
                yield Step(("nothing",), lambda _: WORKER)  # by its own clock the lease has ended
                for end in self.config.ends:
                    if end != "released" or attempt <= self.config.releases:
                        yield self.settling(("ended", token, attempt, end, *self.judge(end, counts)))
            case ("ended", _, attempt, *_):
                yield Step(("renew", attempt), lambda _: process, (process,))
                yield self.settling(process)
            case ("settled", token, where):
                yield Step(("place", token, where, ""), lambda _: WORKER, (process, WORKER))
            case ("cut off", _):
                yield Step(("nothing",), lambda _: WORKER)  # by its own clock the lease has ended

    def settling(self, process: Process) -> Step:
        """The settle of a run that has come to its end, and what follows."""
        _, token, attempt, end, outcome, status = process
        where = destination(end, status)
        return Step(
            ("settle", attempt, token, outcome, status, end == "unknown_type"),
            lambda answer: WORKER if answer == "fenced" else ("settled", token, where),
            (process, WORKER),
        )

    def judge(self, end: End, counts: tuple[int, int, int]) -> tuple[RunOutcome, Status]:
        """The outcome of a run and the status that it leads to, by what the claim said of earlier runs."""
        failures, losses, refusals = counts
        c = self.config
        verdicts: dict[End, tuple[RunOutcome, Callable[[], Verdict]]] = {
            "succeeded": ("succeeded", lambda: lifecycle.SUCCEEDED),
            "failed": ("failed", lambda: lifecycle.after_failure(failures, c.max_retries)),
            "rejected": ("failed", lifecycle.after_rejection),
            "released": ("released", lambda: lifecycle.QUEUED),
            "died": ("lost", lambda: lifecycle.after_loss(losses, c.max_losses, in_company=False)),
            "unknown_type": ("released", lambda: lifecycle.after_unknown_type(refusals, c.max_refusals)),
        }
        outcome, verdict = verdicts[end]
        return outcome, verdict().status

    def reaper(self, process: Process) -> Iterator[Step]:
        """Find an entry whose time has come, reap its row, and place the id where the row says."""
        match process:
            case ("reaper",):
                yield Step(("expired",), lambda token: REAPER if token is None else ("expired", token), (REAPER,))
            case ("expired", token):
                yield Step(("reap",), lambda _: ("reaped", token), (REAPER,))
            case ("reaped", token):
                yield Step(("look",), lambda row: ("moving", token, *belongs(row)), (REAPER,))
            case ("moving", *place):
                yield Step(("place", *place), lambda _: REAPER, (REAPER,))

    def reconciler(self, process: Process) -> Iterator[Step]:
        """The parts of a pass, in any order: census, open rows, dead rows, entries of `dlq`."""
        match process:
            case ("reconciler",):
                yield Step(("census",), lambda _: RECONCILER, (RECONCILER,))
                yield Step(("look",), self.seen, (RECONCILER,))
                yield Step(("listed",), lambda found: ("listed",) if found else RECONCILER, (RECONCILER,))
            case ("open", *missing):
                yield Step(tuple(missing), lambda _: RECONCILER, (RECONCILER,))
            case ("dead",):
                yield Step(("dlq_add",), lambda _: RECONCILER, (RECONCILER,))
            case ("listed",):
                yield Step(
                    ("look",),
                    lambda row: RECONCILER if row and row.status == "dead" else ("not dead",),
                    (RECONCILER,),
                )
            case ("not dead",):
                yield Step(("dlq_del",), lambda _: RECONCILER, (RECONCILER,))

    def seen(self, row: Row | None) -> Process:
        """What reconcile will do about a row if Redis lacks its id."""
        if row and row.status == "running":
            return ("open", "adopt", row.token)
        if row and row.status in CLAIMABLE:
            return ("open", "push", row.due)
        return ("dead",) if row and row.status == "dead" else RECONCILER

    def steering(self, process: Process) -> Iterator[Step]:
        """Redrive, then push; cancel, then forget. Neither is repeated by itself."""
        match process:
            case ("operator", left) if left:
                spent = ("operator", left - 1)
                yield Step(("redrive",), lambda done: ("redriven", left - 1) if done else process, (spent,))
            case ("redriven", left):
                yield Step(("push", True), lambda _: ("operator", left), (("operator", left),))
            case ("canceller",):
                yield Step(("cancel",), lambda done: ("cancelled",) if done else CANCELLER, (DONE,))
            case ("cancelled",):
                yield Step(("forget",), lambda _: DONE, (DONE,))


def to_q(redis: Redis) -> Redis:
    return redis._replace(q=redis.q + 1, live="")


def to_retry(redis: Redis) -> Redis:
    return redis._replace(retry=1, live="")


def lease_of(row: Row) -> tuple[int, tuple[int, int, int]]:
    """What a claim tells the worker: the attempt, and the counts of what went wrong before."""
    return row.attempts, (row.failures, row.losses, row.refusals)


def ended(row: Row, attempt: int, outcome: RunOutcome, status: Status) -> Row:
    """The row and its history after an attempt has ended."""
    runs = (*row.runs, (attempt, outcome))
    due = row.due or status not in CLAIMABLE
    return row._replace(status=status, due=due, token="", lapsed=False, runs=runs)


def belongs(row: Row | None) -> tuple[str, Token]:
    """Where a row says that its id belongs, and under which token."""
    if row is None:
        return "gone", ""
    if row.status == "running":
        return "held", row.token
    if row.status in CLAIMABLE:
        return "tail" if row.due else "retry", ""
    return "dead" if row.status == "dead" else "gone", ""


def destination(end: End, status: Status) -> str:
    """Where a settled id goes."""
    if status == "queued":
        return {"released": "head", "died": "tail", "unknown_type": "retry"}[end]
    return {"retrying": "retry", "dead": "dead"}.get(status, "gone")
