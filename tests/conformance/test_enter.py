"""push and adopt: the only two ways into the index."""

from __future__ import annotations

import pytest
from fix_shards import Inspector
from reference import Reference

from scheduler.model import PRIORITIES
from scheduler.queue import Shard


async def test_a_pushed_id_is_ready_and_wakes_one_worker(inspector: Inspector, shard: Shard) -> None:
    await inspector.load()
    assert await shard.push([("a", "high", 0)]) == 1
    await inspector.expect(q={"high": ["a"]}, wake=1)


async def test_each_list_keeps_the_order_of_the_pushes(inspector: Inspector, shard: Shard) -> None:
    await inspector.load(q={"low": ["z"]})
    entries = [("a", "low", 0), ("b", "critical", 0), ("c", "low", 0), ("d", "default", 0), ("e", "low", 0)]
    assert await shard.push(entries) == 5
    await inspector.expect(q={"critical": ["b"], "default": ["d"], "low": ["z", "a", "c", "e"]}, wake=1)


async def test_a_delayed_id_waits_in_retry_and_wakes_nobody(inspector: Inspector, shard: Shard) -> None:
    await inspector.load()
    assert await shard.push([("a", "low", 700), ("b", "high", 1)]) == 2
    await inspector.expect(retry={"low": {"a": inspector.at(700)}, "high": {"b": inspector.at(1)}})


async def test_a_negative_delay_means_ready(inspector: Inspector, shard: Shard) -> None:
    await inspector.load()
    assert await shard.push([("a", "low", -5)]) == 1
    await inspector.expect(q={"low": ["a"]}, wake=1)


async def test_a_push_adds_no_second_token_to_a_waiting_one(inspector: Inspector, shard: Shard) -> None:
    await inspector.load(wake=1)
    assert await shard.push([("a", "low", 0)]) == 1
    await inspector.expect(q={"low": ["a"]}, wake=1)


@pytest.mark.parametrize("delay_ms", [0, 900])
async def test_a_known_id_is_not_pushed_again(inspector: Inspector, shard: Shard, delay_ms: int) -> None:
    held = {
        "q": {"low": ["a"]},
        "retry": {"high": {"b": 500}},
        "leases": {"c": ("t1", 900)},
    }
    await inspector.load(**held)
    entries = [(id_, priority, delay_ms) for id_ in "abc" for priority in PRIORITIES]
    assert await shard.push(entries) == 0
    await inspector.expect(**held)


async def test_an_id_twice_in_one_push_is_added_once(inspector: Inspector, shard: Shard) -> None:
    await inspector.load()
    assert await shard.push([("a", "low", 0), ("a", "high", 50), ("a", "low", 0)]) == 1
    await inspector.expect(q={"low": ["a"]}, wake=1)


async def test_a_pushed_id_leaves_the_dead_letters(inspector: Inspector, shard: Shard) -> None:
    """Row 6 of the protocol: a redriven id would be in `q` and `dlq`."""
    await inspector.load(dlq={"low": {"a": -100, "b": -90, "c": -80}})
    assert await shard.push([("a", "low", 0), ("b", "low", 500)]) == 2
    await inspector.expect(
        q={"low": ["a"]}, retry={"low": {"b": inspector.at(500)}}, dlq={"low": {"c": -80}}, wake=1
    )


async def test_a_known_id_leaves_the_dead_letters_too(inspector: Inspector, shard: Shard) -> None:
    """Row 6, `in every case`: a push repairs what another one could not finish."""
    await inspector.load(q={"low": ["a"]}, dlq={"low": {"a": -100}})
    assert await shard.push([("a", "low", 0)]) == 0
    await inspector.expect(q={"low": ["a"]})


async def test_an_adopted_id_is_leased_by_its_token(inspector: Inspector, shard: Shard) -> None:
    await inspector.load(dlq={"high": {"a": -100}})
    assert await shard.adopt([("a", "high", "t1", 4000), ("b", "low", "t2", 9000)]) == 2
    await inspector.expect(leases={"a": ("t1", inspector.at(4000)), "b": ("t2", inspector.at(9000))})


async def test_a_lapsed_lease_is_adopted_as_due(inspector: Inspector, shard: Shard) -> None:
    """Row 4: healthy and lapsed rows come back by the same path, and only the reaper reaps."""
    await inspector.load()
    assert await shard.adopt([("a", "high", "t1", -60_000)]) == 1
    await inspector.expect(leases={"a": ("t1", inspector.at(0))})
    assert await shard.expired(10) == [("a", "t1")]


async def test_a_known_id_is_not_adopted(inspector: Inspector, shard: Shard) -> None:
    """Row 5: what Redis says of an id is newer than a row that was read before."""
    held = {
        "q": {"low": ["a"]},
        "retry": {"high": {"b": 500}},
        "leases": {"c": ("t1", 900)},
    }
    await inspector.load(**held)
    assert await shard.adopt([(id_, "low", "t9", 5000) for id_ in "abc"]) == 0
    await inspector.expect(**held)


async def test_a_refused_adoption_leaves_the_dead_letters_alone(inspector: Inspector, shard: Shard) -> None:
    await inspector.load(dlq={"low": {"a": -100}})
    assert await shard.adopt([("a", "low", "", 5000)]) == 0
    await inspector.expect(dlq={"low": {"a": -100}})


async def test_an_id_twice_in_one_adoption_has_the_first_owner(inspector: Inspector, shard: Shard) -> None:
    await inspector.load()
    assert await shard.adopt([("a", "low", "t1", 5000), ("a", "low", "t2", 9000)]) == 1
    await inspector.expect(leases={"a": ("t1", inspector.at(5000))})


async def test_nothing_in_changes_nothing(inspector: Inspector, shard: Shard | Reference) -> None:
    held = {"q": {"low": ["a"]}, "leases": {"b": ("t1", 900)}, "dlq": {"low": {"c": -5}}, "wake": 1}
    await inspector.load(**held)
    for method in (shard.push, shard.adopt, shard.place, shard.forget, shard.dlq_add, shard.dlq_del):
        assert await method([]) == 0
    assert await shard.nudge([]) == 0
    assert await shard.known([]) == []
    await inspector.expect(**held)


async def test_thousands_of_ids_go_in_and_out(inspector: Inspector, shard: Shard) -> None:
    await inspector.load()
    ids = [f"id-{i:05}" for i in range(2500)]
    assert await shard.push([(id_, PRIORITIES[i % 4], i % 2 * 500) for i, id_ in enumerate(ids)]) == 2500
    assert await shard.known([*ids, "other"]) == [""] * 2500 + [None]
    assert (await shard.depths()).queued == (625, 0, 625, 0)
    await inspector.load()
    assert await shard.adopt([(id_, "low", f"t{i}", 5000) for i, id_ in enumerate(ids)]) == 2500
    assert await shard.known(ids) == [f"t{i}" for i in range(2500)]
    assert (await inspector.found()).broken() == []
