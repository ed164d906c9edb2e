"""arq, as a program: one queue, results not kept.

    arq arq_app.WorkerSettings          # one worker process, until SIGTERM

PEER_SLOTS is `max_jobs`, PEER_READ `queue_read_limit`, PEER_POLL_S `poll_delay`. A job may take PEER_LEASE_S
(`job_timeout`); what a dead worker held is taken up ten seconds after that.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import program
from arq import create_pool
from arq.connections import RedisSettings

AT_ONCE = 32
SETTINGS = RedisSettings.from_dsn(os.environ["PEER_URL"])


async def noop(_: Any) -> None:
    """Do nothing."""


async def work(_: Any, place: int, due: float, ms: int) -> None:
    """The work."""
    await program.work_async(place, due, ms)


async def up(_: Any) -> None:
    """Say that it serves."""
    program.ready()


class WorkerSettings:
    """What `arq` reads."""

    functions = (noop, work)
    redis_settings = SETTINGS
    on_startup = up
    max_jobs = int(os.environ.get("PEER_SLOTS", "12"))
    queue_read_limit = int(os.environ.get("PEER_READ", "100"))
    poll_delay = float(os.environ.get("PEER_POLL_S", "0.5"))
    job_timeout = float(os.environ.get("PEER_LEASE_S", "300"))
    keep_result = 0


@asynccontextmanager
async def client() -> AsyncIterator[tuple[program.Burst, program.Send]]:
    """A pool; it has no call for many, so some are under way at a time."""
    pool = await create_pool(SETTINGS)

    async def burst(n: int) -> None:
        for start in range(0, n, AT_ONCE):
            many = range(min(AT_ONCE, n - start))
            await asyncio.gather(*(pool.enqueue_job("noop") for _ in many))

    async def send(place: int, due: float, ms: int) -> None:
        await pool.enqueue_job("work", place, due, ms)

    yield burst, send
    await pool.aclose()


if __name__ == "__main__":
    program.main(client)
