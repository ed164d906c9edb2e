"""What a check of a setting works with: stores, workers and an API under settings of choice.

    @change("VIS_TIMEOUT_MS")
    async def lease_length(world):
        for ms in (1000, 5000):
            [lease] = await world.leased(world.settings(VIS_TIMEOUT_MS=ms))
            ...                                       # and what is seen differs with `ms`

A check stands for the variables that it names, and asserts what is seen under each of their values.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from fix_api import client_of, open_backend
from fix_process import Run, Start
from fix_proxy import Proxy
from fix_servers import Servers
from fix_store import Database
from waiting import eventually

from scheduler.config import Settings
from scheduler.handlers import REGISTRY, Registry
from scheduler.held import Held
from scheduler.lease import Lessor
from scheduler.loop import Loop
from scheduler.metrics import Metrics
from scheduler.model import Lease, NewTask, new_id
from scheduler.queue import Index
from scheduler.store import Store
from scheduler.worker import Worker

Check = Callable[["World"], Awaitable[None]]

CHECKS: dict[str, Check] = {}
"""By the name of the variable."""


def change(*variables: str) -> Callable[[Check], Check]:
    """Register a check for the variables whose change it shows."""

    def register(check: Check) -> Check:
        for variable in variables:
            assert variable not in CHECKS, f"{variable} is checked twice"
            CHECKS[variable] = check
        return check

    return register


@dataclass(frozen=True)
class World:
    """The servers of a test and what is opened on them; all of it is closed after the test."""

    settings: Callable[..., Settings]
    """Settings for the test's servers; variables by their names change what is asked for."""
    db: Database
    servers: Servers
    proxy: Callable[[str], Proxy]
    directory: Path
    start: Start
    scheduler: Run
    stack: AsyncExitStack

    async def store(self, settings: Settings, *, max_conns: int = 4) -> Store:
        store = await Store.open(settings, name="test", max_conns=max_conns)
        self.stack.push_async_callback(store.close)
        return store

    async def index(self, settings: Settings, *, name: str = "test") -> Index:
        index = Index.open(settings, name=name)
        self.stack.push_async_callback(index.close)
        return index

    async def lessor(self, settings: Settings) -> Lessor:
        store, index = await self.store(settings), await self.index(settings)
        return Lessor(store, index, settings, Metrics(), worker="host:1:test", held=Held())

    async def leased(self, settings: Settings, n: int = 1, **fields: Any) -> list[Lease]:
        """`n` new tasks, claimed."""
        await self.enqueued(settings, n, **fields)
        return await (await self.lessor(settings)).take(n)

    async def enqueued(self, settings: Settings, n: int = 1, type_: str = "noop", **fields: Any) -> list[str]:
        """The ids of `n` new tasks, committed and pushed."""
        tasks = [NewTask(new_id(), type_, **fields) for _ in range(n)]
        async with open_backend(settings) as backend:
            await backend.enqueuer.submit(tasks)
        return [task.id for task in tasks]

    @asynccontextmanager
    async def api(self, settings: Settings) -> AsyncIterator[httpx.AsyncClient]:
        async with open_backend(settings) as backend, client_of(backend) as client:
            yield client

    async def worker(self, settings: Settings, registry: Registry = REGISTRY) -> Worker:
        """A worker that has not started."""
        store, index = await self.store(settings), await self.index(settings)
        return Worker(settings, registry, store, index, Metrics())

    @asynccontextmanager
    async def working(self, settings: Settings, registry: Registry = REGISTRY) -> AsyncIterator[Worker]:
        """A worker while it works. It stops in good order."""
        worker = await self.worker(settings, registry)
        running = asyncio.create_task(worker.run())
        try:
            yield worker
        finally:
            worker.stop()
            await running

    async def loop(self, settings: Settings, name: str) -> Loop:
        """A background loop as a worker with these settings would run it."""
        return next(loop for loop in (await self.worker(settings))._loops if loop.name == name)

    async def passed(self, ms: int) -> None:
        """Wait until so much time has passed by the clock of Redis."""
        index = await self.index(self.settings())

        async def now() -> float:
            seconds, micros = await index.call("TIME")
            return int(seconds) * 1000 + int(micros) / 1000

        start = await now()

        async def over() -> bool:
            return await now() > start + ms

        await eventually(over)

    async def lapsed(self, n: int) -> None:
        """Wait until so many leases have run out, by the clocks of both stores."""
        shard = (await self.index(self.settings())).shard("default")

        async def over() -> bool:
            rows = self.db.value("SELECT count(*) FROM tasks WHERE lease_expires_at < now()")
            return rows == len(await shard.expired(1000)) == n

        await eventually(over)

    async def forget(self) -> None:
        """Empty the tables and Redis, for the next value."""
        self.db.clear()
        await (await self.index(self.settings())).call("FLUSHALL")

    async def ended(self, ids: Sequence[str], status: str = "succeeded") -> None:
        """Wait until the tasks have all come to a status."""
        await eventually(lambda: all(self.db.task(id_)["status"] == status for id_ in ids))
