"""The flow on real stores: one bundle of a store, an index and everything that works between them.

    id_ = await flow.enqueue("flaky")             # committed and pushed
    async with flow.worker():                     # a whole worker, in this process
        await flow.ended(id_)
    assert flow.db.outcomes(id_) == ["failed", "succeeded"]
    await flow.agree()                            # and Redis says what the rows say

Or step by step, without a worker: `flow.lease()`, `flow.settle(...)`, `await flow.reaper().step()`.
"""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from typing import Any

import pytest
import redis.asyncio
from fix_servers import Servers
from fix_shards import ServerInspector
from fix_store import Database
from reference import Contents
from waiting import eventually

from scheduler import config
from scheduler.config import Settings
from scheduler.handlers import REGISTRY, Registry
from scheduler.held import Held
from scheduler.lease import Lessor
from scheduler.lifecycle import OPEN
from scheduler.metrics import Metrics
from scheduler.model import PRIORITIES, Lease, NewTask, Result, new_id
from scheduler.pump import Pump
from scheduler.queue import Index
from scheduler.reaper import Reaper
from scheduler.reconcile import Reconciler
from scheduler.settle import Settler, decide
from scheduler.store import Store
from scheduler.worker import Worker

QUICK = {
    "VIS_TIMEOUT_MS": 4000,
    "WORKER_POOL": 4,
    "RETRY_BASE_MS": 10,
    "RETRY_JITTER": "none",
    "RETRY_SCAN_INTERVAL_MS": 20,
    "REAPER_SCAN_INTERVAL_MS": 30,
    "RECONCILE_INTERVAL_MS": 100,
    "METRICS_SAMPLE_MS": 60_000,
    "SHUTDOWN_GRACE_MS": 5000,
}
"""Settings under which a whole life takes a fraction of a second."""

STOP_S = 20.0


