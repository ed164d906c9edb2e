"""Procrastinate, as a program: its psycopg connector, jobs kept, as is its default.

    python procrastinate_app.py serve   # one worker process, until SIGTERM

PEER_SLOTS is `concurrency`. With PEER_LEASE_S a worker without a heartbeat for so many seconds is taken for
dead, and the periodic task that its documentation gives for that tries its jobs again every five seconds.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import program
from procrastinate import App, JobContext, PsycopgConnector

LEASE_S = float(os.environ.get("PEER_LEASE_S", "0"))

app = App(connector=PsycopgConnector(conninfo=os.environ["PEER_URL"]))


@app.task
async def noop() -> None:
    """Do nothing."""


@app.task
async def work(place: int, due: float, ms: int) -> None:
    """The work."""
    await program.work_async(place, due, ms)


if LEASE_S:

    @app.periodic(cron="* * * * * */5")
    @app.task(queueing_lock="retry_stalled_jobs", pass_context=True)
    async def retry_stalled_jobs(context: JobContext, timestamp: int) -> None:  # noqa: ARG001 - it is given
        """Try again what dead workers held."""
        manager = context.app.job_manager
        for job in await manager.get_stalled_jobs(seconds_since_heartbeat=LEASE_S):
            await manager.retry_job(job)


async def install() -> None:
    """Make the tables."""
    async with app.open_async():
        await app.schema_manager.apply_schema_async()


async def serve() -> None:
    """Run jobs until told to stop."""
    watch: dict[str, Any] = {}
    if LEASE_S:
        watch = {"update_heartbeat_interval": 1, "stalled_worker_timeout": LEASE_S}
    async with app.open_async():
        program.ready()
        await app.run_worker_async(concurrency=int(os.environ.get("PEER_SLOTS", "12")), **watch)


async def burst(n: int) -> None:
    """Many a statement."""
    for start in range(0, n, program.BULK):
        await noop.batch_defer_async(*[{} for _ in range(min(program.BULK, n - start))])


async def send(place: int, due: float, ms: int) -> None:
    """One job."""
    await work.defer_async(place=place, due=due, ms=ms)


@asynccontextmanager
async def client() -> AsyncIterator[tuple[program.Burst, program.Send]]:
    """Its own calls."""
    async with app.open_async():
        yield burst, send


if __name__ == "__main__":
    program.main(client, install=install, serve=serve)
