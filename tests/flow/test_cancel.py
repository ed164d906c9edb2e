"""Cancel: Postgres decides at once, Redis and the worker follow."""

from __future__ import annotations

import asyncio
import time

import pytest
from fix_flow import Flow, MakeFlow

from scheduler.cancel import cancel
from scheduler.model import new_id
from scheduler.supervisor import free_port


async def test_a_waiting_retry_leaves_redis_at_once(flow: Flow):
    id_ = await flow.enqueue(priority="low")
    (lease,) = await flow.lease()
    await flow.settle(lease, kind="retry", after_ms=60_000)
    task, cancelled = await cancel(flow.store, flow.index, id_)
    assert (cancelled, task.status) == (True, "cancelled")
    assert await flow.place(id_) is None
    await flow.agree()


async def test_a_delayed_task_leaves_redis_at_once(flow: Flow):
    id_ = await flow.enqueue(queue="mail", delay_ms=60_000)
    await cancel(flow.store, flow.index, id_)
    assert (await flow.contents("mail")).live == {}


async def test_a_ready_task_leaves_when_its_claim_is_refused(flow: Flow):
    id_, other = await flow.enqueue(), await flow.enqueue()
    await cancel(flow.store, flow.index, id_)
    assert await flow.place(id_) == "q:default"
    assert [lease.id for lease in await flow.lease()] == [other]
    assert await flow.place(id_) is None
    assert flow.db.runs(id_) == []
    await flow.agree()


async def test_a_running_task_is_cancelled_and_its_outcome_comes_too_late(flow: Flow):
    id_ = await flow.enqueue()
    (lease,) = await flow.lease()
    await cancel(flow.store, flow.index, id_)
    await flow.settle(lease)
    (run,) = flow.db.runs(id_)
    assert (run["outcome"], run["late_outcome"], flow.status(id_)) == ("cancelled", "succeeded", "cancelled")
    assert await flow.place(id_) == "leases", "a fenced worker leaves Redis alone"
    await flow.lapse(id_)
    await flow.reaper().step()
    assert await flow.place(id_) is None
    await flow.agree()


@pytest.mark.parametrize("asynchronous", [True, False])
async def test_a_handler_whose_task_is_cancelled_is_told(make_flow: MakeFlow, asynchronous: bool):
    flow = await make_flow(VIS_TIMEOUT_MS=400)
    ended = asyncio.Event()
    loop = asyncio.get_running_loop()

    if asynchronous:

        @flow.handler("waits")
        async def waits():
            try:
                await asyncio.Event().wait()
            finally:
                ended.set()

    else:

        @flow.handler("waits")
        def waits(_: dict, ctx):
            while not ctx.cancelled:
                time.sleep(0.005)
            loop.call_soon_threadsafe(ended.set)

    id_ = await flow.enqueue("waits")
    async with flow.worker():
        await flow.becomes(id_, "running")
        await cancel(flow.store, flow.index, id_)
        async with asyncio.timeout(5):
            await ended.wait()
        other = await flow.enqueue()
        await flow.ended(other)
    assert (flow.status(id_), flow.db.outcomes(id_)) == ("cancelled", ["cancelled"])
    assert flow.counted("outcomes_fenced_total") == 0, "the worker knew, and reported nothing"


async def test_a_task_that_has_ended_is_left_alone(flow: Flow):
    id_ = await flow.enqueue()
    (lease,) = await flow.lease()
    await flow.settle(lease)
    task, cancelled = await cancel(flow.store, flow.index, id_)
    assert (task.status, cancelled) == ("succeeded", False)


async def test_an_unknown_task_is_said_to_be_unknown(flow: Flow):
    assert await cancel(flow.store, flow.index, new_id()) == (None, False)


async def test_a_task_is_cancelled_though_redis_is_away(make_flow: MakeFlow):
    flow = await make_flow(REDIS_ADDR=f"127.0.0.1:{free_port()}")
    id_ = await flow.enqueue(push=False)
    _, cancelled = await cancel(flow.store, flow.index, id_)
    assert (cancelled, flow.status(id_)) == (True, "cancelled")
