"""A background loop, written once: every pump, reaper and sampler is a `step` that one of these repeats."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Awaitable, Callable
from typing import Final

from scheduler import log
from scheduler.errors import SchedulerError
from scheduler.metrics import Metrics

_LONGEST_PAUSE_S: Final = 2.0
_FIRST_PAUSE_S: Final = 0.1

_rng: Final = random.Random()
"""Spreads the passes that follow a failure."""

Step = Callable[[], Awaitable[bool | None]]


class Loop:
    """Repeats a step until it is stopped.

    A step that returns True has left work behind and is repeated at once. A step that fails is counted,
    logged and repeated after a pause that doubles from 0.1 s to 2 s: no failure ends the loop, none makes
    it spin, and it is back within seconds when a store is.

    Args:
        name: The loop's name in logs and in `loop_errors_total`.
        interval_s: Pause after a step that has left nothing to do.
        step: One pass.
    """

    def __init__(self, name: str, interval_s: float, step: Step, metrics: Metrics) -> None:
        self.name = name
        self._interval_s = interval_s
        self._step = step
        self._errors = metrics.loop_errors.labels(name)
        self._log = log.get("loop", loop=name)
        self._stopping = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self.ticked = asyncio.Event()
        """Set after every step that succeeded; a test clears it and waits."""

    def start(self) -> None:
        """Begin, with a step at once."""
        self._task = asyncio.create_task(self._run(), name=f"loop {self.name}")

    async def stop(self) -> None:
        """Let the step in hand finish, then end. Stopping twice, or before the start, is fine."""
        self._stopping.set()
        if self._task is not None:
            await asyncio.gather(self._task, return_exceptions=True)

    async def _run(self) -> None:
        failures = 0
        while not self._stopping.is_set():
            try:
                more = await self._step()
            except Exception as error:  # noqa: BLE001 - a loop outlives whatever its step runs into
                failures += 1
                self._errors.inc()
                self._report(error, failures)
                pause = min(_FIRST_PAUSE_S * 2 ** min(failures - 1, 10), _LONGEST_PAUSE_S)
                await self._sleep(pause * _rng.uniform(0.5, 1))
                continue
            if failures:
                self._log.info("works again", failures=failures)
            failures = 0
            self.ticked.set()
            # Even a loop that always has more to do must let the others run.
            await (asyncio.sleep(0) if more else self._sleep(self._interval_s))

    def _report(self, error: Exception, failures: int) -> None:
        if not isinstance(error, SchedulerError):
            self._log.error("failed", exc_info=error)
        elif failures == 1:
            self._log.warning("failed", error=str(error))
        else:
            self._log.debug("failed again", error=str(error), failures=failures)

    async def _sleep(self, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._stopping.wait()
