"""Enqueue: commit new tasks in groups, then push their ids.

Group commit: two flushers share one line of waiting units; one that is free takes everything that waits, up
to a batch. When idle a single request is committed at once. Under load the groups grow by themselves, because
what waits does not leave while a small group is in flight, and then leaves together: fewer commits, less work
for each task. A large group, or one that takes long, holds nobody up.

A unit is what one request brought: it is never split, so a bulk request is one transaction.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict, deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from scheduler import clock, failpoints, log
from scheduler.config import Settings
from scheduler.errors import InputRefused, Overloaded, QueueError, StoreError, StoreUnavailable
from scheduler.metrics import Metrics
from scheduler.model import Accepted, NewTask, Priority
from scheduler.queue import Index
from scheduler.store import Store

_FLUSHERS: Final = 2
_SMALL: Final = 100
"""Tasks. A group of fewer is worth waiting for."""
_LARGEST_GROUP: Final = 8 * 1024 * 1024
"""Characters of payloads in one statement, unless one request brings more: it has STORE_TIMEOUT_MS."""
_YOUNG_S: Final = 0.02
"""How long it is worth it: a commit takes some milliseconds, and one that is stuck must not stop the rest."""
_RETRY_PAUSE_S: Final = 0.05
_LONGEST_PUSH_PAUSE_S: Final = 1.0
_PUSH_PATIENCE_S: Final = 0.5
"""How long a request that is committed may wait for a silent Redis, whose answer it does not need."""


@dataclass(slots=True, eq=False)
class _Unit:
    tasks: Sequence[NewTask]
    answer: asyncio.Future[list[Accepted]]
    deadline: float
    size: int
    """Characters of its payloads."""


class Enqueuer:
    """The way in. One per API process."""

    def __init__(self, store: Store, index: Index, settings: Settings, metrics: Metrics) -> None:
        self._store = store
        self._index = index
        self._metrics = metrics
        self._batch = settings.enqueue_batch_size
        self._max_waiting = settings.enqueue_max_waiting
        self._timeout_s = settings.enqueue_timeout_ms / 1000
        self._line: deque[_Unit] = deque()
        self._waiting = 0
        self._in_flight = 0
        self._left_at = 0.0
        self._arrived = asyncio.Event()
        self._flushers: list[asyncio.Task[None]] = []
        self._stopping = False
        self._log = log.get("enqueue")
        self._push_again_at = 0.0
        self._push_pause_s = 0.0

    def start(self) -> None:
        """Start the flushers."""
        self._flushers = [
            asyncio.create_task(self._flush_loop(), name=f"enqueue flusher {i}") for i in range(_FLUSHERS)
        ]

    async def stop(self) -> None:
        """Commit what waits, then end."""
        self._stopping = True
        self._arrived.set()
        await asyncio.gather(*self._flushers)

    def check_room(self, n: int = 1) -> None:
        """See that `n` tasks would be let in now: whoever would be refused need not be read and checked.

        Raises:
            Overloaded: as `submit`.
        """
        if self._stopping:
            raise Overloaded("this process is stopping")
        if self._waiting + n > self._max_waiting and self._waiting > 0:
            raise Overloaded(f"{self._waiting} tasks wait for their commit already")

    async def submit(self, tasks: Sequence[NewTask]) -> list[Accepted]:
        """Commit `tasks` in one transaction and push them; answer in their order.

        Raises:
            Overloaded: ENQUEUE_MAX_WAITING tasks wait already, or the process stops; nothing was written.
            InputRefused: Postgres refused a value of this unit; nothing of it was written.
            StoreUnavailable: no commit within ENQUEUE_TIMEOUT_MS. Whether it was committed is unknown.
        """
        self.check_room(len(tasks))
        loop = asyncio.get_running_loop()
        size = sum(len(task.payload) for task in tasks)
        unit = _Unit(tasks, loop.create_future(), clock.monotonic() + self._timeout_s, size)
        self._line.append(unit)
        self._waiting += len(tasks)
        self._arrived.set()
        # Both flushers may be waiting for a silent Postgres, with earlier units.
        giving_up = loop.call_later(self._timeout_s, self._give_up, unit)
        try:
            return await unit.answer
        finally:
            giving_up.cancel()

    def _give_up(self, unit: _Unit) -> None:
        _fail([unit], StoreUnavailable(f"Postgres committed nothing for {self._timeout_s:g} s"))

    async def _flush_loop(self) -> None:
        while True:
            while not self._line or self._worth_waiting():
                if self._stopping and not self._line:
                    return
                self._arrived.clear()
                await self._arrived.wait()
            units = self._take()
            size = sum(len(unit.tasks) for unit in units)
            self._in_flight += size
            self._left_at = clock.monotonic()
            # A little later, because timers may be early by a millisecond.
            old = asyncio.get_running_loop().call_later(_YOUNG_S + 0.002, self._arrived.set)
            try:
                await self._commit(units)
            except Exception as error:  # noqa: BLE001 - a defect must answer its requests and not end the flusher
                _fail(units, StoreError("the commit failed; the server's log says why"))
                self._log.error("commit failed", exc_info=error)
            finally:
                old.cancel()
                self._in_flight -= size
                self._waiting -= size
                self._arrived.set()

    def _worth_waiting(self) -> bool:
        """Whether a small group is in flight that will be back soon: then what waits goes together."""
        return 0 < self._in_flight < _SMALL and clock.monotonic() - self._left_at < _YOUNG_S

    def _take(self) -> list[_Unit]:
        """Everything that waits, up to a batch and to what is sent in good time; at least one unit."""
        units = [self._line.popleft()]
        tasks, size = len(units[0].tasks), units[0].size
        while self._line:
            tasks += len(self._line[0].tasks)
            size += self._line[0].size
            if tasks > self._batch or size > _LARGEST_GROUP:
                break
            units.append(self._line.popleft())
        return units

    async def _commit(self, units: list[_Unit]) -> None:
        """Commit units in one statement; one whose values are refused is found by halving and fails alone."""
        units = [unit for unit in units if not unit.answer.done()]  # whoever gave up waiting wants no task
        if not units:
            return
        try:
            units, accepted = await self._insert(units)
        except InputRefused as error:
            if len(units) == 1:
                _fail(units, error)
            else:
                middle = len(units) // 2
                await self._commit(units[:middle])
                await self._commit(units[middle:])
            return
        except StoreError as error:
            _fail(units, error)
            return
        new = [a for a in accepted if a.result == "created"]
        self._metrics.enqueued.inc(len(new))
        await self._push(new)
        start = 0
        for unit in units:
            if not unit.answer.done():
                unit.answer.set_result(accepted[start : start + len(unit.tasks)])
            start += len(unit.tasks)

    async def _insert(self, units: list[_Unit]) -> tuple[list[_Unit], list[Accepted]]:
        """The statement, sent again while its answer is lost, for the units that still wait for it.

        Returns the units that it was sent for in the end, and what has become of their tasks.
        """
        while units:
            tasks = [task for unit in units for task in unit.tasks]
            try:
                return units, await failpoints.through("enqueue.commit", self._store.enqueue(tasks))
            except StoreUnavailable as error:
                again = clock.monotonic() + _RETRY_PAUSE_S
                _fail([unit for unit in units if unit.deadline < again], error)
                units = [unit for unit in units if not unit.answer.done()]
                if units:
                    await asyncio.sleep(_RETRY_PAUSE_S)
        return [], []

    async def _push(self, accepted: Sequence[Accepted]) -> None:
        """Push the ids. A push that fails costs nothing but time: reconcile pushes what Redis lacks."""
        if not accepted or clock.monotonic() < self._push_again_at:
            return
        by_queue: dict[str, list[tuple[str, Priority, int]]] = defaultdict(list)
        for a in accepted:
            by_queue[a.task.queue].append((a.task.id, a.task.priority, a.delay_ms))
        try:
            async with asyncio.timeout(_PUSH_PATIENCE_S):
                for queue, entries in by_queue.items():
                    await failpoints.through("enqueue.push", self._index.shard(queue).push(entries))
        except (QueueError, TimeoutError) as error:
            # While Redis is away no request should wait for it, so it is tried again at growing intervals.
            if not self._push_pause_s:
                self._log.warning("push failed; reconcile will push", error=str(error) or "no answer")
            self._push_pause_s = min(max(2 * self._push_pause_s, 0.05), _LONGEST_PUSH_PAUSE_S)
            self._push_again_at = clock.monotonic() + self._push_pause_s
        else:
            if self._push_pause_s:
                self._log.info("push works again")
            self._push_pause_s = 0.0


def _fail(units: Sequence[_Unit], error: Exception) -> None:
    for unit in units:
        if not unit.answer.done():
            unit.answer.set_exception(error)
