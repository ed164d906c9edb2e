"""The registry of handlers: what may be registered, and under which names."""

from __future__ import annotations

import pytest

from scheduler import handlers
from scheduler.backoff import Backoff
from scheduler.errors import ConfigError
from scheduler.handlers import REGISTRY, Registry


async def plain() -> None:
    """A handler."""


@pytest.mark.parametrize("name", ["a", "Send_Mail", "shop.mail:v2", "0", "a" * 128])
def test_a_plain_name_is_a_type(name: str):
    registry = Registry()
    assert registry.register(name)(plain) is plain
    assert registry.types() == {name}


@pytest.mark.parametrize(
    "name",
    ["", "a b", "../../etc", "a\nb", "a\n", "__class__", "a" * 129, "é", "'; DROP TABLE", "a{b}", ".a", "-a"],
)
def test_a_name_that_no_task_can_bear_is_refused(name: str):
    with pytest.raises(ConfigError, match="is not a type's name"):
        Registry().register(name)


def test_a_type_has_one_handler():
    registry = Registry()
    registry.register("a")(plain)
    with pytest.raises(ConfigError, match="has a handler already"):
        registry.register("a")


@pytest.mark.parametrize("timeout_ms", [0, -1])
def test_no_time_to_run_is_refused(timeout_ms: int):
    with pytest.raises(ConfigError, match="timeout_ms"):
        Registry().register("a", timeout_ms=timeout_ms)


def test_a_handler_takes_two_arguments_at_most():
    with pytest.raises(ConfigError, match="takes 3 arguments"):

        @Registry().register("a")
        async def three(payload: dict, ctx: object, more: int) -> None: ...


def test_arguments_with_defaults_are_the_handlers_own():
    registry = Registry()

    @registry.register("a")
    async def defaults(payload: dict, limit: int = 5, *, flag: bool = False) -> None: ...

    assert registry.get("a").arity == 1


def test_a_generator_is_refused():
    """To call it would run nothing of it, and the task would pass for done."""
    for number, function in enumerate((_yields, _yields_later)):
        with pytest.raises(ConfigError, match="generator"):
            Registry().register(f"a{number}")(function)


def _yields():
    yield


async def _yields_later():
    yield


def test_options_are_kept():
    registry, backoff = Registry(), Backoff("constant", base_ms=5)
    registry.register("a", timeout_ms=5, backoff=backoff, heartbeat=False)(plain)
    handler = registry.get("a")
    assert (handler.timeout_ms, handler.backoff, handler.heartbeat, handler.is_async) == (
        5,
        backoff,
        False,
        True,
    )


def test_what_nobody_registered_is_not_found():
    """A look-up in a dict and nothing else: no import by name, no attribute."""
    for name in ("os.system", "__class__", "handlers", "get", ""):
        assert REGISTRY.get(name) is None


def test_the_handlers_that_come_with_the_product():
    assert {"noop", "flaky", "always_fail", "sleeper"} <= REGISTRY.types()
    assert not REGISTRY.get("sleeper").heartbeat, "so that the reaper has something to reap"
    assert handlers.handler == REGISTRY.register
