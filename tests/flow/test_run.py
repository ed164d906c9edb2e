"""One handler call: whatever it does comes back as a result, and loop, slot and thread live on."""

from __future__ import annotations

import asyncio
import gc
import math
import threading
import time
import weakref
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import pytest
from fix_store import lease_of
from pydantic import BaseModel
from waiting import eventually

from scheduler import clock
from scheduler.errors import Reject, Retry
from scheduler.handlers import Context, Registry
from scheduler.model import Result, new_id
from scheduler.run import Running, describe, run, safe_text

REPLACED = "\N{REPLACEMENT CHARACTER}"


class Mute(Exception):
    def __str__(self) -> str:
        raise ValueError("no text")


class Deadly(Exception):
    def __str__(self) -> str:
        raise SystemExit(3)


class Held:
    """Stands for a lot of memory."""


class NotText(Exception):
    def __str__(self) -> str:
        return 5  # noqa: PLE0307 - that is the point


RAISED: dict[str, tuple[BaseException, str, str]] = {
    "an error": (RuntimeError("why"), "failed", "RuntimeError: why"),
    "a rejection": (Reject("never"), "rejected", "Reject: never"),
    "a retry": (Retry("later", after_ms=5), "retry", "Retry: later"),
    "SystemExit": (SystemExit(3), "failed", "SystemExit: 3"),
    "KeyboardInterrupt": (KeyboardInterrupt(), "failed", "KeyboardInterrupt: "),
    "GeneratorExit": (GeneratorExit(), "failed", "GeneratorExit: "),
    "CancelledError": (asyncio.CancelledError("mine"), "failed", "CancelledError: mine"),
    "StopIteration": (StopIteration("empty"), "failed", "StopIteration: empty"),
    "a group": (
        ExceptionGroup("two", [ValueError(), KeyError()]),
        "failed",
        "ExceptionGroup: two (2 sub-exceptions)",
    ),
    "a text that cannot be read": (Mute(), "failed", "Mute: (its text could not be read)"),
    "a text that exits": (Deadly(), "failed", "Deadly: (its text could not be read)"),
    "a text that is none": (NotText(), "failed", "NotText: (its text could not be read)"),
    "NUL": (RuntimeError("a\0b"), "failed", f"RuntimeError: a{REPLACED}b"),
    "a lone surrogate": (RuntimeError("a\ud800b"), "failed", "RuntimeError: a?b"),
    "10 MB": (RuntimeError("x" * 10_000_000), "failed", "RuntimeError: " + "x" * 2000),
    "braces and percents": (RuntimeError("{} %s"), "failed", "RuntimeError: {} %s"),
}


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(2) as pool:
        yield pool


def running(registry: Registry, payload: Any = None, *, timeout_s: float = 60.0, type_: str = "t") -> Running:
    lease = lease_of(new_id(), type=type_, payload=payload or {}, attempt=3, failures=2)
    started = lease.claimed = clock.monotonic()
    context = Context(lease.id, lease.attempt, lease.type, lease.failures, started + timeout_s)
    return Running(lease, context, started, asyncio.current_task())


async def call(registry: Registry, threads: ThreadPoolExecutor, payload: Any = None) -> Result:
    handler = registry.get("t")
    assert handler is not None
    return await run(handler, running(registry, payload), threads)


@pytest.mark.parametrize("asynchronous", [True, False], ids=["async", "thread"])
@pytest.mark.parametrize("what", RAISED)
async def test_whatever_is_raised_is_a_result(threads, what: str, asynchronous: bool):
    error, kind, text = RAISED[what]
    registry = Registry()

    def raises():
        raise error

    async def raises_later():
        raise error

    registry.register("t")(raises_later if asynchronous else raises)
    async with asyncio.timeout(5):
        result = await call(registry, threads)
    assert result.kind == kind
    if asynchronous and isinstance(error, StopIteration):
        text = "RuntimeError: coroutine raised StopIteration"
    else:
        assert "test_run.py" in result.error, "it says where"
    assert result.error.startswith(text)
    assert len(result.error) <= 4000
    result.error.encode()
    assert asyncio.current_task().cancelling() == 0


@pytest.mark.parametrize("asynchronous", [True, False], ids=["async", "thread"])
@pytest.mark.parametrize("raised", [MemoryError, Reject, Retry])
async def test_what_a_handler_held_is_free_as_soon_as_it_has_failed(threads, raised, asynchronous: bool):
    """Not at the next collection: a worker that has run out of memory may not live to see one."""
    registry = Registry()
    held: list[weakref.ref[Held]] = []

    def fail() -> None:
        something = Held()
        held.append(weakref.ref(something))
        raise raised("enough")

    async def fail_on_the_loop() -> None:
        fail()

    registry.register("t")(fail_on_the_loop if asynchronous else fail)
    gc.disable()
    try:
        await call(registry, threads)
        await eventually(lambda: held[0]() is None, within_s=5)
    finally:
        gc.enable()


