"""Housekeeping and the gauges: one pass does all that is due, in pages, in one process at a time."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import pytest
from fix_flow import Flow

from scheduler.housekeeping import DAYS_AHEAD, Housekeeper
from scheduler.model import PRIORITIES, new_id
from scheduler.sampler import Sampler

DAY_MS = 86_400_000


def old(flow: Flow, status: str, days: int = 30, **columns: object) -> str:
    """A task that was made, and if it has ended ended, so many days ago."""
    id_ = flow.db.value("SELECT uuid_at(now() - %s * interval '1 day')::text", days)[:-12] + new_id()[-12:]
    flow.db.put(status, id=id_, **columns)
    flow.db.age(id_, days * DAY_MS)
    return id_


def partitions(flow: Flow) -> set[str]:
    rows = flow.db.rows("SELECT relname FROM pg_class WHERE relname ~ '^task_runs_[0-9]{8}$'")
    return {row["relname"] for row in rows}


def missing_and_old_day(flow: Flow) -> tuple[str, str]:
    """Let the last of the days ahead be missing, and an old one be left."""
    today = flow.db.value("SELECT (now() AT TIME ZONE 'UTC')::date")
    ahead, past = (f"task_runs_{today + timedelta(days=days):%Y%m%d}" for days in (7, -60))
    flow.db.rows(f"DROP TABLE IF EXISTS {ahead}, {past}")
    flow.db.rows(
        f"CREATE TABLE {past} PARTITION OF task_runs FOR VALUES FROM (uuid_at(now() - interval '61 days'))"
        " TO (uuid_at(now() - interval '60 days'))"
    )
    return ahead, past


async def test_a_pass_does_all_that_is_due(flow: Flow, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("scheduler.housekeeping._PAGE", 2)
    gone = [old(flow, "succeeded") for _ in range(5)]
    kept = [old(flow, "queued"), old(flow, "dead"), flow.db.put("succeeded")]
    for n, id_ in enumerate(gone[:3]):
        flow.db.rows(
            "INSERT INTO idempotency_keys VALUES ('default', %s, 'f', %s, now() - interval '1 s')",
            str(n),
            id_,
        )
    flow.db.worker("silent", alive_ms=-2 * 3_600_000)
    ahead, past = missing_and_old_day(flow)
    await Housekeeper(flow.store, flow.settings, holder="a").step()
    assert sorted(row["id"] for row in flow.db.rows("SELECT id::text FROM tasks")) == sorted(kept)
    assert flow.db.count("idempotency_keys") == flow.db.count("workers") == 0
    assert ahead in partitions(flow)
    assert past not in partitions(flow)


@pytest.mark.parametrize("due", ["a missing day", "an old day"])
async def test_no_settle_waits_for_whoever_reads_of_the_history(flow: Flow, due: str):
    """A dump, say. The days wait for a lock behind it, and every settle behind them."""
    ahead, past = missing_and_old_day(flow)
    gone = old(flow, "succeeded")
    housekeeper = Housekeeper(flow.store, flow.settings, holder="a")
    if due == "an old day":
        await flow.store.make_partitions(DAYS_AHEAD)
    await flow.enqueue()
    (lease,) = await flow.lease()
    with flow.db.transaction() as reader:
        reader.rows("SELECT FROM task_runs")
        keeping = asyncio.create_task(housekeeper.step())
        await flow.db.blocked()
        async with asyncio.timeout(3):
            await flow.settle(lease)
            await keeping
        assert flow.db.outcomes(lease.id) == ["succeeded"]
        assert past in partitions(flow)
    assert await flow.store.task(gone) is None, "everything else is done meanwhile"
    await housekeeper.step()
    assert ahead in partitions(flow)
    assert past not in partitions(flow)


async def test_pruning_goes_on_where_the_last_pass_has_stopped(flow: Flow, monkeypatch: pytest.MonkeyPatch):
    """What may not be deleted must not fill every pass, and what may be later is met again."""
    monkeypatch.setattr("scheduler.housekeeping._PAGE", 2)
    monkeypatch.setattr("scheduler.housekeeping._PAGES_A_PASS", 2)
    kept = [old(flow, "dead", days=40) for _ in range(5)]
    gone = old(flow, "succeeded")
    housekeeper = Housekeeper(flow.store, flow.settings, holder="a")
    for _ in range(2):
        await housekeeper.step()
    assert await flow.store.task(gone) is None
    flow.db.change(kept[0], dead_at=None)  # it was purged
    await housekeeper.step()
    assert await flow.store.task(kept[0]) is None


async def test_the_days_are_made_before_the_long_work(flow: Flow, monkeypatch: pytest.MonkeyPatch):
    """What ends before its day is made goes to the default partition, and no day can take it from there."""
    ahead, _ = missing_and_old_day(flow)
    made: list[bool] = []

    async def expire_keys(page: int) -> int:
        made.append(ahead in partitions(flow))
        return 0

    monkeypatch.setattr(flow.store, "expire_keys", expire_keys)
    await Housekeeper(flow.store, flow.settings, holder="a").step()
    assert made == [True]


async def test_a_pass_deletes_history_that_no_day_has_taken(flow: Flow):
    flow.db.rows(
        "INSERT INTO task_runs (task_id, attempt, outcome, claimed_at, finished_at)"
        " VALUES (uuid_at(now() - interval '90 days'), 1, 'succeeded', now(), now() - interval '90 days')"
    )
    assert flow.db.count("task_runs") == 1
    await Housekeeper(flow.store, flow.settings, holder="a").step()
    assert flow.db.count("task_runs") == 0


async def test_a_worker_that_stops_does_not_wait_for_a_long_pass(flow: Flow, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("scheduler.housekeeping._PAGE", 1)
    gone = [old(flow, "succeeded") for _ in range(5)]
    housekeeper = Housekeeper(flow.store, flow.settings, holder="a")
    prune = flow.store.prune_tasks

    async def one_page(*args, **options):
        housekeeper.stop()
        return await prune(*args, **options)

    monkeypatch.setattr(flow.store, "prune_tasks", one_page)
    await housekeeper.step()
    assert flow.db.count("tasks") == len(gone) - 1


async def test_one_of_many_keeps_house(flow: Flow):
    first, second = (Housekeeper(flow.store, flow.settings, holder=holder) for holder in "ab")
    await first.step()
    gone = old(flow, "succeeded")
    await second.step()
    assert await flow.store.task(gone) is not None
    flow.db.rows("UPDATE leaders SET expires_at = now()")
    await second.step()
    assert await flow.store.task(gone) is None


async def test_the_gauges_show_all_queues_together(flow: Flow):
    for priority in PRIORITIES:
        await flow.enqueue(priority=priority)
        await flow.enqueue(priority=priority, delay_ms=60_000, queue="mail")
    await flow.enqueue(priority="low", queue="mail")
    await flow.lease(1)
    await flow.shard.dlq_add([(new_id(), "low", 0)])
    await Sampler(flow.store, flow.index, flow.metrics).step()
    depths = {
        name: [flow.counted(name, priority=p) for p in PRIORITIES]
        for name in ("queue_depth", "retry_set_depth", "dlq_depth")
    }
    assert depths == {"queue_depth": [0, 1, 1, 2], "retry_set_depth": [1] * 4, "dlq_depth": [0, 0, 0, 1]}
    assert flow.counted("processing_inflight") == 1
