"""Postgres, the truth: every statement of `sql/`, each behind one method.

A statement file is written for psql (`psql -v ids='{…}' -f claim.sql`): its parameters are psql variables,
which become bind parameters here. `{task}` and `{lease}` stand for the two column lists below.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import cache
from importlib import resources
from typing import Any, Final, NamedTuple

from scheduler import clock, migrate
from scheduler.arrays import lines, names, spelled, texts, words
from scheduler.config import Settings
from scheduler.connections import Connections, Rows
from scheduler.errors import StartError, StoreError, StoreUnavailable
from scheduler.lifecycle import RunOutcome, Status
from scheduler.model import (
    Accepted,
    Lease,
    NewTask,
    OpenRow,
    Priority,
    Reaped,
    Refusal,
    Run,
    Settlement,
    Task,
    WorkerInfo,
)

_TASK: Final = (
    "t.id::text, t.tenant, t.queue, t.type, t.priority, t.payload::text, t.status, t.attempts, t.failures,"
    " t.losses, t.redrives, t.max_retries, t.timeout_ms, t.backoff::text, t.idempotency_key, t.due_at,"
    " t.created_at, t.claimed_at, t.finished_at, t.dead_at, t.dead_reason, t.worker, t.lease_expires_at,"
    " t.last_error"
)
_LEASE: Final = (
    "t.id::text, t.attempts, t.lease_token, t.queue, t.type, t.priority,"
    # What is not compressed tells its size for nothing.
    " CASE WHEN :'most'::bigint IS NULL OR :'most'::bigint >="
    " CASE WHEN pg_column_compression(t.payload) IS NULL THEN pg_column_size(t.payload)"
    " ELSE octet_length(t.payload::text) END THEN t.payload END, t.max_retries,"
    " t.failures, t.losses, t.refusals, t.timeout_ms, t.backoff, t.suspect,"
    " extract(epoch FROM t.claimed_at - t.due_at)::double precision"
)

_TERMS: Final = {
    "status": "t.status = :'status'",
    "type": "t.type = :'type'",
    "queue": "t.queue = :'queue'",
    "priority": "t.priority = :'priority'",
    "reason": "t.dead_reason = :'reason'",
}
_OPEN: Final = "AND t.finished_at IS NULL"
_DEAD: Final = "AND t.dead_at IS NOT NULL"
_DIED: Final = "AND t.dead_reason IS NOT NULL"

# One at a time: Postgres has told two that drop or make days at once of a broken catalogue, or of a deadlock.
# A drop needs all of task_runs for a moment; while it waits for a long reader, every settle waits behind it.
_DROP_DAY: Final = """DO $$ BEGIN
    PERFORM pg_advisory_xact_lock(hashtext('task_runs'));
    PERFORM set_config('lock_timeout', '1s', true);
    DROP TABLE IF EXISTS {day};
