"""Random walks through the model, carried out on the real stores: after every step they say what it says.

A walk goes through everything that the model knows but an old state: deaths, FLUSHALL, an eviction, a call
that is carried out late. Time passes by hand: what waits in Redis is nudged when the model finds it due, and
the row's instants are moved when they come in the model.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

import pytest
import redis.asyncio
from fix_store import WORKER, Database, lease_of, open_store
from model.explorer import word
from model.monitor import clean
from model.protocol import EVERYBODY, Config, Protocol, belongs
from model.stores import STATEMENTS, Command, Lease, Redis, Row
from model.variants import BlindPush, ReapWithoutLease, UnfencedSettle, Variant
from model.world import Edge, State, World

from scheduler import config
from scheduler.fairness import Policy
from scheduler.lifecycle import CLAIMABLE
from scheduler.model import Move, NewTask, Priority, Settlement, new_id
from scheduler.queue import Index, Shard
from scheduler.store import FIRST_ID, Filter, Store, _reaped, _refusal

WALKS = 60
LONGEST = 60
HOUR_MS = 3_600_000
PRIORITY: Priority = "high"
SCRIPTS = {
    "push",
    "adopt",
    "lease",
    "place",
    "expired",
    "pump",
    "forget",
    "dlq_add",
    "dlq_del",
    "listed",
    "census",
}
WORLD = Config(
    workers=2,
    max_retries=1,
    max_losses=1,
    max_refusals=1,
    ends=("succeeded", "failed", "rejected", "released", "died", "unknown_type"),
    releases=2,
    delays=True,
    cancel=True,
    redrives=1,
    crash=EVERYBODY,
    flush=True,
    evict=1,
    late=2,
)


class Stage:
    """The real stores, with one task on them. A method a call of the model, by the same name."""

    def __init__(self, store: Store, db: Database, shard: Shard, client: redis.asyncio.Redis) -> None:
        self.store = store
        self.db = db
        self.shard = shard
        self.client = client
        self.id = new_id()

    async def clear(self) -> None:
        """A new task, and nothing that was before."""
        self.db.clear()
        self.db.worker(WORKER, alive_ms=HOUR_MS)  # no loss is one in company
        await self.client.flushall()
        self.id = new_id()

    # Scripts

    async def push(self, due: bool) -> int:
        return await self.shard.push([(self.id, PRIORITY, 0 if due else HOUR_MS)])

    async def adopt(self, token: str) -> int:
        return await self.shard.adopt([(self.id, PRIORITY, token, HOUR_MS)])

    async def lease(self, token: str) -> int:
        return len(await self.shard.lease(1, token, HOUR_MS, Policy()))

    async def place(self, token: str, where: Any, new_token: str = "") -> int:
        return await self.shard.place([Move(self.id, token, where, PRIORITY, HOUR_MS, new_token)])

    async def expired(self) -> str | None:
        await self.shard.nudge([(self.id, PRIORITY)])
        found = dict(await self.shard.expired(10))
        return found.get(self.id)

    async def pump(self) -> int:
        await self.shard.nudge([(self.id, PRIORITY)])
        return await self.shard.pump(10)

    async def forget(self) -> int:
        return await self.shard.forget([(self.id, PRIORITY)])

    async def dlq_add(self) -> int:
        return await self.shard.dlq_add([(self.id, PRIORITY, 0)])

    async def dlq_del(self) -> int:
        return await self.shard.dlq_del([(self.id, PRIORITY)])

    async def listed(self) -> int:
        return len(await self.shard.dlq_page(PRIORITY, 0, 10))

    async def census(self) -> bool:
        return (await self.shard.census()).whole

    # Statements

    async def insert(self, due: bool) -> str:
        delay_ms = None if due else HOUR_MS
        task = NewTask(self.id, "noop", PRIORITY, max_retries=WORLD.max_retries, delay_ms=delay_ms)
        (accepted,) = await self.store.enqueue([task])
        assert accepted.result == "created"
        return "accepted"

    async def claim(self, token: str) -> Lease | None:
        how = {"token": token, "worker": WORKER, "vis_ms": HOUR_MS, "most": None}
        return lease(await self.store._run("claim", ids=[self.id], **how))

    async def reclaim(self, token: str) -> Lease | None:
        return lease(await self.store._run("reclaim", ids=[self.id], token=token, most=None))

    async def look(self) -> Row | None:
        """What each of those who look makes of the row: the lessor, the reaper, reconcile."""
        row = self.row()
        looked = next(iter(await self.store._run("look", ids=[self.id])), None)
        reaped, refused = _reaped(self.id, None, looked), _refusal(self.id, looked)
        assert (reaped.where, reaped.token) == belongs(row)
        undecided = row is not None and row.status in CLAIMABLE and row.due
        assert (refused.where, refused.token) == ((None, "") if undecided else belongs(row))
        seen = [(r.status, r.due_in_ms <= 0, r.token) for r in await self.store.open_page(FIRST_ID, 10)]
        is_open = row is not None and row.status in {*CLAIMABLE, "running"}
        assert seen == ([(row.status, row.due, row.token)] if row and is_open else [])
        dead = [id_ for id_, *_ in await self.store.dead_page(FIRST_ID, 10)]
        assert dead == ([self.id] if row is not None and row.status == "dead" else [])
        return row

    async def settle(self, attempt: int, token: str, outcome: Any, status: Any, refused: bool) -> str:
        reason: Any = None
        if status == "dead":
            reason = "unknown_type" if refused else outcome
        waits = status == "retrying" or (refused and status == "queued")
        settlement = Settlement(
            lease_of(self.id, attempt, token),
            outcome,
            status,
            reason,
            HOUR_MS if waits else 0,
            refused=refused,
        )
        stands = await self.store.settle([settlement], worker=WORKER)
        return "settled" if self.id in stands else "fenced"

    async def renew(self, attempt: int) -> bool:
        return self.id in await self.store.renew([lease_of(self.id, attempt)], vis_ms=HOUR_MS)

    async def reap(self) -> bool:
        (reaped,) = await self.store.reap([self.id], max_losses=WORLD.max_losses)
        return reaped.lost

    async def cancel(self) -> bool:
        return (await self.store.cancel(self.id))[1]

    async def redrive(self) -> bool:
        return bool(await self.store.redrive(Filter(ids=[self.id]), page=10))

    async def lapse(self) -> None:
        self.db.rows(
            "UPDATE tasks SET lease_expires_at = now() - interval '1 s' WHERE status = 'running' AND id = %s",
            self.id,
        )

    async def fall_due(self) -> None:
        self.db.change(self.id, due_at=self.db.value("SELECT now() - interval '1 s'"))

    async def give_up(self) -> None:
        """No call."""

    # What they hold now

    def row(self) -> Row | None:
        """The row in the model's words."""
        rows = self.db.rows(
            "SELECT *, due_at <= now() AS due, lease_expires_at <= now() AS lapsed FROM tasks"
        )
        if not rows:
            return None
        (r,) = rows
        due = r["due"] or r["status"] not in CLAIMABLE
        counts = r["attempts"], r["failures"], r["losses"], r["refusals"]
        runs = tuple((run["attempt"], run["outcome"]) for run in self.db.runs(self.id))
        return Row(r["status"], due, *counts, r["lease_token"] or "", bool(r["lapsed"]), runs)

    async def redis(self) -> Redis:
        """What the shard says, in the model's words."""
        key, id_ = self.shard.key, self.id
        async with self.client.pipeline(transaction=True) as pipe:
            pipe.lrange(key("q", PRIORITY), 0, -1)
            pipe.zscore(key("leases"), id_)
            pipe.zscore(key("retry", PRIORITY), id_)
            pipe.hget(key("live"), id_)
            pipe.zscore(key("dlq", PRIORITY), id_)
            q, leases, retry, live, dlq = await pipe.execute()
        return Redis(q.count(id_), leases is not None, retry is not None, live, dlq is not None)


