"""The cost of a task, counted in a fixed errand, is what it was: a regression that no clock here can see.

The errand is done step by step in this process, always in batches of 100, so that how often the servers are
asked depends on the code alone. No loop of a worker takes part: polling costs by the second, not by the task.

After a change that is meant: `python tests/contracts/test_cost.py` writes the reference anew.
"""

from __future__ import annotations

import asyncio
import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import AsyncExitStack, ExitStack, contextmanager
from pathlib import Path
from statistics import median
from time import perf_counter, process_time
from typing import Any

import psycopg
import pytest

from bench.cost import changes
from bench.meter import SETTINGS, Meter
from scheduler import config, migrate
from scheduler.embedded import Postgres, Redis
from scheduler.enqueue import Enqueuer
from scheduler.handlers import REGISTRY
from scheduler.held import Held
from scheduler.lease import Lessor
from scheduler.metrics import Metrics
from scheduler.model import Lease, NewTask, new_id
from scheduler.queue import Index
from scheduler.settle import Settler, decide
from scheduler.shard import Shard
from scheduler.slots import Slots
from scheduler.solo import Solo
from scheduler.store import Store

REFERENCE = Path(__file__).with_name("cost.json")
TASKS = 3000
BATCH = 100
WARM_UP = 300
ROUNDS = 3
YARD = 20_000

QUIET = {"fsync": "off", "full_page_writes": "off", "autovacuum": "off", "checkpoint_timeout": "1h"}
"""What Postgres writes is then the errand's alone; a full page image depends on when a checkpoint was."""


class Errand:
    """Tasks from the request to the acknowledgement, through the parts of an API and of a worker."""

    def __init__(self, settings: config.Settings) -> None:
        self.settings = settings
        self.metrics = Metrics()

    async def run(self, tasks: int) -> None:
        """Enqueue as many noops, then run them, a batch at a time, on connections of this run."""
        async with AsyncExitStack() as stack:
            store = await Store.open(self.settings, name="errand", max_conns=4)
            stack.push_async_callback(store.close)
            index = Index.open(self.settings, name="errand")
            stack.push_async_callback(index.close)
            await self._enqueue(store, index, tasks)
            await self._drain(store, index, tasks)

    async def _enqueue(self, store: Store, index: Index, tasks: int) -> None:
        enqueuer = Enqueuer(store, index, self.settings, self.metrics)
        enqueuer.start()
        for _ in range(tasks // BATCH):
            await enqueuer.submit([NewTask(new_id(), "noop") for _ in range(BATCH)])
        await enqueuer.stop()

    async def _drain(self, store: Store, index: Index, tasks: int) -> None:
        held, ended = Held(), []
        done = asyncio.Event()

        def end(lease: Lease, result: Any, handler: Any) -> None:
            ended.append(decide(lease, result, handler, self.settings))
            if len(ended) == BATCH:
                done.set()

        parts = self.settings, self.metrics
        slots = Slots(REGISTRY, *parts, end, pytest.fail, lambda: Solo(None))
        lessor = Lessor(store, index, *parts, worker="host:1:errand", held=held)
        slots.start()
        for _ in range(tasks // BATCH):
            done.clear()
            slots.put(await lessor.take(BATCH))
            await done.wait()
            # A settler that is given all before it starts records all in one statement.
            settler = Settler(store, index, *parts, worker="host:1:errand", held=held)
            for settlement in ended:
                settler.add(settlement)
            ended.clear()
            settler.start()
            await settler.stop()
        await slots.close()
        assert len(held) == 0


class Bench:
    """Servers of the errand's own, and the meter on them."""

    def __init__(self, postgres: Postgres, redis: Redis, meter: Meter) -> None:
        self.postgres_url = postgres.url
        self.redis_url = redis.url
        self.meter = meter
        self.errand = Errand(config.load({"POSTGRES_URL": postgres.url, "REDIS_ADDR": redis.url})[0])
        asyncio.run(self.errand.run(WARM_UP))

    def cost(self, tasks: int = TASKS) -> dict[str, float]:
        """What an errand costs a task; its CPU in yardsticks, which are as slow as the machine is."""
        self.statement("CHECKPOINT")
        before, yards = self.meter.read(), yardstick()
        asyncio.run(self.errand.run(tasks))
        self._closed()
        costs = self.meter.read().since(before).per(tasks)
        assert self.statement("SELECT count(*) FROM tasks WHERE finished_at IS NULL") == 0
        cpu_us = costs["cpu_us.all"] - yards / tasks
        kept = {name: value for name, value in costs.items() if not name.startswith("cpu_us.")}
        return kept | {"cpu.yards": cpu_us * YARD / yards}

    def best(self) -> dict[str, float]:
        """The same with the least CPU of some errands: all that disturbs it adds to it."""
        found = [self.cost() for _ in range(ROUNDS)]
        return found[0] | {"cpu.yards": min(costs["cpu.yards"] for costs in found)}

    def _closed(self) -> None:
        """Wait until the errand's connections have ended: only then have they told all that they did."""
        others = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'errand'"
        deadline = perf_counter() + 10
        while self.statement(others):
            assert perf_counter() < deadline

    def statement(self, sql: str) -> Any:
        with psycopg.connect(self.postgres_url, autocommit=True) as connection:
            cursor = connection.execute(sql.encode())
            return cursor.fetchall()[0][0] if cursor.description else None


def yardstick() -> float:
    """Microseconds of CPU that YARD records take to be written as JSON and read again, here and now."""
    began = process_time()
    json.loads(json.dumps([{"id": str(i), "n": i, "words": ["a", "b"]} for i in range(YARD)]))
    return (process_time() - began) * 1e6


@contextmanager
def bench() -> Iterator[Bench]:
    with ExitStack() as stack:
        root = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="scheduler-cost-")))
        root.chmod(0o711)
        postgres = stack.enter_context(Postgres(root / "postgres", settings=SETTINGS | QUIET))
        redis = stack.enter_context(Redis(root / "redis"))
        asyncio.run(migrate.apply(postgres.url))
        parts = {"own": [os.getpid()], "postgres": [postgres.pid], "redis": [redis.pid]}
        yield Bench(postgres, redis, stack.enter_context(Meter(postgres.admin_url, redis.url, parts)))


