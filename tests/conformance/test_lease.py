"""lease: what it takes, under which token, and whom it wakes. How it chooses: test_fairness_lua.py."""

from __future__ import annotations

import pytest
from fix_shards import Inspector, ServerInspector
from reference import Reference

from scheduler.errors import QueueError
from scheduler.fairness import Policy, State
from scheduler.queue import Shard

STRICT = Policy(mode="strict", max_wait_ms=0)
WEIGHTED = Policy(max_wait_ms=0)


async def test_leased_ids_are_under_the_token_until_the_deadline(inspector: Inspector, shard: Shard) -> None:
    await inspector.load(q={"high": ["a", "b"], "low": ["c"]})
    assert await shard.lease(10, "t1", 5000, STRICT) == ["a", "b", "c"]
    deadline = inspector.at(5000)
    await inspector.expect(leases={"a": ("t1", deadline), "b": ("t1", deadline), "c": ("t1", deadline)})


async def test_a_lease_takes_the_oldest_and_leaves_the_rest(inspector: Inspector, shard: Shard) -> None:
    await inspector.load(q={"high": ["a", "b", "c"]}, wake=1)
    assert await shard.lease(2, "t1", 5000, STRICT) == ["a", "b"]
    await inspector.expect(
        q={"high": ["c"]},
        leases={"a": ("t1", inspector.at(5000)), "b": ("t1", inspector.at(5000))},
        credit=State((0, 0, 0, 0), (0, inspector.at(0), 0, 0)),
        wake=1,
    )


async def test_ids_come_in_the_order_of_the_fair_choice(inspector: Inspector, shard: Shard) -> None:
    await inspector.load(q={"critical": ["a1", "a2", "a3"], "high": ["b1", "b2"], "low": ["c1"]})
    assert await shard.lease(10, "t1", 5000, WEIGHTED) == ["a1", "b1", "a2", "a3", "b2", "c1"]


async def test_whoever_leaves_something_wakes_the_next_worker(inspector: Inspector, shard: Shard) -> None:
    await inspector.load(q={"high": ["a", "b"]})
    assert await shard.lease(1, "t1", 5000, STRICT) == ["a"]
    assert (await inspector.found()).wake == 1
    assert await shard.lease(1, "t2", 5000, STRICT) == ["b"]
    assert (await inspector.found()).wake == 1  # the token waits for its worker; no other is added


async def test_whoever_takes_the_last_wakes_nobody(inspector: Inspector, shard: Shard) -> None:
    await inspector.load(q={"high": ["a", "b"]})
    assert await shard.lease(2, "t1", 5000, STRICT) == ["a", "b"]
    assert (await inspector.found()).wake == 0


async def test_nothing_ready_changes_nothing(inspector: Inspector, shard: Shard) -> None:
    held = {
        "retry": {"low": {"a": 500}},
        "leases": {"b": ("t1", 700)},
        "credit": State((1, 2, 3, 4), (5, 6, 7, 8)),
    }
    await inspector.load(**held)
    assert await shard.lease(10, "t2", 5000, WEIGHTED) == []
    await inspector.expect(**held)


async def test_an_idle_lease_is_no_write(server_inspector: ServerInspector) -> None:
    shard = server_inspector.shard
    await server_inspector.load(q={"low": ["a"]}, paused={"low"})
    before = (await server_inspector.client.info("persistence"))["rdb_changes_since_last_save"]
    for priorities in ((), ("critical", "high", "default", "low")):
        await server_inspector.client.sadd(shard.key("paused"), "low", *priorities)
        assert await shard.lease(10, "t1", 5000, WEIGHTED) == []
    after = (await server_inspector.client.info("persistence"))["rdb_changes_since_last_save"]
    assert after - before == 3  # the names that this test added to `paused`


@pytest.mark.parametrize("n", [0, -3])
async def test_a_lease_of_nothing_takes_nothing_and_wakes_another_worker(
    inspector: Inspector, shard: Shard, n: int
) -> None:
    await inspector.load(q={"low": ["a"]})
    for _ in range(2):
        assert await shard.lease(n, "t1", 5000, WEIGHTED) == []
        await inspector.expect(q={"low": ["a"]}, wake=1)


async def test_a_lease_of_nothing_where_nothing_is_ready_wakes_nobody(
    inspector: Inspector, shard: Shard
) -> None:
    await inspector.load(q={"low": ["a"]}, paused={"low"})
    assert await shard.lease(0, "t1", 5000, WEIGHTED) == []
    await inspector.expect(q={"low": ["a"]}, paused={"low"})


async def test_paused_priorities_are_passed_over(inspector: Inspector, shard: Shard) -> None:
    await inspector.load(q={"critical": ["a"], "low": ["b"]}, paused={"critical", "high"})
    assert await shard.lease(10, "t1", 5000, STRICT) == ["b"]
    await inspector.expect(
        q={"critical": ["a"]}, leases={"b": ("t1", inspector.at(5000))}, paused={"critical", "high"}
    )
    assert await shard.lease(10, "t2", 5000, STRICT) == []


async def test_a_foreign_id_leaves_its_list_and_becomes_known(inspector: Inspector, shard: Shard) -> None:
    """A message that somebody else put there does no harm: the claim refuses it, and place drops it."""
    await inspector.load(q={"low": ["forged"]}, live={})
    assert await shard.lease(10, "t1", 5000, STRICT) == ["forged"]
    await inspector.expect(leases={"forged": ("t1", inspector.at(5000))})


async def test_no_more_than_a_thousand_at_once(inspector: Inspector, shard: Shard | Reference) -> None:
    ids = [f"id-{i:05}" for i in range(1500)]
    await inspector.load(q={"low": ids})
    leased = await shard.lease(1000, "t1", 5000, WEIGHTED)
    assert leased == ids[:1000]
    assert await shard.lease(1000, "t2", 5000, WEIGHTED) == ids[1000:]
    assert (await inspector.found()).broken() == []


async def test_a_lease_without_a_token_is_refused(server_inspector: ServerInspector) -> None:
    await server_inspector.load(q={"low": ["a"]})
    with pytest.raises(QueueError, match="needs a token"):
        await server_inspector.shard.lease(1, "", 5000, WEIGHTED)
    await server_inspector.expect(q={"low": ["a"]})
