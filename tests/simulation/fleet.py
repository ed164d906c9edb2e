"""Workers and an API in a simulation: the product's own code, but for what needs threads and child processes.

LoopHeartbeat   the beats of a worker as a process on the one loop, in place of the thread
LoopSolo        suspects run in a process on the one loop, in place of the child process
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable
from typing import Any, Final

from simulation.loop import PROCESS, Process, SeededLoop
from simulation.network import Network, Remote, RemoteIndex

from scheduler import clock, log
from scheduler.config import Settings
from scheduler.enqueue import Enqueuer
from scheduler.errors import StoreError
from scheduler.handlers import Context, Registry
from scheduler.heartbeat import Heartbeat
from scheduler.loop import Loop
from scheduler.metrics import Metrics
from scheduler.model import Lease, Result
from scheduler.run import Cause, Running, _ended_by_us, run
from scheduler.store import WorkerIdentity
from scheduler.worker import Worker

Work = Callable[[dict[str, Any], Context], Awaitable[None]]

METRICS = Metrics()


class Program(Process):
    """A process with its own way to the stores."""

    def __init__(self, loop: SeededLoop, name: str, network: Network) -> None:
        super().__init__(loop, name)
        self.store: Any = Remote(network, network.postgres, network.postgres.target)
        self.index: Any = RemoteIndex(network)


class Api(Program):
    """A process with the way in."""

    def __init__(self, loop: SeededLoop, name: str, network: Network, settings: Settings) -> None:
        super().__init__(loop, name, network)
        self.enqueuer = Enqueuer(self.store, self.index, settings, METRICS)
        self.spawn(self._start())

    async def _start(self) -> None:
        self.enqueuer.start()


class WorkerProgram(Program):
    """A worker: its main thread, its heartbeat, and a child for suspects.

    Attributes:
        blocked: Whether its main thread has stood still while its heartbeat went on.
    """

    def __init__(
        self,
        loop: SeededLoop,
        name: str,
        network: Network,
        settings: Settings,
        registry: Registry,
        work: Work,
    ) -> None:
        super().__init__(loop, name, network)
        self.main = self.child("main")
        self.heart = self.child("heart")
        self.registry = registry
        self.work = work
        self.worker: Worker | None = None
        self.blocked = False
        self.running = self.main.spawn(self._run(settings))

    async def _run(self, settings: Settings) -> None:
        self.worker = Worker(settings, self.registry, self.store, self.index, METRICS)
        await self.worker.run()


def program() -> WorkerProgram:
    """The worker that the current step belongs to."""
    process = PROCESS.get()
    assert process is not None
    assert isinstance(process.root, WorkerProgram)
    return process.root


def identity(settings: Settings, registry: Registry) -> WorkerIdentity:
    """In place of `worker.identity`, whose names are new in every run."""
    types = tuple(sorted(registry.types()))
    return WorkerIdentity(
        f"host:1:{program().name}", "host", 1, settings.worker_queues, types, settings.worker_pool
    )


def leave(_code: int) -> None:
    """In place of `os._exit`. No handler here is without an end, so only a blocked loop is a reason."""
    if not program().blocked:
        log.get("simulation").error("left without a reason")
    program().kill()
    raise asyncio.CancelledError


class LoopHeartbeat(Heartbeat):
    """The beats of a worker, without a thread."""

    def __init__(self, settings: Settings, metrics: Metrics, *args: Any, **kwargs: Any) -> None:
        super().__init__(settings, metrics, *args, **kwargs)
        self._store = program().store
        self._beats = Loop("heartbeat", self._beat_s, lambda: self.step(self._store), metrics)

    def start(self) -> None:
        program().heart.context.run(self._beats.start)

    async def stop(self) -> None:
        await self._beats.stop()
        try:
            await self._store.leave(self._identity.id)
        except StoreError:
            return


class LoopSolo:
    """Runs suspects one at a time, each in a process of the simulation."""

    started = False
    """A process ends with its suspect: there is none to be kept for the next."""

    def __init__(self, _app: str | None) -> None:
        self.began = math.inf
        self._running: Running | None = None
        self._cause: Cause | None = None

    async def run(self, lease: Lease, timeout_ms: int) -> Result:
        handler = program().registry.get(lease.type)
        assert handler is not None
        started = clock.monotonic()
        context = Context(lease.id, lease.attempt, lease.type, lease.failures, started + timeout_ms / 1000)
        self._running = running = Running(lease, context, started, None)
        child = program().child("solo")
        died: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        child.died = lambda: None if died.done() else died.set_result(None)
        running.task = child.spawn(run(handler, running, NO_THREADS))
        self.began = started
        ends = asyncio.get_running_loop().call_later(timeout_ms / 1000, self.end, "timed_out")
        await asyncio.wait({running.task, died}, return_when=asyncio.FIRST_COMPLETED)
        ends.cancel()
        self.began = math.inf
        if died.done():
            return Result("died", "killed")
        if running.cause and running.task.cancelled():  # before it had begun
            return _ended_by_us(running.cause, handler, running)
        return running.task.result()

    def end(self, cause: Cause) -> None:
        if self._running is not None:
            self._running.end(cause)

    async def close(self) -> None:
        self.end("stopping")


NO_THREADS: Any = None
"""Handlers of a simulation are coroutines."""


async def _work(payload: dict[str, Any], ctx: Context) -> None:
    await program().work(payload, ctx)


def _registry(*types: str) -> Registry:
    """All types do the same work; a `sleeper` lets its lease run out."""
    handlers = Registry()
    for type_ in types:
        handlers.register(type_, heartbeat=type_ != "sleeper")(_work)
    return handlers


OLD: Final = _registry("work", "sleeper")
NEW: Final = _registry("work", "sleeper", "rare")
"""The handlers of a worker before and after somebody has added a type."""
