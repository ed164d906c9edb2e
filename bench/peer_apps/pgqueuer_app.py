"""PgQueuer, as a program: asyncpg and uvloop, as its documentation advises for speed.

    python pgqueuer_app.py serve        # one worker process, until SIGTERM

PEER_BATCH and PEER_CONCURRENT are its `batch_size` and `max_concurrent_tasks`, which must be twice as much at
least. Its tables are logged ones: durability=durable. With PEER_LEASE_S a job without a heartbeat for so many
seconds is taken up again, and an idle worker looks as often.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any

import asyncpg
import program
import uvloop
from pgqueuer import PgQueuer
from pgqueuer.db import AsyncpgDriver
from pgqueuer.models import Job
from pgqueuer.queries import Queries

WATCH: dict[str, Any] = {}
if lease := os.environ.get("PEER_LEASE_S"):
    WATCH = {name: timedelta(seconds=float(lease)) for name in ("heartbeat_timeout", "dequeue_timeout")}


@asynccontextmanager
async def queries() -> AsyncIterator[Queries]:
    """Its own client."""
    connection = await asyncpg.connect(os.environ["PEER_URL"])
    yield Queries(AsyncpgDriver(connection))
    await connection.close()


async def install() -> None:
    """Make the tables."""
    async with queries() as client:
        await client.install()


@asynccontextmanager
async def client() -> AsyncIterator[tuple[program.Burst, program.Send]]:
    """Its own calls; many jobs are one INSERT."""
    async with queries() as client:

        async def burst(n: int) -> None:
            for start in range(0, n, program.BULK):
                size = min(program.BULK, n - start)
                await client.enqueue(["noop"] * size, [b"{}"] * size, [0] * size)

        async def send(place: int, due: float, ms: int) -> None:
            await client.enqueue("work", json.dumps([place, due, ms]).encode())

        yield burst, send


async def serve() -> None:
    """Run jobs until told to stop."""
    connection = await asyncpg.connect(os.environ["PEER_URL"])
    app = PgQueuer.from_asyncpg_connection(connection)

    @app.entrypoint("noop")
    async def noop(job: Job) -> None:
        pass

    @app.entrypoint("work")
    async def work(job: Job) -> None:
        await program.work_async(*json.loads(job.payload))

    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, app.shutdown.set)
    program.ready()
    batch, concurrent = (int(os.environ[name]) for name in ("PEER_BATCH", "PEER_CONCURRENT"))
    await app.qm.run(batch_size=batch, max_concurrent_tasks=concurrent, **WATCH)


if __name__ == "__main__":
    asyncio.set_event_loop_policy(uvloop.EventLoopPolicy())
    program.main(client, install=install, serve=serve)
