"""Every error of redis-py becomes one of ours, and an unfit server is named as such."""

from __future__ import annotations

import inspect
import logging

import pytest
import redis.exceptions
from redis.exceptions import RedisError, ResponseError

from scheduler.errors import QueueError, QueueUnavailable, StartError
from scheduler.queue import _check_eviction, _fit_version, _translated

IN_A_SCRIPT_OF_62 = "Error running script (call to f_c4b8): @user_script:57: @user_script: 57:"
OUTAGES = {
    "AuthenticationError",
    "AuthorizationError",
    "BusyLoadingError",
    "ClusterDownError",
    "ConnectionError",
    "ExternalAuthProviderError",
    "MasterDownError",
    "MaxConnectionsError",
    "OutOfMemoryError",
    "ReadOnlyError",
    "TimeoutError",
    "TryAgainError",
}
ALL = {
    name: kind
    for name, kind in inspect.getmembers(redis.exceptions, inspect.isclass)
    if issubclass(kind, RedisError)
}


@pytest.mark.parametrize("name", ALL)
def test_every_error_of_the_driver_has_one_of_ours(name: str) -> None:
    """A new class in a later redis-py fails here if it would be taken for the wrong one."""
    error = ALL[name].__new__(ALL[name], "some text")
    found = _translated(error)
    assert isinstance(found, QueueError)
    assert isinstance(found, QueueUnavailable) == (name in OUTAGES)


@pytest.mark.parametrize(
    "text",
    [
        "MISCONF Redis is configured to save RDB snapshots, but it is currently unable to persist",
        "BUSY Redis is busy running a script. You can only call SCRIPT KILL or SHUTDOWN NOSAVE.",
        "UNBLOCKED force unblock from blocking operation, instance state changed (master -> replica?)",
        "NOREPLICAS Not enough good replicas to write.",
        f"{IN_A_SCRIPT_OF_62} -OOM command not allowed when used memory > 'maxmemory'.",
        f"{IN_A_SCRIPT_OF_62} -READONLY You can't write against a read only replica.",
        f"{IN_A_SCRIPT_OF_62} -MISCONF Errors writing to the AOF file: No space left on device",
    ],
)
def test_an_answer_that_says_not_now_is_an_outage(text: str) -> None:
    assert isinstance(_translated(ResponseError(text)), QueueUnavailable)


@pytest.mark.parametrize(
    "text",
    [
        "WRONGTYPE Operation against a key holding the wrong kind of value",
        f"{IN_A_SCRIPT_OF_62} WRONGTYPE Operation against a key holding the wrong kind of value",
        "unknown command 'LPOPS'",
        "ERR BUSY is only a word here",
    ],
)
def test_any_other_answer_is_a_defect(text: str) -> None:
    assert type(_translated(ResponseError(text))) is QueueError


def test_an_error_without_a_text_is_a_time_out() -> None:
    assert str(_translated(TimeoutError())) == "Redis is not available: no answer in time"


@pytest.mark.parametrize(
    ("info", "version"),
    [
        ({"redis_version": "6.2.0"}, "Redis 6.2.0"),
        ({"redis_version": "7.2.4", "valkey_version": "8.0.1"}, "Valkey 8.0.1"),
        ({"redis_version": "10.0.0"}, "Redis 10.0.0"),
    ],
)
def test_a_server_that_is_new_enough_is_named(info: dict[str, str], version: str) -> None:
    assert _fit_version(info, "redis://h") == version


@pytest.mark.parametrize(
    "info", [{"redis_version": "6.0.16"}, {"redis_version": "7.2.4", "valkey_version": "7.2.9"}]
)
def test_an_old_server_is_refused(info: dict[str, str]) -> None:
    with pytest.raises(StartError, match="upgrade it"):
        _fit_version(info, "redis://h")


@pytest.mark.parametrize("policy", ["allkeys-lru", "allkeys-lfu", "allkeys-random"])
def test_a_server_that_evicts_our_keys_is_refused(policy: str) -> None:
    with pytest.raises(StartError, match="noeviction"):
        _check_eviction({"maxmemory": "1000", "maxmemory_policy": policy}, "redis://h")


def test_a_policy_that_cannot_touch_our_keys_is_mentioned(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "scheduler.queue"):
        _check_eviction({"maxmemory": "1000", "maxmemory_policy": "volatile-lru"}, "redis://h")
    assert "volatile-lru" in caplog.text


@pytest.mark.parametrize(
    "info",
    [
        {"maxmemory": "0", "maxmemory_policy": "allkeys-lru"},
        {"maxmemory": "1000", "maxmemory_policy": "noeviction"},
        {},
    ],
)
def test_a_server_that_evicts_nothing_is_fine(info: dict[str, str], caplog: pytest.LogCaptureFixture) -> None:
    _check_eviction(info, "redis://h")
    assert not caplog.records