def lease(rows: Any) -> Lease | None:
    """What a claim tells the worker."""
    for _, attempts, _, _, _, _, _, _, failures, losses, refusals, *_ in rows:
        return Lease(attempts, failures, losses, refusals)
    return None


@pytest.fixture
async def stage(postgres_url: str, redis_url: str) -> AsyncIterator[Stage]:
    index = Index.open(config.load({"REDIS_ADDR": redis_url})[0], name="test")
    client = redis.asyncio.Redis.from_url(redis_url, decode_responses=True, protocol=2)
    db = Database(postgres_url)
    async with open_store(postgres_url) as store:
        yield Stage(store, db, index.shard("default"), client)
    db.close()
    await client.aclose()
    await index.close()


async def carry_out(stage: Stage, edge: Edge) -> Command | None:
    """Do on the stores what happens in the model; the call that it was, and that it got the same answer."""
    who, *what = edge.what
    if who == "FLUSHALL":
        await stage.client.flushall()
    elif isinstance(who, str) and who.endswith("is evicted"):
        key = who.split()[0]
        shared = key in {"leases", "live"}
        await stage.client.delete(stage.shard.key(key, None if shared else PRIORITY))
    elif len(what) == 2 and not str(what[1]).startswith("no answer"):
        (name, *args), answer = what
        found = await getattr(stage, name)(*args)
        assert found == ("settled" if answer == "settled before" else answer)
        return tuple(what[0])
    return None


