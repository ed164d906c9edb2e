"""The reaper: an entry in Redis says when to look, the row says what is so."""

from __future__ import annotations

import asyncio

import pytest
from fix_flow import Flow, MakeFlow
from refusal import refusing

from scheduler.model import Result, new_id
from scheduler.settle import decide


async def test_a_lapsed_lease_is_settled_as_lost_and_its_id_goes_to_the_end(flow: Flow):
    id_ = await flow.enqueue(priority="low")
    await flow.lease()
    await flow.lapse(id_)
    other = await flow.enqueue(priority="low")
    assert await flow.reaper().step() is False
    assert (flow.db.outcomes(id_), flow.status(id_)) == (["lost"], "queued")
    assert (await flow.contents()).q["low"] == [other, id_]
    assert flow.counted("tasks_reaped_total") == 1
    await flow.agree()


async def test_a_lease_that_runs_is_left_alone(flow: Flow):
    id_ = await flow.enqueue()
    await flow.lease()
    before = await flow.contents()
    await flow.reaper().step()
    assert (await flow.contents(), flow.status(id_)) == (before, "running")


async def test_a_lease_renewed_in_postgres_is_put_back_for_what_remains(flow: Flow):
    """The heartbeat need not touch Redis: the entry is only looked at once more."""
    id_ = await flow.enqueue()
    (lease,) = await flow.lease()
    await flow.lapse(id_)
    await flow.store.renew([lease], vis_ms=60_000)
    await flow.reaper().step()
    assert (flow.db.outcomes(id_), flow.status(id_)) == ([], "running")
    held = await flow.contents()
    now_ms = (await flow.client.time())[0] * 1000
    assert 50_000 < held.leases[id_] - now_ms <= 61_000
    assert held.live == {id_: lease.token}
    await flow.settle(lease)
    await flow.agree()


@pytest.mark.parametrize(
    ("kind", "place"),
    [
        ("succeeded", None),
        ("failed", "retry:low"),
        ("rejected", "dlq:low"),
        ("interrupted", "q:low"),
        ("unknown_type", "retry:low"),
    ],
)
async def test_what_was_settled_and_not_acknowledged_is_only_moved(flow: Flow, kind: str, place: str | None):
    """The worker died between its commit and its ack. Nothing is lost, so nothing may run again."""
    id_ = await flow.enqueue(priority="low")
    (lease,) = await flow.lease()
    await flow.store.settle([decide(lease, Result(kind), None, flow.settings)], worker="w")
    await flow.lapse(id_)
    await flow.reaper().step()
    assert await flow.place(id_) == place
    assert "lost" not in flow.db.outcomes(id_)
    assert flow.counted("tasks_reaped_total") == 0
    await flow.agree()


async def test_a_lease_whose_holder_never_claimed_comes_back(flow: Flow):
    """Its answer was lost, or its worker died before the claim: the row knows of nothing."""
    id_ = await flow.enqueue()
    await flow.shard.lease(1, "nobody:1", 60_000, flow.lessor()._policy)
    await flow.lapse(id_)
    await flow.reaper().step()
    assert (await flow.place(id_), flow.db.task(id_)["attempts"], flow.db.outcomes(id_)) == (
        "q:default",
        0,
        [],
    )


async def test_an_entry_under_an_old_token_goes_to_the_lease_that_holds_the_row(flow: Flow):
    id_ = flow.db.put("running", lease_token="holder", lease_ms=60_000)
    await flow.shard.adopt([(id_, "default", "old", 0)])
    await flow.reaper().step()
    assert (await flow.contents()).live == {id_: "holder"}
    assert flow.status(id_) == "running"


async def test_an_id_that_no_row_has_is_forgotten_and_stops_nobody(flow: Flow):
    id_ = await flow.enqueue()
    await flow.lease()
    strangers = [new_id(), "no id", "null", ""]
    await flow.shard.adopt([(stranger, "low", "t", 0) for stranger in strangers])
    await flow.lapse(id_)
    await flow.reaper().step()
    assert list((await flow.contents()).live) == [id_]
    assert flow.status(id_) == "queued"


async def test_losses_beyond_the_budget_end_in_the_dead_letters(flow: Flow):
    flow.metrics.know_types({"noop"})
    flow.db.worker("host:1:w1")
    id_ = await flow.enqueue(priority="low")
    for losses in range(1, 5):
        (lease,) = await flow.lessor("host:1:w1").take(1)
        assert lease.losses == losses - 1
        flow.held.drop(lease)
        await flow.lapse(id_)
        await flow.reaper().step()
    row = flow.db.task(id_)
    assert (row["status"], row["dead_reason"], row["attempts"], row["losses"]) == ("dead", "lost", 4, 4)
    assert await flow.place(id_) == "dlq:low"
    assert flow.counted("tasks_reaped_total") == 4
    assert flow.counted("tasks_dead_total", type="noop", priority="low", reason="lost") == 1
    await flow.agree()


