"""Celery, as a program: its Redis transport, and no result backend.

    celery -A celery_app worker -P threads -c 12          # one worker, until SIGTERM

PEER_PREFETCH is `worker_prefetch_multiplier`. With PEER_LEASE_S tasks are acknowledged late, and what a dead
worker held is given back after so many seconds at the earliest (`visibility_timeout`).
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import program
from celery import Celery
from celery.signals import worker_ready

app = Celery("celery_app", broker=os.environ["PEER_URL"])
app.conf.update(
    task_ignore_result=True,
    worker_prefetch_multiplier=int(os.environ.get("PEER_PREFETCH", "4")),
    broker_connection_retry_on_startup=True,
)
if lease := os.environ.get("PEER_LEASE_S"):
    app.conf.update(
        task_acks_late=True,
        task_reject_on_worker_lost=True,
        broker_transport_options={
            "visibility_timeout": float(lease),
            "unacked_restore_interval": 1,
            "unacked_restore_throttle": 1,
        },
    )


@app.task
def noop() -> None:
    """Do nothing."""


@app.task
def work(place: int, due: float, ms: int) -> None:
    """The work."""
    program.work(place, due, ms)


@worker_ready.connect
def up(**_: object) -> None:
    """Say so."""
    program.ready()


def burst(n: int) -> None:
    """One by one: it has no call for many."""
    for _ in range(n):
        noop.delay()


@asynccontextmanager
async def client() -> AsyncIterator[tuple[program.Burst, program.Send]]:
    """Its own calls."""
    yield burst, work.delay


if __name__ == "__main__":
    program.main(client)
