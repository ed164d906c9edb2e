"""The protocol's counterexamples: the steps that went wrong without each guard, and now do not.

The numbers are those of the protocol's table of guards. Traces that need Postgres are among the flow's tests.
"""

from __future__ import annotations

from fix_shards import Inspector, ServerInspector

from scheduler.fairness import Policy, State
from scheduler.model import Move
from scheduler.queue import Census, Shard

POLICY = Policy(max_wait_ms=0)
VIS_MS = 5000


async def leased_again(inspector: Inspector, shard: Shard) -> None:
    """W1 leased `a` as t1 and was reaped; W2 holds it as t2."""
    await inspector.load(q={"low": ["a"]})
    assert await shard.lease(1, "t1", VIS_MS, POLICY) == ["a"]
    await inspector.age(VIS_MS)
    assert await shard.expired(10) == [("a", "t1")]
    assert await shard.place([Move("a", "t1", "tail", "low")]) == 1
    assert await shard.lease(1, "t2", VIS_MS, POLICY) == ["a"]


async def test_1_a_refused_claim_drops_nothing_of_the_next_holder(inspector: Inspector, shard: Shard) -> None:
    await leased_again(inspector, shard)
    assert await shard.place([Move("a", "t1", "gone")]) == 0
    await inspector.expect(leases={"a": ("t2", inspector.at(VIS_MS))}, wake=1)


async def test_1_a_late_ack_changes_nothing(inspector: Inspector, shard: Shard) -> None:
    await leased_again(inspector, shard)
    assert await shard.place([Move("a", "t1", "retry", "low", 500)]) == 0
    await inspector.expect(leases={"a": ("t2", inspector.at(VIS_MS))}, wake=1)


async def test_1_a_reaper_that_comes_after_the_ack_changes_nothing(
    inspector: Inspector, shard: Shard
) -> None:
    await inspector.load(leases={"a": ("t1", -1)})
    assert await shard.expired(10) == [("a", "t1")]
    assert await shard.place([Move("a", "t1", "retry", "low", 500)]) == 1
    assert await shard.place([Move("a", "t1", "tail", "low")]) == 0
    await inspector.expect(retry={"low": {"a": inspector.at(500)}})


async def test_1_of_two_reapers_one_moves(inspector: Inspector, shard: Shard) -> None:
    await inspector.load(leases={"a": ("t1", -1)})
    seen = [await shard.expired(10), await shard.expired(10)]
    assert seen == [[("a", "t1")]] * 2
    assert [await shard.place([Move("a", "t1", "tail", "low")]) for _ in seen] == [1, 0]
    await inspector.expect(q={"low": ["a"]}, wake=1)


async def test_5_a_late_renewal_does_not_revive_the_dead(inspector: Inspector, shard: Shard) -> None:
    await inspector.load(leases={"a": ("t1", 900)})
    assert await shard.place([Move("a", "t1", "dead", "low")]) == 1
    assert await shard.place([Move("a", "t1", "held", delay_ms=VIS_MS, new_token="t1")]) == 0
    await inspector.expect(dlq={"low": {"a": inspector.at(0)}})


async def test_6_a_redriven_id_is_no_dead_letter(inspector: Inspector, shard: Shard) -> None:
    await inspector.load(leases={"a": ("t1", 900)})
    assert await shard.place([Move("a", "t1", "dead", "low")]) == 1
    assert await shard.push([("a", "low", 0)]) == 1
    await inspector.expect(q={"low": ["a"]}, wake=1)


async def test_7_reconcile_does_not_overtake_the_ack(inspector: Inspector, shard: Shard) -> None:
    await inspector.load(leases={"a": ("t1", 900)})
    assert await shard.dlq_add([("a", "low", 0)]) == 0
    await inspector.expect(leases={"a": ("t1", 900)})
    assert await shard.place([Move("a", "t1", "dead", "low")]) == 1
    await inspector.expect(dlq={"low": {"a": inspector.at(0)}})


async def test_8_a_dead_letter_that_outlived_the_death_goes(inspector: Inspector, shard: Shard) -> None:
    await inspector.load(leases={"a": ("t1", 900)})
    assert await shard.place([Move("a", "t1", "gone")]) == 1  # redriven, run and done since it was read
    assert await shard.dlq_add([("a", "low", 100)]) == 1
    await inspector.expect(dlq={"low": {"a": inspector.at(-100)}})
    assert await shard.dlq_del([("a", "low")]) == 1
    await inspector.expect()


