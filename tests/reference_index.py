"""All shards of one Redis without a server, and what may happen to its memory."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from itertools import count

from reference import Contents, Reference

from scheduler.model import PRIORITIES

KEYS = (
    "leases",
    "live",
    "credit",
    "epoch",
    *(f"{kind}:{p}" for kind in ("q", "retry", "dlq") for p in PRIORITIES),
)


class ReferenceIndex:
    """Has the interface of `scheduler.queue.Index` as far as flow and loops use it, but for `wait`."""

    def __init__(self, now_ms: Callable[[], int]) -> None:
        self._now_ms = now_ms
        self._starts = count(1)
        self._run = f"run-{next(self._starts)}"
        self.shards: dict[str, Reference] = {}

    def shard(self, queue: str) -> Reference:
        if queue not in self.shards:
            self.shards[queue] = Reference(self._now_ms)
        return self.shards[queue]

    async def run_id(self) -> str:
        return self._run

    def flush(self) -> None:
        """Forget everything."""
        for shard in self.shards.values():
            shard.held = Contents()

    def copy(self) -> dict[str, Contents]:
        """All contents as they are now."""
        return {queue: deepcopy(shard.held) for queue, shard in self.shards.items()}

    def restart(self, contents: dict[str, Contents]) -> None:
        """Come back as another server, with these contents."""
        self._run = f"run-{next(self._starts)}"
        for queue, shard in self.shards.items():
            shard.held = deepcopy(contents.get(queue, Contents()))

    def evict(self, queue: str, name: str) -> None:
        """Lose one key of a shard, one of KEYS."""
        held, empty = self.shard(queue).held, Contents()
        kind, _, priority = name.partition(":")
        if priority:
            getattr(held, kind)[priority] = getattr(empty, kind)[priority]
        else:
            setattr(held, kind, getattr(empty, kind))
