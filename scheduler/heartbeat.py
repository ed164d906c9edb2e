"""Heartbeat: keeps a worker's leases alive and says that the worker lives, from a thread of its own.

The thread has a loop and a connection of its own, so a handler that blocks the worker's loop keeps its
lease, and so does a worker that drains. It renews in Postgres only: the reaper finds the entry in Redis at
its old deadline, reads that the row runs on, and puts it back for what remains.

It is also the one who notices a stuck worker: a run that goes on long past its deadline because nothing can
end it, a handler that blocks the loop or hangs in its own thread.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Sequence
from typing import Final, NamedTuple

from scheduler import clock, failpoints, log
from scheduler.config import Settings
from scheduler.errors import StoreBusy, StoreError
from scheduler.held import Held
from scheduler.loop import Loop
from scheduler.metrics import Metrics
from scheduler.model import Lease
from scheduler.store import Store, WorkerIdentity

CONNECTIONS: Final = 2
"""How many connections to Postgres the thread may have, of the PGPOOL_MAX_CONNS of its worker."""

_LONGEST_BEAT_S: Final = 2.0
_LONGEST_UNSEEN_S: Final = 5.0
"""A renewal is also how a worker learns that a task was cancelled, so it is not put off for longer."""


class Pulse(NamedTuple):
    """What the beat reports."""

    running: int
    polled: float | None
    """When the worker last looked into the queue, as a reading of clock.monotonic."""


class Heartbeat:
    """The thread of one worker.

    Args:
        pulse: Called from the thread: what the worker is doing.
        lost: Called from the thread, with a lease that is lost: must be thread-safe.
        watch: A coroutine function that runs in the thread's loop after every beat, with the thread's store.
    """

    def __init__(
        self,
        settings: Settings,
        metrics: Metrics,
        identity: WorkerIdentity,
        held: Held,
        *,
        pulse: Callable[[], Pulse],
        lost: Callable[[Lease], None],
        watch: Callable[[Store], Awaitable[None]],
    ) -> None:
        self._settings = settings
        self._metrics = metrics
        self._identity = identity
        self._held = held
        self._pulse = pulse
        self._lost = lost
        self._watch = watch
        self._vis_s = settings.vis_timeout_ms / 1000
        self._beat_s = min(self._vis_s / 8, _LONGEST_BEAT_S)
        self._log = log.get("heartbeat")
        self._thread = threading.Thread(target=self._main, name="heartbeat", daemon=True)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stopping: asyncio.Event | None = None
        self._started = threading.Event()

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()
        self._started.wait()

    async def stop(self) -> None:
        """Sign off from the registry, if Postgres answers, and end the thread."""
        if self._loop is not None and self._stopping is not None:
            self._loop.call_soon_threadsafe(self._stopping.set)
            await asyncio.get_running_loop().run_in_executor(None, self._thread.join)

    def _main(self) -> None:
        asyncio.run(self._beat_until_stopped())

    async def _beat_until_stopped(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._stopping = asyncio.Event()
        store = await Store.open(self._settings, name="scheduler-heartbeat", max_conns=CONNECTIONS)
        loop = Loop("heartbeat", self._beat_s, lambda: self.step(store), self._metrics)
        loop.start()
        self._started.set()
        await self._stopping.wait()
        await loop.stop()
        try:
            await failpoints.through("release.sign_off", store.leave(self._identity.id))
        except StoreError as error:
            self._log.warning("could not sign off", error=str(error))
        await failpoints.landed()
        await store.close()

    async def step(self, store: Store) -> None:
        """One beat: renew what is due, sign the registry, look for a stuck run; each has its turn.

        Raises:
            Exception: what failed first.
        """
        failed: Exception | None = None
        for part in (self._renew, self._sign, self._watch):
            try:
                await part(store)
            except Exception as error:  # noqa: BLE001 - raised below, once the others had their turn
                failed = failed or error
        if failed is not None:
            raise failed

    async def _renew(self, store: Store) -> None:
        now = clock.monotonic()
        age_s = min(self._vis_s / 2, _LONGEST_UNSEEN_S)
        for claim in self._held.unanswered(now, age_s):
            granted = await store.reclaim(claim.ids, token=claim.token, most=0)
            kept, _ = await self._kept(store, granted)
            # What was not granted yet may be so at any time, and counts from when it was asked for.
            if granted and len(kept) == len(granted):
                claim.renewed = now
        due = self._held.due(now, age_s)
        kept, busy = await self._kept(store, due)
        for lease in due:
            if lease.id in kept:
                lease.renewed, lease.expires = now, now + self._vis_s
            elif not lease.ended and lease.id not in busy:
                # Not settled by us, and not ours any more.
                self._lost(lease)

    async def _kept(self, store: Store, leases: Sequence[Lease]) -> tuple[set[str], set[str]]:
        """The ids of those that are ours still and renewed, and of those whose rows somebody else has locked.

        Those that are locked must not cost the others their leases.
        """
        ids = {lease.id for lease in leases}
        try:
            return await self._renewed(store, leases), set()
        except StoreBusy as error:
            locked = await store.locked(sorted(ids))
            self._log.warning("leases cannot be renewed", tasks=sorted(locked), error=str(error))
        try:
            return await self._renewed(store, [lease for lease in leases if lease.id not in locked]), locked
        except StoreBusy:  # others, by now: the next beat tries again
            return set(), ids

    async def _renewed(self, store: Store, leases: Sequence[Lease]) -> set[str]:
        if not leases:
            return set()
        renewal = store.renew(leases, vis_ms=self._settings.vis_timeout_ms)
        return await failpoints.through("heartbeat.renew", renewal)

    async def _sign(self, store: Store) -> None:
        pulse = self._pulse()
        polled_ms = None if pulse.polled is None else round((clock.monotonic() - pulse.polled) * 1000)
        beat = store.beat(
            self._identity,
            running=pulse.running,
            polled_ms=polled_ms,
            # A worker that dies now must count as dead before the youngest of its leases runs out.
            alive_ms=round(self._vis_s * 750),
        )
        await failpoints.through("heartbeat.sign", beat)
