"""Sampler: keeps the gauges current, from Redis, whose counters know the depths without counting."""

from __future__ import annotations

from scheduler import clock
from scheduler.metrics import Metrics
from scheduler.model import Depths
from scheduler.queue import Index
from scheduler.store import Store

_FORGET_QUEUES_S = 5.0


class Sampler:
    """Shows the whole system in every process's gauges."""

    def __init__(self, store: Store, index: Index, metrics: Metrics) -> None:
        self._store = store
        self._index = index
        self._metrics = metrics
        self._queues: list[str] = []
        self._read = 0.0

    async def step(self) -> None:
        """Read the depths of every queue once."""
        now = clock.monotonic()
        try:
            if not self._queues or now - self._read > _FORGET_QUEUES_S:
                self._queues, self._read = await self._store.queues(), now
        finally:  # while Postgres is away the gauges of the known queues stay current
            depths = Depths()
            for queue in self._queues:
                depths += await self._index.shard(queue).depths()
            self._metrics.show(depths)
