"""RQ, as a program: one queue, results not kept.

    rq worker -q -w rq_app.Worker --url redis://...       # one worker process, one task at a time

Its `SimpleWorker`, which runs jobs in the worker's own process, is told about its start. With PEER_LEASE_S
jobs have a timeout of so many seconds, after which, and a minute more, an abandoned one is tried again.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import program
from redis import Redis
from rq import Queue, Retry, SimpleWorker

OPTIONS: dict[str, Any] = {"result_ttl": 0}
if lease := os.environ.get("PEER_LEASE_S"):
    OPTIONS |= {"retry": Retry(max=3), "job_timeout": int(lease)}


class Worker(SimpleWorker):
    """Says when it serves."""

    def bootstrap(self, *args: Any, **options: Any) -> None:
        """Begin."""
        super().bootstrap(*args, **options)
        program.ready()


def noop() -> None:
    """Do nothing."""


def work(place: int, due: float, ms: int) -> None:
    """The work."""
    program.work(place, due, ms)


@asynccontextmanager
async def client() -> AsyncIterator[tuple[program.Burst, program.Send]]:
    """A queue; many jobs are added in pipelines."""
    queue = Queue(connection=Redis.from_url(os.environ["PEER_URL"]))

    def burst(n: int) -> None:
        for start in range(0, n, program.BULK):
            many = range(min(program.BULK, n - start))
            queue.enqueue_many([Queue.prepare_data("rq_app.noop", result_ttl=0) for _ in many])

    def send(place: int, due: float, ms: int) -> None:
        queue.enqueue("rq_app.work", place, due, ms, **OPTIONS)

    yield burst, send


if __name__ == "__main__":
    program.main(client)
