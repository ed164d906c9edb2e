"""Reconcile: makes Redis agree with Postgres.

A pass takes the census of every shard (is the index whole, and is its epoch the one that Postgres knows?),
compares the rows accepted since the last pass and one page of older ones with Redis, adds what is missing,
and makes the dead-letter sets agree with the dead rows both ways. If Redis lost its memory, came back with
an old one, or was restarted, the pass goes over all rows at once.

The epoch is set at a pass's end only if it is still what it was at the beginning, so that a loss in the
middle of a pass is not papered over. Before a sweep it is set to a mark that is no number: a sweep that
does not come to its end leaves the index known as lost.

One process leads; any number would be correct. A pass over many rows takes longer than a leader leads without
a word: so between pages it renews its lead, and it ends if it has lost it, or if its process stops. A pass
that finds the mark of another one goes by that: whichever comes to its end first sets the epoch.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from itertools import count
from typing import Final, NamedTuple

from scheduler import clock, failpoints, log
from scheduler.config import Settings
from scheduler.metrics import Metrics
from scheduler.model import PRIORITIES, OpenRow, Priority
from scheduler.queue import Index, Shard
from scheduler.store import FIRST_ID, Epoch, Store

_GRACE_MS: Final = 1_000
"""A row younger than this may be between its commit and its push: nothing is missing yet."""

_FIRST_LOOK_MS: Final = 60_000
"""How far back a new leader's first pass looks for recent rows; the rotation covers what is older."""

_LEAD_MS: Final = 5_000
"""How much longer than three intervals a leader leads that is not heard of any more."""

_MARK: Final = "rebuilding:"


class _Census(NamedTuple):
    queue: str
    shard: Shard
    lost: bool
    expected: str | None
    next_epoch: int


class _Cut(Exception):
    """The pass ends before its end, and why. Nothing is lost: the index stays known as what it was."""


def _overlap_ms(settings: Settings) -> int:
    """How much later than its id says a row may become visible.

    Its request may wait so long for its commit, and the last try may begin at the end of that.
    """
    return settings.enqueue_timeout_ms + settings.store_timeout_ms


