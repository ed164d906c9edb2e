"""Dead letters: give them a new life, or take them off the queue for good.

Postgres decides and records; Redis follows. A page that Postgres has committed and Redis could not be told
about is put right by reconcile. Both work on what was dead when they began; what dies meanwhile stays.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Final

from scheduler import failpoints, log
from scheduler.errors import QueueError
from scheduler.model import Priority
from scheduler.queue import Index
from scheduler.store import Filter, Store

_PAGE: Final = 500


async def redrive(store: Store, index: Index, which: Filter, progress: Callable[[int], None]) -> int:
    """Queue every dead letter that fits `which` again; how many. `progress` is told the count so far."""
    total, until = 0, await store.now()
    while rows := await failpoints.through("redrive.commit", store.redrive(which, until=until, page=_PAGE)):
        for queue, entries in _by_queue(rows).items():
            try:
                push = index.shard(queue).push([(id_, priority, 0) for id_, priority in entries])
                await failpoints.through("redrive.push", push)
            except QueueError as error:
                log.get("dlq").warning("redriven in Postgres; reconcile will push", error=str(error))
        total += len(rows)
        progress(total)
    return total


async def purge(store: Store, index: Index, which: Filter, progress: Callable[[int], None]) -> int:
    """Take every dead letter that fits `which` off the queue; how many. The tasks stay dead, as history."""
    total, until = 0, await store.now()
    while rows := await failpoints.through("purge.commit", store.purge(which, until=until, page=_PAGE)):
        for queue, entries in _by_queue(rows).items():
            try:
                await failpoints.through("purge.remove", index.shard(queue).dlq_del(entries))
            except QueueError as error:
                log.get("dlq").warning("purged in Postgres; reconcile will follow", error=str(error))
        total += len(rows)
        progress(total)
    return total


def _by_queue(rows: Sequence[tuple[str, str, Priority]]) -> dict[str, list[tuple[str, Priority]]]:
    queues: dict[str, list[tuple[str, Priority]]] = defaultdict(list)
    for id_, queue, priority in rows:
        queues[queue].append((id_, priority))
    return queues
