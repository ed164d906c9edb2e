"""Run: one handler call, and the result it comes to.

A run never raises: whatever the handler does, including SystemExit and swallowing its cancellation, comes
back as a Result, and `settle` decides what that means for the task.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import math
import traceback
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Any, Final, Literal

from scheduler import clock
from scheduler.errors import Reject, Retry
from scheduler.handlers import Context, Handler
from scheduler.model import Lease, Result

Cause = Literal["timed_out", "lost", "stopping"]
"""Why the worker ended a run before the handler did."""

_LONGEST_TEXT: Final = 2000
_LONGEST_WAIT_MS: Final = 365 * 86_400_000
"""A handler that asks for more gets this; far beyond it lies no instant that Postgres can name."""


@dataclass(slots=True, eq=False)
class Running:
    """A run in progress: what the watch needs in order to end it."""

    lease: Lease
    context: Context
    started: float
    task: asyncio.Task[Any] | None
    cause: Cause | None = None

    def end(self, cause: Cause) -> None:
        """Ask the handler to end. The first cause stands."""
        self.cause = self.cause or cause
        self.context.cancelled = True
        if self.task is not None:
            self.task.cancel()


async def run(handler: Handler, running: Running, threads: Executor) -> Result:
    """Call the handler once. Async handlers run on the loop, the others in one of `threads`."""
    result = await _call(handler, running, threads)
    result.wait_us = max(0, round((running.started - running.lease.claimed) * 1e6))
    result.run_us = max(0, round((clock.monotonic() - running.started) * 1e6))
    return result


async def _call(handler: Handler, running: Running, threads: Executor) -> Result:
    try:
        payload = running.lease.payload if handler.load is None else handler.load(running.lease.payload)
        if handler.is_async:
            await handler.call(payload, running.context)
            outcome = Result("succeeded")
        else:
            outcome = await _in_thread(handler, payload, running, threads)
    except BaseException as error:  # noqa: BLE001 - SystemExit in a handler is that task's failure, not ours
        outcome = _raised(error)
    cause = running.cause
    await _outlive_cancellation(running)
    return outcome if cause is None else _ended_by_us(cause, handler, running)


def _raised(error: BaseException) -> Result:
    if isinstance(error, Reject):
        return Result("rejected", describe(error))
    if isinstance(error, Retry):
        # A class of the handler's own may lack the wait, or have anything in its place.
        with contextlib.suppress(Exception):
            return Result("retry", describe(error), math.ceil(min(_LONGEST_WAIT_MS, error.after_ms)))
    return Result("failed", describe(error))


def _ended_by_us(cause: Cause, handler: Handler, running: Running) -> Result:
    if cause == "lost":
        return Result("lost")
    if cause == "stopping":
        return Result("interrupted", "the worker stopped before the handler had finished")
    limit = running.context.deadline - running.started
    return Result("timed_out", f"{handler.type} ran longer than its timeout of {limit:.3f} s")


async def _in_thread(handler: Handler, payload: Any, running: Running, threads: Executor) -> Result:
    """Run a handler in a thread and stay until that has ended, cancelled or not.

    A thread cannot be cancelled. It may see `ctx.cancelled` and end; if it does not, the run stays in
    progress, past its deadline, and the heartbeat's thread ends the process.
    """
    thread = asyncio.get_running_loop().run_in_executor(threads, _guarded, handler, payload, running.context)
    while True:
        try:
            return await asyncio.shield(thread)
        except asyncio.CancelledError:
            if thread.done() or running.cause is None:
                raise
            _forget_cancellation(running)


async def _outlive_cancellation(running: Running) -> None:
    """Whoever cancelled the slot's task, we or the handler itself, meant the run: the task goes on."""
    if running.task is not None and running.task.cancelling():
        # A handler may cancel its own task and return: the next thing that is awaited would be cancelled.
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.sleep(0)
        _forget_cancellation(running)


def _forget_cancellation(running: Running) -> None:
    """The cancellation has arrived and done its work."""
    while running.task is not None and running.task.uncancel():
        pass


def _guarded(handler: Handler, payload: Any, context: Context) -> Result:
    """Call a handler in its thread. What it raises stays there, and with it whatever its frames hold."""
    try:
        answer = handler.call(payload, context)
        if inspect.iscoroutine(answer):
            answer.close()
            raise TypeError("the handler is no `async def` but returned a coroutine, which nobody awaits")
    except BaseException as error:  # noqa: BLE001 - SystemExit in a thread is that task's failure, too
        return _raised(error)
    return Result("succeeded")


def describe(error: BaseException) -> str:
    """One safe line about an exception: its type, its text, and where in the handler it was raised."""
    try:
        text = str(error)
    except BaseException:  # noqa: BLE001 - a __str__ that raises is the handler's, too
        text = "(its text could not be read)"
    frames = traceback.extract_tb(error.__traceback__, limit=-1) if error.__traceback__ else []
    where = f" ({frames[-1].filename}:{frames[-1].lineno} in {frames[-1].name})" if frames else ""
    return safe_text(f"{type(error).__name__}: {text[:_LONGEST_TEXT]}{where}")


def safe_text(text: str) -> str:
    """`text` as Postgres can store it: no NUL, no lone surrogates, no more than a few lines."""
    text = text.replace("\0", "\N{REPLACEMENT CHARACTER}")
    return text.encode("utf-8", "replace").decode("utf-8")[: 2 * _LONGEST_TEXT]
