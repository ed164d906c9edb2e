"""A shard to test: the reference and a real one on each server, in turn, with all that it holds in view.

    await inspector.load(q={"high": ["a"]})               # a whole state,
    assert await shard.lease(1, "t", 5000, POLICY) == ["a"]     # one operation,
    await inspector.expect(leases={"a": ("t", inspector.at(5000))})   # and again the whole state

In both, times are milliseconds from the moment of `load`, and `live` follows from the other collections.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Iterable, Mapping
from dataclasses import asdict, replace
from typing import Any

import pytest
import redis.asyncio
from fix_servers import SYSTEM, WHEEL, Servers
from reference import Contents, Reference

from scheduler import config
from scheduler.fairness import State
from scheduler.model import PRIORITIES, Priority
from scheduler.queue import Index, Shard

REFERENCE = "reference"
START_MS = 1_700_000_000_000


class At:
    """A time that an operation wrote: not before it was due, nor later than the test has taken so far."""

    def __init__(self, earliest: int) -> None:
        self.earliest = earliest
        self.slack = 0

    def __eq__(self, other: object) -> bool:
        return isinstance(other, int) and self.earliest <= other <= self.earliest + self.slack

    __hash__ = None  # type: ignore[assignment] # equality is not transitive

    def __repr__(self) -> str:
        return f"{self.earliest}..{self.earliest + self.slack}"


def contents(
    *,
    q: Mapping[Priority, Iterable[str]] | None = None,
    retry: Mapping[Priority, Mapping[str, Any]] | None = None,
    dlq: Mapping[Priority, Mapping[str, Any]] | None = None,
    leases: Mapping[str, tuple[str, Any]] | None = None,
    live: Mapping[str, str] | None = None,
    **rest: Any,
) -> Contents:
    """A whole state from its parts; `leases` gives token and deadline, and `live` follows unless given."""
    held = Contents(**rest)
    for priority in PRIORITIES:
        held.q[priority] = list((q or {}).get(priority, ()))
        held.retry[priority] = dict((retry or {}).get(priority, {}))
        held.dlq[priority] = dict((dlq or {}).get(priority, {}))
    held.leases = {id_: deadline for id_, (_, deadline) in (leases or {}).items()}
    held.live = dict.fromkeys(held.places(), "") | {id_: token for id_, (token, _) in (leases or {}).items()}
    if live is not None:
        held.live = dict(live)
    return held


def moved(held: Contents, ms: int) -> Contents:
    """The same with every time moved by `ms`."""

    def all_(scores: dict[str, int]) -> dict[str, int]:
        return {id_: score + ms for id_, score in scores.items()}

    served = tuple(s + ms if s else 0 for s in held.credit.served_ms)
    return replace(
        held,
        retry={p: all_(held.retry[p]) for p in PRIORITIES},
        dlq={p: all_(held.dlq[p]) for p in PRIORITIES},
        leases=all_(held.leases),
        credit=State(held.credit.credit, served),
    )


class Inspector(ABC):
    """Seeds a shard, lets time pass for it, and compares all that it holds."""

    shard: Shard | Reference
    exact: bool

    def __init__(self) -> None:
        self.start_ms = 0
        self._aged_ms = 0
        self._written: list[At] = []

    @abstractmethod
    async def now_ms(self) -> int:
        """The time by the shard's clock."""

    @abstractmethod
    async def write(self, held: Contents) -> None:
        """Make the shard hold this and nothing else."""

    @abstractmethod
    async def read(self) -> Contents:
        """All that the shard holds."""

    async def load(self, held: Contents | None = None, **parts: Any) -> None:
        """Make the shard hold a state, given whole or by its parts; its times count from now."""
        self.start_ms, self._aged_ms, self._written = await self.now_ms(), 0, []
        await self.write(moved(held or contents(**parts), self.start_ms))

    async def found(self) -> Contents:
        """All that the shard holds, its times counted from `load`."""
        held = moved(await self.read(), -self.start_ms)
        elapsed = await self.now_ms() - self.start_ms - self._aged_ms
        for at in self._written:
            at.slack = elapsed
        return held

    async def expect(self, held: Contents | None = None, *, whole: bool = True, **parts: Any) -> None:
        """Compare all that the shard holds, and check invariant I1 unless it is said not to be whole."""
        found = await self.found()
        assert asdict(found) == asdict(held or contents(**parts))
        if whole:
            assert found.broken() == []

    def at(self, ms: int) -> At:
        """A time that the operations since the last `age` write: `ms` after they run."""
        self._written.append(At(self._aged_ms + ms))
        return self._written[-1]

    async def age(self, ms: int) -> None:
        """Let `ms` pass."""
        self._aged_ms += ms


class ReferenceInspector(Inspector):
    """Over `reference.py`, whose clock stands still between the steps of a test."""

    shard: Reference
    exact = True

    def __init__(self) -> None:
        super().__init__()
        self._now_ms = START_MS
        self.shard = Reference(lambda: self._now_ms)

    async def now_ms(self) -> int:
        return self._now_ms

    async def write(self, held: Contents) -> None:
        self.shard.held = held

    async def read(self) -> Contents:
        return self.shard.held

    async def age(self, ms: int) -> None:
        await super().age(ms)
        self._now_ms += ms


