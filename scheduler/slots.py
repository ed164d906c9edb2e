"""Slots: the places of a worker in which handlers run, and the watch that ends runs whose time is up.

The local buffer is bounded by time: beyond the free slots a worker takes only what it can run within
LEASE_AHEAD_MS, by a moving average of run times that counts the runs in progress, too. So noops come in large
batches, and a task of one second is not hoarded while another worker idles. When slow tasks fill all slots
before the average knows, what waits behind them is given back. The buffer is bounded by memory, too: large
payloads wait in Postgres, not here. In a batch by the hundred a large one stays there, and its task is given
back.

Suspects run in lanes, apart from the slots, and a few may wait for a lane. What waits beyond them takes the
room of other tasks; once the lanes turn out to be slow, it is put off, so that another worker may have it.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Final

from scheduler import clock
from scheduler.config import Settings
from scheduler.handlers import Context, Handler, Registry
from scheduler.metrics import Metrics
from scheduler.model import PRIORITIES, Lease, Result
from scheduler.run import Running, run
from scheduler.solo import Solo

_WATCH_S: Final = 0.05
_YIELD_S: Final = 0.005
_WEIGHT: Final = 0.02
_STUCK_S: Final = 0.2
"""When no run has begun for so long, what waits in the buffer may be better off in another worker."""

_SLOWEST_GUESS_S: Final = 0.05
"""What a run is taken to last before any was seen: a few to learn from, and no hoard of slow ones. Dozens of
quick runs correct it."""

_AHEAD_BYTES: Final = 2 * 2**20
"""Payloads that may wait in the buffer, as far as the size of one in each batch tells."""

_LARGEST_GUESS: Final = 2**18
"""Bytes. What a payload is taken to hold before any was seen."""

_LANES: Final = 4
"""Suspects that run at once, each alone in its process: a crash may make hundreds of innocent ones."""

_LANE_IDLE_S: Final = 10.0
"""How long a process for suspects is kept that has nothing to run."""

_LINED_UP: Final = 3 * _LANES
"""Suspects that may wait for a lane, however slow the lanes are."""

_LANES_STUCK_S: Final = 1.0
"""When every lane has had the same suspect for so long, those beyond the few are better off elsewhere."""

_PUT_OFF_MS: Final = 5000
"""For how long they are put off. Given back to be run at once, they would come back before all that waits."""

_BLOCKED_S: Final = 1.0
"""A loop that has not turned for so long is in the hands of one handler."""

Ended = Callable[[Lease, Result, Handler | None], None]
GiveBack = Callable[[Sequence[Lease], int], None]
"""Takes back leases, to be run again after so many milliseconds."""


class Slots:
    """Runs leases in WORKER_POOL slots, reports each result to `ended`, gives back what it cannot start."""

    def __init__(
        self,
        registry: Registry,
        settings: Settings,
        metrics: Metrics,
        ended: Ended,
        give_back: GiveBack,
        solo: Callable[[], Solo],
    ) -> None:
        self._lanes = [solo() for _ in range(_LANES)]
        self._suspects: asyncio.Queue[Lease] = asyncio.Queue()
        self._alone: dict[Solo, Lease] = {}
        self._give_back = give_back
        self.size = settings.worker_pool
        self._registry = registry
        self._waits = {p: metrics.start_seconds.labels(p).observe for p in PRIORITIES}
        self._ended = ended
        self._timeout_ms = settings.task_timeout_ms
        self._ahead_s = settings.lease_ahead_ms / 1000
        self._most = settings.lease_batch_size
        self._buffer: deque[Lease] = deque()
        self._idle: deque[asyncio.Future[None]] = deque()
        self._running: dict[int, Running] = {}
        self._threads = ThreadPoolExecutor(self.size, thread_name_prefix="slot")
        self._mean_s = _SLOWEST_GUESS_S
        self._payload_bytes: float | None = None
        self._yielded = 0.0
        self._turned = self._turns_since = clock.monotonic()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self.room_made = asyncio.Event()
        """Set when a run has ended or the buffer has shrunk."""

    def start(self) -> None:
        """Open the slots."""
        self._loop = asyncio.get_running_loop()
        self._turned = self._turns_since = clock.monotonic()
        self._tasks = [asyncio.create_task(self._slot(i), name=f"slot {i}") for i in range(self.size)]
        self._tasks.append(asyncio.create_task(self._watch(), name="watch"))
        self._tasks += [asyncio.create_task(self._lane(solo), name="suspects") for solo in self._lanes]

    async def close(self) -> None:
        """Close the slots. Handlers in threads that still run are left to themselves."""
        for task in self._tasks:
            task.cancel()
        for solo in self._lanes:
            await solo.close()
        self._threads.shutdown(wait=False, cancel_futures=True)

    @property
    def busy(self) -> int:
        """How many handlers run."""
        return len(self._running) + len(self._alone)

    def room(self) -> int:
        """How many more tasks are worth leasing now."""
        if self._stuck():
            return 0  # they would be given back, again and again
        free = self.size - len(self._running)
        target = free + min(self._ahead(), self._most)
        wanted = target - len(self._buffer) - max(0, self._suspects.qsize() - _LINED_UP)
        # A round trip for a few tasks is dear: wait until a good part of the buffer is used up, or all is.
        if wanted < target / 2 and not (free and not self._buffer):
            return 0
        return max(0, min(wanted, self._most))

    def most(self, n: int) -> int | None:
        """How many bytes a payload may have to come with a batch of `n` tasks; None: any.

        The guess that `n` comes from may be wrong. Payloads that are as large as it fit in each case.
        """
        few = 2 * self.size + _AHEAD_BYTES // _LARGEST_GUESS
        return None if n <= few else 4 * _AHEAD_BYTES // n

    def _ahead(self) -> int:
        """How many tasks may wait for a slot here."""
        # A run in progress counts as if it ended now: the average must not wait until slow ones have ended.
        now = clock.monotonic()
        expected_s = self._mean_s + _WEIGHT * sum(now - r.started for r in self._running.values())
        payload = _LARGEST_GUESS if self._payload_bytes is None else self._payload_bytes
        return min(int(self.size * self._ahead_s / expected_s), int(_AHEAD_BYTES / payload))

    def _weigh(self, lease: Lease) -> None:
        """Learn from one of a batch how large payloads are: the guess rises at once and falls slowly."""
        size = len(repr(lease.payload))
        before = size if self._payload_bytes is None else self._payload_bytes
        self._payload_bytes = max(size, before + 0.1 * (size - before))

    def _stuck(self) -> bool:
        """Whether every slot is taken and none has come free for a while."""
        since = clock.monotonic() - _STUCK_S
        return len(self._running) == self.size and all(r.started < since for r in self._running.values())

    def put(self, leases: Sequence[Lease]) -> None:
        """Line up leases, to be run in this order; suspects wait for a process to run alone in."""
        if large := [lease for lease in leases if lease.payload is None]:
            self._payload_bytes = float(_LARGEST_GUESS)
            leases = [lease for lease in leases if lease.payload is not None]
            self._give_back(large, 0)
        if leases:
            self._weigh(leases[0])
        for lease in leases:
            if lease.suspect:
                self._suspects.put_nowait(lease)
            else:
                self._buffer.append(lease)
        for _ in range(min(len(self._idle), len(leases))):
            waiter = self._idle.popleft()
            if not waiter.done():
                waiter.set_result(None)

    def take_back(self) -> list[Lease]:
        """Empty the buffer: what has not started."""
        leases = list(self._buffer)
        self._buffer.clear()
        while not self._suspects.empty():
            leases.append(self._suspects.get_nowait())
        return leases

    def unfinished(self) -> list[Lease]:
        """What has started and not ended."""
        leases = [*(running.lease for running in self._running.values()), *self._alone.values()]
        return [lease for lease in leases if not lease.ended]

    def unending(self, overdue_s: float) -> list[Running]:
        """Runs that go on though their time was up so long ago; safe to call from another thread.

        While a handler keeps the loop to itself, no other run can be told to end, however willing it is: then
        only the run that the loop is in counts. If it is in none of them but in a task that some handler has
        started, nobody knows which: then the time of all of them must be up.
        """
        now, runs = clock.monotonic(), list(self._running.copy().values())
        if now - self._turned <= _BLOCKED_S:
            since = self._turns_since
            late = [r for r in runs if now - max(r.context.deadline, since) > overdue_s]
            return [r for r in late if not r.lease.ended]  # what was given back is left to itself
        late = [r for r in runs if now - r.context.deadline > overdue_s]
        current = asyncio.current_task(self._loop)
        culprits = [r for r in runs if current is not None and r.task is current]
        if culprits:
            return [r for r in culprits if r in late]
        return late if len(late) == len(runs) else []

    def lose(self, lease: Lease) -> None:
        """The lease is known to be lost: end its run, drop it if it has not started."""
        lease.lost = True
        for running in self._running.values():
            if running.lease is lease:
                running.end("lost")
        for solo, alone in self._alone.items():
            if alone is lease:
                solo.end("lost")

    def interrupt(self) -> None:
        """End every run because the worker stops."""
        for running in self._running.values():
            running.end("stopping")
        for solo in self._alone:
            solo.end("stopping")

    async def _slot(self, number: int) -> None:
        task = asyncio.current_task()
        while True:
            while not self._buffer:
                waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
                self._idle.append(waiter)
                await waiter
            lease = self._buffer.popleft()
            if self._over(lease):
                self._refuse(lease)
            else:
                await self._run(number, lease, task)
            self.room_made.set()
            # A handler that never waits would keep the loop to itself: flushers and heartbeats need it, too.
            if clock.monotonic() - self._yielded > _YIELD_S:
                await asyncio.sleep(0)
                self._yielded = clock.monotonic()

    async def _run(self, number: int, lease: Lease, task: asyncio.Task[None] | None) -> None:
        handler = self._registry.get(lease.type)
        if handler is None:
            self._refuse(lease)
            return
        lease.renews = handler.heartbeat
        started = self._begun(lease)
        timeout_ms = self._timeout(lease, handler)
        context = Context(lease.id, lease.attempt, lease.type, lease.failures, started + timeout_ms / 1000)
        running = Running(lease, context, started, task)
        self._running[number] = running
        try:
            result = await run(handler, running, self._threads)
        finally:
            self._turn()
            del self._running[number]
        self._mean_s += _WEIGHT * (max((result.run_us or 0) / 1e6, 1e-5) - self._mean_s)
        self._ended(lease, result, handler)

    def _begun(self, lease: Lease) -> float:
        """When a run begins, which is now; how long its task has waited for it is counted."""
        now = clock.monotonic()
        self._waits[lease.priority](max(0.0, lease.waited_s + now - lease.claimed))
        return now

    def _timeout(self, lease: Lease, handler: Handler) -> int:
        return lease.timeout_ms or handler.timeout_ms or self._timeout_ms

    async def _lane(self, solo: Solo) -> None:
        """Run suspects one after the other, each alone in a process of its own."""
        while True:
            try:
                async with asyncio.timeout(_LANE_IDLE_S if solo.started else None):
                    lease = await self._suspects.get()
            except TimeoutError:
                await solo.close()
                continue
            handler = self._registry.get(lease.type)
            if self._over(lease) or handler is None:
                self._refuse(lease)
            else:
                await self._run_alone(solo, lease, handler)
            self.room_made.set()

    async def _run_alone(self, solo: Solo, lease: Lease, handler: Handler) -> None:
        lease.renews = handler.heartbeat
        self._alone[solo] = lease
        self._begun(lease)
        try:
            result = await solo.run(lease, self._timeout(lease, handler))
        finally:
            del self._alone[solo]
        self._ended(lease, result, handler)

    def _put_off(self) -> None:
        """Give back the suspects beyond the few that may wait, if no lane has come free for a while."""
        waiting, since = self._suspects.qsize(), clock.monotonic() - _LANES_STUCK_S
        if waiting <= _LINED_UP or not all(solo.began < since for solo in self._lanes):
            return
        leases = [self._suspects.get_nowait() for _ in range(waiting)]
        for lease in leases[:_LINED_UP]:
            self._suspects.put_nowait(lease)
        self._give_back(leases[_LINED_UP:], _PUT_OFF_MS)
        self.room_made.set()

    def _over(self, lease: Lease) -> bool:
        """Whether a lease has ended before its run began."""
        lease.lost = lease.lost or lease.expires <= clock.monotonic()
        return lease.lost

    def _turn(self) -> float:
        """Note that the loop turns, and since when, if it was blocked; the time."""
        now = clock.monotonic()
        if now - self._turned > _BLOCKED_S:
            self._turns_since = now
        self._turned = now
        return now

    def _refuse(self, lease: Lease) -> None:
        """End a lease that cannot be run: it is lost, or nobody here knows its type."""
        if lease.lost:
            self._ended(lease, Result("lost"), None)
        else:
            why = f"no handler for the type {lease.type!r} in this worker"
            self._ended(lease, Result("unknown_type", why), None)

    async def _watch(self) -> None:
        """End runs past their deadline or their lease; a handler that swallows it is told again.

        Give back the buffer if every slot is taken and none has come free for a while, and so with the lanes.
        """
        now, waited = clock.monotonic(), False
        while True:
            before = now
            await asyncio.sleep(_WATCH_S)
            now = self._turn()
            # What has ended while the loop was blocked may have been in time, and is to be heard first. Once:
            # a handler that blocks it again and again must be ended.
            waited = now - before > _BLOCKED_S and not waited
            if waited:
                continue
            if self._buffer and self._stuck():
                self._give_back(self.take_back(), 0)
            self._put_off()
            for running in list(self._running.values()):
                if running.lease.expires <= now:
                    running.lease.lost = True
                    running.end("lost")
                elif running.context.deadline <= now:
                    running.end("timed_out")
            for solo, lease in self._alone.items():
                if lease.expires <= now:
                    lease.lost = True
                    solo.end("lost")
