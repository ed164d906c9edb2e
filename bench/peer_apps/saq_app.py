"""SAQ, as a program: its Redis queue, results not kept.

    saq saq_app.settings                # one worker process, until SIGTERM

PEER_SLOTS is `concurrency`. With PEER_LEASE_S a job may take so many seconds (`timeout`) and is tried again,
and what is overdue is swept up as often.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import program
from saq import Queue

AT_ONCE = 32
OPTIONS: dict[str, Any] = {"ttl": -1}
TIMERS: dict[str, int] = {}
if lease := os.environ.get("PEER_LEASE_S"):
    OPTIONS |= {"retries": 5, "timeout": int(lease)}
    TIMERS |= {"sweep": int(lease)}

queue = Queue.from_url(os.environ["PEER_URL"])


async def noop(_: Any) -> None:
    """Do nothing."""


async def work(_: Any, *, place: int, due: float, ms: int) -> None:
    """The work."""
    await program.work_async(place, due, ms)


async def up(_: Any) -> None:
    """Say that it serves."""
    program.ready()


settings = {
    "queue": queue,
    "functions": [noop, work],
    "concurrency": int(os.environ.get("PEER_SLOTS", "12")),
    "timers": TIMERS,
    "startup": up,
}


@asynccontextmanager
async def client() -> AsyncIterator[tuple[program.Burst, program.Send]]:
    """The queue. Its call for many waits until they are done, so some are under way at a time instead."""
    await queue.connect()

    async def burst(n: int) -> None:
        for start in range(0, n, AT_ONCE):
            many = range(min(AT_ONCE, n - start))
            await asyncio.gather(*(queue.enqueue("noop", ttl=-1) for _ in many))

    async def send(place: int, due: float, ms: int) -> None:
        await queue.enqueue("work", place=place, due=due, ms=ms, **OPTIONS)

    yield burst, send
    await queue.disconnect()


if __name__ == "__main__":
    program.main(client)
