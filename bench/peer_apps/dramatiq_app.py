"""Dramatiq, as a program: its own default middleware, and no result backend.

    dramatiq dramatiq_app -p 3 -t 12    # the workers, until SIGTERM

With PEER_LEASE_S a worker without a heartbeat for so many seconds is taken for dead (`heartbeat_timeout`),
and every tenth command looks for such (`maintenance_chance`).
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import dramatiq
import program
from dramatiq.brokers.redis import RedisBroker

WATCH: dict[str, Any] = {}
if lease := os.environ.get("PEER_LEASE_S"):
    WATCH = {"heartbeat_timeout": int(lease) * 1000, "maintenance_chance": 100_000}


class Up(dramatiq.Middleware):
    """Says when a worker process serves."""

    def after_worker_boot(self, broker: Any, worker: Any) -> None:  # noqa: ARG002 - it is given
        """Say so."""
        program.ready()


broker = RedisBroker(url=os.environ["PEER_URL"], **WATCH)
broker.add_middleware(Up())
dramatiq.set_broker(broker)


@dramatiq.actor
def noop() -> None:
    """Do nothing."""


@dramatiq.actor
def work(place: int, due: float, ms: int) -> None:
    """The work."""
    program.work(place, due, ms)


def burst(n: int) -> None:
    """One by one: it has no call for many."""
    for _ in range(n):
        noop.send()


@asynccontextmanager
async def client() -> AsyncIterator[tuple[program.Burst, program.Send]]:
    """Its own calls."""
    yield burst, work.send


if __name__ == "__main__":
    program.main(client)
