"""An event loop for simulations: time is virtual, and which callback comes next is drawn from a seed.

A callback belongs to the `Process` in whose context it was scheduled. A process can be killed (nothing of
it ever runs again) or stalled (what it would have run waits until it goes on); both happen between any two
of its steps, and neither is noticed by its code.
"""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Callable, Coroutine
from contextvars import Context, ContextVar, copy_context
from itertools import count
from random import Random
from typing import Any


class Step:
    """A callback to be run: as much of an `asyncio.Handle` as anybody here asks for, at half its price."""

    __slots__ = ("args", "callback", "cancelled", "context")

    def __init__(self, callback: Callable[..., Any], args: tuple[Any, ...], context: Context | None) -> None:
        self.callback = callback
        self.args = args
        self.context = copy_context() if context is None else context
        self.cancelled = False

    def cancel(self) -> None:
        """Do not run it."""
        self.cancelled = True


class SeededLoop(asyncio.BaseEventLoop):
    """Runs one ready callback after the other, each drawn from all that are ready.

    Time passes only when nothing is ready: it jumps to the next timer. Scheduling is written anew rather than
    inherited, since it is most of what a simulation does.
    """

    def __init__(self, rng: Random) -> None:
        super().__init__()
        self._ready: list[Step] = []  # not in order of arrival: any may be the next one
        self._timers: list[tuple[float, int, Step]] = []
        self._number = count()
        self._draw = rng.random
        self._now = 0.0
        self._tasks: list[asyncio.Task[Any]] = []  # those of a dead process are known to nobody else

    def time(self) -> float:
        """Virtual seconds since the beginning."""
        return self._now

    def call_soon(self, callback: Callable[..., Any], *args: Any, context: Context | None = None) -> Step:
        step = Step(callback, args, context)
        self._ready.append(step)
        return step

    def call_at(
        self, when: float, callback: Callable[..., Any], *args: Any, context: Context | None = None
    ) -> Step:
        step = Step(callback, args, context)
        heapq.heappush(self._timers, (when, next(self._number), step))
        return step

    def call_later(
        self, delay: float, callback: Callable[..., Any], *args: Any, context: Context | None = None
    ) -> Step:
        step = Step(callback, args, context)
        heapq.heappush(self._timers, (self._now + delay, next(self._number), step))
        return step

    def create_task(self, coro: Any, **options: Any) -> asyncio.Task[Any]:
        task = super().create_task(coro, **options)
        self._tasks.append(task)
        return task

    def get_debug(self) -> bool:
        return False

    def _run_once(self) -> None:
        ready = self._ready
        while not self._stopping:
            if not ready:
                self._advance()
                continue
            i = int(self._draw() * len(ready))
            ready[i], ready[-1] = ready[-1], ready[i]
            step = ready.pop()
            if step.cancelled:
                continue
            process = step.context.get(PROCESS)
            if process is None or process.takes(step):
                self._run(step)

    def _run(self, step: Step) -> None:
        try:
            step.context.run(step.callback, *step.args)
        except Exception as error:  # noqa: BLE001 - as every loop does: it is told, and the loop goes on
            self.call_exception_handler({"message": f"in {step.callback!r}", "exception": error})

    def _advance(self) -> None:
        """Let time pass until something is due."""
        timers = self._timers
        while timers and not self._ready:
            self._now = max(self._now, timers[0][0])
            while timers and timers[0][0] <= self._now:
                step = heapq.heappop(timers)[2]
                if not step.cancelled:
                    self._ready.append(step)
        if not self._ready:
            raise RuntimeError("nothing will ever happen any more")

    def _write_to_self(self) -> None:
        """Nothing sleeps, so nothing has to be woken."""

    def bury(self) -> None:
        """End all that is left without running it, and close."""
        for task in self._tasks:
            if not task.done():
                task._log_destroy_pending = False
                _close(task.get_coro())
        self._tasks.clear()
        self._timers.clear()
        self.close()


def _close(coroutine: Any) -> None:
    """Close a coroutine, even one that answers its end with something more to await."""
    for _ in range(10):
        try:
            coroutine.close()
        except RuntimeError:
            continue
        return


class Process:
    """Something that runs by itself and can die: a program, a thread or a child of it.

    Attributes:
        root: The program that it belongs to, itself if it has no parent.
    """

    def __init__(self, loop: SeededLoop, name: str, parent: Process | None = None) -> None:
        self.name = name
        self.root = parent.root if parent else self
        self.dead = False
        self.died: Callable[[], None] = lambda: None
        self._loop = loop
        self._stalled = False
        self._frozen: list[Step] = []
        self._children: list[Process] = []
        self.context = copy_context()
        self.context.run(PROCESS.set, self)
        if parent:
            parent._children.append(self)

    def child(self, name: str) -> Process:
        """A part of this process: it dies and stalls with it."""
        return Process(self._loop, f"{self.name}/{name}", self)

    def spawn(self, coroutine: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """Run a coroutine as a task of this process."""
        return self._loop.create_task(coroutine, context=self.context.copy())

    def takes(self, step: Step) -> bool:
        """May this callback run now? If the process is stalled, it is kept for later."""
        if self._stalled and not self.dead:
            self._frozen.append(step)
        return not (self.dead or self._stalled)

    def kill(self) -> None:
        """End at once, without a last word."""
        if self.dead:
            return
        self.dead = True
        self._frozen.clear()
        for child in self._children:
            child.kill()
        self.died()

    def stall(self) -> None:
        """Stand still, as after SIGSTOP."""
        self._stalled = True
        for child in self._children:
            child.stall()

    def resume(self) -> None:
        """Go on."""
        self._stalled = False
        frozen, self._frozen = self._frozen, []
        self._loop._ready.extend(frozen)
        for child in self._children:
            child.resume()


PROCESS: ContextVar[Process | None] = ContextVar("process", default=None)
"""The process that the current step belongs to; None for the world around them."""
