"""expired, pump and nudge: what the passing of time makes due."""

from __future__ import annotations

import pytest
from fix_shards import Inspector

from scheduler.model import PRIORITIES
from scheduler.queue import Census, Shard


async def test_an_expired_lease_is_named_with_its_token(inspector: Inspector, shard: Shard) -> None:
    held = {"leases": {"a": ("t1", 3000), "b": ("t2", 1000), "c": ("t3", 90_000)}}
    await inspector.load(**held)
    assert await shard.expired(10) == []
    await inspector.age(3000)
    assert await shard.expired(10) == [("b", "t2"), ("a", "t1")]
    await inspector.expect(**held)


async def test_a_page_of_expired_leases_starts_with_the_oldest(inspector: Inspector, shard: Shard) -> None:
    await inspector.load(leases={id_: ("t1", -i) for i, id_ in enumerate("abcd")})
    assert await shard.expired(2) == [("d", "t1"), ("c", "t1")]


async def test_an_entry_without_a_token_is_taken_out(inspector: Inspector, shard: Shard) -> None:
    """Row 10: whose lease that was nobody knows, and nobody could move it. One that is not due yet stays."""
    leases = {"a": ("t1", -100), "b": ("t1", -100), "c": ("t1", -100), "d": ("t1", 9000)}
    await inspector.load(leases=leases, live={"b": "", "c": "t1"})
    assert await shard.expired(10) == [("c", "t1")]
    await inspector.expect(
        leases={"c": ("t1", -100), "d": ("t1", 9000)}, live={"b": "", "c": "t1"}, whole=False
    )


async def test_entries_without_a_token_do_not_come_again(inspector: Inspector, shard: Shard) -> None:
    """They are of the page that is looked at; the next look meets what is behind them."""
    await inspector.load(leases={id_: ("t1", i - 100) for i, id_ in enumerate("abc")}, live={"c": "t1"})
    assert [await shard.expired(2), await shard.expired(2)] == [[], [("c", "t1")]]
    await inspector.expect(leases={"c": ("t1", -98)})


async def test_two_lost_keys_that_hide_each_other_come_to_light(inspector: Inspector, shard: Shard) -> None:
    """`live` is lost while a task is leased, it is pushed again, and its list is lost: the sizes agree."""
    await inspector.load(leases={"a": ("t1", 3000)}, live={"a": ""}, epoch="7")
    assert await shard.expired(10) == []
    assert await shard.census() == Census(whole=True, epoch="7")
    await inspector.age(3000)
    assert await shard.expired(10) == []
    assert await shard.census() == Census(whole=False, epoch=None)
    await inspector.expect()


async def test_due_ids_become_ready_after_those_that_are(inspector: Inspector, shard: Shard) -> None:
    await inspector.load(
        q={"high": ["x"]},
        retry={"high": {"a": 3000, "b": 1000, "c": 90_000}, "low": {"d": 2000}},
    )
    assert await shard.pump(10) == 0
    await inspector.age(3000)
    assert await shard.pump(10) == 3
    await inspector.expect(q={"high": ["x", "b", "a"], "low": ["d"]}, retry={"high": {"c": 90_000}}, wake=1)
    assert await shard.pump(10) == 0


async def test_nothing_due_wakes_nobody(inspector: Inspector, shard: Shard) -> None:
    await inspector.load(retry={"high": {"a": 3000}})
    assert await shard.pump(10) == 0
    await inspector.expect(retry={"high": {"a": 3000}})


async def test_a_page_is_of_each_priority(inspector: Inspector, shard: Shard) -> None:
    await inspector.load(retry={p: {f"{p}-{i}": i - 100 for i in range(5)} for p in PRIORITIES})
    assert await shard.pump(3) == 12
    await inspector.expect(
        q={p: [f"{p}-{i}" for i in range(3)] for p in PRIORITIES},
        retry={p: {f"{p}-{i}": i - 100 for i in (3, 4)} for p in PRIORITIES},
        wake=1,
    )


async def test_a_page_of_a_thousand_is_pumped(inspector: Inspector, shard: Shard) -> None:
    await inspector.load(retry={"low": {f"id-{i:04}": i - 9000 for i in range(1500)}})
    assert [await shard.pump(1000), await shard.pump(1000), await shard.pump(1000)] == [1000, 500, 0]
    await inspector.expect(q={"low": [f"id-{i:04}" for i in range(1500)]}, wake=1)


async def test_a_nudged_id_is_due_now(inspector: Inspector, shard: Shard) -> None:
    await inspector.load(q={"low": ["x"]}, retry={"high": {"a": 9000, "b": 9000}}, leases={"c": ("t1", 9000)})
    assert await shard.nudge([("a", "high"), ("c", "low"), ("x", "low"), ("unknown", "low")]) == 2
    await inspector.expect(
        q={"low": ["x"]},
        retry={"high": {"a": inspector.at(0), "b": 9000}},
        leases={"c": ("t1", inspector.at(0))},
    )
    assert await shard.expired(10) == [("c", "t1")]
    assert await shard.pump(10) == 1


async def test_a_nudge_does_not_make_a_due_id_later(inspector: Inspector, shard: Shard) -> None:
    held = {"retry": {"high": {"a": -9000}}, "leases": {"b": ("t1", -9000)}}
    await inspector.load(**held)
    assert await shard.nudge([("a", "high"), ("b", "high")]) == 0
    await inspector.expect(**held)


@pytest.mark.parametrize("priority", ["critical", "low"])
async def test_a_nudge_looks_only_where_the_row_says(
    inspector: Inspector, shard: Shard, priority: str
) -> None:
    await inspector.load(retry={"high": {"a": 9000}})
    assert await shard.nudge([("a", priority)]) == 0
    await inspector.expect(retry={"high": {"a": 9000}})