@pytest.mark.parametrize("asynchronous", [True, False], ids=["async", "thread"])
@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        (0, 0),
        (5, 5),
        (0.4, 1),
        (1500.2, 1501),
        (2**70, 31_536_000_000),
        (math.inf, 31_536_000_000),
        (math.nan, 31_536_000_000),
    ],
)
async def test_a_retry_waits_whole_milliseconds_and_no_longer_than_a_year(
    threads, asynchronous: bool, asked, expected
):
    registry = Registry()

    def raises():
        raise Retry(after_ms=asked)

    async def raises_later():
        raise Retry(after_ms=asked)

    registry.register("t")(raises_later if asynchronous else raises)
    assert (await call(registry, threads)).after_ms == expected


@pytest.mark.parametrize("asynchronous", [True, False], ids=["async", "thread"])
@pytest.mark.parametrize("wait", [[], ["soon"], [None]], ids=["none", "text", "None"])
async def test_a_retry_without_a_wait_is_a_failure_of_its_task_alone(threads, asynchronous: bool, wait):
    class Again(Retry):
        def __init__(self):
            if wait:
                self.after_ms = wait[0]

    registry = Registry()

    def raises():
        raise Again

    async def raises_later():
        raise Again

    registry.register("t")(raises_later if asynchronous else raises)
    result = await call(registry, threads)
    assert (result.kind, result.after_ms) == ("failed", 0)
    assert result.error.startswith("Again")


def test_a_retry_in_the_past_is_a_defect_of_the_handler():
    with pytest.raises(ValueError, match="after_ms is -1"):
        Retry(after_ms=-1)


@pytest.mark.parametrize("arity", [0, 1, 2])
@pytest.mark.parametrize("asynchronous", [True, False], ids=["async", "thread"])
async def test_a_handler_is_given_as_much_as_it_takes(threads, asynchronous: bool, arity: int):
    registry = Registry()
    seen: list[Any] = []
    takes: list[Any] = [
        lambda: seen.append(()),
        lambda payload: seen.append((payload,)),
        lambda payload, ctx: seen.append((payload, ctx.id, ctx.attempt, ctx.type, ctx.failures)),
    ]
    takes_later: list[Any] = []

    async def nothing():
        seen.append(())

    async def payload_only(payload):
        seen.append((payload,))

    async def both(payload, ctx):
        seen.append((payload, ctx.id, ctx.attempt, ctx.type, ctx.failures))

    takes_later += [nothing, payload_only, both]
    registry.register("t")((takes_later if asynchronous else takes)[arity])
    handler = registry.get("t")
    a_run = running(registry, {"a": 1})
    assert (await run(handler, a_run, threads)).kind == "succeeded"
    assert seen == [({"a": 1}, a_run.lease.id, 3, "t", 2)[: (0, 1, 5)[arity]]]


@pytest.mark.parametrize("hidden", ["behind a decorator", "in an object"])
async def test_a_coroutine_that_nobody_awaits_is_no_success(threads, hidden: str):
    """What looks like a plain function may return one: it must not pass for done."""
    registry = Registry()

    async def later() -> None:
        raise AssertionError("not run")

    class Object:
        async def __call__(self) -> None:
            raise AssertionError("not run")

    def decorated() -> object:
        return later()

    registry.register("t")(Object() if hidden == "in an object" else decorated)
    result = await call(registry, threads)
    assert (result.kind, "coroutine" in result.error) == ("failed", True)


class Mail(BaseModel):
    to: list[str]
    copies: int = 1


@dataclass
class Point:
    x: int
    y: int = 0


@pytest.mark.parametrize("asynchronous", [True, False], ids=["async", "thread"])
async def test_a_payload_becomes_the_model_that_the_handler_asks_for(threads, asynchronous: bool):
    registry = Registry()
    seen: list[Any] = []

    async def later(mail: Mail, ctx: Context) -> None:
        seen.append(mail)

    def now(mail: Mail, ctx: Context) -> None:
        seen.append(mail)

    registry.register("t")(later if asynchronous else now)
    assert (await call(registry, threads, {"to": ["a"]})).kind == "succeeded"
    assert seen == [Mail(to=["a"])]


async def test_a_payload_becomes_a_dataclass(threads):
    registry = Registry()
    seen: list[Any] = []

    async def later(point: Point) -> None:
        seen.append(point)

    registry.register("t")(later)
    assert (await call(registry, threads, {"x": 3})).kind == "succeeded"
    assert seen == [Point(3)]


