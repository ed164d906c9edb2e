"""dlq_add, dlq_del, dlq_page and forget: the dead letters are a view of the rows; the cancelled leave."""

from __future__ import annotations

from fix_shards import Inspector

from scheduler.queue import Shard


async def test_a_dead_row_is_shown_as_a_dead_letter(inspector: Inspector, shard: Shard) -> None:
    await inspector.load(dlq={"low": {"x": -100}})
    assert await shard.dlq_add([("a", "high", 5000), ("b", "low", -10), ("a", "high", 3)]) == 2
    await inspector.expect(dlq={"high": {"a": inspector.at(-5000)}, "low": {"x": -100, "b": inspector.at(0)}})


async def test_a_dead_letter_keeps_its_time(inspector: Inspector, shard: Shard) -> None:
    await inspector.load(dlq={"low": {"a": -100}})
    assert await shard.dlq_add([("a", "low", 5000)]) == 0
    await inspector.expect(dlq={"low": {"a": -100}})


async def test_an_id_on_its_way_is_no_dead_letter(inspector: Inspector, shard: Shard) -> None:
    """Row 7: the row was read before its redrive, or before the worker's ack."""
    held = {"q": {"low": ["a"]}, "retry": {"low": {"b": 500}}, "leases": {"c": ("t1", 900)}}
    await inspector.load(**held)
    assert await shard.dlq_add([(id_, "low", 0) for id_ in "abc"]) == 0
    await inspector.expect(**held)


async def test_what_is_dead_no_more_is_taken_out(inspector: Inspector, shard: Shard) -> None:
    """Row 8: an entry that outlived the death, because it was added by a late reading."""
    await inspector.load(dlq={"low": {"a": -100, "b": -90}, "high": {"c": -80}}, q={"low": ["x"]})
    entries = [("a", "low"), ("c", "high"), ("b", "high"), ("unknown", "low"), ("x", "low")]
    assert await shard.dlq_del(entries) == 2
    await inspector.expect(dlq={"low": {"b": -90}}, q={"low": ["x"]})


async def test_dead_letters_are_read_in_pages_oldest_first(inspector: Inspector, shard: Shard) -> None:
    await inspector.load(dlq={"low": {"a": -1, "b": -3, "c": -2}, "high": {"d": -9}})
    assert await shard.dlq_page("low", 0, 2) == ["b", "c"]
    assert await shard.dlq_page("low", 2, 2) == ["a"]
    assert await shard.dlq_page("low", 3, 2) == []
    assert await shard.dlq_page("low", 0, 0) == []
    assert await shard.dlq_page("critical", 0, 2) == []


async def test_a_cancelled_retry_is_forgotten(inspector: Inspector, shard: Shard) -> None:
    await inspector.load(retry={"low": {"a": 500, "b": 600}, "high": {"c": 700}})
    assert await shard.forget([("a", "low"), ("c", "low"), ("a", "low"), ("unknown", "low")]) == 1
    await inspector.expect(retry={"low": {"b": 600}, "high": {"c": 700}})


async def test_a_cancelled_id_that_is_ready_or_leased_stays(inspector: Inspector, shard: Shard) -> None:
    """It leaves by a refused claim or by the reaper: no list is searched."""
    held = {"q": {"low": ["a"]}, "leases": {"b": ("t1", 900)}, "dlq": {"low": {"c": -5}}}
    await inspector.load(**held)
    assert await shard.forget([(id_, "low") for id_ in "abc"]) == 0
    await inspector.expect(**held)


async def test_thousands_of_dead_letters_come_and_go(inspector: Inspector, shard: Shard) -> None:
    await inspector.load()
    ids = [f"id-{i:05}" for i in range(2500)]
    assert await shard.dlq_add([(id_, "low", 100_000 - i) for i, id_ in enumerate(ids)]) == 2500
    assert await shard.dlq_page("low", 1000, 3) == ids[1000:1003]
    assert await shard.dlq_del([(id_, "low") for id_ in ids]) == 2500
    assert await shard.push([(id_, "low", 500) for id_ in ids]) == 2500
    assert await shard.nudge([(id_, "low") for id_ in ids]) == 2500
    assert await shard.forget([(id_, "low") for id_ in ids]) == 2500
    await inspector.expect()
