"""place: one script and one guard for the ack, the release, the drop, the reaper's move and the renewal."""

from __future__ import annotations

import pytest
from fix_shards import Inspector

from scheduler.model import PRIORITIES, Move, Where
from scheduler.queue import Shard

WHERE: tuple[Where, ...] = ("gone", "head", "tail", "retry", "dead", "held")


async def test_a_gone_id_is_forgotten(inspector: Inspector, shard: Shard) -> None:
    await inspector.load(leases={"a": ("t1", 900), "b": ("t1", 900)})
    assert await shard.place([Move("a", "t1", "gone")]) == 1
    await inspector.expect(leases={"b": ("t1", 900)})


@pytest.mark.parametrize("priority", PRIORITIES)
async def test_the_head_is_before_all_others(inspector: Inspector, shard: Shard, priority: str) -> None:
    await inspector.load(q={priority: ["x"]}, leases=dict.fromkeys("abc", ("t1", 900)))
    assert await shard.place([Move(id_, "t1", "head", priority) for id_ in "abc"]) == 3
    await inspector.expect(q={priority: ["a", "b", "c", "x"]}, wake=1)


@pytest.mark.parametrize("priority", PRIORITIES)
async def test_the_tail_is_after_all_others(inspector: Inspector, shard: Shard, priority: str) -> None:
    await inspector.load(q={priority: ["x"]}, leases=dict.fromkeys("abc", ("t1", 900)))
    assert await shard.place([Move(id_, "t1", "tail", priority) for id_ in "abc"]) == 3
    await inspector.expect(q={priority: ["x", "a", "b", "c"]}, wake=1)


async def test_a_retry_waits_until_it_is_due(inspector: Inspector, shard: Shard) -> None:
    await inspector.load(leases={"a": ("t1", 900), "b": ("t1", 900)})
    moves = [Move("a", "t1", "retry", "high", 3000), Move("b", "t1", "retry", "low", 2000)]
    assert await shard.place(moves) == 2
    await inspector.expect(retry={"high": {"a": inspector.at(3000)}, "low": {"b": inspector.at(2000)}})


@pytest.mark.parametrize("ms", [-1000, 0, 1, 49, 50])
async def test_nothing_comes_back_in_less_than_50_ms(inspector: Inspector, shard: Shard, ms: int) -> None:
    await inspector.load(leases={"a": ("t1", 900), "b": ("t1", 900)})
    moves = [Move("a", "t1", "retry", "high", ms), Move("b", "t1", "held", delay_ms=ms, new_token="t2")]
    assert await shard.place(moves) == 2
    await inspector.expect(retry={"high": {"a": inspector.at(50)}}, leases={"b": ("t2", inspector.at(50))})


async def test_a_dead_id_is_a_dead_letter_from_now_on(inspector: Inspector, shard: Shard) -> None:
    await inspector.load(leases={"a": ("t1", 900)}, dlq={"low": {"x": -100}})
    assert await shard.place([Move("a", "t1", "dead", "low")]) == 1
    await inspector.expect(dlq={"low": {"x": -100, "a": inspector.at(0)}})


async def test_a_held_id_goes_to_the_lease_that_holds_its_row(inspector: Inspector, shard: Shard) -> None:
    """Row 11: an id whose row runs under another lease is not dropped but given to that lease."""
    await inspector.load(leases={"a": ("t2", 900)})
    assert await shard.place([Move("a", "t2", "held", delay_ms=4000, new_token="t1")]) == 1
    await inspector.expect(leases={"a": ("t1", inspector.at(4000))})


async def test_a_renewal_is_held_by_its_own_token(inspector: Inspector, shard: Shard) -> None:
    await inspector.load(leases={"a": ("t1", 900)})
    assert await shard.place([Move("a", "t1", "held", delay_ms=4000, new_token="t1")]) == 1
    await inspector.expect(leases={"a": ("t1", inspector.at(4000))})


