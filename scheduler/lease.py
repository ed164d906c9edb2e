"""Lease: take ids from Redis and claim their rows in Postgres.

The ids of one call carry one token, used for nothing else ever. What Postgres refuses goes where its row
says; what Postgres does not answer is asked again under the same token, which starts nothing twice, until
the lease would be over. It is never put back meanwhile: a late claim would then hold the row with nobody
running it.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence
from itertools import count
from typing import Final

from scheduler import clock, failpoints, log
from scheduler.config import Settings
from scheduler.errors import QueueError, StoreBusy, StoreError, StoreUnavailable
from scheduler.fairness import Policy
from scheduler.held import Claim, Held
from scheduler.metrics import Metrics
from scheduler.model import PRIORITIES, Lease, Move, Refusal
from scheduler.queue import Index, Shard
from scheduler.store import Store

_PAUSE_S: Final = 0.05
_LONGEST_PAUSE_S: Final = 1.0


def policy(settings: Settings) -> Policy:
    """The fair choice that the settings ask for."""
    return Policy(
        mode="strict" if settings.priority_mode == "strict" else "weighted",
        weights=tuple(settings.priority_weights[p] for p in PRIORITIES),
        max_wait_ms=settings.priority_max_wait_ms,
    )


class Lessor:
    """Leases tasks for one worker, from its queues in turn."""

    def __init__(
        self,
        store: Store,
        index: Index,
        settings: Settings,
        metrics: Metrics,
        *,
        worker: str,
        held: Held,
    ) -> None:
        self._store = store
        self._index = index
        self._metrics = metrics
        self._worker = worker
        self._held = held
        self._queues = list(settings.worker_queues)
        self._vis_ms = settings.vis_timeout_ms
        self._policy = policy(settings)
        self._token_base = worker.rpartition(":")[2]
        self._tokens = count(1)
        self._log = log.get("lease")
        self.polled: float | None = None
        """When the queue last answered, as a reading of clock.monotonic."""

    async def take(self, n: int, *, most: int | None = None) -> list[Lease]:
        """At most `n` claimed tasks, in the order of the fair choice; [] if nothing is ready.

        0 takes none and wakes another worker if there is work. A payload of more than `most` bytes does not
        come with its lease, which has None for it.

        Raises:
            QueueUnavailable: Redis could not be asked.
        """
        for _ in self._queues:
            queue = self._queues[0]
            self._queues.append(self._queues.pop(0))  # each queue comes first in turn
            shard = self._index.shard(queue)
            token = f"{self._token_base}:{next(self._tokens)}"
            ids = await failpoints.through("lease.pop", shard.lease(n, token, self._vis_ms, self._policy))
            self.polled = clock.monotonic()
            if ids:
                return await self._claim(shard, ids, token, most)
        return []

    async def _claim(self, shard: Shard, ids: Sequence[str], token: str, most: int | None) -> list[Lease]:
        now = clock.monotonic()
        claim = Claim(ids, token, sent=now, renewed=now)
        self._held.asked(claim)
        try:
            leases, refusals = await self._answer(claim, ids, most)
            for lease in leases:
                # Counted from before the claim was sent: by Postgres' clock the lease lasts at least as long.
                # If it was sent twice, the first time may have been the one: the heartbeat renews in time.
                lease.claimed, lease.renewed = claim.sent, claim.renewed
                lease.expires = max(claim.sent, claim.renewed) + self._vis_ms / 1000
            self._held.add(leases)
        finally:
            self._held.answered(claim)
        for priority, n in Counter(lease.priority for lease in leases).items():
            self._metrics.dequeued.labels(priority).inc(n)
        if refusals:
            await self._put_right(shard, refusals, token)
        return leases

    async def _answer(
        self, claim: Claim, ids: Sequence[str], most: int | None
    ) -> tuple[list[Lease], list[Refusal]]:
        over = claim.renewed + self._vis_ms / 1000
        pause, unclear = _PAUSE_S, False
        while True:
            try:
                return await failpoints.through(
                    "lease.claim",
                    self._store.claim(
                        ids, token=claim.token, worker=self._worker, vis_ms=self._vis_ms, most=most
                    ),
                )
            except StoreBusy as error:
                # Somebody else has locked rows: the others need not wait for them, and they are the reaper's.
                # But if an earlier try is still on its way, it is that which has locked them, for us.
                ids = ids if unclear else await self._unlocked(ids, error)
                claim.sent = clock.monotonic()
                if not ids or claim.sent >= over:
                    return [], []
            except StoreUnavailable as error:
                if claim.sent + pause >= over:
                    self._log.warning(
                        "claim given up at the lease's end", tasks=len(claim.ids), error=str(error)
                    )
                    return [], []
                await asyncio.sleep(pause)
                pause, unclear = min(2 * pause, _LONGEST_PAUSE_S), True
                claim.sent = clock.monotonic()

    async def _unlocked(self, ids: Sequence[str], error: StoreBusy) -> Sequence[str]:
        try:
            locked = await self._store.locked(ids)
        except StoreError:
            return ids  # it is more than rows that is locked, or Postgres is away: the claim finds out
        self._log.warning("tasks cannot be claimed", tasks=sorted(locked), error=str(error))
        return [id_ for id_ in ids if id_ not in locked]

    async def _put_right(self, shard: Shard, refusals: Sequence[Refusal], token: str) -> None:
        for reason, n in Counter(r.reason for r in refusals).items():
            self._metrics.refused.labels(reason).inc(n)
        moves = [
            Move(r.id, token, r.where, r.priority, r.delay_ms, r.token)
            for r in refusals
            if r.where is not None
        ]
        try:
            await failpoints.through("lease.place", shard.place(moves))
        except QueueError as error:
            self._log.warning("refused ids stay leased until the reaper finds them", error=str(error))