@pytest.fixture(scope="module")
def counted() -> Iterator[Bench]:
    with bench() as here:
        yield here


def changed(found: dict[str, float]) -> list[str]:
    """What differs from the reference, by name; the CPU is asked for where it was measured with care."""
    kept = json.loads(REFERENCE.read_text(encoding="utf-8"))
    assert kept["tasks"] == TASKS
    assert kept["batch"] == BATCH
    return [line.partition(":")[0] for line in changes(found, kept["per_task"])]


def without_cpu(costs: dict[str, float]) -> list[str]:
    return [name for name in changed(costs) if not name.startswith("cpu")]


def test_a_task_costs_what_it_did(counted):
    assert changed(counted.best()) == []


def test_an_extra_statement_a_task_is_found(counted, monkeypatch):
    claim = Store.claim

    async def ask_first(self: Store, ids: list[str], **how: Any) -> Any:
        for _ in ids:
            await self.ping()
        return await claim(self, ids, **how)

    monkeypatch.setattr(Store, "claim", ask_first)
    assert without_cpu(counted.cost()) == ["postgres.commits", "postgres.statements"]


def test_an_extra_command_a_task_is_found(counted, monkeypatch):
    known = counted.errand.settings.redis_prefix

    async def look_first(self: Shard, moves: list[Any]) -> int:
        for move in moves:
            await self._link.call("HGET", f"{known}:nowhere", move.id)
        return await place(self, moves)

    place = Shard.place
    monkeypatch.setattr(Shard, "place", look_first)
    assert without_cpu(counted.cost()) == ["redis.commands", "redis.hget"]


def test_an_extra_statement_a_batch_is_found(counted, monkeypatch):
    claim = Store.claim

    async def ask_first(self: Store, ids: list[str], **how: Any) -> Any:
        await self.ping()
        return await claim(self, ids, **how)

    monkeypatch.setattr(Store, "claim", ask_first)
    assert without_cpu(counted.cost()) == ["postgres.commits", "postgres.statements"]


def test_an_extra_script_a_batch_is_found(counted, monkeypatch):
    lease = Shard.lease

    async def count_first(self: Shard, *what: Any) -> list[str]:
        await self.depths()
        return await lease(self, *what)

    monkeypatch.setattr(Shard, "lease", count_first)
    assert "redis.evalsha" in without_cpu(counted.cost())


def test_an_index_that_every_update_has_to_follow_is_found(counted):
    counted.statement("CREATE INDEX planted ON tasks (status)")
    try:
        assert without_cpu(counted.cost()) == ["postgres.wal_bytes"]
    finally:
        counted.statement("DROP INDEX planted")


if __name__ == "__main__":
    with bench() as here:
        several = [here.best() for _ in range(ROUNDS)]
    per_task = several[0] | {"cpu.yards": median(costs["cpu.yards"] for costs in several)}
    kept = {"tasks": TASKS, "batch": BATCH, "per_task": {k: round(v, 4) for k, v in per_task.items()}}
    REFERENCE.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")
