"""The protocol as a model: the processes that bring one task to its end, and what each does next.

The rules follow the protocol's words. A step of a process is one call; between two steps anything else may
happen, so a process may stall anywhere and for as long as it likes. A call may also go unanswered.

What the model leaves out of the loops: the epoch and the pages of reconcile, because they decide when a pass
looks at the row, and here it may do so at any moment; and its first look into `live`, which spares calls and
is the guard of `push` once more. The rest is left out of the stores: see there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final, Literal, NamedTuple

from model.stores import Command, Lease, Row, Stores, Token

from scheduler import lifecycle
from scheduler.lifecycle import CLAIMABLE, RunOutcome, Status

Process = tuple[Any, ...]
"""Who it is, what it is doing, and what it knows."""

End = Literal["succeeded", "failed", "rejected", "released", "died", "unknown_type"]
"""How a run may end; `died`: the child that ran a suspect alone is gone."""

WORKER: Final = ("worker", "idle")
REAPER: Final = ("reaper", "idle")
RECONCILER: Final = ("reconciler", "idle")
PUMP: Final = ("pump", "idle")
TIME: Final = ("time", "idle")
CANCELLER: Final = ("canceller", "idle")
CLIENT: Final = ("client", "new")
SERVED: Final = ("client", "done")

EVERYBODY: Final = ("client", "worker", "reaper", "reconciler", "operator", "canceller")


@dataclass(frozen=True)
class Config:
    """What a world contains. Faults without a number may happen any number of times."""

    workers: int = 1
    reapers: int = 1
    reconcilers: int = 1
    max_retries: int = 0
    max_losses: int = 0
    max_refusals: int = 0
    ends: tuple[End, ...] = ("succeeded", "failed")
    releases: int = 0
    """How many of the first attempts may be released: it spends no budget."""
    delays: bool = False
    """The task may be accepted for later."""
    cancel: bool = False
    redrives: int = 0
    crash: tuple[str, ...] = ()
    """Who may be killed at any point."""
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
    """A call, what the process becomes by the answer, and what it may become if none comes in time."""

    command: Command
    then: Callable[[Any], Process]
    unanswered: tuple[Process, ...] = ()


class Protocol(Stores):
    """The rules. A broken variant is a subclass that takes one guard out."""

    def __init__(self, config: Config) -> None:
        super().__init__(config.max_losses)
        self.config = config

    def processes(self) -> tuple[Process, ...]:
        """Everybody, at rest."""
        c = self.config
        loops = [WORKER] * c.workers + [REAPER] * c.reapers + [RECONCILER] * c.reconcilers
        operators = [("operator", "idle", c.redrives)] if c.redrives else []
        cancellers = [CANCELLER] if c.cancel else []
        return CLIENT, PUMP, TIME, *loops, *operators, *cancellers

    def steps(self, process: Process, fresh: Token) -> Iterator[Step]:
        """What a process may do next. `fresh` is a token that nobody has."""
        match process[0]:
            case "client":
                yield from self.client(process)
            case "worker":
                yield from self.worker(process, fresh)
            case "reaper":
                yield from self.reaper(process)
            case "reconciler":
                yield from self.reconciler(process)
            case "operator" | "canceller":
                yield from self.steering(process)
            case "pump":
                yield Step(("pump",), lambda _: PUMP)
            case "time":
                yield Step(("lapse",), lambda _: TIME)
                yield Step(("fall_due",), lambda _: TIME)

    def client(self, process: Process) -> Iterator[Step]:
        """Enqueue: insert, then push. An insert without an answer is sent again, a push is not."""
        match process:
            case (_, "new"):
                for due in (True, False) if self.config.delays else (True,):
                    inserted = ("client", "inserted", due)
                    yield Step(("insert", due), lambda _, inserted=inserted: inserted, (CLIENT, SERVED))
            case (_, "inserted", due):
                yield Step(("push", due), lambda _: SERVED, (SERVED,))

    def worker(self, process: Process, fresh: Token) -> Iterator[Step]:
        """Lease, claim, run, settle, place; what the claim refuses goes where its row says.

        A claim without an answer is sent again, with all its statements, or let go at the lease's end.
        """
        match process:
            case (_, "idle"):
                leased = ("worker", "leased", fresh)
                yield Step(("lease", fresh), lambda n: leased if n else WORKER, (WORKER,))
            case (_, "leased", token):

                def claimed(lease: Lease | None) -> Process:
                    return ("worker", "running", token, lease) if lease else ("worker", "refused", token)

                yield Step(("claim", token), claimed, (process, WORKER))
            case (_, "refused", token):
                again = ("worker", "leased", token)
                yield Step(("look",), lambda row: self.refusal(token, row), (again, WORKER))
            case (_, "reclaiming", token):
                misplaced = ("worker", "misplaced", token, "held", token)

                def reclaimed(lease: Lease | None) -> Process:
                    return ("worker", "running", token, lease) if lease else misplaced

                yield Step(("reclaim", token), reclaimed, (("worker", "leased", token), WORKER))
            case (_, "misplaced", *args):
                yield Step(("place", *args), lambda _: WORKER, (WORKER,))
            case _:
                yield from self.run(process)

    def refusal(self, token: Token, row: Row | None) -> Process:
        """What the lessor does about a refused id, by the row as it is after the claim."""
        if row and row.status == "running" and row.token == token:
            return ("worker", "reclaiming", token)
        if row and row.status in CLAIMABLE and row.due:
            return WORKER  # undecided: it stays leased until the reaper looks
        return ("worker", "misplaced", token, *belongs(row))

    def run(self, process: Process) -> Iterator[Step]:
        """Run, settle, place. Meanwhile the heartbeat renews, and a lease that is lost ends the run.

        A settle without an answer is sent again or let go at the lease's end; so is the place after it.
        """
        match process:
            case (_, "running", token, lease):
                yield Step(("renew", lease.attempt), lambda held: process if held else WORKER, (process,))
                yield Step(("give_up",), lambda _: WORKER)
                for end in self.config.ends:
                    if end != "released" or lease.attempt <= self.config.releases:
                        outcome, status = self.verdict(end, lease)
                        yield self.settling(("worker", "ended", token, lease.attempt, end, outcome, status))
            case (_, "ended", _, attempt, *_):
                yield Step(("renew", attempt), lambda _: process, (process,))
                yield self.settling(process)
            case (_, "settled", token, where):
                yield Step(("place", token, where), lambda _: WORKER, (process, WORKER))
            case (_, "cut off", _):
                yield Step(("give_up",), lambda _: WORKER)

    def verdict(self, end: End, lease: Lease) -> tuple[RunOutcome, Status]:
        """The outcome of a run and the status that it leads to, by what the claim said of earlier runs."""
        c = self.config
        match end:
            case "succeeded":
                return "succeeded", lifecycle.SUCCEEDED.status
            case "failed":
                return "failed", lifecycle.after_failure(lease.failures, c.max_retries).status
            case "rejected":
                return "failed", lifecycle.after_rejection().status
            case "released":
                return "released", lifecycle.QUEUED.status
            case "died":
                return "lost", lifecycle.after_loss(lease.losses, c.max_losses, in_company=False).status
            case "unknown_type":
                return "released", lifecycle.after_unknown_type(lease.refusals, c.max_refusals).status

    def settling(self, process: Process) -> Step:
        """The settle of a run that has come to its end, and the place. Who is fenced leaves Redis alone."""
        _, _, token, attempt, end, outcome, status = process
        settled = ("worker", "settled", token, destination(end, status))
        return Step(
            ("settle", attempt, token, outcome, status, end == "unknown_type"),
            lambda answer: WORKER if answer == "fenced" else settled,
            (process, WORKER),
        )

    def reaper(self, process: Process) -> Iterator[Step]:
        """Find an entry whose time has come, reap its row, and place the id where the row says."""
        match process:
            case (_, "idle"):

                def found(token: Token | None) -> Process:
                    return REAPER if token is None else ("reaper", "found", token)

                yield Step(("expired",), found, (REAPER,))
            case (_, "found", token):
                yield Step(("reap",), lambda _: ("reaper", "reaped", token), (REAPER,))
            case (_, "reaped", token):
                yield Step(("look",), lambda row: ("reaper", "moving", token, *belongs(row)), (REAPER,))
            case (_, "moving", *args):
                yield Step(("place", *args), lambda _: REAPER, (REAPER,))

    def reconciler(self, process: Process) -> Iterator[Step]:
        """The parts of a pass, in any order: census, open rows, dead rows, entries of `dlq`."""
        match process:
            case (_, "idle"):
                listed = ("reconciler", "listed")
                yield Step(("census",), lambda _: RECONCILER, (RECONCILER,))
                yield Step(("look",), self.seen, (RECONCILER,))
                yield Step(("listed",), lambda n: listed if n else RECONCILER, (RECONCILER,))
            case (_, "listed"):
                undead = ("reconciler", "telling", "dlq_del")
                yield Step(("look",), lambda row: RECONCILER if is_dead(row) else undead, (RECONCILER,))
            case (_, "telling", *command):
                yield Step(tuple(command), lambda _: RECONCILER, (RECONCILER,))

    def seen(self, row: Row | None) -> Process:
        """What reconcile tells Redis, in case it lacks the id. Lapsed rows, too: only the reaper reaps."""
        if row and row.status == "running":
            return ("reconciler", "telling", "adopt", row.token)
        if row and row.status in CLAIMABLE:
            return ("reconciler", "telling", "push", row.due)
        return ("reconciler", "telling", "dlq_add") if is_dead(row) else RECONCILER

    def steering(self, process: Process) -> Iterator[Step]:
        """Redrive, then push; cancel, then forget. Nothing of it is sent again."""
        match process:
            case ("operator", "idle", left) if left:
                redriven, idle = ("operator", "redriven", left - 1), ("operator", "idle", left - 1)
                yield Step(("redrive",), lambda done: redriven if done else process, (idle,))
            case ("operator", "redriven", left):
                idle = ("operator", "idle", left)
                yield Step(("push", True), lambda _: idle, (idle,))
            case ("canceller", "idle"):
                forgetting = ("canceller", "forgetting")
                yield Step(("cancel",), lambda done: forgetting if done else CANCELLER, (home(forgetting),))
            case ("canceller", "forgetting"):
                yield Step(("forget",), lambda _: home(process), (home(process),))


def home(process: Process) -> Process:
    """The process after it was killed and started again; itself if it is at rest."""
    match process:
        case (_, "idle" | "new" | "done", *_):
            return process
        case ("client" | "canceller" as who, *_):
            return (who, "done")
        case ("operator", _, left):
            return ("operator", "idle", left)
    return (process[0], "idle")


def is_dead(row: Row | None) -> bool:
    """Is the task a dead letter?"""
    return row is not None and row.status == "dead"


def belongs(row: Row | None) -> tuple[str, Token]:
    """Where a row says that its id belongs, and under which token."""
    if row is None:
        return "gone", ""
    if row.status == "running":
        return "held", row.token
    if row.status in CLAIMABLE:
        return "tail" if row.status == "queued" and row.due else "retry", ""
    return "dead" if is_dead(row) else "gone", ""


def destination(end: End, status: Status) -> str:
    """Where a settled id goes."""
    if status == "queued":
        return {"released": "head", "died": "tail", "unknown_type": "retry"}[end]
    return {"retrying": "retry", "dead": "dead"}.get(status, "gone")
