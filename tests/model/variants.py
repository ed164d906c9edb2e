"""The protocol with one guard taken out, and for each a world in which that does harm.

The numbers are those of the protocol's table of guards. Every one of these worlds is sound under the protocol
itself.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar

from model.protocol import EVERYBODY, REAPER, RECONCILER, WORKER, Config, Process, Protocol, Step
from model.stores import Redis, Row, Token, lease_of

HEARTBEAT = ("heartbeat", "idle")


class Variant(Protocol):
    """A protocol that lacks something."""

    world: ClassVar[Config]
    breaks: ClassVar[str] = ""
    """What goes wrong first."""

    def __init__(self) -> None:
        super().__init__(self.world)


class BlindPlace(Variant):
    """1: an entry of `leases` has no owner; whoever comes moves it."""

    world = Config(workers=2, max_losses=1)
    breaks = "I1"

    def held_by(self, redis: Redis, token: Token) -> bool:
        return redis.live is not None


class ReapWithoutLease(Variant):
    """2: the reaper ends the attempt of an entry whose time has come, whatever the row says of its lease."""

    world = Config()
    breaks = "I6"

    def reapable(self, row: Row) -> bool:
        return row.status == "running"


class LeaseInRedis(Variant):
    """3: the deadline in Redis is the lease: a worker that has lost Postgres keeps it running for ever."""

    world = Config(cut_off=True)
    breaks = "L1"

    def steps(self, process: Process, fresh: Token) -> Iterator[Step]:
        if process[1] == "cut off":
            yield Step(("keep", process[2]), lambda _: process)
        else:
            yield from super().steps(process, fresh)

    def keep(self, redis: Redis, token: Token) -> tuple[Redis, Any]:
        return redis._replace(live="kept for ever") if redis.live == token else redis, None

    def expired(self, redis: Redis) -> tuple[Redis, Any]:
        return (redis, None) if redis.live == "kept for ever" else super().expired(redis)


class NoAdoption(Variant):
    """4: a running row that Redis has lost waits for its worker to announce it."""

    world = Config(crash=EVERYBODY, flush=True)
    breaks = "L1"

    def seen(self, row: Row | None) -> Process:
        return RECONCILER if row and row.status == "running" else super().seen(row)


class Announcement(Variant):
    """5: a heartbeat that has renewed a lease makes its entry in Redis, if it is missing."""

    world = Config()
    breaks = "I1"

    def processes(self) -> tuple[Process, ...]:
        return (*super().processes(), HEARTBEAT)

    def steps(self, process: Process, fresh: Token) -> Iterator[Step]:
        match process:
            case ("heartbeat", "idle"):

                def renewed(row: Row | None) -> Process:
                    return ("heartbeat", "renewed", row.token) if row and row.token else HEARTBEAT

                yield Step(("look",), renewed)
            case ("heartbeat", "renewed", token):
                yield Step(("announce", token), lambda _: HEARTBEAT)
            case _:
                yield from super().steps(process, fresh)

    def announce(self, redis: Redis, token: Token) -> tuple[Redis, Any]:
        return redis._replace(leases=1, live=token) if redis.live is None else redis, None


class PushLeavesDlq(Variant):
    """6: a redriven id that is pushed stays a dead letter."""

    world = Config(redrives=1)
    breaks = "I1"

    def off_dlq(self, redis: Redis) -> Redis:
        return redis


class BlindDlqAdd(Variant):
    """7: reconcile adds a dead letter without a look at `live`."""

    world = Config()
    breaks = "I1"

    def dlq_add(self, redis: Redis) -> tuple[Redis, Any]:
        return redis._replace(dlq=1), None


class NoDlqDel(Variant):
    """8: no one takes out a dead letter whose row is dead no more."""

    world = Config(redrives=1)
    breaks = "L1"

    def dlq_del(self, redis: Redis) -> tuple[Redis, Any]:
        return redis, None


class NoCensus(Variant):
    """9: no one counts."""

    world = Config(evict=1)
    breaks = "L1"

    def census(self, redis: Redis) -> tuple[Redis, Any]:
        return redis, None


class PlaceWithoutToken(Variant):
    """10: the reaper moves entries that have no token."""

    world = Config(evict=1)
    breaks = "I1"

    def held_by(self, redis: Redis, token: Token) -> bool:
        return (redis.live or "") == token

    def expired(self, redis: Redis) -> tuple[Redis, Any]:
        return redis, (redis.live or "") if redis.leases else None


class OwnerlessEntries(Variant):
    """The reaper leaves an entry that nobody owns where it is: it stands in for a lost id in the count."""

    world = Config(evict=2)
    breaks = "L1"

    def expired(self, redis: Redis) -> tuple[Redis, Token | None]:
        return redis, super().expired(redis)[1]


class UnfencedSettle(Variant):
    """A settle does not ask whether its attempt still holds the row."""

    world = Config(max_losses=1)
    breaks = "I2"

    def fence(self, row: Row, attempt: int) -> bool:
        return True


class ReapByRead(Variant):
    """The reaper reads that a lease has lapsed, and writes by the id alone."""

    world = Config()
    breaks = "I6"

    def reaper(self, process: Process) -> Iterator[Step]:
        match process:
            case (_, "found", token):

                def judged(row: Row | None) -> Process:
                    return ("reaper", "lapsed" if row and row.lapsed else "reaped", token)

                yield Step(("look",), judged)
            case (_, "lapsed", token):
                yield Step(("reap",), lambda _: ("reaper", "reaped", token))
            case _:
                yield from super().reaper(process)

    def reapable(self, row: Row) -> bool:
        return True


class NoReaper(Variant):
    """Nobody reaps."""

    world = Config(crash=EVERYBODY)
    breaks = "L1"

    def processes(self) -> tuple[Process, ...]:
        return tuple(process for process in super().processes() if process != REAPER)


class NoReconciler(Variant):
    """Nobody compares Redis with the rows."""

    world = Config(crash=EVERYBODY)
    breaks = "L1"

    def processes(self) -> tuple[Process, ...]:
        return tuple(process for process in super().processes() if process != RECONCILER)


class BlindPush(Variant):
    """A push adds an id that is known."""

    world = Config()
    breaks = "I1"

    def known(self, redis: Redis) -> bool:
        return False


class ClaimAgain(Variant):
    """A claim that is sent again, because its answer was lost, starts another attempt."""

    world = Config(late=1)
    breaks = "I3"

    def claim(self, row: Row | None, token: Token) -> tuple[Row | None, Any]:
        if row and row.status == "running" and row.token == token:
            row = row._replace(attempts=row.attempts + 1)
            return row, lease_of(row)
        return super().claim(row, token)


class AckBeforeCommit(Variant):
    """The id leaves Redis before its outcome is in Postgres.

    Reconcile would bring it back; but what a worker's death needs is the reaper, and that alone.
    """

    world = Config(crash=("worker",), reconcilers=0)
    breaks = "L1"

    def run(self, process: Process) -> Iterator[Step]:
        if process[1] == "acked":
            yield Step(process[2:], lambda _: WORKER)
        for step in super().run(process):
            if step.command[0] == "settle":
                acked = ("worker", "acked", *step.command)
                _, _, token, where = step.then("settled")
                yield Step(("place", token, where), lambda _, acked=acked: acked)
            else:
                yield step


VARIANTS: tuple[type[Variant], ...] = (
    BlindPlace,
    ReapWithoutLease,
    LeaseInRedis,
    NoAdoption,
    Announcement,
    PushLeavesDlq,
    BlindDlqAdd,
    NoDlqDel,
    NoCensus,
    PlaceWithoutToken,
    OwnerlessEntries,
    UnfencedSettle,
    ReapByRead,
    NoReaper,
    NoReconciler,
    BlindPush,
    ClaimAgain,
    AckBeforeCommit,
)


class DropRunning(Variant):
    """11: an id that is refused because its row is running is dropped."""

    world = Config(flush=True)

    def refusal(self, token: Token, row: Row | None) -> Process:
        process = super().refusal(token, row)
        return ("worker", "misplaced", token, "gone") if "held" in process else process


class AckWhenFenced(Variant):
    """12: a worker that is fenced acks all the same, by what it believes."""

    world = Config(crash=EVERYBODY, max_losses=1)

    def settling(self, process: Process) -> Step:
        step = super().settling(process)
        return step._replace(then=lambda _: step.then("settled"))


LATE_ONLY: tuple[type[Variant], ...] = (DropRunning, AckWhenFenced)
"""Guards that save time only: without them reconcile has to help."""