def chosen(rng: random.Random, edges: list[Edge]) -> Edge:
    """The system's own steps more often than faults and people, so that a walk gets somewhere."""
    return rng.choices(edges, [5.0 if edge.own else 0.4 for edge in edges])[0]


CALLS_ONLY = Config(max_retries=1, max_losses=1, max_refusals=1, late=6)
"""No fault but calls without an answer."""


async def walk(stage: Stage, world: World, rng: random.Random) -> list[str]:
    """One walk; the calls that were carried out."""
    await stage.clear()
    state: State = world.start()
    calls, told = [], []
    while len(told) < LONGEST and not (clean(state.row.value, state.redis.value) and world.at_rest(state)):
        edge = chosen(rng, list(world.edges(state)))
        state = edge.state
        told.append(f"{word(edge.what)}: {word(state.row.value)} | {word(state.redis.value)}")
        try:
            command = await carry_out(stage, edge)
            assert stage.row() == state.row.value
            assert await stage.redis() == state.redis.value._replace(damaged=0)
        except AssertionError as error:
            raise AssertionError("\n".join([*told, str(error)])) from error
        calls += [command[0]] if command else []
    return calls


async def walks(stage: Stage, world: World) -> Counter[str]:
    """Many walks; how often each call was carried out."""
    rng, calls = random.Random(1), Counter[str]()
    for _ in range(WALKS):
        calls.update(await walk(stage, world, rng))
    return calls


async def test_the_stores_go_where_the_model_goes(stage: Stage) -> None:
    calls = await walks(stage, World(Protocol(WORLD)))
    calls += await walks(stage, World(Protocol(CALLS_ONLY)))
    print(f"\n{calls.total()} calls in {2 * WALKS} walks: {dict(calls)}")
    assert set(calls) == SCRIPTS | STATEMENTS | {"give_up"}


@pytest.mark.parametrize("variant", [BlindPush, ReapWithoutLease, UnfencedSettle])
async def test_a_walk_notices_that_model_and_stores_differ(stage: Stage, variant: type[Variant]) -> None:
    with pytest.raises(AssertionError, match="client new insert"):
        await walks(stage, World(variant()))
