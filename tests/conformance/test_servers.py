"""What only a server can do to the scripts: forget them, be full, hold damaged keys, be part of a cluster."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis.asyncio
from fix_servers import SYSTEM, WHEEL, new_directory, system_redis
from fix_shards import ServerInspector

import scheduler
from scheduler import config
from scheduler.embedded import Redis
from scheduler.errors import QueueError, QueueUnavailable
from scheduler.fairness import Policy
from scheduler.model import PRIORITIES, Move
from scheduler.queue import Index, Shard
from scheduler.supervisor import free_port

POLICY = Policy(max_wait_ms=0)

Call = Callable[[Shard], Awaitable[Any]]

SEED: dict[str, Any] = {
    "q": {"high": ["ready-1", "ready-2"], "low": ["ready-3"]},
    "retry": {"low": {"due": -500, "later": 60_000}},
    "dlq": {"low": {"dead-1": -900, "dead-2": -800}},
    "leases": {f"leased-{i}": ("t1", -100) for i in range(6)},
}
DRAINING: dict[str, Call] = {
    "lease": lambda shard: shard.lease(2, "t2", 5000, POLICY),
    "place gone": lambda shard: shard.place([Move("leased-0", "t1", "gone")]),
    "place head": lambda shard: shard.place([Move("leased-1", "t1", "head", "low")]),
    "place tail": lambda shard: shard.place([Move("leased-2", "t1", "tail", "low")]),
    "place retry": lambda shard: shard.place([Move("leased-3", "t1", "retry", "low", 500)]),
    "place dead": lambda shard: shard.place([Move("leased-4", "t1", "dead", "low")]),
    "place held": lambda shard: shard.place([Move("leased-5", "t1", "held", "low", 500, "t2")]),
    "expired": lambda shard: shard.expired(10),
    "pump": lambda shard: shard.pump(10),
    "forget": lambda shard: shard.forget([("later", "low")]),
    "dlq_del": lambda shard: shard.dlq_del([("dead-1", "low")]),
    "census": lambda shard: shard.census(),
    "depths": lambda shard: shard.depths(),
}
GROWING: dict[str, Call] = {
    "push": lambda shard: shard.push([("new", "low", 0), ("dead-2", "low", 500)]),
    "adopt": lambda shard: shard.adopt([("new", "low", "t3", 500)]),
    "dlq_add": lambda shard: shard.dlq_add([("new", "low", 500)]),
    "nudge": lambda shard: shard.nudge([("later", "low")]),
    "set_epoch": lambda shard: shard.set_epoch(None, "1"),
}
WRITING = {name: call for name, call in (DRAINING | GROWING).items() if name not in ("census", "depths")}


@pytest.fixture(scope="module", params=[WHEEL, SYSTEM])
def own_server(request: pytest.FixtureRequest) -> Iterator[Redis]:
    """A server that may be filled and whose scripts may be flushed."""
    program = None if request.param == WHEEL else system_redis()
    with new_directory() as path, Redis(path / "redis", program) as server:
        yield server


@pytest.fixture
async def own(own_server: Redis) -> AsyncIterator[ServerInspector]:
    client = redis.asyncio.Redis.from_url(own_server.url, decode_responses=True, protocol=2)
    index = Index.open(config.load({"REDIS_ADDR": own_server.url})[0], name="test")
    await client.config_set("maxmemory", 0)
    await client.flushall()
    yield ServerInspector(index, client)
    await client.config_set("maxmemory", 0)
    await index.close()
    await client.aclose()


async def fill(client: redis.asyncio.Redis) -> None:
    """Leave the server no room for anything new."""
    await client.config_set("maxmemory", 1)
    with pytest.raises(redis.exceptions.OutOfMemoryError):
        await client.set("more", "x")


@pytest.mark.parametrize("name", DRAINING)
async def test_a_full_redis_drains(own: ServerInspector, name: str) -> None:
    """Workers must be able to take, finish and give back tasks, or nobody can make room."""
    await own.load(**SEED)
    roomy = await DRAINING[name](own.shard)
    expected = await own.found()
    await own.load(**SEED)
    await fill(own.client)
    assert await DRAINING[name](own.shard) == roomy
    await own.client.config_set("maxmemory", 0)
    found = await own.found()
    assert sorted(found.places()) == sorted(expected.places())
    assert (found.live, found.q, found.wake) == (expected.live, expected.q, expected.wake)
    assert found.broken() == []


@pytest.mark.parametrize("name", GROWING)
async def test_a_full_redis_takes_nothing_new(own: ServerInspector, name: str) -> None:
    """The row is safe in Postgres; reconcile brings it as soon as there is room."""
    await own.load(**SEED)
    await fill(own.client)
    with pytest.raises(QueueUnavailable, match="used memory"):
        await GROWING[name](own.shard)
    await own.client.config_set("maxmemory", 0)
    await own.expect(**SEED)


@pytest.mark.parametrize("name", DRAINING | GROWING)
async def test_a_script_that_the_server_forgot_is_sent_again(own: ServerInspector, name: str) -> None:
    """A restart or a failover empties the script cache; PING stays green."""
    call = (DRAINING | GROWING)[name]
    await own.load(**SEED)
    usual = await call(own.shard)
    await own.load(**SEED)
    await own.client.script_flush()
    assert await call(own.shard) == usual


async def test_the_server_knows_each_script_once(own: ServerInspector) -> None:
    """The arguments are never part of a script's text."""
    for _ in range(3):
        await own.load(**SEED)
        for call in (DRAINING | GROWING).values():
            await call(own.shard)
    names = {name.partition(" ")[0] for name in DRAINING | GROWING}
    assert names == {path.stem for path in Path(scheduler.__file__).parent.glob("lua/*.lua")}
    assert (await own.client.info("memory"))["number_of_cached_scripts"] == len(names)


