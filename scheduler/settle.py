"""Settle: decide what each result means, record it in Postgres, then tell Redis.

Results wait in one line for whichever of two flushers is free; it takes up to a batch, records it with one
statement and moves the ids with one script. A few results wait for the batch before them, if that will be
back soon: half as many statements cost half as much. Nothing is acknowledged before it is committed.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections import Counter, defaultdict, deque
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any, Final, Literal

from scheduler import clock, failpoints, lifecycle, log
from scheduler.backoff import Backoff
from scheduler.config import Settings
from scheduler.errors import QueueError, StoreBusy, StoreError, StoreUnavailable
from scheduler.handlers import Handler
from scheduler.held import Held
from scheduler.metrics import Metrics
from scheduler.model import Lease, Move, Result, Settlement, Where
from scheduler.queue import Index
from scheduler.store import Store

_FLUSHERS: Final = 2
_SMALL: Final = 100
"""Outcomes. Fewer are worth waiting for, while a batch is on its way."""
_YOUNG_S: Final = 0.1
"""How long it is worth it: a commit takes some tens of milliseconds on busy cores, but one that is stuck must
not stop the rest."""
_PAUSE_S: Final = 0.05
_LONGEST_PAUSE_S: Final = 1.0
_MOST_UNPLACED: Final = 100_000

_rng: Final = random.Random()
"""Spreads the retries."""


def decide(lease: Lease, result: Result, handler: Handler | None, settings: Settings) -> Settlement:
    """What a result makes of its task: the rules are lifecycle's, the wait before a retry is backoff's."""
    if result.kind == "succeeded":
        return Settlement(lease, "succeeded", "succeeded", wait_us=result.wait_us, run_us=result.run_us)
    base = Settlement(
        lease, "released", "queued", error=result.error, wait_us=result.wait_us, run_us=result.run_us
    )
    if result.kind == "interrupted":
        return replace(base, delay_ms=result.after_ms)
    if result.kind == "unknown_type":
        verdict = lifecycle.after_unknown_type(lease.refusals, settings.max_refusals)
        delay = settings.unknown_type_delay_ms if verdict.status == "queued" else 0
        return replace(base, status=verdict.status, reason=verdict.reason, delay_ms=delay, refused=True)
    if result.kind == "died":
        verdict = lifecycle.after_loss(lease.losses, settings.max_losses, in_company=False)
        return replace(base, outcome="lost", status=verdict.status, reason=verdict.reason)
    if result.kind == "rejected":
        verdict = lifecycle.after_rejection()
        return replace(base, outcome="failed", status=verdict.status, reason=verdict.reason)
    outcome: Literal["failed", "timed_out"] = "timed_out" if result.kind == "timed_out" else "failed"
    verdict = lifecycle.after_failure(lease.failures, lease.max_retries, outcome)
    if verdict.status == "retrying":
        wait = retry_policy(lease, handler, settings).delay_ms(lease.failures + 1, _rng)
        delay = result.after_ms if result.kind == "retry" else wait
        return replace(base, outcome=outcome, status="retrying", delay_ms=delay)
    return replace(base, outcome=outcome, status=verdict.status, reason=verdict.reason)


def retry_policy(lease: Lease, handler: Handler | None, settings: Settings) -> Backoff:
    """The task's own backoff over its handler's over the settings'; a task may name some fields only."""
    policy = handler.backoff if handler is not None and handler.backoff is not None else settings.backoff
    if not lease.backoff:
        return policy
    known: dict[str, Any] = {k: v for k, v in lease.backoff.items() if k in asdict(policy)}
    return replace(policy, **known)


def move(s: Settlement) -> Move:
    """Where Redis must put the id of a settled task: the destination is what its row says now."""
    where: Where
    if s.status == "dead":
        where = "dead"
    elif s.status == "retrying" or s.delay_ms:
        where = "retry"
    elif s.status == "queued":
        where = "tail" if s.outcome == "lost" else "head"
    else:
        return Move(s.lease.id, s.lease.token, "gone")  # whatever its priority: these move together
    return Move(s.lease.id, s.lease.token, where, s.lease.priority, s.delay_ms)


