"""A long random walk: after every step the server holds what the reference holds, and I1 holds."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable
from dataclasses import asdict
from typing import Any

import pytest
from fix_shards import ServerInspector, moved
from reference import Contents, Reference

from scheduler.fairness import Policy
from scheduler.model import PRIORITIES, Move
from scheduler.queue import Shard

STEPS = 80
IDS = [f"id-{i}" for i in range(12)]
TOKENS = ["t1", "t2", "t3", ""]
WHERE = ["gone", "head", "tail", "retry", "dead", "held"]
Step = Callable[[Shard | Reference], Awaitable[Any]]


def half_seconds(rng: random.Random) -> int:
    """A duration that ends between the steps, which are whole seconds apart: nothing is due by a hair."""
    return rng.randint(1, 8) * 1000 + 500


def random_step(rng: random.Random, number: int) -> Step:
    ids = rng.sample(IDS, rng.randint(1, 5))
    ranked = [(id_, PRIORITIES[IDS.index(id_) % 4]) for id_ in ids]
    timed = [(id_, priority, half_seconds(rng)) for id_, priority in ranked]
    token = f"t{number}"
    moves = [
        Move(id_, rng.choice([*TOKENS, token]), rng.choice(WHERE), priority, ms, rng.choice(TOKENS))
        for id_, priority, ms in timed
    ]
    n = rng.randint(1, 4)
    steps: list[Step] = [
        lambda shard: shard.push([(id_, priority, 0) for id_, priority in ranked]),
        lambda shard: shard.push(timed),
        lambda shard: shard.adopt([(id_, p, moves[0].token, ms - 4000) for id_, p, ms in timed]),
        lambda shard: shard.lease(n, rng.choice(TOKENS[:3]), half_seconds(rng), Policy(max_wait_ms=0)),
        lambda shard: shard.place(moves),
        lambda shard: shard.expired(n),
        lambda shard: shard.pump(n),
        lambda shard: shard.forget(ranked),
        lambda shard: shard.dlq_add(timed),
        lambda shard: shard.dlq_del(ranked[:1]),
        lambda shard: shard.nudge(ranked[:1]),
        lambda shard: shard.census(),
        lambda shard: shard.set_epoch(rng.choice([None, "1"]), "1"),
        lambda shard: shard.depths(),
    ]
    weights = [4, 2, 2, 8, 12, 1, 4, 1, 2, 1, 2, 1, 1, 1]
    return rng.choices(steps, weights)[0]


def rounded(held: Contents, now_ms: int) -> dict[str, Any]:
    """All that is held, its times in whole half seconds from now."""

    def half(ms: int) -> int:
        return round((ms - now_ms) / 500)

    all_ = asdict(held)
    for scores in (*all_["retry"].values(), *all_["dlq"].values(), all_["leases"]):
        scores.update({id_: half(ms) for id_, ms in scores.items()})
    all_["credit"] = (held.credit.credit, tuple(ms and half(ms) for ms in held.credit.served_ms))
    return all_


@pytest.mark.parametrize("seed", range(3))
async def test_the_scripts_go_where_the_reference_goes(server_inspector: ServerInspector, seed: int) -> None:
    inspector, rng, held, compared = server_inspector, random.Random(seed), Contents(), 0
    for number in range(STEPS):
        await inspector.load(held)
        now_ms = inspector.start_ms
        reference = Reference(lambda now_ms=now_ms: now_ms)
        reference.held = await inspector.read()
        step_seed = rng.random()
        expected = await random_step(random.Random(step_seed), number)(reference)
        answer = await random_step(random.Random(step_seed), number)(inspector.shard)
        found = await inspector.read()
        where = f"step {number} of seed {seed}"
        assert found.broken() == [], where
        if await inspector.now_ms() - now_ms < 200:  # else the machine was too busy to compare times
            assert answer == expected, where
            assert rounded(found, now_ms) == rounded(reference.held, now_ms), where
            compared += 1
        held = moved(found, -now_ms - rng.choice([1000, 2000]))
    assert compared > STEPS / 2