END $$"""

FIRST_ID: Final = "00000000-0000-0000-0000-000000000000"


@cache
def statement(name: str, where: str = "") -> str:
    """The text of `sql/NAME.sql` with bind parameters in place of psql variables."""
    text = resources.files("scheduler").joinpath("sql", f"{name}.sql").read_text(encoding="utf-8")
    text = text.replace("{task}", _TASK).replace("{lease}", _LEASE).replace("{where}", where)
    text = re.sub(r"^--.*\n", "", text, flags=re.MULTILINE).replace("%", "%%")
    return re.sub(r":'(\w+)'", r"%(\1)s", text)


class Filter(NamedTuple):
    """Which dead letters a redrive or a purge means; None = any."""

    ids: Sequence[str] | None = None
    type: str | None = None
    queue: str | None = None
    priority: Priority | None = None
    reason: str | None = None


class Epoch(NamedTuple):
    """A queue, the epoch that Redis must show for it, and the server that it was written to."""

    queue: str
    epoch: int
    run_id: str


class Store:
    """The statements, over a few connections."""

    def __init__(self, settings: Settings, *, name: str, max_conns: int) -> None:
        self._settings = settings
        self.url = settings.postgres_url
        self._connections = Connections(
            settings.postgres_url,
            size=max_conns,
            name=name,
            timeout_s=settings.store_timeout_ms / 1000,
            prepare_threshold=settings.pg_prepare_threshold,
        )
        self._known_queues: set[str] = set()
        self.polled: float | None = None
        """When Postgres last answered, as a reading of clock.monotonic."""
        self.worker_polled: float | None = None
        """When a worker last looked into a queue, as far as `last_poll_s` has seen; the same clock."""

    @classmethod
    async def open(cls, settings: Settings, *, name: str, max_conns: int) -> Store:
        """A store that connects when it is first used."""
        return cls(settings, name=name, max_conns=max_conns)

    async def close(self) -> None:
        """Close the connections."""
        await self._connections.close()

    async def _run(self, name: str, where: str = "", /, **params: Any) -> Rows:
        rows = await self._connections.run(statement(name, where), params)
        self.polled = clock.monotonic()
        return rows

    async def check(self) -> None:
        """See that the server answers, is new enough and has a schema that this build can use.

        Raises:
            StartError: it does not, with what to do.
        """
        try:
            version = int((await self._connections.run("SHOW server_version_num"))[0][0])
            if version < migrate.OLDEST:
                raise StartError(f"Postgres {version // 10000} is too old; Scheduler needs 15 or newer")
            [[migrated]] = await self._connections.run("SELECT to_regclass('schema_migrations') IS NOT NULL")
            have, breaking = (await self._run("schema_version"))[0] if migrated else (0, 0)
        except StoreError as error:
            raise StartError(migrate.unreachable(self.url, error)) from None
        need = migrate.latest()
        if have < need:
            raise StartError(
                f"the schema is at version {have} and this build needs {need}; run `scheduler migrate`"
            )
        if breaking > need:
            raise StartError(
                f"the schema is at version {have}, and since version {breaking} this build, which knows"
                f" {need}, cannot use it; install a newer Scheduler"
            )

    async def ping(self) -> None:
        """Ask for an answer. Raises StoreUnavailable if none comes."""
        await self._connections.run("SELECT 1")

    # enqueue

    async def enqueue(self, tasks: Sequence[NewTask]) -> list[Accepted]:
        """Commit the tasks in one statement; answer in their order.

        Sending the same tasks again, after an answer that was lost, changes nothing and answers `created`.
        """
        if not tasks:
            return []
        fresh = {t.queue for t in tasks} - self._known_queues
        if fresh:
            await self._run("add_queues", names=sorted(fresh))
            self._known_queues |= fresh
        in_order = sorted(tasks, key=lambda t: t.id)
        rows = await self._run(
            "enqueue",
            ids=words(t.id for t in in_order),
            tenants=names(t.tenant for t in in_order),
            queues=names(t.queue for t in in_order),
            types=texts(t.type for t in in_order),
            priorities=words(t.priority for t in in_order),
            payloads=lines(t.payload for t in in_order),
            max_retries=words(t.max_retries for t in in_order),
            timeouts=words(t.timeout_ms for t in in_order),
            backoffs=lines(t.backoff for t in in_order),
            delays=words(t.delay_ms for t in in_order),
            run_ats=texts(t.run_at.isoformat() if t.run_at else None for t in in_order),
            keys=texts(t.idempotency_key for t in in_order),
            fingerprints=words(t.fingerprint for t in in_order),
            traces=texts(t.trace_context for t in in_order),
            ttl_ms=self._settings.idempotency_ttl_ms,
        )
        new = {row[0]: row for row in rows}
        known = await self._known([t for t in tasks if t.id not in new]) if len(new) < len(tasks) else {}
        return [_created(t, new[t.id]) if t.id in new else known[t.id] for t in tasks]

    async def _known(self, tasks: Sequence[NewTask]) -> dict[str, Accepted]:
        rows = await self._run(
            "known",
            ids=words(t.id for t in tasks),
            tenants=names(t.tenant for t in tasks),
            keys=texts(t.idempotency_key for t in tasks),
        )
        found = {row[0]: (row[1], row[2], Task(*row[3:])) for row in rows}
        answers = {}
        for sent in tasks:
            if sent.id not in found:
                # Its key was another task's when it was to be inserted, and has been forgotten since then.
                raise StoreUnavailable(f"task {sent.id} was neither inserted nor found; it can be sent again")
            fingerprint, delay_ms, task = found[sent.id]
            if task.id == sent.id:
                answers[sent.id] = Accepted(task, "created", delay_ms)
            else:
                same = fingerprint == sent.fingerprint
                answers[sent.id] = Accepted(task, "existing" if same else "conflict")
        return answers

    # lease, run, settle

    async def claim(
        self, ids: Sequence[str], *, token: str, worker: str, vis_ms: int, most: int | None = None
    ) -> tuple[list[Lease], list[Refusal]]:
        """Claim leased ids: the leases in the order of `ids`, and where the refused ids belong.

        A lease has None for a payload of more than `most` bytes. Calling again with the same token returns
        the same claims and starts nothing twice.
        """
        ids = list(dict.fromkeys(ids))  # an id that is in Redis twice is run once
        sent = spelled(sorted(ids))
        rows = await self._run("claim", ids=sent, token=token, worker=worker, vis_ms=vis_ms, most=most)
        claimed = {row[0]: Lease(*row) for row in rows}
        refusals: list[Refusal] = []
        missing = [id_ for id_ in ids if id_ not in claimed]
        if missing:
            refusals = await self._refusals(missing)
            mine = [r.id for r in refusals if r.reason == "running" and r.token == token]
            if mine:
                again = await self.reclaim(mine, token=token, most=most)
                claimed |= {lease.id: lease for lease in again}
                refusals = [r for r in refusals if r.id not in claimed]
        return [claimed[id_] for id_ in ids if id_ in claimed], refusals

    async def reclaim(self, ids: Sequence[str], *, token: str, most: int | None = None) -> list[Lease]:
        """The claims that this token holds: where the answer of `claim` was lost, or is still to come."""
        rows = await self._run("reclaim", ids=spelled(ids), token=token, most=most)
        return [Lease(*row) for row in rows]

    async def _refusals(self, ids: Sequence[str]) -> list[Refusal]:
        """Why ids could not be claimed, read after the claim: its snapshot may be older than the cause."""
        rows = {row[0]: row for row in await self._run("look", ids=spelled(ids))}
        return [_refusal(id_, rows.get(id_)) for id_ in ids]

    async def settle(self, settlements: Sequence[Settlement], *, worker: str) -> set[str]:
        """Record outcomes; the ids whose outcome stands, by this call or by one whose answer was lost.

        Of a task one call takes one outcome at most. Those that do not stand are no longer this worker's and
        are noted as late.
        """
        in_order = sorted(settlements, key=lambda s: s.lease.id)
        rows = await self._run(
            "settle",
            ids=words(s.lease.id for s in in_order),
            attempts=words(s.lease.attempt for s in in_order),
            tokens=words(s.lease.token for s in in_order),
            outcomes=words(s.outcome for s in in_order),
            statuses=words(s.status for s in in_order),
            reasons=words(s.reason for s in in_order),
            delays=words(s.delay_ms for s in in_order),
            errors=texts(s.error for s in in_order),
            waits=words(s.wait_us for s in in_order),
            runs=words(s.run_us for s in in_order),
            refused=words(s.refused for s in in_order),
            worker=worker,
        )
        settled = {row[0] for row in rows}
        if len(settled) < len(in_order):
            settled |= await self._settled_before([s for s in in_order if s.lease.id not in settled])
        return settled

    async def _settled_before(self, settlements: Sequence[Settlement]) -> set[str]:
        rows = await self._run(
            "ended",
            ids=words(s.lease.id for s in settlements),
            attempts=words(s.lease.attempt for s in settlements),
        )
        ended: dict[str, tuple[RunOutcome, str]] = {row[0]: (row[2], row[3]) for row in rows}
        mine = {s.lease.id for s in settlements if ended.get(s.lease.id) == (s.outcome, s.lease.token)}
        late = [s for s in settlements if s.lease.id not in mine]
        if late:
            await self._run(
                "note_late",
                ids=words(s.lease.id for s in late),
                attempts=words(s.lease.attempt for s in late),
                outcomes=words(s.outcome for s in late),
            )
        return mine

    async def renew(self, leases: Sequence[Lease], *, vis_ms: int) -> set[str]:
        """Renew leases; the ids that are still held."""
        in_order = sorted(leases, key=lambda lease: lease.id)
        rows = await self._run(
            "renew",
            ids=words(lease.id for lease in in_order),
            attempts=words(lease.attempt for lease in in_order),
            vis_ms=vis_ms,
        )
        return {row[0] for row in rows}

    async def reap(self, ids: Sequence[str], *, max_losses: int) -> list[Reaped]:
        """Settle lapsed leases among `ids` as lost; say of every id where it belongs now."""
        rows = await self._run("reap", ids=spelled(sorted(ids)), max_losses=max_losses)
        lost = {row[0]: row for row in rows}
        looked = {row[0]: row for row in await self._run("look", ids=spelled(ids))}
        return [_reaped(id_, lost.get(id_), looked.get(id_)) for id_ in ids]

    async def locked(self, ids: Sequence[str]) -> set[str]:
        """Those of `ids` whose rows somebody else has locked: StoreBusy names none. Waits for no lock."""
        return {row[0] for row in await self._run("locked", ids=spelled(ids))}

    # steering

    async def cancel(self, id_: str) -> tuple[Task | None, bool]:
        """Cancel a task that has not ended: its row (None if unknown), and whether this call cancelled it."""
        cancelled = bool(await self._run("cancel", id=id_))
        return await self.task(id_), cancelled

    async def now(self) -> str:
        """The instant by Postgres' clock, as `redrive` and `purge` take it."""
        return str((await self._run("now"))[0][0])

    async def redrive(
        self, which: Filter, *, page: int, until: str | None = None
    ) -> list[tuple[str, str, Priority]]:
        """Queue a page of the letters that were dead at `until` again: (id, queue, priority), by id."""
        return await self._dead_letters("redrive", which, until, page)

    async def purge(
        self, which: Filter, *, page: int, until: str | None = None
    ) -> list[tuple[str, str, Priority]]:
        """Take a page of the letters that were dead at `until` off: (id, queue, priority), by id."""
        return await self._dead_letters("purge", which, until, page)

    async def _dead_letters(
        self, name: str, which: Filter, until: str | None, page: int
    ) -> list[tuple[str, str, Priority]]:
        params = which._asdict() | {"ids": None if which.ids is None else words(which.ids)}
        rows = await self._run(name, until=until, page=page, **params)
        return sorted((row[0], row[1], row[2]) for row in rows)

    # reading

    async def task(self, id_: str) -> Task | None:
        """One task, or None."""
        rows = await self._run("task", id=id_)
        return Task(*rows[0]) if rows else None

    async def runs(self, id_: str) -> list[Run]:
        """The ended attempts of a task, oldest first."""
        return [Run(*row) for row in await self._run("runs", id=id_)]

    async def tasks(
        self,
        *,
        status: Status | None = None,
        type: str | None = None,  # noqa: A002 - the field's name
        queue: str | None = None,
        priority: Priority | None = None,
        reason: str | None = None,
        dead: bool = False,
        before: str | None = None,
        limit: int = 50,
    ) -> list[Task]:
        """A page of tasks that fit every filter, newest first, older than the id `before`.

        `dead=True` lists dead letters only (a purged task is dead, but no dead letter any more).
        """
        values = {"status": status, "type": type, "queue": queue, "priority": priority, "reason": reason}
        given = {name: value for name, value in values.items() if value is not None}
        terms = [f"AND {_TERMS[name]}" for name in given]
        if dead:
            terms.append(_DEAD)
        elif status in {"queued", "running", "retrying"}:
            terms.append(_OPEN)  # the same rows, and the partial index that finds them
        elif status == "dead":
            terms.append(_DIED)  # likewise
        rows = await self._run("tasks", " ".join(terms), before=before, page=limit, **given)
        return [Task(*row) for row in rows]

    async def queues(self) -> list[str]:
        """The names of all queues that ever had a task."""
        return [row[0] for row in await self._run("queues")]

    async def workers(self) -> list[WorkerInfo]:
        """The registry, newest first."""
        return [WorkerInfo(*row) for row in await self._run("workers")]

    async def last_poll_s(self) -> float | None:
        """Seconds since any worker last looked into the queue, or None if none ever did."""
        value = (await self._run("last_poll"))[0][0]
        self.worker_polled = None if value is None else clock.monotonic() - float(value)
        return None if value is None else float(value)

    # the fleet

    async def beat(
        self,
        worker: WorkerIdentity,
        *,
        running: int,
        polled_ms: int | None,
        alive_ms: int,
    ) -> None:
        """Say that a worker lives, and for how long its silence may be taken for life."""
        await self._run(
            "beat",
            id=worker.id,
            host=worker.host,
            pid=worker.pid,
            queues=list(worker.queues),
            types=list(worker.types),
            slots=worker.slots,
            running=running,
            polled_ms=polled_ms,
            alive_ms=alive_ms,
        )

    async def leave(self, worker_id: str) -> None:
        """Take a worker that stopped in good order off the registry; it leads nothing any more."""
        await self._run("leave", id=worker_id)

    async def lead(self, name: str, holder: str, *, ttl_ms: int) -> bool:
        """Become or stay the leader of `name` for `ttl_ms`; False if another one leads."""
        return bool(await self._run("lead", name=name, holder=holder, ttl_ms=ttl_ms))

    # reconcile

    async def epochs(self) -> list[Epoch]:
        """Every queue with the epoch that Redis must show."""
        return [Epoch(row[0], row[1], row[2]) for row in await self._run("epochs")]

    async def set_epoch(self, queue: str, epoch: int, run_id: str) -> None:
        """Mirror the epoch of a finished pass."""
        await self._run("set_epoch", name=queue, epoch=epoch, run_id=run_id)

    async def open_page(self, after: str, page: int) -> list[OpenRow]:
        """Open tasks with ids above `after`, by id."""
        return [
            OpenRow(row[0], row[1], row[2], row[3], row[4], row[5], row[6])
            for row in await self._run("open_page", after=after, page=page)
        ]

    async def unchanged(self, rows: Sequence[OpenRow], *, min_age_ms: int = 0) -> list[OpenRow]:
        """Those of `rows` whose status and lease are still what they were, and that were made so long ago."""
        if not rows:
            return []
        now = {row[0]: row for row in await self._run("look", ids=words(r.id for r in rows))}
        seen = [(r, now[r.id]) for r in rows if r.id in now]
        return [
            r
            for r, (_, status, *_, token, _, age_ms) in seen
            if (status, token) == (r.status, r.token) and age_ms >= min_age_ms
        ]

    async def dead_page(self, after: str, page: int) -> list[tuple[str, str, Priority, int]]:
        """Dead letters with ids above `after`, by id: (id, queue, priority, milliseconds since death)."""
        rows = await self._run("dead_page", after=after, page=page)
        return [(row[0], row[1], row[2], row[3]) for row in rows]

    async def still_dead(self, ids: Sequence[str]) -> set[str]:
        """Which of `ids` are dead letters."""
        return {row[0] for row in await self._run("still_dead", ids=spelled(ids))}

    async def recent_id(self, age_ms: int) -> str:
        """The smallest id that a task made `age_ms` ago can have."""
        return str((await self._run("recent_id", age_ms=age_ms))[0][0])

    # housekeeping

    async def make_partitions(self, days: int) -> int:
        """Make the days of history up to `days` ahead; how many were missing.

        Raises:
            StoreUnavailable: also if somebody reads of the history for more than a second.
        """
        return int((await self._run("make_partitions", days=days))[0][0])

    async def drop_old_partitions(self, *, keep_ms: int) -> list[str]:
        """Drop the days of history that are over and of whose tasks none is left; their names.

        Raises:
            StoreUnavailable: also if somebody reads of the history for more than a second.
        """
        days = [row[0] for row in await self._run("old_partitions", keep_ms=keep_ms)]
        for day in days:
            if re.fullmatch(r"task_runs_\d{8}", day):  # from our own catalogue, and checked all the same
                await self._connections.run(_DROP_DAY.format(day=day))
        return days

    async def expire_keys(self, *, page: int) -> int:
        """Forget a page of idempotency keys whose time is over; how many."""
        return int((await self._run("expire_keys", page=page))[0][0])

    async def prune_tasks(self, after: str, *, keep_ms: int, page: int) -> tuple[str | None, int]:
        """Delete what ended too long ago among the next `page` tasks: (where to go on or None, how many)."""
        row = (await self._run("prune_tasks", after=after, keep_ms=keep_ms, page=page))[0]
        return row[0], int(row[1])

    async def prune_runs(self, *, keep_ms: int, page: int) -> int:
        """Delete a page of the history that no day has taken, of tasks that are gone; how many rows."""
        return int((await self._run("prune_runs", keep_ms=keep_ms, page=page))[0][0])

    async def prune_workers(self, *, keep_ms: int) -> None:
        """Forget workers that have been silent for `keep_ms`."""
        await self._run("prune_workers", keep_ms=keep_ms)