async def test_9_an_evicted_list_is_pushed_again(server_inspector: ServerInspector) -> None:
    inspector, shard = server_inspector, server_inspector.shard
    await inspector.load(q={"low": ["a", "b"]}, leases={"c": ("t1", 900)}, epoch="3")
    await inspector.client.delete(shard.key("q", "low"))
    assert await shard.push([("a", "low", 0)]) == 0  # `live` says that it is known
    assert await shard.census() == Census(whole=False, epoch=None)
    assert await shard.push([("a", "low", 0), ("b", "low", 0)]) == 2
    assert await shard.adopt([("c", "low", "t1", 900)]) == 1
    await inspector.expect(q={"low": ["a", "b"]}, leases={"c": ("t1", inspector.at(900))}, wake=1)


async def test_10_the_reaper_guesses_no_token(server_inspector: ServerInspector) -> None:
    inspector, shard = server_inspector, server_inspector.shard
    await inspector.load(leases={"a": ("t1", -1)})
    await inspector.client.delete(shard.key("live"))
    assert await shard.place([Move("a", "", "tail", "low"), Move("a", "t1", "tail", "low")]) == 0
    assert await shard.expired(10) == []
    await inspector.expect()
    assert await shard.adopt([("a", "low", "t1", -1)]) == 1
    assert await shard.expired(10) == [("a", "t1")]


async def test_11_a_running_id_stays_with_its_holder(inspector: Inspector, shard: Shard) -> None:
    """A stale message of a running task is leased; the claim is refused and names the real holder."""
    await inspector.load(q={"low": ["a"]})
    assert await shard.lease(1, "t2", VIS_MS, POLICY) == ["a"]
    assert await shard.place([Move("a", "t2", "held", delay_ms=3000, new_token="t1")]) == 1
    await inspector.expect(leases={"a": ("t1", inspector.at(3000))})
    assert await shard.place([Move("a", "t1", "gone")]) == 1
    await inspector.expect()


async def test_a_lease_that_nobody_got_comes_back(inspector: Inspector, shard: Shard) -> None:
    """The answer was lost on the way: nobody holds the token of the entry, until the reaper looks."""
    await inspector.load(q={"low": ["a"]})
    await shard.lease(1, "t1", VIS_MS, POLICY)
    await inspector.age(VIS_MS)
    for id_, token in await shard.expired(10):
        assert await shard.place([Move(id_, token, "tail", "low")]) == 1
    await inspector.expect(q={"low": ["a"]}, wake=1)


async def test_a_released_id_is_not_taken_back_by_the_reaper(inspector: Inspector, shard: Shard) -> None:
    await inspector.load(q={"low": ["b"]}, leases={"a": ("t1", -1)})
    assert await shard.expired(10) == [("a", "t1")]
    assert await shard.place([Move("a", "t1", "head", "low")]) == 1
    assert await shard.place([Move("a", "t1", "tail", "low")]) == 0
    await inspector.expect(q={"low": ["a", "b"]}, wake=1)


async def test_two_reconcilers_do_what_one_does(inspector: Inspector, shard: Shard) -> None:
    await inspector.load()
    for added in (1, 0):
        assert await shard.push([("a", "low", 0)]) == added
        assert await shard.adopt([("b", "low", "t1", 900)]) == added
        assert await shard.dlq_add([("c", "low", 100)]) == added
    assert [await shard.set_epoch(None, "1"), await shard.set_epoch(None, "1")] == [True, False]
    await inspector.expect(
        q={"low": ["a"]},
        leases={"b": ("t1", inspector.at(900))},
        dlq={"low": {"c": inspector.at(-100)}},
        wake=1,
        epoch="1",
    )


async def test_a_task_goes_all_the_way(inspector: Inspector, shard: Shard) -> None:
    await inspector.load()
    assert await shard.push([("a", "high", 1000), ("b", "high", 0)]) == 2
    assert await shard.lease(5, "t1", VIS_MS, POLICY) == ["b"]
    assert await shard.place([Move("b", "t1", "retry", "high", 500)]) == 1
    await inspector.age(1000)
    assert await shard.pump(100) == 2
    assert await shard.lease(5, "t2", VIS_MS, POLICY) == ["b", "a"]
    assert await shard.place([Move("a", "t2", "gone"), Move("b", "t2", "dead", "high")]) == 2
    await inspector.expect(dlq={"high": {"b": inspector.at(0)}}, wake=1, credit=State())
