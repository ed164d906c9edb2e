"""The proxy that other fault tests rely on does to a wire what its methods say."""

from __future__ import annotations

import socket
import time

import psycopg
import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry


@pytest.fixture
def wire(proxy, redis_url):
    """A proxy before Valkey."""
    return proxy(redis_url)


@pytest.fixture
def client(wire):
    """A client on that wire that gives up after a quarter of a second and never tries again."""
    client = redis.Redis.from_url(wire.url, socket_timeout=0.25, retry=Retry(NoBackoff(), 0))
    with client:
        yield client


def test_bytes_pass_both_ways(client):
    value = b"x" * 2**20
    client.set("key", value)
    assert client.get("key") == value


def test_a_stopped_proxy_refuses_and_a_started_one_accepts_on_the_same_port(wire, client):
    assert client.ping()
    wire.stop()
    with pytest.raises(redis.ConnectionError):
        client.ping()
    with pytest.raises(redis.ConnectionError, match="refused"):
        client.ping()
    wire.start()
    assert client.ping()


def test_a_reset_ends_links_with_rst_and_new_ones_are_accepted(wire, client):
    with socket.create_connection(("127.0.0.1", wire.port)) as link:
        link.sendall(b"PING\r\n")
        assert link.recv(100) == b"+PONG\r\n"
        assert wire.links == 1
        wire.reset()
        assert wire.links == 0
        with pytest.raises(ConnectionResetError):
            link.recv(100)
    assert client.ping()


@pytest.mark.parametrize(("way", "arrived"), [("up", False), ("down", True)])
def test_a_swallowed_way_is_silent_and_delivers_after_healing(wire, client, redis_url, way, arrived):
    assert client.ping()
    wire.swallow(way)
    with pytest.raises(redis.TimeoutError):
        client.incr("count")
    with redis.Redis.from_url(redis_url) as direct:
        assert (direct.get("count") == b"1") is arrived
        wire.heal()
        deadline = time.monotonic() + 5
        while direct.get("count") != b"1":
            assert time.monotonic() < deadline
    assert client.ping()


def test_latency_delays_each_way(wire, client):
    assert client.ping()
    wire.latency_s = 0.05
    began = time.monotonic()
    assert client.ping()
    assert time.monotonic() - began >= 0.1


async def test_postgres_passes_too(proxy, postgres_url):
    wire = proxy(postgres_url)
    async with await psycopg.AsyncConnection.connect(wire.url) as connection:
        wire.reset()
        with pytest.raises(psycopg.OperationalError):
            await connection.execute("SELECT 1")


def test_a_cut_link_has_done_what_was_asked_and_does_not_say_so(wire, client, redis_url):
    assert client.ping()
    wire.cut_when(b"INCR")
    assert client.ping()
    with pytest.raises(redis.ConnectionError):
        client.incr("count")
    assert wire.cuts == 1
    with redis.Redis.from_url(redis_url) as direct:
        assert direct.get("count") == b"1"
    assert client.incr("count") == 2


@pytest.mark.parametrize(("way", "marker"), [("up", b"COMMIT"), ("down", b"COMMIT"), ("down", b"INSERT 0")])
async def test_a_commit_can_succeed_though_the_client_saw_an_error(proxy, postgres_url, way, marker):
    wire = proxy(postgres_url)
    wire.cut_when(marker, way)
    connection = await psycopg.AsyncConnection.connect(wire.url, autocommit=marker != b"COMMIT")
    with pytest.raises(psycopg.OperationalError):
        async with connection:
            await connection.execute("INSERT INTO queues (name) VALUES ('cut')")
    assert wire.cuts == 1
    async with await psycopg.AsyncConnection.connect(wire.url) as other:
        found = await (await other.execute("SELECT count(*) FROM queues WHERE name = 'cut'")).fetchone()
    assert found == (1,)
