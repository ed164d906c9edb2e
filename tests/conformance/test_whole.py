"""census, set_epoch, known and depths: whether Redis still knows what it knew."""

from __future__ import annotations

from typing import Any

import pytest
from fix_shards import Inspector, ServerInspector, contents

from scheduler.fairness import State
from scheduler.keys import NAMES
from scheduler.model import Depths
from scheduler.queue import Census, Shard

FULL: dict[str, Any] = {
    "q": {"critical": ["a"], "low": ["b", "c"]},
    "retry": {"high": {"d": 500}},
    "dlq": {"high": {"x": -100}},
    "leases": {"e": ("t1", 900), "f": ("t2", 900)},
    "credit": State((0, 0, 0, 0), (0, 0, 0, 5)),
    "wake": 1,
    "paused": {"default"},
    "epoch": "7",
}


async def test_a_whole_index_is_left_alone(inspector: Inspector, shard: Shard) -> None:
    await inspector.load(**FULL)
    assert await shard.census() == Census(whole=True, epoch="7")
    await inspector.expect(**FULL)


async def test_an_empty_index_is_whole_and_has_no_epoch(inspector: Inspector, shard: Shard) -> None:
    await inspector.load()
    assert await shard.census() == Census(whole=True, epoch=None)


@pytest.mark.parametrize("lost", ["q", "retry", "leases", "live"])
async def test_a_lost_key_is_seen_and_the_rest_dropped(inspector: Inspector, shard: Shard, lost: str) -> None:
    """Row 9: an evicted or deleted key would lose its ids for ever, as `live` says that they are known."""
    await inspector.load(**FULL)
    held = await inspector.read()
    setattr(held, lost, getattr(contents(), lost))
    await inspector.write(held)
    assert await shard.census() == Census(whole=False, epoch=None)
    await inspector.expect()


async def test_an_id_too_many_is_damage(inspector: Inspector, shard: Shard) -> None:
    await inspector.load(q={"low": ["a", "a"]}, live={"a": ""}, epoch="7")
    assert await shard.census() == Census(whole=False, epoch=None)
    await inspector.expect()


@pytest.mark.parametrize("name", NAMES)
async def test_a_key_of_another_type_is_damage(server_inspector: ServerInspector, name: str) -> None:
    await server_inspector.load(**FULL)
    key = server_inspector.shard.names[NAMES.index(name)]
    await server_inspector.client.delete(key)
    await server_inspector.client.xadd(key, {"not": "ours"})
    assert await server_inspector.shard.census() == Census(whole=False, epoch=None)
    await server_inspector.expect()


async def test_the_epoch_is_set_by_whoever_knows_the_last(inspector: Inspector, shard: Shard) -> None:
    await inspector.load()
    assert not await shard.set_epoch("1", "2")
    await inspector.expect()
    assert await shard.set_epoch(None, "1")
    assert not await shard.set_epoch(None, "5")
    assert await shard.set_epoch("1", "2")
    await inspector.expect(epoch="2")
    assert await shard.census() == Census(whole=True, epoch="2")


async def test_what_is_known_of_an_id(inspector: Inspector, shard: Shard) -> None:
    await inspector.load(**FULL)
    assert await shard.known(["e", "a", "d", "x", "unknown", "e"]) == ["t1", "", "", None, None, "t1"]


async def test_depths_are_by_collection_and_priority(inspector: Inspector, shard: Shard) -> None:
    await inspector.load(**FULL)
    assert await shard.depths() == Depths((1, 0, 0, 2), (0, 1, 0, 0), (0, 1, 0, 0), 2)
    await inspector.expect(**FULL)