class Settler:
    """Records the results of one worker."""

    def __init__(
        self, store: Store, index: Index, settings: Settings, metrics: Metrics, *, worker: str, held: Held
    ) -> None:
        self._store = store
        self._index = index
        self._metrics = metrics
        self._worker = worker
        self._held = held
        self._batch = settings.settle_batch_size
        self._line: deque[Settlement] = deque()
        self._in_hand: dict[int, Sequence[Settlement]] = {}
        self._left_at: dict[int, float] = {}
        self._unplaced: deque[tuple[str, Move]] = deque(maxlen=_MOST_UNPLACED)
        self._aside: list[Settlement] = []
        self._again: asyncio.Task[None] | None = None
        self._arrived = asyncio.Event()
        self._flushers: list[asyncio.Task[None]] = []
        self._stopping = False
        self._log = log.get("settle")

    def start(self) -> None:
        """Start the flushers."""
        self._flushers = [
            asyncio.create_task(self._flush_loop(i), name=f"settle flusher {i}") for i in range(_FLUSHERS)
        ]

    async def stop(self) -> None:
        """Record what waits, then end."""
        self._stopping = True
        self._take_up(self._aside)
        if self._again is not None:
            self._again.cancel()
        await asyncio.gather(*self._flushers)
        await self._place([])

    def add(self, settlement: Settlement) -> None:
        """Put an outcome in line. Its lease is renewed as before, until the outcome is recorded."""
        settlement.lease.ended = True
        self._line.append(settlement)
        if not self._arrived.is_set():
            self._arrived.set()

    def outstanding(self) -> list[Settlement]:
        """Outcomes that are not known to be recorded. For the heartbeat's thread, when the loop is stuck."""
        in_hand = [s for batch in list(self._in_hand.values()) for s in batch]
        return [*in_hand, *list(self._line), *list(self._aside)]

    async def _flush_loop(self, flusher: int) -> None:
        while await self._more():
            batch = self._next_batch()
            self._in_hand[flusher] = batch
            if batch:
                self._left_at[flusher] = clock.monotonic()
            aside: set[str] = set()
            try:
                settled = await self._record(batch)
                aside = {s.lease.id for s in self._aside}
                await self._place(settled)
            except Exception as error:  # noqa: BLE001 - a defect must not end the flusher; the reaper has the rest
                self._log.error("settle failed", tasks=len(batch), exc_info=error)
            finally:
                self._in_hand.pop(flusher, None)
                self._left_at.pop(flusher, None)
                self._arrived.set()
                for settlement in batch:
                    if settlement.lease.id not in aside:
                        self._held.drop(settlement.lease)

    def _next_batch(self) -> list[Settlement]:
        """Outcomes from the line, no two of one task: the answer to a settle names tasks."""
        batch: dict[str, Settlement] = {}
        while self._line and len(batch) < self._batch and self._line[0].lease.id not in batch:
            settlement = self._line.popleft()
            batch[settlement.lease.id] = settlement
        return list(batch.values())

    async def _more(self) -> bool:
        """Wait for outcomes or, while Redis has not been told of some, for a while; False at the end."""
        while not self._line or self._patience() > 0:
            if self._stopping:
                return bool(self._line)
            self._arrived.clear()
            idle = _LONGEST_PAUSE_S if self._unplaced else None
            try:
                async with asyncio.timeout(self._patience() if self._line else idle):
                    await self._arrived.wait()
            except TimeoutError:
                break
        return True

    def _patience(self) -> float:
        """For how many seconds more what waits had better wait for a batch that will be back soon."""
        if not self._left_at or len(self._line) >= min(_SMALL, self._batch):
            return 0.0
        return max(self._left_at.values()) + _YOUNG_S - clock.monotonic()

    async def _record(self, batch: Sequence[Settlement]) -> list[Settlement]:
        """Commit a batch; those that stand. Outcomes whose lease ends before Postgres answers are let go.

        What has no answer may have been too much at once, so it is sent again in smaller parts. Outcomes
        whose rows somebody else has locked are put aside until these are free; a stop waits for them.
        """
        stand: list[Settlement] = []
        left, size, pause = list(batch), len(batch), _PAUSE_S
        last: list[Settlement] = []
        while left or last:
            if not left and not self._stopping:
                self._put_aside(last)
                break
            if not left:
                left, last = last, []
            part, rest = left[:size], left[size:]
            try:
                point = "release" if all(s.outcome == "released" for s in part) else "settle"
                settled = await failpoints.through(
                    f"{point}.commit", self._store.settle(part, worker=self._worker)
                )
            except StoreBusy as error:
                locked = await self._locked(part)
                last = self._still_leased([*last, *(s for s in part if s.lease.id in locked)], error)
                left = self._still_leased([*(s for s in part if s.lease.id not in locked), *rest], error)
            except StoreUnavailable as error:
                left, last = self._still_leased(left, error), self._still_leased(last, error)
                size = max(1, min(size, len(left)) // 2)
                await asyncio.sleep(pause)
                pause = min(2 * pause, _LONGEST_PAUSE_S)
            except StoreError as error:
                stand += await self._record_halves(part, error)
                left = rest
            else:
                self._count(part, settled)
                stand += [s for s in part if s.lease.id in settled]
                left, size, pause = rest, 2 * size, _PAUSE_S
        return stand

    def _put_aside(self, outcomes: Sequence[Settlement]) -> None:
        """Keep outcomes that nobody can record now, so that no batch waits for them."""
        self._aside.extend(outcomes)
        if self._again is None or self._again.done():
            self._again = asyncio.create_task(self._watch_aside(), name="settle aside")

    async def _watch_aside(self) -> None:
        while self._aside:
            await asyncio.sleep(_LONGEST_PAUSE_S)
            locked = await self._locked(self._aside)
            now = clock.monotonic()
            self._take_up([s for s in self._aside if s.lease.id not in locked or s.lease.expires <= now])

    def _take_up(self, outcomes: Sequence[Settlement]) -> None:
        """Put outcomes that were aside back in line."""
        self._line.extend(outcomes)
        taken = {s.lease.id for s in outcomes}
        self._aside = [s for s in self._aside if s.lease.id not in taken]
        self._arrived.set()

    async def _locked(self, batch: Sequence[Settlement]) -> set[str]:
        with contextlib.suppress(StoreError):
            return await self._store.locked([s.lease.id for s in batch])
        return set()

    def _still_leased(self, batch: Sequence[Settlement], error: StoreUnavailable) -> list[Settlement]:
        now = clock.monotonic()
        kept = [s for s in batch if s.lease.expires > now]
        if len(kept) < len(batch):
            self._log.warning(
                "outcomes given up at their leases' end", tasks=len(batch) - len(kept), error=str(error)
            )
        return kept

    async def _record_halves(self, batch: Sequence[Settlement], error: StoreError) -> list[Settlement]:
        """Find the one outcome that is refused: record it without its text, or leave it to the reaper."""
        if len(batch) > 1:
            middle = len(batch) // 2
            return [*await self._record(batch[:middle]), *await self._record(batch[middle:])]
        (culprit,) = batch
        if culprit.error is None:
            self._log.error("an outcome cannot be recorded", task=culprit.lease.id, error=str(error))
            return []
        self._log.warning("an outcome is recorded without its text", task=culprit.lease.id, error=str(error))
        return await self._record([replace(culprit, error=None)])

    def _count(self, batch: Sequence[Settlement], settled: set[str]) -> None:
        m = self._metrics
        stand = [s for s in batch if s.lease.id in settled]
        m.fenced.inc(len(batch) - len(stand))
        groups = Counter((s.lease.type, s.lease.priority, s.outcome, s.status, s.reason) for s in stand)
        for (type_, priority, outcome, status, reason), n in groups.items():
            label = m.type_label(type_)
            if outcome == "succeeded":
                m.succeeded.labels(label, priority).inc(n)
            elif outcome in {"failed", "timed_out"}:
                m.failed.labels(label, priority).inc(n)
            elif outcome == "lost":
                m.reaped.inc(n)
            else:
                m.released.inc(n)
            if status == "retrying":
                m.retried.inc(n)
            elif status == "dead":
                m.dead.labels(label, priority, reason).inc(n)
        seconds: dict[str, list[float]] = defaultdict(list)
        for s in stand:
            if s.run_us is not None:
                seconds[s.lease.type].append(s.run_us / 1e6)
        for type_, values in seconds.items():
            observe = m.run_seconds.labels(m.type_label(type_)).observe
            for value in values:
                observe(value)

    async def _place(self, settled: Sequence[Settlement]) -> None:
        """Tell Redis, also what it could not be told before; the guard is the lease's token."""
        moves = defaultdict(list)
        first = not self._unplaced
        while self._unplaced:
            queue, earlier = self._unplaced.popleft()
            moves[queue].append(earlier)
        for s in settled:
            moves[s.lease.queue].append(move(s))
        for queue, batch in moves.items():
            try:
                point = "release" if all(m.where == "head" for m in batch) else "settle"
                place = self._index.shard(queue).place(batch)
                self._metrics.acks.inc(await failpoints.through(f"{point}.place", place))
            except QueueError as error:
                if first:
                    self._log.warning("ids stay leased for now", tasks=len(batch), error=str(error))
                self._unplaced.extend((queue, m) for m in batch)
