"""taskiq, as a program: the stream broker of taskiq-redis, and no result backend.

    taskiq worker --workers 1 --no-parse taskiq_app:broker        # one worker process, until SIGTERM

PEER_LEASE_S is `idle_timeout`: how long a message may be unacknowledged before another worker takes it.
PEER_READ is `xread_count`, how many messages are read at once.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import program
from taskiq import TaskiqEvents
from taskiq_redis import RedisStreamBroker

AT_ONCE = 32
LEASE_S = float(os.environ.get("PEER_LEASE_S", "600"))

broker = RedisStreamBroker(
    os.environ["PEER_URL"],
    consumer_id="0",  # what was sent before the first worker came is seen, too
    idle_timeout=round(LEASE_S * 1000),
    unacknowledged_lock_timeout=LEASE_S,
    xread_count=int(os.environ.get("PEER_READ", "100")),
)


@broker.task(task_name="noop")
async def noop() -> None:
    """Do nothing."""


@broker.task(task_name="work")
async def work(place: int, due: float, ms: int) -> None:
    """The work."""
    await program.work_async(place, due, ms)


@broker.on_event(TaskiqEvents.WORKER_STARTUP)
async def up(_: object) -> None:
    """Say that it serves."""
    program.ready()


async def burst(n: int) -> None:
    """Some are under way at a time: it has no call for many."""
    for start in range(0, n, AT_ONCE):
        await asyncio.gather(*(noop.kiq() for _ in range(min(AT_ONCE, n - start))))


@asynccontextmanager
async def client() -> AsyncIterator[tuple[program.Burst, program.Send]]:
    """Its own calls."""
    await broker.startup()
    yield burst, work.kiq
    await broker.shutdown()


if __name__ == "__main__":
    program.main(client)
