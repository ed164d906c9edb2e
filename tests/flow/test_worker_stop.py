"""How a worker stops: nothing is lost, no budget is spent, and no wait is longer than the grace."""

from __future__ import annotations

import asyncio
import threading
from math import inf
from time import monotonic

import pytest
from fix_flow import Flow, MakeFlow
from waiting import eventually


async def test_what_has_not_started_goes_back_to_the_head_in_its_old_order(
    make_flow: MakeFlow, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("scheduler.slots._STUCK_S", 60.0)  # or it would go back before the worker stops
    flow = await make_flow(WORKER_POOL=1, LEASE_AHEAD_MS=1000)
    began, may_end = asyncio.Event(), asyncio.Event()

    @flow.handler("holds")
    async def holds():
        began.set()
        await may_end.wait()

    async def all_run(n: int) -> None:
        await eventually(lambda: flow.db.value("SELECT count(*) FROM tasks WHERE status = 'running'") == n)

    first = await flow.enqueue("holds")
    async with flow.worker() as worker:
        await began.wait()
        ids = []
        for batch in (1, 2, 3):  # each is leased by itself
            ids += [await flow.enqueue() for _ in range(3)]
            await all_run(1 + 3 * batch)
        await flow.client.sadd(flow.shard.key("paused"), "default")  # so that the next one stays where it is
        last = await flow.enqueue()
        worker.stop()
        await eventually(lambda: flow.db.count("task_runs") == len(ids))
        may_end.set()
    assert flow.status(first) == "succeeded", "what had started was finished"
    assert (await flow.contents()).q["default"] == [*ids, last]
    assert [flow.db.outcomes(id_) for id_ in ids] == [["released"]] * len(ids)
    rows = [flow.db.task(id_) for id_ in ids]
    assert {(r["attempts"], r["failures"], r["losses"], r["refusals"]) for r in rows} == {(1, 0, 0, 0)}
    assert len({run["lease_token"] for id_ in ids for run in flow.db.runs(id_)}) > 1
    await flow.agree()


async def test_a_run_longer_than_the_grace_is_interrupted_and_given_back(make_flow: MakeFlow):
    flow = await make_flow(SHUTDOWN_GRACE_MS=100)
    began, cleaned_up = asyncio.Event(), asyncio.Event()

    @flow.handler("holds")
    async def holds():
        began.set()
        try:
            await asyncio.Event().wait()
        finally:
            cleaned_up.set()

    id_, last = await flow.enqueue("holds"), await flow.enqueue(delay_ms=60_000)
    async with flow.worker():
        await began.wait()
        before = monotonic()
    assert monotonic() - before < 2
    assert cleaned_up.is_set()
    row = flow.db.task(id_)
    assert (flow.db.outcomes(id_), row["status"]) == (["released"], "queued")
    assert (row["attempts"], row["failures"], row["losses"]) == (1, 0, 0)
    assert (await flow.place(id_), await flow.place(last)) == ("q:default", "retry:default")
    await flow.agree()


async def test_a_thread_longer_than_the_grace_is_given_back_and_its_late_answer_noted_nowhere(
    make_flow: MakeFlow,
):
    flow = await make_flow(SHUTDOWN_GRACE_MS=50)
    began, may_end = threading.Event(), threading.Event()

    @flow.handler("holds")
    def holds():
        began.set()
        may_end.wait(10)

    id_ = await flow.enqueue("holds")
    async with flow.worker():
        await eventually(began.is_set)
        before = monotonic()
    assert monotonic() - before < 3, "nobody can wait for a thread"
    may_end.set()
    assert (flow.db.outcomes(id_), flow.status(id_), await flow.place(id_)) == (
        ["released"],
        "queued",
        "q:default",
    )
    await flow.agree()


async def test_a_suspect_that_goes_on_in_its_process_is_given_back(
    make_flow: MakeFlow, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("scheduler.solo.Solo.end", lambda *_: None)  # as if its process could not be ended
    flow = await make_flow(SHUTDOWN_GRACE_MS=50)
    id_ = await flow.enqueue("sleeper", {"sleep_ms": 60_000}, push=False)
    flow.db.change(id_, suspect=True)
    await flow.shard.push([(id_, "default", 0)])
    async with flow.worker() as worker:
        await eventually(lambda: any(solo.began < inf for solo in worker._slots._lanes))
    assert (flow.db.outcomes(id_), flow.status(id_), await flow.place(id_)) == (
        ["released"],
        "queued",
        "q:default",
    )
    assert flow.db.task(id_)["losses"] == 0
    await flow.agree()


async def test_an_outcome_reached_while_stopping_is_settled(flow: Flow):
    began, may_end = asyncio.Event(), asyncio.Event()

    @flow.handler("fails_late")
    async def fails_late():
        began.set()
        await may_end.wait()
        raise RuntimeError("late")

    id_ = await flow.enqueue("fails_late")
    async with flow.worker() as worker:
        await began.wait()
        worker.stop()
        may_end.set()
    assert (flow.db.outcomes(id_), flow.status(id_)) == (["failed"], "retrying")
    await flow.agree()


async def test_an_idle_worker_stops_at_once(flow: Flow):
    async with flow.worker():
        await eventually(lambda: flow.db.rows("SELECT id FROM workers WHERE polled_at IS NOT NULL"))
        before = monotonic()
    assert monotonic() - before < 1


async def test_a_worker_that_rebuilds_redis_does_not_stop_at_the_end_of_that_only(
    make_flow: MakeFlow, monkeypatch: pytest.MonkeyPatch
):
    flow = await make_flow(RECONCILE_BATCH_SIZE=1)
    for _ in range(100):
        await flow.enqueue(queue="mail")  # which this worker does not serve
    await flow.rest()
    await flow.client.flushall()
    page = flow.store.open_page

    async def slow_page(*args):
        await asyncio.sleep(0.1)
        return await page(*args)

    monkeypatch.setattr(flow.store, "open_page", slow_page)
    async with flow.worker():
        await eventually(lambda: flow.client.hlen(flow.index.shard("mail").key("live")))
        before = monotonic()
    assert monotonic() - before < 3, "all pages take ten seconds"


async def test_a_worker_that_is_stopped_before_it_began_stops(flow: Flow):
    id_ = await flow.enqueue()
    async with flow.worker() as worker:
        worker.stop()
    assert flow.db.outcomes(id_) in ([], ["released"], ["succeeded"])
    await flow.agree()


async def test_a_worker_is_in_the_registry_while_it_lives(flow: Flow):
    async with flow.worker() as worker:
        (row,) = await eventually(lambda: flow.db.rows("SELECT * FROM workers WHERE polled_at IS NOT NULL"))
        assert (row["id"], row["slots"], row["queues"]) == (worker.identity.id, 4, ["default"])
        assert set(row["types"]) == {"noop", "flaky", "always_fail", "sleeper"}
    assert flow.db.count("workers") == 0
