"""Parking: tasks in a queue that no worker serves, to load the way in alone, and their removal."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from bench.delivery import BULK, TASKS
from bench.hammer import Request
from bench.index import connected
from bench.system import System
from bench.workload import PRIORITIES

QUEUE: Final = "parked"


def noops(batch: int) -> Request:
    """A request that parks so many noops, of all priorities in turn; without idempotency keys."""
    bodies = [{"type": "noop", "queue": QUEUE, "priority": PRIORITIES[i % 4]} for i in range(batch)]
    path, content = (TASKS, bodies[0]) if batch == 1 else (BULK, {"tasks": bodies})
    return Request(path, json.dumps(content).encode())


def parked(me: System) -> int:
    """How many tasks are parked, by Postgres."""
    return int(str(me.query("SELECT count(*) FROM tasks WHERE queue = %(queue)s", {"queue": QUEUE})[0][0]))


@contextmanager
def emptied(me: System) -> Iterator[None]:
    """Begin with empty tables that are on disk, and leave none of the parked tasks behind.

    No fleet may run: its tasks would go, too.
    """
    empty(me)
    try:
        yield
    finally:
        empty(me)


def empty(me: System) -> None:
    """Remove all tasks, parked or ended, and what Redis holds of the parked ones."""
    me.statement("TRUNCATE tasks, task_runs, idempotency_keys")
    me.statement("CHECKPOINT")
    with connected(me.redis_url) as client:
        for key in client.scan_iter(f"{me.settings.redis_prefix}:{{{QUEUE}.*}}:*", count=1000):
            client.unlink(key)
