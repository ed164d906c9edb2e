"""Reaper: settles leases that have run out as lost, and brings their ids to where the rows say."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from scheduler import failpoints, log
from scheduler.errors import StoreBusy, StoreError, StoreUnavailable
from scheduler.metrics import Metrics
from scheduler.model import Move, Reaped
from scheduler.queue import Index, Shard
from scheduler.store import Store

_PUT_OFF_MS: Final = 60_000
"""When a lease that Postgres does not let us reap is looked at again. Reconcile may see to it earlier."""
_LOCKED_MS: Final = 5_000
"""The same of one whose row somebody else has locked, perhaps only for a moment."""


class Reaper:
    """Any number may run. An entry in Redis only says when to look; the row decides."""

    def __init__(
        self,
        store: Store,
        index: Index,
        metrics: Metrics,
        queues: Sequence[str],
        *,
        batch: int,
        max_losses: int,
    ) -> None:
        self._store = store
        self._index = index
        self._metrics = metrics
        self._queues = queues
        self._batch = batch
        self._max_losses = max_losses
        self._log = log.get("reaper")

    async def step(self) -> bool:
        """Reap one page per queue; True if a full page suggests that more have run out."""
        full = False
        for queue in self._queues:
            shard = self._index.shard(queue)
            expired = await failpoints.through("reap.expired", shard.expired(self._batch))
            if expired:
                await self._reap(shard, expired)
                full = full or len(expired) >= self._batch
        return full

    async def _reap(self, shard: Shard, expired: Sequence[tuple[str, str]]) -> None:
        ids = [id_ for id_, _ in expired]
        try:
            reap = self._store.reap(ids, max_losses=self._max_losses)
            reaped = await failpoints.through("reap.commit", reap)
        except StoreBusy as error:
            locked = await self._store.locked(ids)
            if not locked:
                raise
            await self._put_off(shard, [one for one in expired if one[0] in locked], error, _LOCKED_MS)
            if others := [one for one in expired if one[0] not in locked]:
                await self._reap(shard, others)
            return
        except StoreUnavailable:
            raise
        except StoreError as error:
            await self._reap_halves(shard, expired, error)
            return
        self._count(reaped)
        tokens = dict(expired)
        moves = [Move(r.id, tokens[r.id], r.where, r.priority, r.delay_ms, r.token) for r in reaped]
        await failpoints.through("reap.place", shard.place(moves))

    async def _reap_halves(self, shard: Shard, expired: Sequence[tuple[str, str]], error: StoreError) -> None:
        """Find the one row that is refused, and put it off: the page must not fail for ever."""
        if len(expired) > 1:
            middle = len(expired) // 2
            await self._reap(shard, expired[:middle])
            await self._reap(shard, expired[middle:])
            return
        await self._put_off(shard, expired, error, _PUT_OFF_MS)

    async def _put_off(
        self, shard: Shard, leases: Sequence[tuple[str, str]], error: StoreError, after_ms: int
    ) -> None:
        tasks = [id_ for id_, _ in leases]
        self._log.error("leases cannot be reaped; put off", tasks=tasks, error=str(error))
        moves = [Move(id_, token, "held", delay_ms=after_ms, new_token=token) for id_, token in leases]
        await failpoints.through("reap.put_off", shard.place(moves))

    def _count(self, reaped: Sequence[Reaped]) -> None:
        lost = [r for r in reaped if r.lost]
        self._metrics.reaped.inc(len(lost))
        for r in lost:
            if r.died:
                self._metrics.dead.labels(self._metrics.type_label(r.type), r.priority, "lost").inc()
        if lost:
            self._log.info("leases ran out", tasks=len(lost), dead=sum(r.died for r in lost))
