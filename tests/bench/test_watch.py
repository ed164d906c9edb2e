"""The watch sees what is over before an audit begins, and knows when a system is at rest."""

from __future__ import annotations

import time

import psycopg
import pytest
import redis
from fix_process import until
from history import History

from bench import index
from bench.watch import Overdue, Watch, until_quiet
from bench.watch import until as wait_until
from scheduler import keys

NAMES = dict(zip(keys.NAMES, keys.shard_keys("sched1", "default"), strict=True))
LEASE = {"worker": "w", "lease_token": "t", "lease_expires_at": "2035-01-01", "claimed_at": "2020-01-01"}


@pytest.fixture
def history(postgres_url):
    return History(postgres_url)


@pytest.fixture
def connect(postgres_url):
    return lambda: psycopg.connect(postgres_url, autocommit=True)


def test_an_id_that_was_in_two_places_for_a_moment_is_remembered(connect, redis_url):
    with redis.Redis.from_url(redis_url) as client, Watch(connect, redis_url, "sched1") as watch:
        until(lambda: watch.looks)
        assert watch.wrong == {}
        client.rpush(NAMES["q:low"], "a", "a")
        client.hset(NAMES["live"], "a", "")
        until(lambda: watch.wrong)
        client.delete(NAMES["q:low"], NAMES["live"])
    assert watch.wrong == {"a": "in 2 places"}


def test_it_knows_whether_tasks_run(connect, redis_url, history):
    with Watch(connect, redis_url, "sched1") as watch:
        assert not watch.busy
        id_ = history.task("running", attempts=1, **LEASE)
        until(lambda: watch.busy)
        history.execute("DELETE FROM tasks WHERE id = %s", id_)
        until(lambda: not watch.busy)


def test_stores_that_are_away_are_passed_over():
    asked = []

    def connect():
        asked.append(1)
        raise psycopg.OperationalError("away")

    with Watch(connect, "redis://127.0.0.1:1/0", "sched1") as watch:
        until(lambda: len(asked) >= 3)
    assert (watch.busy, watch.looks, watch.wrong) == (False, 0, {})


def test_rest_is_when_nothing_is_open(connect, history):
    assert until_quiet(connect, within_s=5, stalled_s=5) < 1
    history.task("queued")
    began = time.monotonic()
    assert until_quiet(connect, within_s=5, stalled_s=0.3) < 2, "nothing moves any more"
    assert until_quiet(connect, within_s=0.3, stalled_s=5) < 2, "the time is over"
    assert time.monotonic() - began > 0.6


def test_the_depth_is_what_waits_in_all_lists_and_nothing_else(redis_url):
    with index.connected(redis_url) as client:
        assert index.depth(client, "sched1") == 0
        client.rpush(NAMES["q:low"], "a", "b")
        client.rpush(NAMES["q:critical"], "c")
        client.zadd(NAMES["leases"], {"d": 1})
        assert index.depth(client, "sched1") == 3


def test_what_does_not_happen_in_time_is_named():
    with pytest.raises(Overdue, match=r"the end: not within 0\.1 s"):
        wait_until(lambda: False, "the end", within_s=0.1)
    assert wait_until(lambda: True, "now") < 1
