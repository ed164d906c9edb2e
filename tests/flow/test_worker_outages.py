"""How a worker lives through the loss of a store, of Redis' memory, and of its own time."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import redis
import structlog
from fix_api import client_of, open_backend
from fix_flow import Flow, MakeFlow
from fix_proxy import Proxy
from fix_store import Database
from refusal import full_disk
from waiting import eventually

from bench.audit import audit
from scheduler.embedded import Redis


async def test_a_worker_goes_on_by_itself_when_redis_comes_back(
    make_flow: MakeFlow, redis_url: str, proxy: Callable[[str], Proxy]
):
    link = proxy(redis_url)
    flow = await make_flow(REDIS_ADDR=link.url, STORE_TIMEOUT_MS=300)
    async with flow.worker():
        await flow.ended(await flow.enqueue())
        link.stop()
        accepted = await flow.enqueue(push=False)
        flow.db.age(accepted, 2000)
        await eventually(lambda: flow.counted("loop_errors_total", loop="pump") >= 1)
        link.start()
        await flow.ended(accepted)
    await flow.agree()


async def test_a_worker_goes_on_by_itself_when_postgres_comes_back(
    make_flow: MakeFlow, flow_db: Database, proxy: Callable[[str], Proxy]
):
    """What it runs meanwhile is settled then; the handler is not called again."""
    link = proxy(flow_db.url)
    flow = await make_flow(POSTGRES_URL=link.url, STORE_TIMEOUT_MS=300)
    began, may_end = asyncio.Event(), asyncio.Event()
    calls = 0

    @flow.handler("holds")
    async def holds():
        nonlocal calls
        calls += 1
        began.set()
        await may_end.wait()

    async with flow.worker():
        id_ = await flow.enqueue("holds")
        await began.wait()
        link.stop()
        may_end.set()
        await eventually(lambda: flow.counted("loop_errors_total", loop="heartbeat") >= 1)
        link.start()
        await flow.ended(id_)
    assert (calls, flow.db.outcomes(id_)) == (1, ["succeeded"])
    await flow.agree()


async def test_a_postgres_whose_disk_is_full_refuses_honestly_and_loses_nothing(make_flow: MakeFlow):
    """An outcome, a claim and a new task meet it: two of them wait, and the third is refused."""
    flow = await make_flow(ENQUEUE_TIMEOUT_MS=300)
    began, may_end = asyncio.Event(), asyncio.Event()
    calls: Counter[str] = Counter()

    @flow.handler("holds")
    async def holds(_: dict, ctx):
        calls[ctx.id] += 1
        began.set()
        await may_end.wait()

    def refusals() -> int:
        return flow.db.value("SELECT CASE WHEN is_called THEN last_value ELSE 0 END FROM refusals")

    async with flow.worker(), open_backend(flow.settings) as backend, client_of(backend) as api:
        held = await flow.enqueue("holds")
        waiting = await flow.enqueue("holds", push=False)
        await began.wait()
        with full_disk(flow.db.rows):
            at = time.monotonic()
            may_end.set()
            await eventually(lambda: refusals() >= 3)  # the outcome
            await flow.shard.push([(waiting, "default", 0)])
            answer = await api.post("/v1/tasks", json={"type": "holds"})
            assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
            before = refusals()
            await eventually(lambda: refusals() >= before + 3)
            assert refusals() < 20 + 20 * (time.monotonic() - at)  # nobody spins
            assert flow.status(waiting) == "queued"
        await flow.ended(held, waiting)
        answer = await api.post("/v1/tasks", json={"type": "holds"})
        assert answer.status_code == 201
        await flow.ended(answer.json()["id"])
    assert calls == dict.fromkeys([held, waiting, answer.json()["id"]], 1)
    assert flow.db.value("SELECT count(*) FROM tasks") == 3
    assert flow.db.outcomes(held) == flow.db.outcomes(waiting) == ["succeeded"]
    await flow.agree()


@asynccontextmanager
async def full(server: Redis) -> AsyncIterator[None]:
    """Let a Redis fail to save, as on a full disk: it then refuses every write, and PING."""

    async def saved(status: str) -> None:
        client.bgsave()
        await eventually(lambda: client.info("persistence")["rdb_last_bgsave_status"] == status)

    target = server.data / "dump.rdb"
    with redis.Redis.from_url(server.url) as client:
        target.mkdir()  # no file can take this name, whoever writes it
        try:
            await saved("err")
            yield
        finally:
            target.rmdir()
        await saved("ok")


def waits_refused(server: Redis) -> int:
    """How often a worker that had nothing to do was refused to wait for more."""
    with redis.Redis.from_url(server.url) as client:
        return client.info("commandstats").get("cmdstat_blpop", {}).get("rejected_calls", 0)


async def test_a_redis_that_cannot_save_refuses_writes_and_costs_no_task(
    make_flow: MakeFlow, server_dir: Path
):
    began, may_end = asyncio.Event(), asyncio.Event()
    calls: Counter[str] = Counter()
    settings = {"appendonly": "no", "save": "3600 1000000"}
    with Redis(server_dir / "redis", settings=settings) as server:
        flow = await make_flow(REDIS_ADDR=server.url)

        @flow.handler("holds")
        async def holds(_: dict, ctx):
            calls[ctx.id] += 1
            began.set()
            await may_end.wait()

        async with flow.worker(), open_backend(flow.settings) as backend, client_of(backend) as api:
            held = await flow.enqueue("holds")
            await began.wait()
            async with full(server):
                may_end.set()
                answer = await api.post("/v1/tasks", json={"type": "holds"})
                assert answer.status_code == 201
                ready = await api.get("/readyz")
                assert (ready.status_code, ready.json()["redis"]) == (503, "down")
                await flow.ended(held)  # Postgres has it, and Redis is to be told
                with structlog.testing.capture_logs() as logs:
                    before = waits_refused(server)
                    await eventually(lambda: waits_refused(server) >= before + 4)
                assert len([entry for entry in logs if entry["event"].startswith("cannot lease")]) <= 1
                await eventually(lambda: flow.counted("loop_errors_total", loop="reconcile") >= 2)
                assert flow.status(answer.json()["id"]) == "queued"
            await flow.ended(answer.json()["id"])
        ids = [held, answer.json()["id"]]
        verdict = await asyncio.to_thread(audit, flow.db.url, server.url, ids, doubtful=0)
        assert verdict.passed, verdict.lines()
    assert calls == dict.fromkeys(ids, 1)


async def test_a_redis_that_forgets_everything_costs_no_task_and_no_success(make_flow: MakeFlow):
    flow = await make_flow()
    effects: Counter[str] = Counter()
    began, may_end = asyncio.Event(), asyncio.Event()

    @flow.handler("counts")
    async def counts(payload: dict, ctx):
        effects[ctx.id] += 1
        if payload.get("holds"):
            began.set()
            await may_end.wait()

    async with flow.worker():
        held = await flow.enqueue("counts", {"holds": True})
        await began.wait()
        await eventually(lambda: flow.db.value("SELECT max(epoch) FROM queues"))
        retrying = await flow.enqueue(
            "always_fail", backoff='{"base_ms": 1500, "max_ms": 1500}', max_retries=1
        )
        delayed = await flow.enqueue("counts", delay_ms=1500)
        await flow.becomes(retrying, "retrying")
        await flow.client.flushall()
        may_end.set()
        ids = [held, delayed, *[await flow.enqueue("counts", push=False) for _ in range(20)]]
        flow.db.rows("UPDATE tasks SET created_at = created_at - interval '2 s'")
        await flow.ended(*ids, retrying)
    assert effects == dict.fromkeys(ids, 1)
    assert flow.db.outcomes(retrying) == ["failed", "failed"]
    await flow.reconciler().reconcile()
    await flow.agree()


async def test_time_that_the_loop_was_blocked_is_no_reason_to_run_twice(flow: Flow):
    effects: Counter[str] = Counter()

    @flow.handler("blocks")
    async def blocks(_: dict, ctx):
        effects[ctx.id] += 1
        time.sleep(0.05)  # noqa: ASYNC251 - the loop must be blocked

    ids = [await flow.enqueue("blocks") for _ in range(20)]
    async with flow.worker():
        await flow.ended(*ids)
    assert effects == dict.fromkeys(ids, 1)
    await flow.agree()