@pytest.mark.parametrize("where", WHERE)
@pytest.mark.parametrize("token", ["t2", "", "t", "t11", "T1"])
async def test_nobody_moves_the_entry_of_another_lease(
    inspector: Inspector, shard: Shard, where: Where, token: str
) -> None:
    """Rows 1 and 12, invariant I5: without the token, an ack or a drop would take a healthy lease away."""
    held = {"leases": {"a": ("t1", 900)}, "q": {"low": ["b"]}, "retry": {"low": {"c": 700}}}
    await inspector.load(**held)
    moves = [Move(id_, token, where, "low", 500, "t3") for id_ in ("a", "b", "c", "unknown")]
    assert await shard.place(moves) == 0
    await inspector.expect(**held)


@pytest.mark.parametrize("where", WHERE)
async def test_an_entry_without_a_token_does_not_move(
    inspector: Inspector, shard: Shard, where: Where
) -> None:
    """Row 10: after an eviction of `live` the reaper has no token to name, and must not guess one."""
    held = {"leases": {"a": ("t1", 900), "b": ("t1", 900)}, "live": {"b": ""}}
    await inspector.load(**held)
    moves = [Move(id_, token, where, "low", 500, "t3") for id_ in "ab" for token in ("", "t1")]
    assert await shard.place(moves) == 0
    await inspector.expect(**held, whole=False)


async def test_held_needs_a_new_token(inspector: Inspector, shard: Shard) -> None:
    """Row 10: an entry of `leases` always has an owner."""
    await inspector.load(leases={"a": ("t1", 900)})
    assert await shard.place([Move("a", "t1", "held", delay_ms=4000)]) == 0
    await inspector.expect(leases={"a": ("t1", 900)})


@pytest.mark.parametrize("where", WHERE)
async def test_a_repeated_move_is_done_once(inspector: Inspector, shard: Shard, where: Where) -> None:
    """An ack whose answer was lost is sent again."""
    await inspector.load(leases={"a": ("t1", 900), "b": ("t1", 900)})
    move = Move("a", "t1", where, "low", 500, "t2")
    assert await shard.place([move, move]) == 1
    once = await inspector.found()
    assert await shard.place([move]) == 0
    await inspector.expect(once)


async def test_of_two_moves_of_an_id_the_first_counts(inspector: Inspector, shard: Shard) -> None:
    await inspector.load(leases={"a": ("t1", 900)})
    moves = [Move("a", "t1", "tail", "low"), Move("a", "t1", "dead", "low"), Move("a", "t1", "gone")]
    assert await shard.place(moves) == 1
    await inspector.expect(q={"low": ["a"]}, wake=1)


async def test_what_does_not_become_ready_wakes_nobody(inspector: Inspector, shard: Shard) -> None:
    await inspector.load(leases=dict.fromkeys("abcd", ("t1", 900)))
    moves = [
        Move("a", "t1", "gone"),
        Move("b", "t1", "dead", "low"),
        Move("c", "t1", "retry", "low", 500),
        Move("d", "t1", "held", delay_ms=500, new_token="t2"),
    ]
    assert await shard.place(moves) == 4
    assert (await inspector.found()).wake == 0


async def test_one_call_moves_ids_of_many_leases(inspector: Inspector, shard: Shard) -> None:
    await inspector.load(leases={f"id-{i:04}": (f"t{i % 7}", 900) for i in range(2400)})
    moves = [
        Move(f"id-{i:04}", f"t{i % 7}", WHERE[i % 6], PRIORITIES[i % 4], 500 + i % 3, "t9")
        for i in range(2400)
    ]
    forged = [Move(f"id-{i:04}", "t8", "gone") for i in range(2400)]
    assert await shard.place(forged) == 0
    assert await shard.place(moves) == 2400
    found = await inspector.found()
    assert found.broken() == []
    assert (len(found.live), len(found.leases)) == (1600, 400)