@pytest.mark.parametrize("payload", [{}, {"to": "hunter2"}, {"to": ["a"], "copies": "hunter2"}])
async def test_a_payload_that_does_not_fit_is_rejected_without_being_quoted(threads, payload: dict):
    registry = Registry()

    async def later(mail: Mail) -> None:
        raise AssertionError("not called")

    registry.register("t")(later)
    result = await call(registry, threads, payload)
    assert result.kind == "rejected"
    assert "the payload does not fit the handler" in result.error
    assert ("to" if len(payload) < 2 else "copies") in result.error
    assert "hunter2" not in result.error


async def test_a_handler_that_wants_the_plain_payload_gets_it(threads):
    registry = Registry()
    seen: list[Any] = []

    async def later(payload: dict[str, Any]) -> None:
        seen.append(payload)

    registry.register("t")(later)
    await call(registry, threads, {"to": 5})
    assert seen == [{"to": 5}]
    assert registry.get("t").load is None


async def test_a_run_is_measured_from_its_claim(threads):
    registry = Registry()

    async def later() -> None:
        await asyncio.sleep(0.05)  # what is measured

    registry.register("t")(later)
    a_run = running(registry)
    a_run.lease.claimed -= 0.2
    result = await run(registry.get("t"), a_run, threads)
    assert 200_000 <= result.wait_us < 400_000
    assert 50_000 <= result.run_us < 400_000


@pytest.mark.parametrize(
    ("cause", "kind"), [("timed_out", "timed_out"), ("lost", "lost"), ("stopping", "interrupted")]
)
@pytest.mark.parametrize("how", ["ends", "swallows", "fails"])
async def test_an_async_handler_that_is_ended_has_no_result_of_its_own(threads, cause, kind: str, how: str):
    registry = Registry()
    began = asyncio.Event()

    async def later() -> None:
        began.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            if how == "ends":
                raise
            if how == "fails":
                raise RuntimeError("in its clean-up") from None

    registry.register("t")(later)
    runs: list[Running] = []

    async def slot() -> tuple[Result, int]:
        runs.append(running(registry))
        result = await run(registry.get("t"), runs[0], threads)
        return result, asyncio.current_task().cancelling()

    task = asyncio.create_task(slot())
    await began.wait()
    runs[0].end(cause)
    result, cancelling = await task
    assert (result.kind, cancelling, runs[0].context.cancelled) == (kind, 0, True)


@pytest.mark.parametrize(
    ("cause", "kind"), [("timed_out", "timed_out"), ("lost", "lost"), ("stopping", "interrupted")]
)
async def test_a_handler_in_a_thread_keeps_its_run_until_it_has_ended(threads, cause, kind: str):
    """It cannot be cancelled, and its slot is not free before: the next one would find no thread."""
    registry = Registry()
    began, may_end = threading.Event(), threading.Event()
    told: list[bool] = []

    def now(_: dict, ctx: Context) -> None:
        began.set()
        may_end.wait(10)
        told.append(ctx.cancelled)

    registry.register("t")(now)
    runs: list[Running] = []

    async def slot() -> Result:
        runs.append(running(registry))
        return await run(registry.get("t"), runs[0], threads)

    task = asyncio.create_task(slot())
    await eventually(began.is_set)
    for _ in range(3):
        runs[0].end(cause)
        await asyncio.sleep(0.01)  # let the cancellation arrive, again and again
    assert not task.done()
    may_end.set()
    assert ((await task).kind, told) == (kind, [True])


async def test_the_first_cause_stands(threads):
    a_run = running(Registry())
    a_run.task = None
    a_run.end("lost")
    a_run.end("timed_out")
    assert a_run.cause == "lost"


async def test_a_deadline_is_a_duration_to_the_handler():
    context = running(Registry(), timeout_s=5.0).context
    assert 4 < context.remaining_s <= 5
    context.deadline = time.monotonic() - 1
    assert context.remaining_s == 0


async def test_an_interrupt_from_the_keyboard_of_one_handler_leaves_the_loop_running(threads):
    registry = Registry()

    async def later() -> None:
        raise KeyboardInterrupt

    registry.register("t")(later)
    results = await asyncio.gather(*(asyncio.create_task(call(registry, threads)) for _ in range(3)))
    assert [r.kind for r in results] == ["failed"] * 3


@pytest.mark.parametrize(
    ("text", "safe"),
    [
        ("a\0b", f"a{REPLACED}b"),
        ("\ud800", "?"),
        ("x" * 9000, "x" * 4000),
        ("\N{SNOWMAN}", "\N{SNOWMAN}"),
        ("", ""),
    ],
)
def test_a_safe_text_can_be_stored(text: str, safe: str):
    assert safe_text(text) == safe


def test_an_error_names_the_place_where_it_was_raised():
    def fails() -> None:
        raise ValueError("here")

    with pytest.raises(ValueError, match="here") as caught:
        fails()
    line = fails.__code__.co_firstlineno + 1
    assert describe(caught.value) == f"ValueError: here ({__file__}:{line} in fails)"
    assert describe(ValueError("never raised")) == "ValueError: never raised"