class Flow:
    """Everything between two stores. Any setting of QUICK may be given another value."""

    def __init__(
        self, settings: Settings, store: Store, index: Index, db: Database, client: redis.asyncio.Redis
    ) -> None:
        self.settings = settings
        self.store = store
        self.index = index
        self.db = db
        self.client = client
        self.metrics = Metrics()
        self.registry = Registry(dict(REGISTRY.handlers))
        self.held = Held()
        self.shard = index.shard("default")
        self.handler = self.registry.register

    # steps

    async def enqueue(
        self, type_: str = "noop", payload: Any = None, *, push: bool = True, **fields: Any
    ) -> str:
        """Commit a task and, unless told otherwise, push its id; the id."""
        task = NewTask(
            fields.pop("id_", None) or new_id(), type_, payload=json.dumps(payload or {}), **fields
        )
        (accepted,) = await self.store.enqueue([task])
        if push:
            await self.index.shard(task.queue).push([(task.id, task.priority, accepted.delay_ms)])
        return task.id

    async def enqueue_many(self, n: int, type_: str = "noop") -> list[str]:
        """Commit and push as many at once; their ids in order."""
        tasks = [NewTask(new_id(), type_) for _ in range(n)]
        await self.store.enqueue(tasks)
        await self.shard.push([(task.id, task.priority, 0) for task in tasks])
        return [task.id for task in tasks]

    def lessor(self, worker: str = "host:1:w1", settings: Settings | None = None) -> Lessor:
        """What leases for a worker of that name."""
        return Lessor(
            self.store, self.index, settings or self.settings, self.metrics, worker=worker, held=self.held
        )

    def settler(self, worker: str = "host:1:w1") -> Settler:
        return Settler(self.store, self.index, self.settings, self.metrics, worker=worker, held=self.held)

    def reaper(self, queues: Sequence[str] = ("default",), **options: int) -> Reaper:
        options = {"batch": 100, "max_losses": 3} | options
        return Reaper(self.store, self.index, self.metrics, queues, **options)

    def reconciler(self, holder: str = "w1") -> Reconciler:
        return Reconciler(self.store, self.index, self.settings, self.metrics, holder=holder)

    def pump(self, queues: Sequence[str] = ("default",), batch: int = 100) -> Pump:
        return Pump(self.index, queues, batch=batch)

    async def lease(self, n: int = 100, worker: str = "host:1:w1") -> list[Lease]:
        """Lease and claim up to `n` tasks, under a token of their own."""
        return await self.lessor(f"{worker}-{new_id()}").take(n)

    async def settle(self, *leases: Lease, kind: str = "succeeded", **result: Any) -> None:
        """Settle leases with a result, through a settler that is stopped then: all is recorded and placed."""
        settler = self.settler()
        for lease in leases:
            settler.add(decide(lease, Result(kind, **result), self.registry.get(lease.type), self.settings))
        settler.start()
        await settler.stop()

    async def lapse(self, *ids: str) -> None:
        """Let the leases of these tasks run out, in Postgres and in Redis."""
        for id_ in ids:
            self.db.rows(
                "UPDATE tasks SET lease_expires_at = now() - interval '1 ms'"
                " WHERE id = %s AND status = 'running'",
                id_,
            )
            await self.client.zadd(self.shard.key("leases"), {id_: 1}, xx=True)

    async def due(self, *ids: str) -> None:
        """Let the wait of these tasks be over, in Postgres and in Redis."""
        for id_ in ids:
            self.db.rows("UPDATE tasks SET due_at = now() - interval '1 ms' WHERE id = %s", id_)
            for priority in PRIORITIES:
                await self.client.zadd(self.shard.key("retry", priority), {id_: 1}, xx=True)

    async def rest(self) -> None:
        """Let reconcile find that all is well, so that what it finds next is the test's doing."""
        reconciler = self.reconciler()
        await reconciler.reconcile()
        assert await reconciler.reconcile() == {}

    # a worker

    @asynccontextmanager
    async def worker(self, settings: Settings | None = None, **parts: Any) -> AsyncIterator[Worker]:
        """A whole worker in this process, stopped in good order at the end of the block."""
        store, index = parts.get("store", self.store), parts.get("index", self.index)
        worker = Worker(settings or self.settings, self.registry, store, index, self.metrics)
        running = asyncio.create_task(worker.run())
        try:
            yield worker
        finally:
            worker.stop()
            await asyncio.wait_for(running, STOP_S)

    @contextmanager
    def rival(self) -> Iterator[None]:
        """A reaper on a thread and stores of its own: it reaps though this loop is blocked."""
        done = threading.Event()

        async def reap() -> None:
            store = await Store.open(self.settings, name="rival", max_conns=1)
            index = Index.open(self.settings, name="rival")
            reaper = Reaper(store, index, Metrics(), ["default"], batch=100, max_losses=3)
            while not done.is_set():
                await reaper.step()
                await asyncio.sleep(0.02)
            await index.close()
            await store.close()

        with ThreadPoolExecutor(1) as thread:
            reaping = thread.submit(asyncio.run, reap())
            try:
                yield
            finally:
                done.set()
                reaping.result()

    async def ended(self, *ids: str, within_s: float = 10.0) -> None:
        """Wait until these tasks have reached a terminal status."""
        open_ = "SELECT count(*) FROM tasks WHERE id = ANY(%s::uuid[]) AND finished_at IS NULL"
        await eventually(lambda: self.db.value(open_, list(ids)) == 0, within_s)

    async def becomes(self, id_: str, *statuses: str) -> None:
        """Wait until a task has one of these statuses."""
        await eventually(lambda: self.status(id_) in statuses)

    # looks

    def status(self, id_: str) -> str:
        return self.db.value("SELECT status FROM tasks WHERE id = %s", id_)

    async def contents(self, queue: str = "default") -> Contents:
        """All that Redis holds of a queue."""
        return await self._inspector(queue).read()

    async def restore(self, held: Contents) -> None:
        """Let Redis come back with an old state."""
        await self._inspector("default").write(held)

    def _inspector(self, queue: str) -> ServerInspector:
        inspector = ServerInspector(self.index, self.client)
        inspector.shard = self.index.shard(queue)
        return inspector

    async def place(self, id_: str) -> str | None:
        """Where Redis has an id of the default queue: `q:low`, `leases`, `retry:low`, `dlq:low` or None."""
        held = await self.contents()
        places = [f"q:{p}" for p in PRIORITIES if id_ in held.q[p]]
        places += [f"retry:{p}" for p in PRIORITIES if id_ in held.retry[p]]
        places += [f"dlq:{p}" for p in PRIORITIES if id_ in held.dlq[p]]
        places += ["leases"] if id_ in held.leases else []
        assert len(places) <= 1, f"{id_} is in {places}"
        return places[0] if places else None

    async def agree(self) -> None:
        """Check that Redis says of every row what the row says, and nothing else."""
        queues = {queue: await self.contents(queue) for queue in await self.store.queues()}
        ids = {row["id"] for row in self.db.rows("SELECT id::text FROM tasks")}
        for held in queues.values():
            assert held.broken() == []
            assert set(held.live) <= ids
        for row in self.db.rows("SELECT id::text, queue, priority, status, dead_at FROM tasks"):
            held = queues.get(row["queue"]) or await self.contents(row["queue"])
            id_, priority = row["id"], row["priority"]
            assert (id_ in held.live) == (row["status"] in OPEN), row
            assert (id_ in held.dlq[priority]) == (row["dead_at"] is not None), row
            assert (id_ in held.leases) == (row["status"] == "running"), row

    def counted(self, name: str, **labels: str) -> float:
        """The value of a counter, by the name and labels that it shows."""
        return self.metrics.registry.get_sample_value(name, labels) or 0.0


MakeFlow = Callable[..., Awaitable[Flow]]


@pytest.fixture(scope="session")
def flow_database(servers: Servers, server_kind: str) -> Iterator[Database]:
    """One database for all tests of the flow: to make one costs more than most of them."""
    with servers.database(server_kind) as url:
        database = Database(url)
        yield database
        database.close()


@pytest.fixture
def flow_db(flow_database: Database) -> Database:
    """The test's own look into the database of the flow, which is empty."""
    flow_database.clear()
    return flow_database


@pytest.fixture
async def make_flow(flow_db: Database, redis_url: str) -> AsyncIterator[MakeFlow]:
    """Make a bundle with other settings than QUICK, by the names of their variables.

    Its `db` and `client` go straight to the servers, wherever POSTGRES_URL and REDIS_ADDR lead.
    """
    async with AsyncExitStack() as stack:
        client = redis.asyncio.Redis.from_url(redis_url, decode_responses=True, protocol=2)
        stack.push_async_callback(client.aclose)

        async def make(**variables: Any) -> Flow:
            env = {"POSTGRES_URL": flow_db.url, "REDIS_ADDR": redis_url} | QUICK | variables
            settings, _ = config.load({name: str(value) for name, value in env.items()})
            store = await Store.open(settings, name="test", max_conns=6)
            stack.push_async_callback(store.close)
            index = Index.open(settings, name="test")
            stack.push_async_callback(index.close)
            return Flow(settings, store, index, flow_db, client)

        yield make


@pytest.fixture
async def flow(make_flow: MakeFlow) -> Flow:
    """A bundle with the settings of QUICK."""
    return await make_flow()