class ServerInspector(Inspector):
    """Over a real server. Its clock cannot be moved, so time passes by moving all stored times back."""

    shard: Shard
    exact = False

    def __init__(self, index: Index, client: redis.asyncio.Redis) -> None:
        super().__init__()
        self.index = index
        self.client = client
        self.shard = index.shard("default")

    async def now_ms(self) -> int:
        seconds, micros = await self.client.time()
        return int(seconds) * 1000 + int(micros) // 1000

    async def write(self, held: Contents) -> None:
        key = self.shard.key
        async with self.client.pipeline(transaction=True) as pipe:
            pipe.delete(*self.shard.names)
            for p in PRIORITIES:
                for name, scores in (("retry", held.retry[p]), ("dlq", held.dlq[p])):
                    if scores:
                        pipe.zadd(key(name, p), scores)
                if held.q[p]:
                    pipe.rpush(key("q", p), *held.q[p])
            if held.leases:
                pipe.zadd(key("leases"), held.leases)
            if held.live:
                pipe.hset(key("live"), mapping=held.live)
            if held.credit != State():
                pipe.hset(key("credit"), mapping=credit_fields(held.credit))
            if held.wake:
                pipe.rpush(key("wake"), *["1"] * held.wake)
            if held.paused:
                pipe.sadd(key("paused"), *held.paused)
            if held.epoch is not None:
                pipe.set(key("epoch"), held.epoch)
            await pipe.execute()

    async def read(self) -> Contents:
        key = self.shard.key
        async with self.client.pipeline(transaction=True) as pipe:
            for p in PRIORITIES:
                pipe.lrange(key("q", p), 0, -1)
                pipe.zrange(key("retry", p), 0, -1, withscores=True)
                pipe.zrange(key("dlq", p), 0, -1, withscores=True)
            pipe.zrange(key("leases"), 0, -1, withscores=True)
            pipe.hgetall(key("live"))
            pipe.hgetall(key("credit"))
            pipe.llen(key("wake"))
            pipe.smembers(key("paused"))
            pipe.get(key("epoch"))
            *by_priority, leases, live, credit, wake, paused, epoch = await pipe.execute()
        return Contents(
            q=dict(zip(PRIORITIES, by_priority[::3], strict=True)),
            retry=dict(zip(PRIORITIES, map(whole_scores, by_priority[1::3]), strict=True)),
            dlq=dict(zip(PRIORITIES, map(whole_scores, by_priority[2::3]), strict=True)),
            leases=whole_scores(leases),
            live=live,
            credit=credit_state(credit),
            wake=wake,
            paused=set(paused),
            epoch=epoch,
        )

    async def age(self, ms: int) -> None:
        await super().age(ms)
        await self.write(moved(await self.read(), -ms))
        self.start_ms -= ms


def whole_scores(found: Iterable[tuple[str, float]]) -> dict[str, int]:
    """The members of a sorted set with their times."""
    return {id_: int(score) for id_, score in found}


def credit_fields(state: State) -> dict[str, int]:
    """The hash `credit` for a state of the fair choice."""
    values = (*state.credit, *state.served_ms)
    return dict(zip(CREDIT_FIELDS, values, strict=True))


def credit_state(fields: Mapping[str, str]) -> State:
    values = [int(fields.get(name, 0)) for name in CREDIT_FIELDS]
    return State(tuple(values[:4]), tuple(values[4:]))


CREDIT_FIELDS = ("c1", "c2", "c3", "c4", "s1", "s2", "s3", "s4")


async def inspect(servers: Servers, kind: str) -> AsyncIterator[Inspector]:
    if kind == REFERENCE:
        yield ReferenceInspector()
        return
    url = servers.empty_redis(kind)
    settings, _ = config.load({"REDIS_ADDR": url})
    index = Index.open(settings, name="test")
    client = redis.asyncio.Redis.from_url(url, decode_responses=True, protocol=2)
    yield ServerInspector(index, client)
    leaked = set(await client.keys("*")) - set(index.shard("default").names)
    await client.aclose()
    await index.close()
    assert not leaked, f"keys outside the shard: {leaked}"


@pytest.fixture(params=[REFERENCE, WHEEL, SYSTEM])
async def inspector(request: pytest.FixtureRequest, servers: Servers) -> AsyncIterator[Inspector]:
    """The reference, Valkey and Redis in turn."""
    async for each in inspect(servers, request.param):
        yield each


@pytest.fixture(params=[WHEEL, SYSTEM])
async def server_inspector(
    request: pytest.FixtureRequest, servers: Servers
) -> AsyncIterator[ServerInspector]:
    """Valkey and Redis in turn: for what only a server can do."""
    async for each in inspect(servers, request.param):
        assert isinstance(each, ServerInspector)
        yield each


@pytest.fixture
def shard(inspector: Inspector) -> Shard | Reference:
    """The shard that `inspector` sees."""
    return inspector.shard