class Reconciler:
    """The passes of one process."""

    def __init__(
        self, store: Store, index: Index, settings: Settings, metrics: Metrics, *, holder: str
    ) -> None:
        self._store = store
        self._index = index
        self._metrics = metrics
        self._holder = holder
        self._interval_ms = settings.reconcile_interval_ms
        self._overlap_ms = _overlap_ms(settings)
        self._page = settings.reconcile_batch_size
        self._log = log.get("reconcile")
        self._marks = count(1)
        self._recent: str | None = None
        self._second_look = True
        self._rotation = FIRST_ID
        self._dead_rotation = FIRST_ID
        self._dlq_start: dict[tuple[str, Priority], int] = {}
        self._led_at: float | None = None
        self._stopping = False

    async def step(self) -> None:
        """One pass, if this process leads, and for as long as it does."""
        if not await self._lead():
            return
        try:
            await self.reconcile()
        except _Cut as cut:
            self._log.info("the pass ends early", why=str(cut))
        finally:
            self._led_at = None

    def stop(self) -> None:
        """End the pass in hand after its page. Whoever leads next begins a new one."""
        self._stopping = True

    async def _lead(self) -> bool:
        self._led_at = clock.monotonic()
        ttl_ms = 3 * self._interval_ms + _LEAD_MS
        return await self._store.lead("reconcile", self._holder, ttl_ms=ttl_ms)

    async def _go_on(self) -> None:
        """Before each page: may the pass go on? A pass that people ask for needs no lead.

        Raises:
            _Cut: it may not.
        """
        if self._stopping:
            raise _Cut("this process stops")
        renew = self._led_at is not None and clock.monotonic() - self._led_at >= self._interval_ms / 1000
        if renew and not await self._lead():
            raise _Cut("another process leads now")

    async def reconcile(self, *, everything: bool = False) -> dict[str, int]:
        """One pass, whoever leads; over all rows if `everything` or if Redis lost something.

        Returns how many ids it put right, by kind.
        """
        self._found: dict[str, int] = defaultdict(int)
        run_id = await self._index.run_id()
        censuses = [await self._census(epoch, run_id) for epoch in await self._store.epochs()]
        next_recent = await self._store.recent_id(self._overlap_ms)
        sweep = everything or any(c.lost for c in censuses)
        self._second_look = not sweep
        if sweep:
            lost = [c.queue for c in censuses if c.lost]
            (self._log.warning if lost else self._log.info)("comparing all rows", lost=lost)
            self._repaired("rebuilt", 1)
            await self._sweep([c.queue for c in censuses])
        else:
            await self._some([c.queue for c in censuses])
        for c in censuses:
            if await failpoints.through("reconcile.epoch", c.shard.set_epoch(c.expected, str(c.next_epoch))):
                await failpoints.through(
                    "reconcile.mirror", self._store.set_epoch(c.queue, c.next_epoch, run_id)
                )
        self._recent = next_recent
        return dict(self._found)

    async def _census(self, epoch: Epoch, run_id: str) -> _Census:
        shard = self._index.shard(epoch.queue)
        census = await failpoints.through("reconcile.census", shard.census())
        number = int(census.epoch) if census.epoch is not None and census.epoch.isdecimal() else None
        # A queue that no pass has seen yet has nothing to lose: its rows are recent ones.
        lost = epoch.epoch > 0 and (number is None or number < epoch.epoch or run_id != epoch.run_id)
        expected = census.epoch
        # The mark of another pass is as good as one of ours: what is lost from now on takes it away. Two that
        # replaced each other's would end in vain, again and again.
        if lost and not (expected or "").startswith(_MARK):
            mark = f"{_MARK}{self._holder}:{next(self._marks)}"
            if await failpoints.through("reconcile.mark", shard.set_epoch(expected, mark)):
                expected = mark
        return _Census(epoch.queue, shard, lost, expected, max(number or 0, epoch.epoch) + 1)

    async def _sweep(self, queues: Sequence[str]) -> None:
        """Every open row, every dead letter, every entry of the dead-letter sets."""
        after: str | None = FIRST_ID
        while after is not None:
            after = await self._open_rows(after)
        after = FIRST_ID
        while after is not None:
            after = await self._dead_rows(after)
        for queue in queues:
            for priority in PRIORITIES:
                start: int | None = 0
                while start is not None:
                    start = await self._dlq_entries(queue, priority, start)

    async def _some(self, queues: Sequence[str]) -> None:
        """The recent rows, and a page each of the older ones, the dead letters and the dead-letter sets."""
        recent: str | None = self._recent or await self._store.recent_id(_FIRST_LOOK_MS)
        while recent is not None:
            recent = await self._open_rows(recent)
        await self._some_older()
        self._dead_rotation = await self._dead_rows(self._dead_rotation) or FIRST_ID
        for queue in queues:
            for priority in PRIORITIES:
                start = self._dlq_start.get((queue, priority), 0)
                self._dlq_start[queue, priority] = await self._dlq_entries(queue, priority, start) or 0

    async def _some_older(self) -> None:
        """One page of older rows, and the next ones for as long as Redis lacks some of them.

        What it lacks was missed together: pushes while it was away, say, of many dead letters at once.
        """
        lacking = True
        while lacking:
            before = self._added()
            self._rotation = await self._open_rows(self._rotation, older=True) or FIRST_ID
            lacking = self._added() > before

    def _added(self) -> int:
        return self._found.get("pushed", 0) + self._found.get("adopted", 0)

    async def _open_rows(self, after: str, *, older: bool = False) -> str | None:
        """Compare one page of open rows; where the next one begins, None after the last."""
        await self._go_on()
        rows = await self._store.open_page(after, self._page)
        by_queue: dict[str, list[OpenRow]] = defaultdict(list)
        for row in rows:
            by_queue[row.queue].append(row)
        for queue, page in by_queue.items():
            await self._compare(self._index.shard(queue), page, older=older)
        return rows[-1].id if len(rows) == self._page else None

    async def _compare(self, shard: Shard, rows: Sequence[OpenRow], *, older: bool) -> None:
        known = await shard.known([row.id for row in rows])
        missing = await self._missing([r for r, token in zip(rows, known, strict=True) if token is None])
        running = [row for row in missing if row.status == "running"]
        push = [(r.id, r.priority, max(r.due_in_ms, 0)) for r in missing if r.status != "running"]
        late = [
            row
            for row, token in zip(rows, known, strict=True)
            if token is not None and self._overdue(row, older=older)
        ]
        if push:
            self._repaired("pushed", await failpoints.through("reconcile.push", shard.push(push)))
        if running:
            late += await self._adopt(shard, running)
        if late:
            nudge = shard.nudge([(row.id, row.priority) for row in late])
            self._repaired("nudged", await failpoints.through("reconcile.nudge", nudge))

    async def _adopt(self, shard: Shard, rows: Sequence[OpenRow]) -> list[OpenRow]:
        """Put running tasks under their leases; those that have gone on since the page was read.

        Their settle found nothing in Redis to acknowledge, and what has been adopted now would stay until the
        lease's end: the reaper should look at it at once.
        """
        entries = [(row.id, row.priority, row.token, max(row.lease_ms, 0)) for row in rows]
        self._repaired("adopted", await failpoints.through("reconcile.adopt", shard.adopt(entries)))
        still = {row.id for row in await self._store.unchanged(rows)}
        return [row for row in rows if row.id not in still]

    async def _missing(self, rows: Sequence[OpenRow]) -> Sequence[OpenRow]:
        """Rows that Redis lacks, without those that only seemed so because they moved on between two looks.

        Adding one of these would do no harm: the claim or the reaper would find it stale. A sweep therefore
        spares itself the second look.
        """
        return await self._store.unchanged(rows, min_age_ms=_GRACE_MS) if self._second_look else rows

    def _overdue(self, row: OpenRow, *, older: bool) -> bool:
        """Redis knows the id and still nothing has happened to it for two intervals.

        Also of one that Redis has under a lease: the news that its run has ended may never have come there.
        """
        late_ms = -2 * self._interval_ms
        if row.status == "running":
            return row.lease_ms < late_ms
        # A queued row may well wait in its list; only the page of older rows pays for a second look at those.
        return row.due_in_ms < late_ms and (older or row.status == "retrying")

    async def _dead_rows(self, after: str) -> str | None:
        await self._go_on()
        rows = await self._store.dead_page(after, self._page)
        by_queue: dict[str, list[tuple[str, Priority, int]]] = defaultdict(list)
        for id_, queue, priority, age_ms in rows:
            by_queue[queue].append((id_, priority, age_ms))
        for queue, entries in by_queue.items():
            add = self._index.shard(queue).dlq_add(entries)
            self._repaired("dlq_added", await failpoints.through("reconcile.dlq_add", add))
        return rows[-1][0] if len(rows) == self._page else None

    async def _dlq_entries(self, queue: str, priority: Priority, start: int) -> int | None:
        await self._go_on()
        shard = self._index.shard(queue)
        ids = await shard.dlq_page(priority, start, self._page)
        if not ids:
            return None
        dead = await self._store.still_dead(ids)
        gone: list[tuple[str, Priority]] = [(id_, priority) for id_ in ids if id_ not in dead]
        if gone:
            removed = await failpoints.through("reconcile.dlq_del", shard.dlq_del(gone))
            self._repaired("dlq_removed", removed)
        return start + len(ids) - len(gone) if len(ids) == self._page else None

    def _repaired(self, kind: str, n: int) -> None:
        if n:
            self._found[kind] += n
            self._metrics.repairs.labels(kind).inc(n)
