"""A system under test depends on its own settings alone, and nothing is left of it."""

from __future__ import annotations

import os

import pytest

from bench import system as module
from bench.system import Leak, System, settings_of, system
from scheduler.stack import Stack

LOOPBACK = {"HTTP_ADDR": "127.0.0.1:0", "METRICS_ADDR": "127.0.0.1:0", "LOG_LEVEL": "warning"}


def _silent(_: str) -> None:
    pass


def test_stray_settings_do_not_reach_a_run():
    env = {
        "PATH": "/bin",
        "POSTGRES_URL": "postgres://a",
        "MAX_LOSSES": "9",
        "HTTP_ADDR": ":80",
        "VIS_X": "1",
    }
    assert settings_of(env, {"LOG_LEVEL": "error"}) == {
        "PATH": "/bin",
        "POSTGRES_URL": "postgres://a",
        "VIS_X": "1",
        "LOG_LEVEL": "error",
    }


@pytest.mark.parametrize(
    ("address", "password", "url"),
    [
        ("localhost:6379", "", "redis://localhost:6379/0"),
        (":6379", "", "redis://localhost:6379/0"),
        ("redis://10.0.0.1:7/2", "", "redis://10.0.0.1:7/2"),
        (":6379", "a/b", "redis://:a%2Fb@localhost:6379/0"),
    ],
)
def test_redis_is_named_as_a_client_needs_it(tmp_path, address, password, url):
    env = {"REDIS_ADDR": address, "REDIS_PASS": password}
    assert System(Stack(env, tmp_path, _silent)).redis_url == url


async def test_a_block_that_fails_leaves_no_process(monkeypatch, postgres_url, redis_url):
    """Async, as a notebook's cells are: a system must start where an event loop runs already."""
    monkeypatch.setenv("POSTGRES_URL", postgres_url)
    monkeypatch.setenv("REDIS_ADDR", redis_url)
    seen = []

    def failing() -> None:
        with system(LOOPBACK, say=_silent) as me:
            me.start_fleet(1)
            seen.append(me)
            raise RuntimeError("the burst failed")

    with pytest.raises(RuntimeError, match="the burst failed"):
        failing()
    (me,) = seen
    assert len(me.pids) == 2  # the API and the worker; the servers are others'
    for pid in me.pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def test_a_process_that_is_left_is_an_error(monkeypatch, postgres_url, redis_url):
    monkeypatch.setenv("POSTGRES_URL", postgres_url)
    monkeypatch.setenv("REDIS_ADDR", redis_url)
    monkeypatch.setattr(module, "_lives", lambda pid: True)
    with pytest.raises(Leak, match=r"processes \[\d+\] outlived their system"), system(LOOPBACK, say=_silent):
        pass


def test_a_worker_that_was_stopped_earlier_is_looked_for_too(monkeypatch, postgres_url, redis_url):
    monkeypatch.setenv("POSTGRES_URL", postgres_url)
    monkeypatch.setenv("REDIS_ADDR", redis_url)
    with system(LOOPBACK, say=_silent) as me:
        me.start_fleet(1)
        (worker,) = me.fleet
        me.stop_fleet()
        assert worker.pid in me.pids
