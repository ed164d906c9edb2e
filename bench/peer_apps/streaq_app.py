"""streaQ, as a program: one worker object with uvloop, results not kept.

    streaq run streaq_app:worker        # one worker process, until SIGTERM

PEER_SLOTS is `concurrency` and `prefetch`, PEER_LEASE_S `idle_timeout`: after so many seconds without a sign
of life a task is run elsewhere.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import program
from streaq import Worker


@asynccontextmanager
async def life() -> AsyncIterator[None]:
    """That of the worker, which says that it serves."""
    program.ready()
    yield


worker = Worker(
    redis_url=os.environ["PEER_URL"],
    concurrency=int(os.environ.get("PEER_SLOTS", "12")),
    idle_timeout=float(os.environ.get("PEER_LEASE_S", "60")),
    anyio_kwargs={"use_uvloop": True},
    lifespan=life,
)


@worker.task(ttl=0, silent=True)
async def noop() -> None:
    """Do nothing."""


@worker.task(ttl=0, silent=True)
async def work(place: int, due: float, ms: int) -> None:
    """The work."""
    await program.work_async(place, due, ms)


async def burst(n: int) -> None:
    """In pipelines."""
    for start in range(0, n, program.BULK):
        await worker.enqueue_many([noop.enqueue() for _ in range(min(program.BULK, n - start))])


async def send(place: int, due: float, ms: int) -> None:
    """One task."""
    await work.enqueue(place, due, ms)


@asynccontextmanager
async def client() -> AsyncIterator[tuple[program.Burst, program.Send]]:
    """Its own calls."""
    async with worker:
        yield burst, send


if __name__ == "__main__":
    program.main(client)
