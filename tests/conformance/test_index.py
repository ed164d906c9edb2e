"""The connections: what they refuse at the start, how they wait, and what is left of an interrupted call."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from fix_proxy import Proxy

from scheduler import config
from scheduler.embedded import Redis
from scheduler.errors import QueueUnavailable, StartError
from scheduler.fairness import Policy
from scheduler.queue import Index
from scheduler.supervisor import free_port

POLICY = Policy()


@asynccontextmanager
async def opened(url: str, **variables: object) -> AsyncIterator[Index]:
    env = {"REDIS_ADDR": url, **{name: str(value) for name, value in variables.items()}}
    index = Index.open(config.load(env)[0], name="test:index")
    try:
        yield index
    finally:
        await index.close()


async def test_a_fit_server_is_named(any_redis_url: str) -> None:
    async with opened(any_redis_url) as index:
        name, version = (await index.check()).split()
        assert name in {"Redis", "Valkey"}
        assert int(version.split(".")[0]) >= 7


async def test_an_absent_server_is_named_with_what_to_do() -> None:
    async with opened(f"redis://127.0.0.1:{free_port()}/0") as index:
        with pytest.raises(StartError, match=r"redis://127.*REDIS_ADDR") as caught:
            await index.check()
        assert "\n" not in str(caught.value)
        with pytest.raises(QueueUnavailable):
            await index.ping()


async def test_a_password_is_asked_for_and_never_shown(server_dir: Path) -> None:
    with Redis(server_dir / "redis", password="s3cr3t") as server:
        bare = f"redis://127.0.0.1:{server.port}/0"
        for password in ("", "wr0ng"):
            async with opened(bare, REDIS_PASS=password) as index:
                with pytest.raises(StartError, match="check REDIS_PASS") as caught:
                    await index.check()
                assert not password or password not in str(caught.value)
        async with opened(bare, REDIS_PASS="s3cr3t") as index:
            await index.check()
            assert "s3cr3t" not in repr(index._pool)


async def test_an_evicting_server_is_refused(server_dir: Path) -> None:
    settings = {"maxmemory": "100mb", "maxmemory-policy": "allkeys-lru"}
    with Redis(server_dir / "redis", settings=settings) as server:
        async with opened(server.url) as index:
            with pytest.raises(StartError, match="evicts keys"):
                await index.check()


@pytest.mark.parametrize("address", ["redis://localhost/0?db=x", "redis://localhost/0?colour=blue"])
async def test_an_address_that_cannot_be_read_is_named(address: str) -> None:
    with pytest.raises(StartError, match="REDIS_ADDR"):
        Index.open(config.load({"REDIS_ADDR": address})[0], name="test")


async def test_a_unix_socket_serves_as_well(server_dir: Path) -> None:
    path = server_dir / "redis.sock"
    with Redis(server_dir / "redis", password="s3cr3t", settings={"unixsocket": str(path)}):
        async with opened(f"unix://{path}", REDIS_PASS="s3cr3t") as index:
            await index.check()
            assert await index.shard("default").push([("a", "low", 0)]) == 1


async def test_connections_are_warmed_and_named(redis_url: str) -> None:
    async with opened(redis_url, REDIS_MIN_IDLE=5) as index:
        await index.warm()
        clients = (await index.call("CLIENT", "LIST")).splitlines()
        assert sum("name=test:index " in client for client in clients) == 5


async def test_a_shard_is_made_once(redis_url: str) -> None:
    async with opened(redis_url, REDIS_PREFIX="other9") as index:
        assert index.shard("mails") is index.shard("mails")
        assert index.shard("mails").key("q", "critical") == "other9:{mails.0}:q:critical"


async def test_a_push_ends_the_wait(redis_url: str) -> None:
    async with opened(redis_url, REDIS_POOL_SIZE=4, REDIS_MIN_IDLE=0) as index:
        waiting = asyncio.create_task(index.wait(["default", "mails"], 30))
        await blocked(index)
        await index.shard("mails").push([("a", "low", 0)])
        assert await asyncio.wait_for(waiting, 10)
        assert (await index.shard("mails").lease(1, "t1", 5000, POLICY)) == ["a"]


async def test_a_wait_without_a_push_ends_in_time(redis_url: str) -> None:
    async with opened(redis_url) as index:
        assert not await index.wait(["default"], 0.05)
        assert not await index.wait(["default"], 0)


async def test_one_push_wakes_one_worker_and_that_one_the_next(redis_url: str) -> None:
    async with opened(redis_url) as index:
        shard = index.shard("default")
        first, second = (asyncio.create_task(index.wait(["default"], 30)) for _ in range(2))
        await blocked(index, 2)
        await shard.push([(id_, "low", 0) for id_ in "abc"])
        await asyncio.wait({first, second}, return_when=asyncio.FIRST_COMPLETED)
        await blocked(index, 1)
        assert first.done() != second.done()
        assert await shard.lease(1, "t1", 5000, POLICY) == ["a"]
        assert await asyncio.gather(first, second) == [True, True]


async def test_waits_longer_than_the_time_out_are_no_error(redis_url: str) -> None:
    async with opened(redis_url, STORE_TIMEOUT_MS=100) as index:
        assert not await index.wait(["default"], 0.3)


async def test_waiting_takes_no_connection_from_the_calls(redis_url: str) -> None:
    async with opened(redis_url, REDIS_POOL_SIZE=4, REDIS_MIN_IDLE=0) as index:
        waits = [asyncio.create_task(index.wait(["default"], 30)) for _ in range(4)]
        await blocked(index, 4)
        await asyncio.gather(*(index.ping() for _ in range(20)))
        for task in waits:
            task.cancel()
        await asyncio.gather(*waits, return_exceptions=True)


async def test_calls_beyond_the_pool_wait_their_turn(redis_url: str) -> None:
    async with opened(redis_url, REDIS_POOL_SIZE=4, REDIS_MIN_IDLE=0) as index:
        answers = await asyncio.gather(*(index.call("ECHO", f"{i}") for i in range(200)))
        assert answers == [f"{i}" for i in range(200)]
        clients = (await index.call("CLIENT", "LIST")).splitlines()
        assert sum("name=test:index " in client for client in clients) <= 4


async def test_a_cancelled_call_leaves_no_answer_for_the_next(redis_url: str) -> None:
    async with opened(redis_url, REDIS_POOL_SIZE=4, REDIS_MIN_IDLE=0) as index:
        for i in range(100):
            calls = [asyncio.create_task(index.call("ECHO", f"old-{i}-{j}")) for j in range(4)]
            for _ in range(i % 7):
                await asyncio.sleep(0)
            for task in calls:
                task.cancel()
            await asyncio.gather(*calls, return_exceptions=True)
            answers = await asyncio.gather(*(index.call("ECHO", f"new-{i}-{j}") for j in range(4)))
            assert answers == [f"new-{i}-{j}" for j in range(4)]


async def test_a_silent_server_is_an_outage_and_its_late_answer_is_nobodys(server_dir: Path) -> None:
    with Redis(server_dir / "redis") as server:
        async with opened(server.url, STORE_TIMEOUT_MS=200) as index:
            await index.ping()
            os.kill(server.pid, signal.SIGSTOP)
            try:
                started = time.monotonic()
                with pytest.raises(QueueUnavailable, match="no answer in time"):
                    await index.call("ECHO", "old")
                assert 0.15 < time.monotonic() - started < 3
            finally:
                os.kill(server.pid, signal.SIGCONT)
            assert await index.call("ECHO", "new") == "new"


async def test_a_lost_answer_does_not_send_the_call_again(
    redis_url: str, proxy: Callable[[str], Proxy]
) -> None:
    """A second lease would take a second page of tasks, and nobody would hold the first."""
    wire = proxy(redis_url)
    async with opened(wire.url, STORE_TIMEOUT_MS=300) as index, opened(redis_url) as direct:
        shard = index.shard("default")
        await shard.push([(f"id-{i}", "low", 0) for i in range(4)])
        wire.swallow("down")
        with pytest.raises(QueueUnavailable):
            await shard.lease(1, "t1", 5000, POLICY)
        wire.heal()
        assert (await direct.shard("default").depths()).leased == 1
        assert await shard.lease(4, "t2", 5000, POLICY) == ["id-1", "id-2", "id-3"]


async def test_a_cut_connection_is_an_outage_and_the_next_call_opens_another(
    redis_url: str, proxy: Callable[[str], Proxy]
) -> None:
    wire = proxy(redis_url)
    async with opened(wire.url) as index:
        waiting = asyncio.create_task(index.wait(["default"], 30))
        await blocked(index)
        wire.stop()
        with pytest.raises(QueueUnavailable):
            await waiting
        with pytest.raises(QueueUnavailable):
            await index.ping()
        wire.start()
        await index.ping()


async def test_a_restart_is_seen_and_survived(server_dir: Path) -> None:
    with Redis(server_dir / "redis") as server:
        async with opened(server.url) as index:
            before = await index.run_id()
            assert await index.shard("default").push([("a", "low", 0)]) == 1
            await asyncio.to_thread(server.restart)
            assert await index.run_id() != before
            assert await index.shard("default").lease(1, "t1", 5000, POLICY) == ["a"]


async def blocked(index: Index, n: int = 1) -> None:
    """Return when exactly `n` clients block on the server."""
    async with asyncio.timeout(10):
        while f"blocked_clients:{n}\r\n" not in await index.call("INFO", "clients"):  # noqa: ASYNC110 - nobody tells
            await asyncio.sleep(0.01)
