"""Worker: one process that leases, runs and settles tasks, and does its share of the background work.

    lessor ──leases──▶ slots ──results──▶ settler          heartbeat (its own thread)
                                                           pump · reaper · reconcile · sampler · housekeeping

It stops in this order: take no more; give back what has not started; let handlers finish within the grace;
interrupt and give back the rest; record every outcome; stop the loops; sign off. The heartbeat renews until
the last outcome is recorded.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import uuid
from collections.abc import Sequence
from itertools import chain, groupby
from operator import attrgetter
from typing import Any, Final

from scheduler import clock, failpoints, log
from scheduler.config import Settings
from scheduler.errors import SchedulerError
from scheduler.handlers import Handler, Registry
from scheduler.heartbeat import Heartbeat, Pulse
from scheduler.held import Held
from scheduler.housekeeping import Housekeeper
from scheduler.lease import Lessor
from scheduler.loop import Loop
from scheduler.metrics import Metrics
from scheduler.model import Lease, Result, Settlement
from scheduler.pump import Pump
from scheduler.queue import Index
from scheduler.reaper import Reaper
from scheduler.reconcile import Reconciler
from scheduler.run import Running
from scheduler.sampler import Sampler
from scheduler.settle import Settler, decide
from scheduler.slots import Slots
from scheduler.solo import Solo, forget_signals_in_forks
from scheduler.store import Store, WorkerIdentity

EXIT_AT_ONCE: Final = 1
"""Exit code of a worker that a second signal ended."""
EXIT_STUCK: Final = 70
"""Exit code of a worker that gave up: a handler could not be ended, or has broken what the worker works with
(EX_SOFTWARE of sysexits.h)."""

_IDLE_WAIT_S: Final = 1.0
_STUCK_AFTER_S: Final = 2.0
_MOMENT_S: Final = 1.25
"""How long a run must have been seen to go on: a loop may have stood still with all of its process."""
_LONGEST_PAUSE_S: Final = 1.0
_CANCEL_S: Final = 0.5
"""How long a stopping worker waits for handlers that it has cancelled; what is left then is given back."""


def identity(settings: Settings, registry: Registry) -> WorkerIdentity:
    """A name for this process that was never used before and never will be again."""
    host, pid = socket.gethostname(), os.getpid()
    return WorkerIdentity(
        id=f"{host}:{pid}:{uuid.uuid4().hex}",
        host=host,
        pid=pid,
        queues=settings.worker_queues,
        types=tuple(sorted(registry.types())),
        slots=settings.worker_pool,
    )


class Worker:
    """The moving parts of one worker process, put together.

    Args:
        app: The module that the handlers came from; a child that runs a suspect imports it again.
    """

    def __init__(
        self,
        settings: Settings,
        registry: Registry,
        store: Store,
        index: Index,
        metrics: Metrics,
        *,
        app: str | None = None,
    ) -> None:
        self._settings = settings
        self._store = store
        self._index = index
        self.identity = me = identity(settings, registry)
        self._held = held = Held()
        self._log = log.get("worker", worker=me.id)
        self._loop = asyncio.get_running_loop()
        self._stopping = asyncio.Event()
        self._broken: asyncio.Task[None] | None = None
        self._seen_stuck: dict[Running, float] = {}
        metrics.know_types(registry.types())
        metrics.watch_polls(postgres=lambda: store.polled, redis=lambda: index.polled)

        self._lessor = Lessor(store, index, settings, metrics, worker=me.id, held=held)
        self._slots = Slots(registry, settings, metrics, self._ended, self._release, lambda: Solo(app))
        self._settler = Settler(store, index, settings, metrics, worker=me.id, held=held)
        self._heartbeat = Heartbeat(
            settings, metrics, me, held, pulse=self._pulse, lost=self._lose, watch=self._end_if_stuck
        )
        self._loops = self._background(store, index, settings, metrics)

    def _background(self, store: Store, index: Index, settings: Settings, metrics: Metrics) -> list[Loop]:
        queues, holder = settings.worker_queues, self.identity.id
        pump = Pump(index, queues, batch=settings.retry_batch_size)
        reaper = Reaper(
            store, index, metrics, queues, batch=settings.reaper_batch_size, max_losses=settings.max_losses
        )
        self._reconciler = reconciler = Reconciler(store, index, settings, metrics, holder=holder)
        sampler = Sampler(store, index, metrics)
        self._housekeeper = housekeeper = Housekeeper(store, settings, holder=holder)
        return [
            Loop("pump", settings.retry_scan_interval_ms / 1000, pump.step, metrics),
            Loop("reaper", settings.reaper_scan_interval_ms / 1000, reaper.step, metrics),
            Loop("reconcile", settings.reconcile_interval_ms / 1000, reconciler.step, metrics),
            Loop("sampler", settings.metrics_sample_ms / 1000, sampler.step, metrics),
            Loop("housekeeping", settings.housekeeping_interval_ms / 1000, housekeeper.step, metrics),
        ]

    @property
    def leftover(self) -> int:
        """Handlers in threads that outlived the stop: their tasks were given back, they cannot be ended."""
        return self._slots.busy

    def stop(self) -> None:
        """Ask the worker to stop. `run` returns once it has."""
        self._stopping.set()

    def stop_on_signals(self) -> None:
        """Stop at the first SIGTERM or SIGINT; at the second, end the process at once."""
        signals = 0

        def on_signal(_number: int, _frame: object) -> None:
            nonlocal signals
            signals += 1
            if signals > 1:
                os._exit(EXIT_AT_ONCE)
            with contextlib.suppress(RuntimeError):  # the loop has closed: we are leaving already
                self._loop.call_soon_threadsafe(self.stop)

        # Not the loop's own handlers: those wait until it turns, and a handler of a task may be blocking it.
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, on_signal)
        forget_signals_in_forks()

    async def run(self) -> None:
        """Work until `stop` is called, then finish in good order.

        Raises:
            RuntimeError: one of the tasks that do the work has ended before that. The process must end, and
                at once: its heartbeat goes on and keeps leases that nobody serves.
        """
        others = asyncio.all_tasks()
        self._slots.start()
        self._settler.start()
        self._heartbeat.start()
        for loop in self._loops:
            loop.start()
        feeder = asyncio.create_task(self._feed(), name="feeder")
        for task in asyncio.all_tasks() - others:
            task.add_done_callback(self._on_end)
        await self._stopping.wait()
        if self._broken is not None:
            why = None if self._broken.cancelled() else self._broken.exception()
            raise RuntimeError(f"the worker's {self._broken.get_name()} has ended") from why
        self._log.info("stopping", running=self._slots.busy, held=len(self._held))
        await feeder
        await self._finish()
        self._log.info("stopped")

    def _on_end(self, task: asyncio.Task[None]) -> None:
        """A task that is to run until the stop has ended."""
        if not self._stopping.is_set():
            self._broken = task
            self._stopping.set()

    # Working

    async def _feed(self) -> None:
        """Keep the slots supplied."""
        pause = 0.0
        woken = False
        while not self._stopping.is_set():
            room = self._slots.room()
            if room <= 0:
                self._slots.room_made.clear()  # before anything is waited for, or room could be missed
                if woken:  # the call was for somebody with room
                    woken = False
                    with contextlib.suppress(SchedulerError):
                        await self._lessor.take(0)
                await self._first(self._slots.room_made.wait())
                continue
            try:
                leases = await self._lessor.take(room, most=self._slots.most(room))
                woken = False
                if leases:
                    self._slots.put(leases)
                else:
                    woken = bool(
                        await self._first(self._index.wait(self._settings.worker_queues, _IDLE_WAIT_S))
                    )
                pause = 0.0  # not before: a Redis that refuses writes answers while there is nothing to lease
            except SchedulerError as error:
                if not pause:
                    self._log.warning("cannot lease; trying again", error=str(error))
                pause = min(2 * pause or 0.05, _LONGEST_PAUSE_S)
                await self._first(asyncio.sleep(pause))

    async def _first(self, what: object) -> Any:
        """Wait for `what` or for the stop, whichever comes first; what `what` returned, or None."""
        waiting = asyncio.ensure_future(what)  # type: ignore[call-overload] # any awaitable
        stopping = asyncio.ensure_future(self._stopping.wait())
        try:
            await asyncio.wait({waiting, stopping}, return_when=asyncio.FIRST_COMPLETED)
            return waiting.result() if waiting.done() else None
        finally:
            stopping.cancel()
            if not waiting.done():
                waiting.cancel()
                await asyncio.gather(waiting, return_exceptions=True)

    def _ended(self, lease: Lease, result: Result, handler: Handler | None) -> None:
        """A run has come to a result."""
        if result.kind == "lost":
            self._held.drop(lease)
            self._log.info("lease lost", task=lease.id, attempt=lease.attempt)
            return
        self._settler.add(decide(lease, result, handler, self._settings))

    def _release(self, leases: Sequence[Lease], after_ms: int = 0) -> None:
        """Give back what was claimed and not finished, no budget spent, in its old order."""
        # The ids of one lease go to the head of their list together: the oldest lease must go last.
        batches = [list(batch) for _, batch in groupby(leases, key=attrgetter("token"))]
        for lease in chain.from_iterable(reversed(batches)):
            result = Result("interrupted", "given back before it was finished", after_ms)
            self._settler.add(decide(lease, result, None, self._settings))

    # Called from the heartbeat's thread

    def _pulse(self) -> Pulse:
        return Pulse(self._slots.busy, self._lessor.polled)

    def _lose(self, lease: Lease) -> None:
        lease.lost = True  # at once: the loop may be blocked for long
        self._loop.call_soon_threadsafe(self._forget, lease)

    def _forget(self, lease: Lease) -> None:
        self._held.drop(lease)
        self._slots.lose(lease)

    async def _end_if_stuck(self, store: Store) -> None:
        """Leave if a run has gone on long past its deadline: nothing can end it but the end of the process.

        What it held is settled first, through the thread's own store: the culprit as timed out, outcomes that
        were reached as they are, and the rest is given back.
        """
        now = clock.monotonic()
        # After a stop of the whole process this thread may be the first to go on: one look is not enough.
        unending = self._slots.unending(_STUCK_AFTER_S)
        self._seen_stuck = {run: self._seen_stuck.get(run, now) for run in unending}
        stuck = [run for run, since in self._seen_stuck.items() if now - since >= _MOMENT_S]
        if not stuck:
            return
        culprits = {r.lease.id for r in stuck}
        self._log.error("a handler cannot be ended; leaving", tasks=sorted(culprits))
        batch = self._settler.outstanding()
        decided = {s.lease.id for s in batch}
        for run in stuck:
            if run.lease.id not in decided and not run.lease.lost:
                us = round((now - run.started) * 1e6)
                why = "the handler ran on past its timeout and could not be ended"
                batch.append(decide(run.lease, Result("timed_out", why, run_us=us), None, self._settings))
        held = {lease.id: lease for lease in [*await self._granted(store, now), *self._held.all()]}
        rest = [lease for lease in held.values() if lease.id not in decided | culprits and not lease.lost]
        batch += [
            decide(lease, Result("interrupted", "another handler blocked the worker"), None, self._settings)
            for lease in rest
        ]
        try:
            await self._part(store, batch)
        finally:
            os._exit(EXIT_STUCK)

    async def _granted(self, store: Store, now: float) -> list[Lease]:
        """What Postgres has granted to claims whose answers the loop has not read, and never will."""
        granted: list[Lease] = []
        for claim in self._held.unanswered(now, 0):
            try:
                granted += await store.reclaim(claim.ids, token=claim.token, most=0)
            except SchedulerError as error:
                self._log.error("could not ask for a claim before leaving", error=str(error))
        return granted

    async def _part(self, store: Store, batch: Sequence[Settlement]) -> None:
        """Settle what can be settled and sign off, each whether or not the other can be done.

        The reaper would take a worker that has not signed off for one that lives, and charge what it held.
        """
        try:
            if batch:
                settle = store.settle(batch, worker=self.identity.id)
                await failpoints.through("leave.commit", settle)
        except SchedulerError as error:
            self._log.error("could not settle before leaving", error=str(error))
        try:
            await failpoints.through("leave.sign_off", store.leave(self.identity.id))
        except SchedulerError as error:
            self._log.error("could not sign off before leaving", error=str(error))
        await failpoints.landed()

    # Stopping

    async def _finish(self) -> None:
        self._release(self._slots.take_back())
        await self._until_idle(self._settings.shutdown_grace_ms / 1000)
        if self._slots.busy:
            self._slots.interrupt()
            # Async handlers end when cancelled; one that does not, or sits in a thread, is given back.
            await self._until_idle(_CANCEL_S)
            self._release(self._slots.unfinished())
        await self._settler.stop()
        await self._slots.close()
        self._reconciler.stop()
        self._housekeeper.stop()
        await asyncio.gather(*(loop.stop() for loop in self._loops))
        await self._heartbeat.stop()

    async def _until_idle(self, seconds: float) -> None:
        """Wait until no handler runs, but no longer than `seconds`."""
        deadline = clock.monotonic() + seconds
        while self._slots.busy and (left := deadline - clock.monotonic()) > 0:
            self._slots.room_made.clear()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._slots.room_made.wait(), left)
