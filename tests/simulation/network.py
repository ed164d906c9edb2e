"""The way from a process to the stores: every call takes its time, and may go wrong.

refused   the call does not arrive, and the caller learns it at once
slow      the answer comes late, but in time
lost      the call is carried out and its answer lost: the caller gives up after the time-out
late      the call is carried out long after the caller has given up
"""

from __future__ import annotations

import asyncio
import types
from collections.abc import Callable, Coroutine, Generator, Sequence
from contextvars import copy_context
from dataclasses import dataclass
from random import Random
from typing import Any

from reference_index import ReferenceIndex
from reference_store import ReferenceStore
from simulation.loop import PROCESS, Process, SeededLoop

from scheduler.errors import QueueUnavailable, SchedulerError, StoreUnavailable

TIMEOUT_S = 0.1
LATEST_S = 2.0
BRIEF_S = 0.003

FAULTY = 0.25
"""The share of calls that go wrong while any may."""

ROUTINE = {
    *("pump", "expired", "lease", "beat", "lead", "queues", "epochs", "run_id"),
    *("recent_id", "open_page", "dead_page", "dlq_page", "known", "census"),
}
"""Calls that come all the time and mostly find nothing to do: of these a tenth as many go wrong."""

BETWEEN = 0.3
"""How often others get to act between two statements of one method."""

Steps = Coroutine[Any, Any, Any]
Seen = Callable[["Call", Any], None]


@dataclass(eq=False)
class Server:
    """One store, and the error that tells of its absence."""

    target: Any
    error: type[SchedulerError]
    down: bool = False


@dataclass(eq=False)
class Call:
    """One call on its way."""

    server: Server
    name: str
    begin: Callable[[], Steps]
    sender: Process | None
    answer: asyncio.Future[Any]
    fault: str | None
    steps: Steps | None = None


