"""One simulation: a plan, the stores, the fleet, and what befalls them."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Coroutine
from random import Random
from typing import Any

from reference import Contents
from reference_index import KEYS, ReferenceIndex
from reference_store import ReferenceStore
from reference_tables import id_at
from simulation.fleet import METRICS, Api, Program, WorkerProgram, registry
from simulation.loop import Process, SeededLoop
from simulation.network import Network
from simulation.plan import ACTIVE_S, NETWORK, Order, Plan

from scheduler import dlq
from scheduler.cancel import cancel
from scheduler.errors import Reject, Retry, SchedulerError
from scheduler.handlers import Context
from scheduler.model import NewTask
from scheduler.store import Filter

START_MS = 1_700_000_000_000
QUIET_S = 30.0
"""How long after the last trouble everything may take to come to rest."""

_READS = {"known", "expired", "depths", "dlq_page", "run_id"}


class World:
    """What there is in one simulation, and what is remembered for the checks.

    Attributes:
        accepted: The orders that were accepted, by task id.
        unclear: Ids of tasks that may or may not have been accepted.
        answers: The ids that were answered for each idempotency key.
        started: How often a handler was called, by task id and attempt.
        finished: The calls that came to their end.
        steered: Tasks that somebody tried to cancel, to redrive or to purge.
        broken: What went wrong, in words.
        log: Every step that the stores saw and every trouble; None if nobody wants to read it.
    """

    def __init__(self, plan: Plan, *, verbose: bool = False) -> None:
        self.plan = plan
        self.loop = SeededLoop(Random(f"order {plan.seed}"))
        self.rng = Random(f"world {plan.seed}")
        self.redis_ahead_ms = 0
        self.store = ReferenceStore(self.now_ms)
        self.index = ReferenceIndex(lambda: int(self.now_ms()) + self.redis_ahead_ms)
        self.network = Network(
            self.loop, Random(f"network {plan.seed}"), self.store, self.index, self.note, self.check
        )
        self.accepted: dict[str, Order] = {}
        self.unclear: set[str] = set()
        self.answers: dict[str, set[str]] = {}
        self.started: Counter[tuple[str, int]] = Counter()
        self.finished: set[tuple[str, int]] = set()
        self.steered: set[str] = set()
        self.broken: list[str] = []
        self.log: list[str] | None = [] if verbose else None
        self.calm = False
        self._old: dict[str, Contents] | None = None
        self._damaged: dict[str, Contents] = {}
        self._programs = 0
        self._ids = 0
        self._registries = (registry(self._work, "work", "sleeper"), registry(self._work, "work", "sleeper", "rare"))
        self.api: Api
        self.workers: list[WorkerProgram] = []
        self._metrics = {name: _total(getattr(METRICS, name)) for name in ("succeeded", "fenced", "enqueued")}

    def now_ms(self) -> float:
        """The clock of Postgres."""
        return START_MS + self.loop.time() * 1000

    def counted(self, name: str) -> int:
        """What the processes counted under a metric in this simulation."""
        return round(_total(getattr(METRICS, name)) - self._metrics[name])

    def note(self, who: Process | None, what: str, value: Any = "", fault: str | None = None) -> None:
        """Write a line into the log."""
        if self.log is not None:
            shown = sorted(value) if isinstance(value, set) else value
            self.log.append(f"{self.loop.time():9.6f} {who.name if who else 'world':12} {what} {shown!r} {fault or ''}")

    def fail(self, why: str) -> None:
        """Remember that something went wrong."""
        self.note(None, f"BROKEN: {why}")
        if len(self.broken) < 20:
            self.broken.append(f"at {self.loop.time():.6f} s: {why}")

    def check(self, what: str) -> None:
        """After each call to Redis: invariant I1, unless a key was lost and the census has not been there."""
        if what in _READS:
            return
        for queue, shard in self.index.shards.items():
            if self._damaged.get(queue) is not shard.held and (why := shard.held.broken()):
                self.fail(f"after {what}, in {queue}: {'; '.join(why)}")

    # the course of events

    async def run(self) -> None:
        """Everything from the first task to the rest after the last."""
        self._start_api()
        for _ in range(self.plan.workers):
            self._start_worker()
        self.network.faults = [kind for kind in NETWORK if kind in self.plan.kinds]
        self.network.gap_s = 0.4 if self.plan.calm else 0.0
        for order in self.plan.orders:
            self.loop.call_at(order.at_s, self._begin, self._submit(order))
        for at_s, kind in self.plan.events:
            self.loop.call_at(at_s, getattr(self, f"_{kind}"))
        await asyncio.sleep(ACTIVE_S)
        self.note(None, "no further trouble")
        self.network.faults = []
        await self._rest()
        await self._close()

    async def _rest(self) -> None:
        """Wait until nothing is left to do."""
        while not self._at_rest():
            if self.loop.time() > ACTIVE_S + QUIET_S:
                self.fail(f"{QUIET_S} s after the last trouble there is still something to do")
                return
            await asyncio.sleep(0.1)

    def _at_rest(self) -> bool:
        rows = self.store.held.tasks.values()
        shards = self.index.shards.values()
        shown = sum(len(ids) for shard in shards for ids in shard.held.dlq.values())
        dead = sum(row.dead_at is not None for row in rows)
        return (
            self._clients == 0
            and all(row.finished_at is not None for row in rows)
            and not any(shard.held.live or any(shard.held.places()) for shard in shards)
            and shown == dead
        )

    async def _close(self) -> None:
        """Stop every process in good order."""
        programs = [worker for worker in self.workers if not worker.dead]
        for program in programs:
            if program.worker is not None:
                program.worker.stop()
        done, late = await asyncio.wait([program.running for program in programs], timeout=10)
        for task in done:
            if task.exception() is not None:
                self.fail(f"a worker ended with {task.exception()!r}")
        if late:
            self.fail(f"{len(late)} workers did not stop")
        await asyncio.wait([self.api.spawn(self.api.enqueuer.stop())], timeout=1)