@pytest.mark.parametrize("kind", ["q", "retry", "dlq", "leases", "live", "wake"])
@pytest.mark.parametrize("name", WRITING)
async def test_a_key_of_another_type_is_met_before_anything_is_written(
    server_inspector: ServerInspector, name: str, kind: str
) -> None:
    """An error after the first write would lose what was taken out by it."""
    await server_inspector.load(**SEED)
    shard, client = server_inspector.shard, server_inspector.client
    damaged = [shard.key(kind, p) for p in PRIORITIES] if kind in ("q", "retry", "dlq") else [shard.key(kind)]
    for key in damaged:
        await client.delete(key)
        await client.set(key, "not ours")
    others = [key for key in shard.names if key not in damaged]
    before = [await client.dump(key) for key in others]
    try:
        await WRITING[name](shard)
    except QueueError as error:
        assert "WRONGTYPE" in str(error)  # noqa: PT017 - a script that needs none of these keys may succeed
        assert [await client.dump(key) for key in others] == before
    await client.flushall()


async def test_an_id_of_foreign_bytes_can_be_taken_out(server_inspector: ServerInspector) -> None:
    raw = b"\xff\x00\xfe"
    await server_inspector.load()
    await server_inspector.client.rpush(server_inspector.shard.key("q", "low"), raw)
    shard = server_inspector.shard
    (id_,) = await shard.lease(5, "t1", 5000, POLICY)
    assert id_.encode("utf-8", "surrogateescape") == raw
    assert await shard.known([id_]) == ["t1"]
    assert await shard.place([Move(id_, "t1", "gone")]) == 1
    await server_inspector.expect()


async def test_two_queues_do_not_meet(server_inspector: ServerInspector) -> None:
    """The same id in another queue is another entry under other keys."""
    await server_inspector.load()
    other = server_inspector.index.shard("mails")
    assert await other.push([("a", "low", 0)]) == 1
    await server_inspector.expect()
    assert await server_inspector.shard.push([("a", "low", 0)]) == 1
    assert await other.lease(5, "t1", 5000, POLICY) == ["a"]
    await server_inspector.expect(q={"low": ["a"]}, wake=1)
    await server_inspector.client.delete(*other.names)


async def test_the_scripts_run_on_a_cluster(server_dir: Path) -> None:
    """All keys of a shard hash to one slot, and no script touches a key that it was not given."""
    settings = {"cluster-enabled": "yes", "cluster-port": str(free_port())}
    with Redis(server_dir / "cluster", settings=settings) as server:
        index = Index.open(config.load({"REDIS_ADDR": server.url})[0], name="test")
        async with redis.asyncio.Redis.from_url(server.url, decode_responses=True, protocol=2) as client:
            await client.execute_command("CLUSTER", "ADDSLOTSRANGE", 0, 16383)
            async with asyncio.timeout(10):
                while "cluster_state:ok" not in await client.execute_command("CLUSTER", "INFO"):
                    await client.ping()
            inspector = ServerInspector(index, client)
            for call in (DRAINING | GROWING).values():
                await inspector.load(**SEED)
                await call(inspector.shard)
                assert (await inspector.found()).broken() == []
        await index.close()
