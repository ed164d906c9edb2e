"""lease.lua against fairness.py: from the same state the same picks, and the same state again."""

from __future__ import annotations

import random

import pytest
from fix_shards import CREDIT_FIELDS, ServerInspector, credit_fields, credit_state

from scheduler.fairness import Policy, State, choose
from scheduler.model import PRIORITIES

STATES = 250


def random_policy(rng: random.Random) -> Policy:
    return Policy(
        mode=rng.choice(["weighted", "weighted", "strict"]),
        weights=tuple(rng.choice([(8, 4, 2, 1), (1, 1, 1, 1), (1000, 1, 7, 300)])),
        max_wait_ms=rng.choice([0, 1, 1000, 30_000]),
    )


def random_state(rng: random.Random, now_ms: int) -> State:
    """Credits of either sign; waits far from the bounds, so that the time between cannot decide."""
    waits = [rng.choice([None, -60_000, 20_000, 25_000, 100_000, 200_000, 200_000]) for _ in PRIORITIES]
    return State(
        tuple(rng.choice([0, rng.randint(-15, 15)]) for _ in PRIORITIES),
        tuple(0 if wait is None else now_ms - wait for wait in waits),
    )


async def stored(inspector: ServerInspector) -> State:
    return credit_state(await inspector.client.hgetall(inspector.shard.key("credit")))


async def test_lua_and_python_choose_alike(server_inspector: ServerInspector) -> None:
    rng, inspector = random.Random(20), server_inspector
    for case in range(STATES):
        depths = [rng.choice([0, 1, 2, rng.randint(0, 40)]) for _ in PRIORITIES]
        ids = {p: [f"{p}-{i}" for i in range(depth)] for p, depth in zip(PRIORITIES, depths, strict=True)}
        paused = {p for p in PRIORITIES if rng.random() < 0.1}
        policy = random_policy(rng)
        state = random_state(rng, await inspector.now_ms())
        await inspector.load(q=ids, paused=paused)
        if state != State():
            await inspector.client.hset(inspector.shard.key("credit"), mapping=credit_fields(state))
        seen = [0 if p in paused else depth for p, depth in zip(PRIORITIES, depths, strict=True)]
        for n in [rng.choice([1, 2, 3, 10, 100]) for _ in range(3)]:
            before = await inspector.now_ms()
            leased = await inspector.shard.lease(n, f"t{case}", 60_000, policy)
            now_ms = await lease_time(inspector, leased) or before
            picks, state = choose(n, seen, state, policy, now_ms)
            expected = [ids[PRIORITIES[pick]].pop(0) for pick in picks]
            assert leased == expected, (case, policy)
            assert await stored(inspector) == state, (case, policy)
            for pick in picks:
                seen[pick] -= 1


async def lease_time(inspector: ServerInspector, leased: list[str]) -> int | None:
    """When the script ran, by its own reading: the deadline it wrote less the 60 s it was asked for."""
    if not leased:
        return None
    return int(await inspector.client.zscore(inspector.shard.key("leases"), leased[0])) - 60_000


async def test_the_state_takes_no_room_once_all_lists_are_empty(server_inspector: ServerInspector) -> None:
    await server_inspector.load(q={"low": ["a"], "high": ["b"]}, credit=State((1, 2, 3, 4), (5, 6, 7, 8)))
    await server_inspector.shard.lease(2, "t1", 5000, Policy())
    assert not await server_inspector.client.exists(server_inspector.shard.key("credit"))


@pytest.mark.parametrize("mode", ["weighted", "strict"])
async def test_the_state_names_are_those_of_the_script(server_inspector: ServerInspector, mode: str) -> None:
    await server_inspector.load(q={p: ["a" + p, "b" + p] for p in PRIORITIES})
    await server_inspector.shard.lease(1, "t1", 5000, Policy(mode=mode))
    fields = await server_inspector.client.hgetall(server_inspector.shard.key("credit"))
    assert tuple(fields) == CREDIT_FIELDS
