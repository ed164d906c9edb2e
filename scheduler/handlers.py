"""Handlers: what a task's type means, and the four that come with the product.

    from scheduler import Context, Reject, handler

    @handler("send_mail", timeout_ms=10_000)
    async def send_mail(payload: Mail, ctx: Context) -> None: ...

The function may be `async` or not (then it runs in a thread), and takes the payload, or the payload and the
context, or nothing. A payload annotated with a type (a pydantic model, a dataclass) is
validated and converted; a payload that does not fit is rejected. What the function returns is ignored; to
return is to succeed, to raise is to fail.
"""

from __future__ import annotations

import asyncio
import importlib
import inspect
import re
import sys
import typing
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import structlog

from scheduler import clock, log
from scheduler.backoff import Backoff
from scheduler.errors import ConfigError, Reject, StartError
from scheduler.model import TYPE_PATTERN


@dataclass(slots=True, eq=False)
class Context:
    """What a handler may know about its run.

    Attributes:
        id: The task's id, the same in every attempt: the idempotency key for side effects.
        attempt: The number of this attempt, from 1: what a side effect may use as a fence.
        type: The task's type.
        failures: Failed runs before this one, since the last redrive.
        deadline: A reading of `time.monotonic()`: past it the run is timed out.
        cancelled: True once the run is to end: its time is up, its lease is lost, or the worker stops. An
            async handler is cancelled as well; a handler in a thread must look.
    """

    id: str
    attempt: int
    type: str
    failures: int
    deadline: float
    cancelled: bool = False

    @property
    def remaining_s(self) -> float:
        """Seconds until the deadline, 0 once it has passed."""
        return max(0.0, self.deadline - clock.monotonic())

    @property
    def log(self) -> structlog.typing.FilteringBoundLogger:
        """A logger whose lines carry the task's id, attempt and type."""
        return log.get("handler", task=self.id, attempt=self.attempt, type=self.type)


Load = Callable[[Any], Any]

_SHOWN: Final = 10
"""Most misfits of a payload that an error names."""


@dataclass(frozen=True, slots=True, eq=False)
class Handler:
    """A registered function with its options."""

    type: str
    function: Callable[..., Any]
    is_async: bool
    arity: int
    load: Load | None
    """Turns the payload into what the function wants; None where it wants the dict itself."""
    timeout_ms: int | None = None
    backoff: Backoff | None = None
    heartbeat: bool = True

    def call(self, payload: Any, ctx: Context) -> Any:
        """Call the function with as many arguments as it takes."""
        if self.arity == 2:
            return self.function(payload, ctx)
        return self.function(payload) if self.arity == 1 else self.function()


@dataclass(slots=True)
class Registry:
    """Handlers by type."""

    handlers: dict[str, Handler] = field(default_factory=dict)

    def get(self, type_: str) -> Handler | None:
        """The handler of a type, or None. A look-up in a dict and nothing else: no import, no getattr."""
        return self.handlers.get(type_)

    def types(self) -> set[str]:
        """Every type that has a handler."""
        return set(self.handlers)

    def register(
        self,
        type_: str,
        *,
        timeout_ms: int | None = None,
        backoff: Backoff | None = None,
        heartbeat: bool = True,
    ) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
        """Make the decorated function the handler of `type_`.

        Args:
            type_: The type, as tasks name it.
            timeout_ms: Longest run of tasks that name none themselves; default TASK_TIMEOUT_MS.
            backoff: Retry policy of tasks that bring none; default from RETRY_*.
            heartbeat: False to let the lease run out instead of renewing it while the handler runs.

        Raises:
            ConfigError: the type is malformed or taken, the function takes other arguments or is a generator.
        """
        if not re.fullmatch(TYPE_PATTERN, type_):
            raise ConfigError(f"{type_!r} is not a type's name ({TYPE_PATTERN})")
        if type_ in self.handlers:
            raise ConfigError(f"the type {type_!r} has a handler already")
        if timeout_ms is not None and timeout_ms < 1:
            raise ConfigError(f"timeout_ms of {type_!r} is {timeout_ms}; it must be 1 or more")

        def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
            arity, annotation = _signature(type_, function)
            self.handlers[type_] = Handler(
                type_,
                function,
                inspect.iscoroutinefunction(function),
                arity,
                _loader(annotation),
                timeout_ms,
                backoff,
                heartbeat,
            )
            return function

        return decorate


def _signature(type_: str, function: Callable[..., Any]) -> tuple[int, Any]:
    """How many arguments the function takes, and how the first one is annotated."""
    if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
        raise ConfigError(f"the handler of {type_!r} is a generator: to call it would run nothing of it")
    parameters = [
        p
        for p in inspect.signature(function).parameters.values()
        if p.kind in {p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD} and p.default is p.empty
    ]
    if len(parameters) > 2:
        raise ConfigError(
            f"the handler of {type_!r} takes {len(parameters)} arguments; it may take payload and ctx at most"
        )
    if not parameters:
        return 0, dict
    return len(parameters), typing.get_type_hints(function).get(parameters[0].name, dict)


def _loader(annotation: Any) -> Load | None:
    plain = typing.get_origin(annotation) or annotation
    if plain in (dict, Any, object):
        return None
    from pydantic import TypeAdapter, ValidationError  # noqa: PLC0415 - plain handlers spare the 10 MB

    validate = TypeAdapter(annotation).validate_python

    def load(payload: Any) -> Any:
        try:
            return validate(payload)
        except ValidationError as error:
            # Not the error's own text, which quotes the payload.
            found = error.errors(include_input=False, include_url=False, include_context=False)
            places = (f"{'.'.join(map(str, e['loc'])) or 'payload'}: {e['msg']}" for e in found[:_SHOWN])
            raise Reject(f"the payload does not fit the handler: {'; '.join(places)}") from None

    return load


REGISTRY: Final = Registry()
"""The handlers of this process. `@handler` adds to it, and a worker serves what is in it."""

handler: Final = REGISTRY.register


@handler("noop")
async def noop() -> None:
    """Succeed at once."""


@handler("flaky")
async def flaky(payload: dict[str, Any], ctx: Context) -> None:
    """Fail while the task has failed fewer than `fail_times` times (default 1), then succeed."""
    fail_times = int(payload.get("fail_times", 1))
    if ctx.failures < fail_times:
        raise RuntimeError(f"flaky: failure {ctx.failures + 1} of {fail_times}")


@handler("always_fail")
async def always_fail() -> None:
    """Fail every time: the way to the dead letters."""
    raise RuntimeError("always_fail: as asked")


@handler("sleeper", heartbeat=False)
async def sleeper(payload: dict[str, Any]) -> None:
    """Sleep `sleep_ms` (default 1,000) without renewing the lease: beyond it, the reaper's work."""
    await asyncio.sleep(int(payload.get("sleep_ms", 1000)) / 1000)


def load_app(name: str) -> None:
    """Import the module whose `@handler` functions the worker serves.

    Raises:
        StartError: it does not import.
    """
    sys.path.insert(0, str(Path.cwd()))
    try:
        importlib.import_module(name)
    except (Exception, SystemExit) as error:  # noqa: BLE001 - whatever it raises, the user wants to know
        raise StartError(
            f"--app {name} cannot be imported from {Path.cwd()}: {type(error).__name__}: {error}"
        ) from None