class Network:
    """Carries calls. `faults` are the kinds that may happen now; `seen` is told of each call.

    It is called with the call and its answer, when it was carried out or refused.
    """

    def __init__(
        self, loop: SeededLoop, rng: Random, store: ReferenceStore, index: ReferenceIndex, seen: Seen
    ) -> None:
        self.postgres = Server(store, StoreUnavailable)
        self.redis = Server(index, QueueUnavailable)
        self.faults: list[str] = []
        self.late = 0
        """How many calls are still to be carried out though nobody waits for them."""
        self.gap_s = 0.0
        """How long after a fault the calls of the same process are spared."""
        self._loop = loop
        self._index = index
        self._rng = rng
        self._draw = rng.random
        self._seen = seen
        self._context = copy_context()
        self._spared: dict[str, float] = {}
        self._asleep: list[tuple[asyncio.Future[bool], Process | None, Sequence[str]]] = []
        store.between = _pause  # type: ignore[method-assign] # the network decides how long it lasts

    def call(self, server: Server, name: str, begin: Callable[[], Steps]) -> asyncio.Future[Any]:
        """Send a call on its way; its answer."""
        sender = PROCESS.get()
        fault = self._fault(sender, name) if self.faults else None
        call = Call(server, name, begin, sender, self._loop.create_future(), fault)
        if server.down:
            call.fault = "refused"
        if call.fault == "refused":
            self._seen(call, None)
            self._later(self._draw() * BRIEF_S, self._fail, call)
        elif fault == "late":
            self.late += 1
            self._later(TIMEOUT_S, self._fail, call)
            self._later(TIMEOUT_S + self._draw() * LATEST_S, self._step, call)
        elif self._draw() < 0.5:
            self._step(call)
        else:
            self._later(self._draw() * BRIEF_S, self._step, call)
        return call.answer

    def _fault(self, sender: Process | None, name: str) -> str | None:
        if self._draw() > (FAULTY / 10 if name in ROUTINE else FAULTY):
            return None
        who = sender.root.name if sender else ""
        if self._loop.time() < self._spared.get(who, 0):
            return None
        self._spared[who] = self._loop.time() + self.gap_s
        return self._rng.choice(self.faults)

    def _later(self, seconds: float, what: Callable[..., None], *args: Any) -> None:
        self._loop.call_later(seconds, what, *args, context=self._context)

    def _step(self, call: Call) -> None:
        """Carry out the next statement; a further one is sent when its sender has heard of this one."""
        call.steps = call.steps or call.begin()
        while True:
            try:
                call.steps.send(None)
            except StopIteration as end:
                self._end(call, end.value)
                return
            except SchedulerError as error:
                self._fail(call, error)
                return
            if call.fault in {"lost", "late"} or (call.sender and call.sender.dead):
                call.steps.close()
                self._end(call, "the first statement")
                return
            if self._draw() < BETWEEN:
                context = call.sender.context if call.sender else self._context
                self._loop.call_later(self._draw() * BRIEF_S, self._step, call, context=context)
                return

    def _end(self, call: Call, value: Any) -> None:
        self._seen(call, value)
        if call.server is self.redis:
            self._wake()
        if call.fault == "late":
            self.late -= 1
        elif call.fault == "lost":
            self._later(TIMEOUT_S, self._fail, call)
        else:
            longest_s = TIMEOUT_S if call.fault == "slow" else BRIEF_S
            self._later(self._draw() * longest_s, self._answer, call.answer, value)

    def _answer(self, answer: asyncio.Future[Any], value: Any) -> None:
        if not answer.done():
            answer.set_result(value)

    def _fail(self, call: Call, error: SchedulerError | None = None) -> None:
        if not call.answer.done():
            call.answer.set_exception(error or call.server.error(f"{call.name}: no answer"))
            call.answer.exception()  # whoever asked may be dead, and then nobody else would look at it

    def sleep(self, queues: Sequence[str], timeout_s: float) -> asyncio.Future[bool]:
        """Wait for a wake token of one of the queues: True if one came in time."""
        if self.redis.down:
            raise QueueUnavailable("wait: refused")
        answer: asyncio.Future[bool] = self._loop.create_future()
        self._asleep.append((answer, PROCESS.get(), queues))
        self._later(timeout_s, self._answer, answer, False)
        self._wake()
        return answer

    def _wake(self) -> None:
        """Give each token to the one who has waited for it longest."""
        for sleeper in list(self._asleep):
            answer, process, queues = sleeper
            if answer.done() or (process and process.dead):
                self._asleep.remove(sleeper)
                continue
            shard = next((s for s in map(self._index.shard, queues) if s.held.wake), None)
            if shard is not None:
                shard.held.wake = 0
                self._asleep.remove(sleeper)
                self._later(self._draw() * BRIEF_S, self._answer, answer, True)


@types.coroutine
def _pause() -> Generator[None, None, None]:
    yield


class Remote:
    """A store or a shard as a process sees it: each method is a call over the network."""

    polled = None

    def __init__(self, network: Network, server: Server, target: Any) -> None:
        self._network = network
        self._server = server
        self._target = target

    def __getattr__(self, name: str) -> Callable[..., asyncio.Future[Any]]:
        method = getattr(self._target, name)

        def call(*args: Any, **kwargs: Any) -> asyncio.Future[Any]:
            return self._network.call(self._server, name, lambda: method(*args, **kwargs))

        setattr(self, name, call)
        return call


class RemoteIndex(Remote):
    """The index as a process sees it."""

    def __init__(self, network: Network) -> None:
        super().__init__(network, network.redis, network.redis.target)
        self._shards: dict[str, Remote] = {}

    def shard(self, queue: str) -> Remote:
        if queue not in self._shards:
            self._shards[queue] = Remote(self._network, self._server, self._target.shard(queue))
        return self._shards[queue]

    async def wait(self, queues: Sequence[str], timeout_s: float) -> bool:
        return await self._network.sleep(queues, timeout_s)
