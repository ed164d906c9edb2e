"""Dead letters: redriven or purged in Postgres, and Redis follows."""

from __future__ import annotations

import asyncio

import pytest
from fix_flow import Flow, MakeFlow

from scheduler.dlq import purge, redrive
from scheduler.store import Filter
from scheduler.supervisor import free_port


def ignore(_: int) -> None:
    """Nobody watches the progress."""


async def dead_letters(flow: Flow, n: int, **fields: object) -> list[str]:
    """Tasks that were rejected, as a worker leaves them."""
    ids = [await flow.enqueue(**fields) for _ in range(n)]
    shard = flow.index.shard(str(fields.get("queue", "default")))
    for id_ in ids:
        await shard.lease(1, f"t:{id_}", 60_000, flow.lessor()._policy)
        leases, _ = await flow.store.claim([id_], token=f"t:{id_}", worker="w", vis_ms=60_000)
        await flow.settle(*leases, kind="rejected")
    return ids


async def test_a_redriven_task_runs_again(flow: Flow):
    (id_,) = await dead_letters(flow, 1, priority="low")
    assert await flow.place(id_) == "dlq:low"
    assert await redrive(flow.store, flow.index, Filter(), ignore) == 1
    assert (flow.status(id_), await flow.place(id_)) == ("queued", "q:low")
    (lease,) = await flow.lease()
    await flow.settle(lease)
    assert flow.db.outcomes(id_) == ["failed", "succeeded"]
    assert flow.db.task(id_)["redrives"] == 1
    await flow.agree()


async def test_a_purged_task_leaves_the_dead_letters_and_stays_in_the_history(flow: Flow):
    (id_,) = await dead_letters(flow, 1, priority="low")
    assert await purge(flow.store, flow.index, Filter(), ignore) == 1
    assert (flow.status(id_), await flow.place(id_), flow.db.outcomes(id_)) == ("dead", None, ["failed"])
    await flow.agree()


@pytest.mark.parametrize("what", [redrive, purge])
async def test_filters_choose_across_queues_and_priorities(flow: Flow, what):
    chosen = await dead_letters(flow, 2, type_="one", queue="mail", priority="high")
    others = await dead_letters(flow, 1, type_="one") + await dead_letters(flow, 1, type_="two", queue="mail")
    assert await what(flow.store, flow.index, Filter(type="one", queue="mail"), ignore) == 2
    assert [flow.db.task(id_)["dead_at"] is None for id_ in chosen + others] == [True] * 2 + [False] * 2
    assert list((await flow.contents("mail")).dlq["high"]) == []
    assert len((await flow.contents("mail")).dlq["default"]) == 1
    await flow.agree()


async def test_progress_is_told_page_by_page(flow: Flow, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("scheduler.dlq._PAGE", 2)
    for _ in range(5):
        flow.db.put("dead")
    told: list[int] = []
    assert await redrive(flow.store, flow.index, Filter(), told.append) == 5
    assert told == [2, 4, 5]


async def test_what_dies_meanwhile_is_not_redriven_again(flow: Flow):
    """A task that dies at once would go round for ever."""
    ids = await dead_letters(flow, 3)
    lives = 0

    def dies_again(_: int) -> None:
        nonlocal lives
        lives += 1
        flow.db.rows(
            "UPDATE tasks SET status = 'dead', dead_reason = 'failed', finished_at = clock_timestamp(),"
            " dead_at = clock_timestamp()"
        )

    async with asyncio.timeout(5):
        assert await redrive(flow.store, flow.index, Filter(), dies_again) == 3
    assert lives == 1
    assert [flow.db.task(id_)["redrives"] for id_ in ids] == [1] * 3


@pytest.mark.parametrize(("what", "found"), [(redrive, "pushed"), (purge, "dlq_removed")])
async def test_postgres_decides_though_redis_is_away_and_reconcile_follows(
    make_flow: MakeFlow, what, found: str
):
    flow = await make_flow()
    (id_,) = await dead_letters(flow, 1)
    await flow.reconciler().reconcile()
    flow.db.age(id_, 60_000)
    away = await make_flow(REDIS_ADDR=f"127.0.0.1:{free_port()}")
    assert await what(away.store, away.index, Filter(), ignore) == 1
    assert await flow.place(id_) == "dlq:default"
    assert (await flow.reconciler().reconcile())[found] == 1
    await flow.agree()
