"""How a worker lives through the loss of a store, of Redis' memory, and of its own time."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable

from fix_flow import Flow, MakeFlow
from fix_proxy import Proxy
from fix_store import Database
from waiting import eventually


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
