"""Retry pump: moves ids whose time has come from the retry sets to their lists."""

from __future__ import annotations

from collections.abc import Sequence

from scheduler import failpoints
from scheduler.queue import Index


class Pump:
    """Any number may run: each move is one script, and only what is due moves."""

    def __init__(self, index: Index, queues: Sequence[str], *, batch: int) -> None:
        self._index = index
        self._queues = queues
        self._batch = batch

    async def step(self) -> bool:
        """Move up to RETRY_BATCH_SIZE due ids per priority; True if a full page suggests more."""
        full = False
        for queue in self._queues:
            moved = await failpoints.through("pump.move", self._index.shard(queue).pump(self._batch))
            full = full or moved >= self._batch
        return full
