"""Solo: runs suspects, one at a time, in a child process. A worker has a few of these.

When a worker dies, everything that it held is lost, the guilty task and its neighbours alike. Each of them
is a suspect from then on and runs here: if the child dies, the one task that it ran counts as the culprit and
pays, alone. (What an earlier one has left behind in the child is not told apart from it.) A handler that
cannot be ended is ended with its process.

This module is both ends: `Solo` in the worker, and `main` in the child, which says that it is ready and then
serves one task a line until its input ends: it says that it has begun, and then what came of it.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import os
import signal
import sys
import threading
from collections import deque
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import MISSING, asdict, fields
from typing import Any, Final

from scheduler import clock, config, log
from scheduler.errors import StartError
from scheduler.handlers import REGISTRY, Context, Handler, load_app
from scheduler.model import Lease, Result
from scheduler.run import Cause, Running, run

_LONGEST_LINE: Final = 64 * 1024 * 1024

_READY: Final = b"ready\n"
"""What the child says once it has imported the handlers."""

_START_S: Final = 30.0
"""How long it may take until then. That is no part of a task's time, and no fault of the task."""

_BEGUN: Final = b"begun\n"
"""What it says once it has a task, just before it runs it."""

_BURY_S: Final = 5.0
"""How long the end of a child is waited for that was killed. Something else may have taken its exit code."""

_PAUSE_S: Final = 1.0
"""How long a task is kept that no child was there for: given back at once, it would come back at once."""

_SENT: Final = tuple(field.name for field in fields(Lease) if field.default is MISSING)
"""What the claim said of a task. The rest of a lease is the worker's own."""


def forget_signals_in_forks() -> None:
    """What a handler forks is ended by SIGTERM and SIGINT like any process, and not asked to stop."""

    def forget() -> None:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)

    os.register_at_fork(after_in_child=forget)


class Solo:
    """The worker's end: at most one child, started when the first suspect comes.

    Args:
        app: The module with the handlers, as `scheduler worker --app` was given it.
    """

    def __init__(self, app: str | None) -> None:
        self._app = app
        self._child: asyncio.subprocess.Process | None = None
        self._cause: Cause | None = None
        self._log = log.get("solo")
        self.began = math.inf
        """When the child was given the task in hand; infinite if there is none."""

    @property
    def started(self) -> bool:
        """Whether there is a child."""
        return self._child is not None

    async def run(self, lease: Lease, timeout_ms: int) -> Result:
        """Run one task alone. A child that dies without a result makes the run `died`."""
        self._forget_cause()
        waited = clock.monotonic()
        try:
            child = await self._ready()
            await self._hand_over(child, lease, timeout_ms)
        except StartError as error:
            if self._cause is None:
                self._log.warning("cannot run a suspect", task=lease.id, error=str(error))
                await asyncio.sleep(_PAUSE_S)
            if self._cause == "lost":
                return Result("lost")
            return Result("interrupted", f"it was to run alone, and {error}")
        self.began = started = clock.monotonic()
        ends = asyncio.get_running_loop().call_later(timeout_ms / 1000, self.end, "timed_out")
        try:
            answer = await self._answer(child)
        finally:
            ends.cancel()
            self.began = math.inf
        wait_us = max(0, round((started - lease.claimed) * 1e6))
        run_us = round((clock.monotonic() - started) * 1e6)
        self._log.info("ran alone", task=lease.id, waited_s=round(started - waited, 3), died=answer is None)
        cause = self._cause
        # A worker that stood still finds an answer that came in time and the time's end at once.
        in_time = answer is not None and (answer["run_us"] or 0) <= timeout_ms * 1000
        if answer is not None and (cause is None or (cause == "timed_out" and in_time)):
            if cause is not None:
                await self._bury()
            return Result(answer["kind"], answer["error"], answer["after_ms"], wait_us, answer["run_us"])
        code = await self._bury()
        if cause is None:
            return Result("died", f"the process that ran the task alone {_death(code)}", 0, wait_us, run_us)
        if cause == "lost":
            return Result("lost")
        if cause == "stopping":
            return Result("interrupted", "the worker stopped before the handler had finished")
        why = f"{lease.type} ran longer than its timeout of {timeout_ms / 1000:.3f} s and was ended"
        return Result("timed_out", why, 0, wait_us, run_us)

    def end(self, cause: Cause) -> None:
        """End the run in progress with its process. The first cause stands."""
        self._cause = self._cause or cause
        if self._child is not None:
            _kill(self._child)

    def _forget_cause(self) -> None:
        self._cause = None

    async def close(self) -> None:
        """End the child."""
        self._cause = "stopping"
        await self._bury()

    async def _ready(self) -> asyncio.subprocess.Process:
        """The child, started if there is none, once it serves.

        Raises:
            StartError: it could not be started, or has ended, or said nothing in time.
        """
        if self._child is not None and self._child.returncode is None:
            return self._child
        try:
            self._child = child = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "scheduler.solo",
                *([self._app] if self._app else []),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                limit=_LONGEST_LINE,
            )
        except (OSError, RuntimeError) as error:  # RuntimeError: uvloop, while another loop starts one
            raise StartError(f"no process could be started: {error}") from None
        assert child.stdout is not None
        if self._cause is not None:  # we were told to end it while there was nothing to be ended
            _kill(child)
        try:
            line = await asyncio.wait_for(child.stdout.readline(), _START_S)
        except TimeoutError:
            await self._bury()
            raise StartError(f"its process was not ready after {_START_S:.0f} s") from None
        if line != _READY:
            raise StartError(f"its process {_death(await self._bury())} before it was ready")
        return child

    async def _hand_over(self, child: asyncio.subprocess.Process, lease: Lease, timeout_ms: int) -> None:
        """Give the child a task.

        Raises:
            StartError: it has ended, or said nothing in time, before it had begun: not the task's doing.
        """
        assert child.stdin is not None
        assert child.stdout is not None
        task = {name: getattr(lease, name) for name in _SENT}
        # It may have been ended just now. RuntimeError is how uvloop says that a pipe is closed.
        with contextlib.suppress(OSError, RuntimeError):
            child.stdin.write(json.dumps({"task": task, "timeout_ms": timeout_ms}).encode() + b"\n")
            await child.stdin.drain()
        try:
            line = await asyncio.wait_for(child.stdout.readline(), _START_S)
        except TimeoutError:
            line = b""
        if line != _BEGUN:
            raise StartError(f"its process {_death(await self._bury())} before it had begun")

    async def _answer(self, child: asyncio.subprocess.Process) -> dict[str, Any] | None:
        """What the child says of the task that it has begun; None if it dies of it."""
        assert child.stdout is not None
        line = await child.stdout.readline()
        return json.loads(line) if line.endswith(b"\n") else None

    async def _bury(self) -> int | None:
        """The exit code of the child, which is ended if it does not end; None if nobody knows it."""
        child, self._child = self._child, None
        if child is None:
            return 0
        if self._cause is None:
            # A child whose output has ended is about to die of its own cause, which we want to know.
            with contextlib.suppress(TimeoutError):
                return await asyncio.wait_for(child.wait(), 1.0)
        _kill(child)
        with contextlib.suppress(TimeoutError):
            return await asyncio.wait_for(child.wait(), _BURY_S)
        self._log.error("nobody told the end of a process; does a handler wait for all?", pid=child.pid)
        return None


