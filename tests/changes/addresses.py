"""Where the servers are, where we listen, and what we say: mostly seen on processes."""

from __future__ import annotations

import asyncio
import json

import httpx
import pytest
import redis
from changes.world import World, change
from waiting import eventually

from scheduler.embedded import Redis
from scheduler.errors import StartError
from scheduler.supervisor import HOST, free_port


@change("POSTGRES_URL")
async def the_database_that_is_named_is_used(world: World) -> None:
    with world.servers.database() as other:
        store = await world.store(world.settings(POSTGRES_URL=other))
        [id_] = await world.enqueued(world.settings(POSTGRES_URL=other, REDIS_PREFIX="other"))
        assert (await store.task(id_)).id == id_
        assert await (await world.store(world.settings())).task(id_) is None
        await store.close()


@change("REDIS_ADDR", "REDIS_PASS")
async def the_redis_that_is_named_is_used_with_its_password(world: World) -> None:
    with Redis(world.directory / "secret", password="sesame") as server:
        address = f"{HOST}:{server.port}"
        index = await world.index(world.settings(REDIS_ADDR=address, REDIS_PASS="sesame"))
        await index.shard("default").push([("a", "high", 0)])
        assert (await index.shard("default").depths()).queued == (0, 1, 0, 0)
        here = await world.index(world.settings())
        assert (await here.shard("default").depths()).queued == (0, 0, 0, 0)
        for wrong in ("", "open"):
            shut = await world.index(world.settings(REDIS_ADDR=address, REDIS_PASS=wrong))
            with pytest.raises(StartError, match="REDIS_PASS"):
                await shut.check()
            await shut.close()
        await index.close()


@change("REDIS_PREFIX")
async def keys_begin_with_the_prefix(world: World) -> None:
    settings = world.settings()
    with redis.Redis.from_url(settings.redis_addr, decode_responses=True) as client:
        for prefix in ("sched1", "next2"):
            client.flushall()
            await world.enqueued(world.settings(REDIS_PREFIX=prefix))
            assert {key.partition(":")[0] for key in client.scan_iter()} == {prefix}


def environment(world: World) -> dict[str, str]:
    settings = world.settings()
    return {
        "POSTGRES_URL": settings.postgres_url,
        "REDIS_ADDR": settings.redis_addr,
        "METRICS_ADDR": f"{HOST}:0",
        "HTTP_ADDR": f"{HOST}:0",
    }


@change("METRICS_ADDR", "HTTP_ADDR")
async def the_endpoints_move(world: World) -> None:
    for _ in range(2):
        metrics, http = free_port(), free_port()
        where = {"METRICS_ADDR": f"{HOST}:{metrics}", "HTTP_ADDR": f"{HOST}:{http}"}
        api = world.start("api", **environment(world) | where)
        api.says(rf"ready api http={HOST}:{http} metrics={metrics} pid={api.pid}")
        async with httpx.AsyncClient() as client:
            assert (await client.get(f"http://{HOST}:{metrics}/metrics")).is_success
            assert (await client.get(f"http://{HOST}:{http}/healthz")).is_success
        api.kill()


@change("PGPOOL_MAX_CONNS")
async def connections_to_postgres_are_bounded(world: World) -> None:
    """Those of the API here, which uses what it may; those of a worker are counted in tests/cli."""

    def connections() -> int:
        return world.db.value(
            "SELECT count(*) FROM pg_stat_activity"
            " WHERE datname = current_database() AND application_name = 'scheduler-api'"
        )

    seen = {}
    for most in (3, 8):
        api = world.start("api", **environment(world) | {"PGPOOL_MAX_CONNS": str(most)})
        address = api.says(r"ready api http=(\S+) .*")[1]
        async with httpx.AsyncClient(base_url=f"http://{address}") as client:
            for _ in range(3):
                await asyncio.gather(*(client.get("/v1/tasks") for _ in range(30)))
        seen[most] = connections()
        api.kill()
        await eventually(lambda: not connections())
    assert seen[3] == 3
    assert 3 < seen[8] <= 8


def clients(world: World, name: str) -> int:
    """How many connections Redis has from clients of that name."""
    with redis.Redis.from_url(world.settings().redis_addr) as client:
        return sum(each["name"] == name for each in client.client_list())


@change("REDIS_POOL_SIZE")
async def connections_to_redis_are_bounded(world: World) -> None:
    seen = {}
    for most in (4, 12):
        settings = world.settings(REDIS_POOL_SIZE=most, REDIS_MIN_IDLE=0)
        index = await world.index(settings, name=f"pool-{most}")
        await asyncio.gather(*(index.ping() for _ in range(60)))
        seen[most] = clients(world, f"pool-{most}")
    assert seen[4] == 4
    assert 4 < seen[12] <= 12


@change("REDIS_MIN_IDLE")
async def connections_to_redis_are_opened_ahead(world: World) -> None:
    for least in (0, 5):
        index = await world.index(world.settings(REDIS_MIN_IDLE=least), name=f"idle-{least}")
        await index.warm()
        assert clients(world, f"idle-{least}") == least


@change("LOG_LEVEL", "LOG_FORMAT")
async def logs_are_as_many_and_of_such_a_form_as_is_asked_for(world: World) -> None:
    """A cancel that Redis cannot be told of logs one warning."""
    env = environment(world) | {"REDIS_ADDR": f"{HOST}:{free_port()}"}

    def logged(**variables: str) -> list[str]:
        done = world.scheduler("task", "cancel", world.db.put(), **env | variables)
        assert done.returncode == 0
        return done.stderr.splitlines()

    [line] = logged()
    assert json.loads(line)["level"] == "warning"
    assert logged(LOG_LEVEL="error") == []
    [line] = logged(LOG_FORMAT="text")
    assert line.lstrip("0123456789-T:.Z ").startswith("[warning  ] cancelled in Postgres")
