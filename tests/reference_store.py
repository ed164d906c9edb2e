"""The tables in dicts: the second half of the protocol, and what the SQL is held to.

`ReferenceStore` has the interface of `scheduler.store.Store`. Each of its methods does at once, row by row,
what the statement of that name does. Where the real method sends further statements, `between` is called
before each. History is not cut into days here.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime
from itertools import islice
from typing import Any

import reference_tables as tables
from reference_tables import Ended, Key, Leader, QueueRow, Registered, Row, Tables, id_at

from scheduler import lifecycle
from scheduler.errors import StoreUnavailable
from scheduler.lifecycle import CLAIMABLE, TERMINAL
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
from scheduler.store import Epoch, Filter, WorkerIdentity


class ReferenceStore:
    """One database. `now_ms` is its clock."""

    def __init__(self, now_ms: Callable[[], float], *, idempotency_ttl_ms: int = 86_400_000) -> None:
        self.now_ms = now_ms
        self.held = Tables()
        self._ttl_ms = idempotency_ttl_ms

    async def between(self) -> None:
        """The moment between two statements of one method: a simulation lets others act here."""

    # enqueue

    async def enqueue(self, tasks: Sequence[NewTask]) -> list[Accepted]:
        for name in {t.queue for t in tasks}:
            self.held.queues.setdefault(name, QueueRow(name))
        answers = {t.id: self._insert(t) for t in sorted(tasks, key=lambda t: t.id)}
        if None in answers.values():
            await self.between()
        return [answers[t.id] or self._known(t) for t in tasks]

    def _insert(self, sent: NewTask) -> Accepted | None:
        now = self.now_ms()
        if sent.idempotency_key is not None:
            name = (sent.tenant, sent.idempotency_key)
            if name in self.held.idempotency_keys:
                return None
            self.held.idempotency_keys[name] = Key(*name, sent.fingerprint, sent.id, now + self._ttl_ms)
        if sent.id in self.held.tasks:
            return None
        self.held.tasks[sent.id] = row = Row(
            id=sent.id,
            type=sent.type,
            created_at=now,
            due_at=tables.ms_of(sent.run_at) if sent.run_at else now + (sent.delay_ms or 0),
            tenant=sent.tenant,
            queue=sent.queue,
            priority=sent.priority,
            payload=json.loads(sent.payload),
            max_retries=sent.max_retries,
            timeout_ms=sent.timeout_ms,
            backoff=json.loads(sent.backoff or "null"),
            idempotency_key=sent.idempotency_key,
            trace_context=sent.trace_context,
        )
        return self._created(row)

    def _created(self, row: Row) -> Accepted:
        return Accepted(tables.task(row), "created", max(self._until(row.due_at), 0))

    def _known(self, sent: NewTask) -> Accepted:
        key = self.held.idempotency_keys.get((sent.tenant, sent.idempotency_key or ""))
        row = self.held.tasks.get(key.task_id if key else sent.id)
        if row is None:
            raise StoreUnavailable(f"task {sent.id} was neither inserted nor found; it can be sent again")
        if row.id == sent.id:
            return self._created(row)
        same = key is not None and key.fingerprint == sent.fingerprint
        return Accepted(tables.task(row), "existing" if same else "conflict")

    # lease, run, settle

    async def claim(
        self, ids: Sequence[str], *, token: str, worker: str, vis_ms: int, most: int | None = None
    ) -> tuple[list[Lease], list[Refusal]]:
        now = self.now_ms()
        ids = list(dict.fromkeys(ids))
        claimed = {}
        for row in self._rows(ids):
            if row.status in CLAIMABLE and row.due_at <= now:
                row.become("running")
                row.attempts += 1
                row.worker, row.lease_token = worker, token
                row.claimed_at, row.lease_expires_at = now, now + vis_ms
                claimed[row.id] = tables.lease(row)
        refusals: list[Refusal] = []
        missing = [id_ for id_ in ids if id_ not in claimed]
        if missing:
            await self.between()
            refusals = [self._refusal(id_) for id_ in missing]
            mine = [r.id for r in refusals if r.reason == "running" and r.token == token]
            if mine:
                await self.between()
                claimed |= {lease.id: lease for lease in await self.reclaim(mine, token=token)}
                refusals = [r for r in refusals if r.id not in claimed]
        return [claimed[id_] for id_ in ids if id_ in claimed], refusals

    async def reclaim(self, ids: Sequence[str], *, token: str, most: int | None = None) -> list[Lease]:
        mine = (row for row in self._rows(ids) if row.status == "running" and row.lease_token == token)
        return [tables.lease(row) for row in mine]

    def _refusal(self, id_: str) -> Refusal:
        row = self.held.tasks.get(id_)
        if row is None:
            return Refusal(id_, "unknown", "gone", "default")
        if row.dead_at is not None:
            return Refusal(id_, "dead", "dead", row.priority)
        if row.status == "running":
            lease_ms = self._until(row.lease_expires_at)
            return Refusal(id_, "running", "held", row.priority, lease_ms, row.lease_token or "")
        if row.status in TERMINAL:
            return Refusal(id_, "terminal", "gone", row.priority)
        due_ms = self._until(row.due_at)
        if due_ms > 0:
            return Refusal(id_, "not_due", "retry", row.priority, due_ms)
        return Refusal(id_, "undecided", None, row.priority)

    async def settle(self, settlements: Sequence[Settlement], *, worker: str) -> set[str]:
        settled = set()
        for s in settlements:
            row = self.held_row(s.lease)
            if row is not None:
                self._settle(row, s, worker)
                settled.add(row.id)
        rest = [s for s in settlements if s.lease.id not in settled]
        if rest:
            await self.between()
            mine = {s.lease.id for s in rest if self._ended_so(s)}
            late = [s for s in rest if s.lease.id not in mine]
            if late:
                await self.between()
                self._note_late(late)
            settled |= mine
        return settled

    def held_row(self, lease: Lease) -> Row | None:
        """The row that a lease still holds: the fence."""
        row = self.held.tasks.get(lease.id)
        return row if row and row.status == "running" and row.attempts == lease.attempt else None

    def _settle(self, row: Row, s: Settlement, worker: str) -> None:
        now, claimed = self.now_ms(), row.claimed_at or 0
        ran = (s.run_us or 0) / 1000
        finished = min(now, claimed + s.wait_us / 1000 + ran)
        started = max(claimed, finished - ran)
        shown = started if s.run_us is not None else None
        self._end(
            Ended(
                row.id, s.lease.attempt, s.outcome, worker, s.lease.token, claimed, shown, finished, s.error
            )
        )
        row.become(s.status)
        row.failures += s.outcome in {"failed", "timed_out"}
        row.losses += s.outcome == "lost"
        row.refusals += s.refused
        if s.delay_ms > 0 or s.status == "retrying":
            row.due_at = now + s.delay_ms
        row.finished_at = now if s.status in TERMINAL else None
        row.dead_at = now if s.status == "dead" else None
        row.dead_reason = s.reason
        row.last_error = row.last_error if s.error is None else s.error

    def _end(self, run: Ended) -> None:
        assert (run.task_id, run.attempt) not in self.held.task_runs, f"{run} ended before"
        self.held.task_runs[run.task_id, run.attempt] = run

    def _ended_so(self, s: Settlement) -> bool:
        run = self.held.task_runs.get((s.lease.id, s.lease.attempt))
        return run is not None and (run.outcome, run.lease_token) == (s.outcome, s.lease.token)

    def _note_late(self, late: Iterable[Settlement]) -> None:
        for s in late:
            run = self.held.task_runs.get((s.lease.id, s.lease.attempt))
            if run is not None and run.late_outcome is None:
                run.late_outcome, run.late_at = s.outcome, self.now_ms()

    async def renew(self, leases: Sequence[Lease], *, vis_ms: int) -> set[str]:
        kept = [row for row in map(self.held_row, leases) if row is not None]
        for row in kept:
            row.lease_expires_at = self.now_ms() + vis_ms
        return {row.id for row in kept}

    async def reap(self, ids: Sequence[str], *, max_losses: int) -> list[Reaped]:
        died = {row.id: self._lose(row, max_losses) for row in self._rows(ids) if self.lapsed(row)}
        await self.between()
        return [self._reaped(id_, died.get(id_)) for id_ in ids]

    async def locked(self, ids: Sequence[str]) -> set[str]:
        return set()  # nobody else is here

    def lapsed(self, row: Row) -> bool:
        """The run's lease is over: only then may it be settled as lost."""
        return row.status == "running" and (row.lease_expires_at or 0) <= self.now_ms()

    def _lose(self, row: Row, max_losses: int) -> bool:
        """Settle a run as lost; True if that makes its task a dead letter."""
        worker = self.held.workers.get(row.worker or "")
        worker_died = worker is None or worker.alive_until <= self.now_ms()
        why = "the worker died" if worker_died else "the lease ended while the worker lived"
        now, lease = self.now_ms(), (row.worker, row.lease_token, row.claimed_at or 0)
        self._end(Ended(row.id, row.attempts, "lost", *lease, None, now, why))
        verdict = lifecycle.after_loss(row.losses, max_losses, in_company=worker_died)
        died = verdict.status == "dead"
        row.losses += 1
        row.suspect |= worker_died
        row.last_error = why
        row.become("dead" if died else "queued")
        if died:
            row.finished_at = row.dead_at = now
            row.dead_reason = "lost"
        return died

    def _reaped(self, id_: str, died: bool | None) -> Reaped:
        row = self.held.tasks.get(id_)
        if row is None:
            return Reaped(id_, "gone", "default", "", lost=False, died=False)
        what = (row.priority, row.type, died is not None, bool(died))
        due_ms = self._until(row.due_at)
        if row.dead_at is not None:
            return Reaped(id_, "dead", *what)
        if row.status == "running":
            return Reaped(id_, "held", *what, self._until(row.lease_expires_at), row.lease_token or "")
        if row.status == "retrying" or (row.status == "queued" and due_ms > 0):
            return Reaped(id_, "retry", *what, due_ms)
        return Reaped(id_, "tail" if row.status == "queued" else "gone", *what)

    # steering

    async def cancel(self, id_: str) -> tuple[Task | None, bool]:
        row = self.held.tasks.get(id_)
        cancelled = row is not None and row.finished_at is None
        if row is not None and cancelled:
            now, lease = self.now_ms(), (row.worker, row.lease_token, row.claimed_at or 0)
            if row.status == "running":
                self._end(Ended(row.id, row.attempts, "cancelled", *lease, None, now, None))
            row.become("cancelled")
            row.finished_at = now
        await self.between()
        return await self.task(id_), cancelled

    async def now(self) -> str:
        return tables.instant(self.now_ms()).isoformat()

    async def redrive(
        self, which: Filter, *, page: int, until: str | None = None
    ) -> list[tuple[str, str, Priority]]:
        rows = self._dead_letters(which, page, until)
        for row in rows:
            row.become("queued")
            row.failures = row.losses = row.refusals = 0
            row.suspect = False
            row.redrives += 1
            row.redriven_at = row.due_at = self.now_ms()
            row.finished_at = row.dead_at = row.dead_reason = None
        return [(row.id, row.queue, row.priority) for row in rows]

    async def purge(
        self, which: Filter, *, page: int, until: str | None = None
    ) -> list[tuple[str, str, Priority]]:
        rows = self._dead_letters(which, page, until)
        for row in rows:
            row.dead_at = None
        return [(row.id, row.queue, row.priority) for row in rows]

    def _dead_letters(self, which: Filter, page: int, until: str | None) -> list[Row]:
        latest = self.now_ms() if until is None else tables.ms_of(datetime.fromisoformat(until))
        terms = {
            "type": which.type,
            "queue": which.queue,
            "priority": which.priority,
            "dead_reason": which.reason,
        }
        chosen = (row for row in self._above("") if which.ids is None or row.id in which.ids)
        fit = (
            row for row in chosen if row.dead_at is not None and row.dead_at <= latest and _fits(row, terms)
        )
        return list(islice(fit, page))

    # reading

    async def task(self, id_: str) -> Task | None:
        row = self.held.tasks.get(id_)
        return None if row is None else tables.task(row)

    async def runs(self, id_: str) -> list[Run]:
        return [tables.run(ended) for ended in self.held.history(id_)]

    async def tasks(
        self,
        *,
        dead: bool = False,
        reason: str | None = None,
        before: str | None = None,
        limit: int = 50,
        **terms: Any,
    ) -> list[Task]:
        terms["dead_reason"] = reason
        older = (row for row in reversed(self._above("")) if before is None or row.id < before)
        fit = (row for row in older if (row.dead_at is not None or not dead) and _fits(row, terms))
        return [tables.task(row) for row in islice(fit, limit)]

    async def queues(self) -> list[str]:
        return sorted(self.held.queues)

    # the fleet

    async def beat(
        self, worker: WorkerIdentity, *, running: int, polled_ms: int | None, alive_ms: int
    ) -> None:
        now = self.now_ms()
        new = Registered(
            worker.id, worker.host, worker.pid, list(worker.queues), list(worker.types), worker.slots, now
        )
        row = self.held.workers.setdefault(worker.id, new)
        row.running, row.seen_at, row.alive_until = running, now, now + alive_ms
        row.polled_at = None if polled_ms is None else now - polled_ms

    async def leave(self, worker_id: str) -> None:
        self.held.workers.pop(worker_id, None)
        leaders = self.held.leaders
        for name in [name for name, leader in leaders.items() if leader.holder == worker_id]:
            del leaders[name]

    async def workers(self) -> list[WorkerInfo]:
        rows = sorted(self.held.workers.values(), key=lambda w: (-w.started_at, w.id))
        return [tables.worker(row, alive=row.alive_until > self.now_ms()) for row in rows]

    async def last_poll_s(self) -> float | None:
        polls = [w.polled_at for w in self.held.workers.values() if w.polled_at is not None]
        return (self.now_ms() - max(polls)) / 1000 if polls else None

    async def lead(self, name: str, holder: str, *, ttl_ms: int) -> bool:
        now, leader = self.now_ms(), self.held.leaders.get(name)
        if leader is not None and leader.holder != holder and leader.expires_at > now:
            return False
        self.held.leaders[name] = Leader(name, holder, now + ttl_ms)
        return True

    # reconcile

    async def epochs(self) -> list[Epoch]:
        rows = (self.held.queues[name] for name in await self.queues())
        return [Epoch(row.name, row.epoch, row.redis_run_id or "") for row in rows]

    async def set_epoch(self, queue: str, epoch: int, run_id: str) -> None:
        row = self.held.queues.get(queue)
        if row is not None:
            row.epoch, row.redis_run_id = max(row.epoch, epoch), run_id

    async def open_page(self, after: str, page: int) -> list[OpenRow]:
        rows = (row for row in self._above(after) if row.finished_at is None)
        return [
            OpenRow(
                row.id,
                row.queue,
                row.priority,
                row.status,
                due_in_ms=self._until(row.due_at),
                lease_ms=self._until(row.lease_expires_at),
                token=row.lease_token or "",
            )
            for row in islice(rows, page)
        ]

    async def unchanged(self, rows: Sequence[OpenRow], *, min_age_ms: int = 0) -> list[OpenRow]:
        since = self.now_ms() - min_age_ms
        old = (row for row in self._rows(r.id for r in rows) if row.created_at <= since)
        now = {row.id: (row.status, row.lease_token or "") for row in old}
        return [row for row in rows if now.get(row.id) == (row.status, row.token)]

    async def dead_page(self, after: str, page: int) -> list[tuple[str, str, Priority, int]]:
        rows = (row for row in self._above(after) if row.dead_at is not None)
        return [(row.id, row.queue, row.priority, -self._until(row.dead_at)) for row in islice(rows, page)]

    async def still_dead(self, ids: Sequence[str]) -> set[str]:
        return {row.id for row in self._rows(ids) if row.dead_at is not None}

    async def recent_id(self, age_ms: int) -> str:
        return id_at(self.now_ms() - age_ms)

    # housekeeping

    async def make_partitions(self, days: int) -> int:
        return 0

    async def drop_old_partitions(self, *, keep_ms: int) -> list[str]:
        return []

    async def expire_keys(self, *, page: int) -> int:
        keys, now = self.held.idempotency_keys, self.now_ms()
        open_ = {row.id for row in self.held.tasks.values() if row.finished_at is None}
        over = [name for name, key in keys.items() if key.expires_at <= now and key.task_id not in open_]
        expired = sorted(over, key=lambda name: keys[name].expires_at)[:page]
        for name in expired:
            del keys[name]
        return len(expired)

    async def prune_tasks(self, after: str, *, keep_ms: int, page: int) -> tuple[str | None, int]:
        since = self.now_ms() - keep_ms
        seen = list(islice((row for row in self._above(after) if row.id < id_at(since)), page))
        answering = {key.task_id for key in self.held.idempotency_keys.values()}
        ended = (row for row in seen if row.finished_at is not None and row.finished_at < since)
        gone = [row.id for row in ended if row.dead_at is None and row.id not in answering]
        for id_ in gone:
            del self.held.tasks[id_]
        return seen[-1].id if seen else None, len(gone)

    async def prune_runs(self, *, keep_ms: int, page: int) -> int:
        return 0

    async def prune_workers(self, *, keep_ms: int) -> None:
        since = self.now_ms() - keep_ms
        self.held.workers = {id_: w for id_, w in self.held.workers.items() if w.alive_until >= since}

    def _rows(self, ids: Iterable[str]) -> list[Row]:
        """The rows of some ids, each once; what is no id of ours names none."""
        return [self.held.tasks[id_] for id_ in dict.fromkeys(ids) if id_ in self.held.tasks]

    def _above(self, after: str) -> list[Row]:
        """All rows with ids above `after`, by id."""
        return [self.held.tasks[id_] for id_ in sorted(self.held.tasks) if id_ > after]

    def _until(self, at: float | None) -> int:
        """Milliseconds until an instant, rounded up; 0 where there is none."""
        return 0 if at is None else -int((self.now_ms() - at) // 1)


def _fits(row: Row, terms: dict[str, Any]) -> bool:
    """Does the row have every value that is asked for? None asks for nothing."""
    return all(value is None or getattr(row, name) == value for name, value in terms.items())
