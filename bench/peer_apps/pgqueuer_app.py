"""PgQueuer, as a program: noops on one Postgres, each in one of a few modes.

    python pgqueuer_app.py install                # make its tables, logged ones: durability=durable
    python pgqueuer_app.py enqueue N              # in batches of 1,000, one INSERT each
    python pgqueuer_app.py work                   # one worker process, until SIGTERM

PEER_URL is the database, PEER_BATCH and PEER_CONCURRENT the worker's `batch_size` and `max_concurrent_tasks`,
which must be twice as much at least. uvloop and asyncpg, as its documentation advises for speed.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys

import asyncpg
import uvloop
from pgqueuer import PgQueuer
from pgqueuer.db import AsyncpgDriver
from pgqueuer.models import Job
from pgqueuer.queries import Queries

BULK = 1000


async def install() -> None:
    """Make the tables."""
    connection = await asyncpg.connect(os.environ["PEER_URL"])
    await Queries(AsyncpgDriver(connection)).install()
    await connection.close()


async def enqueue(n: int) -> None:
    """Add n noops."""
    connection = await asyncpg.connect(os.environ["PEER_URL"])
    queries = Queries(AsyncpgDriver(connection))
    for start in range(0, n, BULK):
        size = min(BULK, n - start)
        await queries.enqueue(["noop"] * size, [b"{}"] * size, [0] * size)
    await connection.close()


async def work() -> None:
    """Run noops until told to stop."""
    connection = await asyncpg.connect(os.environ["PEER_URL"])
    app = PgQueuer.from_asyncpg_connection(connection)

    @app.entrypoint("noop")
    async def noop(job: Job) -> None:
        pass

    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, app.shutdown.set)
    print("ready", flush=True)
    await app.qm.run(
        batch_size=int(os.environ["PEER_BATCH"]), max_concurrent_tasks=int(os.environ["PEER_CONCURRENT"])
    )


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["install"]:
            uvloop.run(install())
        case ["enqueue", n]:
            uvloop.run(enqueue(int(n)))
        case ["work"]:
            uvloop.run(work())
        case _:
            sys.exit(__doc__)