def _kill(child: asyncio.subprocess.Process) -> None:
    """End a child, if it has not ended by itself; uvloop may have closed it already."""
    with contextlib.suppress(ProcessLookupError, RuntimeError):
        if child.returncode is None:
            child.kill()


def _death(code: int | None) -> str:
    if code is None:
        return "ended, and nobody knows how,"
    if code >= 0:
        return f"ended with exit code {code}"
    try:
        return f"was killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"was killed by signal {-code}"


def main(argv: Sequence[str]) -> None:
    """The child's end: a task a line on standard input, a result a line on what was standard output."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _ignore)  # sent to all of us they mean the worker, and it ends us
    forget_signals_in_forks()
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what handlers print must not mix with the answers
    os.register_at_fork(after_in_child=answers.close)  # a handler's own processes may outlive us
    settings, _ = config.load(os.environ)
    log.configure(settings.log_level, settings.log_format)
    if argv:
        load_app(argv[0])
    answers.write(_READY.decode())
    answers.flush()
    lines: deque[str] = deque()
    arrived = threading.Event()

    def read() -> None:
        for line in sys.stdin:
            lines.append(line)
            arrived.set()
        os._exit(0)  # the worker is gone, or done with us

    threading.Thread(target=read, name="tasks", daemon=True).start()
    while True:
        arrived.wait()
        arrived.clear()
        while lines:
            asked = json.loads(lines.popleft())
            answers.write(_BEGUN.decode())
            answers.flush()
            result = asyncio.run(_serve(Lease(**asked["task"]), asked["timeout_ms"]))
            answers.write(json.dumps(asdict(result)) + "\n")
            answers.flush()


def _ignore(_number: int, _frame: object) -> None:
    """Do nothing about a signal. SIG_IGN would be handed down to the processes that handlers start."""


async def _serve(lease: Lease, timeout_ms: int) -> Result:
    handler: Handler | None = REGISTRY.get(lease.type)
    if handler is None:
        return Result("unknown_type", f"no handler for the type {lease.type!r} in this worker")
    started = lease.claimed = clock.monotonic()
    context = Context(lease.id, lease.attempt, lease.type, lease.failures, started + timeout_ms / 1000)
    with ThreadPoolExecutor(1) as threads:
        return await run(handler, Running(lease, context, started, asyncio.current_task()), threads)


if __name__ == "__main__":
    main(sys.argv[1:])