async def test_a_task_outlives_the_workers_that_others_kill(flow: Flow):
    """A suspect, too, alone in a process or in line for one: it is not what took its worker down."""
    id_ = await flow.enqueue()
    for losses in range(1, 9):
        (lease,) = await flow.lease()  # by a worker that nobody has heard of since
        flow.held.drop(lease)
        await flow.lapse(id_)
        await flow.reaper(max_losses=1).step()
        row = flow.db.task(id_)
        assert (row["status"], row["suspect"], row["losses"]) == ("queued", True, losses)
    await flow.settle(*await flow.lease())
    assert flow.status(id_) == "succeeded"
    await flow.agree()


async def test_a_full_page_is_followed_by_the_next_at_once(flow: Flow):
    ids = [await flow.enqueue() for _ in range(5)]
    await flow.lease()
    await flow.lapse(*ids)
    reaper = flow.reaper(batch=2)
    assert [await reaper.step() for _ in range(3)] == [True, True, False]
    assert [flow.status(id_) for id_ in ids] == ["queued"] * 5


async def test_a_row_that_postgres_refuses_stops_no_other(flow: Flow):
    """It is put off, so that not even a page of its own is in the way of what ran out after it."""
    ids = [await flow.enqueue() for _ in range(7)]
    culprit = ids[2]
    await flow.lease()
    await flow.lapse(*ids)
    reaper = flow.reaper(batch=3)
    with refusing(flow.db.rows, "task_runs", f"NEW.task_id = '{culprit}'"):
        assert [await reaper.step() for _ in range(3)] == [True, True, False]
        assert [flow.status(id_) for id_ in ids] == ["queued"] * 2 + ["running"] + ["queued"] * 4
        assert list((await flow.contents()).leases) == [culprit]
        assert await flow.shard.expired(10) == []
    await flow.lapse(culprit)
    await reaper.step()
    assert flow.db.outcomes(culprit) == ["lost"]
    await flow.agree()


async def test_every_queue_is_looked_after(flow: Flow):
    ids = {queue: await flow.enqueue(queue=queue) for queue in ("default", "mail")}
    for queue, id_ in ids.items():
        shard = flow.index.shard(queue)
        await shard.lease(1, "t", 60_000, flow.lessor()._policy)
        await flow.client.zadd(shard.key("leases"), {id_: 1})
    await flow.reaper(("default", "mail")).step()
    assert [(await flow.contents(queue)).q["default"] for queue in ids] == [[id_] for id_ in ids.values()]


async def test_two_reapers_count_each_loss_once(flow: Flow):
    ids = [await flow.enqueue() for _ in range(20)]
    await flow.lease()
    await flow.lapse(*ids)
    await asyncio.gather(*(flow.reaper().step() for _ in range(3)))
    assert flow.counted("tasks_reaped_total") == 20
    assert sorted((await flow.contents()).q["default"]) == ids
    await flow.agree()


async def test_the_pump_brings_back_what_is_due_and_nothing_else(make_flow: MakeFlow):
    flow = await make_flow()
    due = [await flow.enqueue(priority="low", delay_ms=60_000) for _ in range(3)]
    later = await flow.enqueue(priority="low", delay_ms=60_000)
    mail = await flow.enqueue(queue="mail", delay_ms=60_000)
    await flow.due(*due)
    pump = flow.pump(("default", "mail"), batch=2)
    assert [await pump.step() for _ in range(2)] == [True, False]
    assert sorted((await flow.contents()).q["low"]) == due
    assert (await flow.place(later), list((await flow.contents("mail")).retry["default"])) == (
        "retry:low",
        [mail],
    )
    assert sorted(lease.id for lease in await flow.lease()) == due
    await flow.agree()


async def test_a_row_that_somebody_only_refers_to_is_reaped(make_flow: MakeFlow):
    """By a foreign key from a table of the user's own, in a transaction that is still open."""
    flow = await make_flow(STORE_TIMEOUT_MS=300)
    id_ = await flow.enqueue()
    await flow.lease()
    await flow.lapse(id_)
    with flow.db.transaction() as reader:
        reader.rows("SELECT FROM tasks WHERE id = %s FOR KEY SHARE", id_)
        await flow.reaper().step()
        assert flow.db.outcomes(id_) == ["lost"]


async def test_a_row_that_somebody_has_locked_is_put_off_and_the_others_are_reaped(make_flow: MakeFlow):
    """An operator's open transaction, say. The oldest page holds that lease, again and again."""
    flow = await make_flow(STORE_TIMEOUT_MS=300)
    ids = [await flow.enqueue() for _ in range(5)]
    await flow.lease()
    await flow.lapse(*ids)
    with flow.db.transaction() as operator:
        operator.rows("SELECT FROM tasks WHERE id = %s FOR UPDATE", ids[1])
        await flow.reaper().step()
        assert [flow.db.outcomes(id_) for id_ in ids] == [["lost"], [], ["lost"], ["lost"], ["lost"]]
        assert ids[1] in (await flow.contents()).leases
    await flow.lapse(ids[1])
    await flow.reaper().step()
    assert flow.db.outcomes(ids[1]) == ["lost"]
    await flow.agree()