class WorkerIdentity(NamedTuple):
    """What a worker tells the registry about itself."""

    id: str
    host: str
    pid: int
    queues: tuple[str, ...]
    types: tuple[str, ...]
    slots: int


def _created(sent: NewTask, row: Mapping[int, Any] | tuple[Any, ...]) -> Accepted:
    task = Task(
        id=sent.id,
        tenant=sent.tenant,
        queue=sent.queue,
        type=sent.type,
        priority=sent.priority,
        payload=sent.payload,
        status="queued",
        attempts=0,
        failures=0,
        losses=0,
        redrives=0,
        max_retries=sent.max_retries,
        timeout_ms=sent.timeout_ms,
        backoff=sent.backoff,
        idempotency_key=sent.idempotency_key,
        due_at=row[2],
        created_at=row[1],
        claimed_at=None,
        finished_at=None,
        dead_at=None,
        dead_reason=None,
        worker=None,
        lease_expires_at=None,
        last_error=None,
    )
    return Accepted(task, "created", row[3])


def _refusal(id_: str, row: tuple[Any, ...] | None) -> Refusal:
    if row is None:
        return Refusal(id_, "unknown", "gone", "default")
    _, status, dead, priority, _, due_ms, token, lease_ms, _ = row
    if dead:
        return Refusal(id_, "dead", "dead", priority)
    if status == "running":
        return Refusal(id_, "running", "held", priority, lease_ms, token)
    if status not in {"queued", "retrying"}:
        return Refusal(id_, "terminal", "gone", priority)
    if due_ms > 0:
        return Refusal(id_, "not_due", "retry", priority, due_ms)
    return Refusal(id_, "undecided", None, priority)


def _reaped(id_: str, lost: tuple[Any, ...] | None, row: tuple[Any, ...] | None) -> Reaped:
    if row is None:
        return Reaped(id_, "gone", "default", "", lost=False, died=False)
    _, status, dead, priority, type_, due_ms, token, lease_ms, _ = row
    was_lost, died = lost is not None, lost is not None and lost[3]
    if dead:
        return Reaped(id_, "dead", priority, type_, was_lost, died)
    if status == "running":
        return Reaped(id_, "held", priority, type_, was_lost, died, lease_ms, token)
    if status == "retrying" or (status == "queued" and due_ms > 0):
        return Reaped(id_, "retry", priority, type_, was_lost, died, due_ms)
    return Reaped(id_, "tail" if status == "queued" else "gone", priority, type_, was_lost, died)
