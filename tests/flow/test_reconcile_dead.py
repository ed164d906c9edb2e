"""Reconcile and the dead letters: Redis shows those that the rows say are dead, and no others."""

from __future__ import annotations

import pytest
from fix_flow import Flow, MakeFlow

from scheduler.model import Result, new_id
from scheduler.settle import decide


async def test_dead_letters_come_back_in_the_order_of_their_deaths(flow: Flow):
    flow.db.rows("INSERT INTO queues (name, epoch) VALUES ('default', 1)")  # a pass has seen it
    ids = [flow.db.put("dead") for _ in range(3)]
    for id_, ms in zip(ids, (1000, 9000, 5000), strict=True):
        flow.db.age(id_, ms)
    await flow.reconciler().reconcile()
    assert await flow.shard.dlq_page("default", 0, 10) == [ids[1], ids[2], ids[0]]


async def test_a_dead_letter_that_redis_lacks_is_added(flow: Flow):
    id_ = await flow.enqueue(priority="low")
    (lease,) = await flow.lease()
    await flow.rest()
    await flow.settle(lease, kind="rejected")
    await flow.client.delete(flow.shard.key("dlq", "low"))
    assert await flow.reconciler().reconcile() == {"dlq_added": 1}
    assert await flow.place(id_) == "dlq:low"


async def test_a_dead_letter_on_its_way_is_not_overtaken(flow: Flow):
    """Settled and not yet acknowledged: the trace of guard 7."""
    await flow.enqueue()
    (lease,) = await flow.lease()
    await flow.rest()
    await flow.store.settle([decide(lease, Result("rejected"), None, flow.settings)], worker="w")
    assert await flow.reconciler().reconcile() == {}
    assert await flow.place(lease.id) == "leases"


@pytest.mark.parametrize("status", ["queued", "succeeded", "cancelled", "purged", "unknown", "forged"])
async def test_an_entry_that_is_no_dead_letter_is_removed(flow: Flow, status: str):
    await flow.enqueue()
    await flow.rest()
    made = {"purged": lambda: flow.db.put("dead", dead_at=None), "unknown": new_id, "forged": lambda: "{a,b"}
    id_ = made[status]() if status in made else flow.db.put(status)
    flow.db.rows("DELETE FROM tasks WHERE id::text = %s AND status = 'queued'", id_)
    dead = flow.db.put("dead", priority="low")
    await flow.shard.dlq_add([(id_, "low", 0), (dead, "low", 0)])
    assert await flow.reconciler().reconcile() == {"dlq_removed": 1}
    assert await flow.shard.dlq_page("low", 0, 10) == [dead]


async def test_pages_of_dead_letters_take_turns_in_every_queue(make_flow: MakeFlow):
    """What is wrong in the last page of one queue is found, whatever the other queues hold."""
    flow = await make_flow(RECONCILE_BATCH_SIZE=2)
    await flow.enqueue()
    await flow.enqueue(queue="mail")
    await flow.rest()
    dead = [flow.db.put("dead", priority="low") for _ in range(5)]
    stray = new_id()
    await flow.shard.dlq_add([*((id_, "low", 1000) for id_ in dead), (stray, "low", 0)])
    reconciler = flow.reconciler()
    found = [await reconciler.reconcile() for _ in range(4)]
    assert {"dlq_removed": 1} in found
    assert await flow.shard.dlq_page("low", 0, 10) == dead
