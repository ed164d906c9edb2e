"""One simulation: the stores, the fleet, the clients, and what befalls them."""

from __future__ import annotations

import asyncio
from collections import Counter, defaultdict
from collections.abc import Callable, Coroutine, Sequence
from contextvars import copy_context
from dataclasses import replace
from random import Random
from typing import Any

from reference import Contents
from reference_index import KEYS, ReferenceIndex
from reference_store import ReferenceStore
from reference_tables import Row, id_at
from simulation.fleet import NEW, OLD, Api, Program, WorkerProgram
from simulation.loop import PROCESS, Process, SeededLoop
from simulation.network import Call, Network, Server
from simulation.plan import ACTIVE_S, FORGETFUL, NETWORK, Order, Plan

from scheduler import dlq
from scheduler.cancel import cancel
from scheduler.errors import Reject, Retry, SchedulerError
from scheduler.handlers import Context
from scheduler.model import NewTask
from scheduler.store import Filter

START_MS = 1_700_000_000_000
QUIET_S = 30.0
"""How long after the last trouble everything may take to come to rest."""

CLOCK_ERROR_MS = {"slow_clock": -20_000, "fast_clock": 3_600_000}
"""By how much the API's wall clock, which names the ids, may be off."""

READS = {"known", "depths", "dlq_page", "run_id"}


class World:
    """What there is in one simulation, and what is remembered of it for the checks.

    Attributes:
        accepted: The orders that were accepted, by task id.
        unclear: Ids of tasks of which the client knows not whether they were accepted.
        answered: The task ids that were answered for each idempotency key.
        started: How often a handler was called, by task id and attempt.
        finished: The calls that came to their end.
        cancelled: Tasks that somebody wanted to cancel.
        broken: What went wrong, in words.
        log: A line for each call and each event; None if nobody wants to read it.
    """

    def __init__(self, plan: Plan, *, verbose: bool = False) -> None:
        self.plan = plan
        self.rng = Random(f"world {plan.seed}")
        self.loop = SeededLoop(Random(f"order {plan.seed}"))
        self.store = ReferenceStore(self.now_ms)
        self.index = ReferenceIndex(lambda: round(self.now_ms()) + self._redis_ahead_ms)
        self.network = Network(self.loop, Random(f"network {plan.seed}"), self.store, self.index, self.seen)
        self.accepted: dict[str, Order] = {}
        self.unclear: set[str] = set()
        self.answered: defaultdict[str, set[str]] = defaultdict(set)
        self.started: Counter[tuple[str, int]] = Counter()
        self.finished: set[tuple[str, int]] = set()
        self.cancelled: set[str] = set()
        self.broken: list[str] = []
        self.log: list[str] | None = [] if verbose else None
        self.workers: list[WorkerProgram] = []
        self.api: Api
        self._desk = Program(self.loop, "desk", self.network)
        self._context = copy_context()
        self._redis_ahead_ms = 0
        self._damaged: dict[str, Contents] = {}
        self._ids = 0
        self._clients: set[asyncio.Task[None]] = set()
        self._coming = 0
        self._forgotten = 0
        self._closing = False

    def now_ms(self) -> float:
        """The clock of Postgres."""
        return START_MS + self.loop.time() * 1000

    def note(
        self, what: str, value: Any = "", *, who: Process | None = None, fault: str | None = None
    ) -> None:
        """Write a line into the log; `who` did it, or the process of the current step."""
        if self.log is None:
            return
        process = who or PROCESS.get()
        shown = sorted(value) if isinstance(value, set) else value
        line = f"{self.loop.time():9.6f} {process.name if process else 'world':10} {what} {shown!r}"
        self.log.append(f"{line} ({fault})" if fault else line)

    def fail(self, why: str) -> None:
        """Remember that something went wrong."""
        self.note(f"BROKEN: {why}")
        self.broken.append(f"at {self.loop.time():.6f} s: {why}")

    # the course of events

    async def run(self) -> None:
        """Everything, from the first task to the rest after the last."""
        self._start_api()
        for _ in range(self.plan.workers):
            self._start_worker()
        self.network.faults = [kind for kind in NETWORK if kind in self.plan.kinds]
        self.network.gap_s = 0.4 if self.plan.calm else 0.0
        for order in self.plan.orders:
            self.loop.call_at(order.at_s, self._begin, self._submit, order)
        for at_s, kind in self.plan.events:
            self.loop.call_at(at_s, self._event, kind)
        await asyncio.sleep(ACTIVE_S)
        self.note("no further trouble")
        self.network.faults = []
        while not self._at_rest():
            if self.loop.time() > ACTIVE_S + QUIET_S:
                self.fail("there is still something to do")
                break
            await asyncio.sleep(0.1)
        await self._close()

    def _at_rest(self) -> bool:
        rows, shards = self.store.held.tasks.values(), self.index.shards.values()
        return (
            not self._clients
            and not self._coming
            and not self.network.late
            and all(row.finished_at is not None for row in rows)
            and not any(shard.held.live or any(shard.held.places()) for shard in shards)
            and self.shown_dead() == self.dead()
        )

    def dead(self) -> set[tuple[str, str, str]]:
        """The dead letters by the rows: (queue, priority, id)."""
        rows = self.store.held.tasks.values()
        return {(row.queue, row.priority, row.id) for row in rows if row.dead_at is not None}

    def shown_dead(self) -> set[tuple[str, str, str]]:
        """The dead letters that Redis shows."""
        dlqs = ((queue, shard.held.dlq) for queue, shard in self.index.shards.items())
        return {(queue, priority, id_) for queue, dlq in dlqs for priority, ids in dlq.items() for id_ in ids}

    async def _close(self) -> None:
        """Stop every process in good order."""
        self._closing = True
        alive = [program for program in self.workers if not program.dead]
        for program in alive:
            if program.worker is not None:
                program.worker.stop()
        _, late = await asyncio.wait(
            [*(program.running for program in alive), self.api.spawn(self.api.enqueuer.stop())], timeout=10
        )
        if late:
            self.fail(f"{len(late)} processes did not stop")

    # processes

    def _later(self, low_s: float, high_s: float, what: Callable[..., Any], *args: Any) -> None:
        """Call after a time that the seed decides; there is no rest before."""
        self._coming += 1
        seconds = self.rng.uniform(low_s, high_s)
        self.loop.call_later(seconds, self._come, what, *args, context=self._context)

    def _come(self, what: Callable[..., Any], *args: Any) -> None:
        self._coming -= 1
        what(*args)

    def _start_api(self) -> None:
        self.api = Api(self.loop, "api", self.network, self.plan.settings)
        self.api.died = lambda: self._later(0.05, 0.4, self._start_api)

    def _start_worker(self) -> None:
        if self._closing:
            return
        number = len(self.workers)
        program = WorkerProgram(
            self.loop, f"w{number}", self.network, self.plan.settings, (OLD, NEW)[number % 2], self._work
        )
        self.workers.append(program)
        program.died = lambda: self._later(0.05, 0.4, self._start_worker)
        program.running.add_done_callback(self._ended, context=self._context)

    def _ended(self, worker: asyncio.Task[None]) -> None:
        """A worker has stopped, and another one comes in its place."""
        if error := worker.exception():
            self.fail(f"a worker ended with {error!r}")
        self._later(0.05, 0.4, self._start_worker)

    def _a_worker(self) -> WorkerProgram | None:
        """One that runs something, if there is one."""
        alive = [w for w in self.workers if not w.dead and not w.running.done()]
        busy = [w for w in alive if w.worker and w.worker._slots.busy]
        return self.rng.choice(busy or alive) if alive else None

    async def _work(self, payload: dict[str, Any], ctx: Context) -> None:
        """The handler of every type: does what the script says."""
        self.started[ctx.id, ctx.attempt] += 1
        process = PROCESS.get()
        assert process is not None
        if payload["how"] == "poison":
            alone = process.name.endswith("solo")
            (process if alone else process.root).kill()
            await self.loop.create_future()
        await asyncio.sleep(payload["ms"] / 1000)
        if ctx.failures < payload["fails"]:
            if payload["how"] == "reject":
                raise Reject("as asked")
            raise Retry("as asked", after_ms=30) if payload["how"] == "retry" else RuntimeError("as asked")
        self.finished.add((ctx.id, ctx.attempt))

    # clients

    def _begin(self, what: Callable[..., Coroutine[Any, Any, None]], *args: Any) -> None:
        client = self._desk.spawn(what(*args))
        self._clients.add(client)
        client.add_done_callback(self._clients.discard)

    async def _submit(self, order: Order) -> None:
        """Submit a task; with a key, until it is known what became of it."""
        for _ in range(20):
            task = self._new_task(order)
            call = self.api.spawn(self.api.enqueuer.submit([task]))
            done, _ = await asyncio.wait({call}, timeout=1)
            if done and call.exception() is None:
                (answer,) = call.result()
                if answer.result != "conflict":
                    self.accepted[answer.task.id] = order
                    if order.key:
                        self.answered[order.key].add(answer.task.id)
                return
            self.unclear.add(task.id)
            if order.key is None:
                return
            await asyncio.sleep(0.2)

    def _new_task(self, order: Order) -> NewTask:
        self._ids += 1
        error_ms = sum(ms for kind, ms in CLOCK_ERROR_MS.items() if kind in self.plan.kinds)
        return NewTask(
            f"{id_at(self.now_ms() + error_ms)[:-6]}{self._ids:06}",
            order.type,
            order.priority,
            order.queue,
            payload=order.payload,
            max_retries=order.max_retries,
            timeout_ms=order.timeout_ms,
            delay_ms=order.delay_ms,
            idempotency_key=order.key,
            fingerprint=order.key and str(order),
        )

    async def _steer(self, call: Coroutine[Any, Any, Any]) -> None:
        try:
            self.note("steered", await call)
        except SchedulerError as error:
            self.note(f"could not steer: {error}")

    # trouble

    def _event(self, kind: str) -> None:
        self.note(kind.upper())
        getattr(self, f"_{kind}")()

    def _crash(self) -> None:
        if worker := self._a_worker():
            worker.kill()

    def _stall(self) -> None:
        if worker := self._a_worker():
            self._stop_for(1.1, 2.8, worker)

    def _block(self) -> None:
        if worker := self._a_worker():
            worker.blocked = True
            self._stop_for(0.2, 2.5, worker.main)

    def _stop_for(self, low_s: float, high_s: float, process: Process) -> None:
        process.stall()
        self._later(low_s, high_s, process.resume)

    def _stop(self) -> None:
        worker = self._a_worker()
        if worker and worker.worker:
            worker.worker.stop()

    def _api_crash(self) -> None:
        self.api.kill()

    def _flush(self) -> None:
        self.index.flush()
        self._forgot()

    def _old(self) -> None:
        self._later(0.1, 1, self._restart, self.index.copy())

    def _restart(self, contents: dict[str, Contents]) -> None:
        self.index.restart(contents)
        self._forgot()

    def _evict(self) -> None:
        queue, key = self.rng.choice(self.plan.settings.worker_queues), self.rng.choice(KEYS)
        self.note("lost", f"{queue} {key}")
        self.index.evict(queue, key)
        self._forgot()

    def _forgot(self) -> None:
        """Redis has lost something. A damaged shard stays damaged while it holds what it holds now."""
        for queue, shard in self.index.shards.items():
            if shard.held.broken():
                self._damaged[queue] = shard.held
        self._forgotten += 1
        if self.plan.kinds.issubset(FORGETFUL):
            soon_s = 2 * self.plan.settings.reconcile_interval_ms / 1000 + 0.2
            self._later(soon_s, soon_s, self._look_for_missing, self._forgotten, self.now_ms())

    def _look_for_missing(self, forgotten: int, at_ms: float, before: Sequence[Row] = ()) -> None:
        """Redis must know every row that was open when it lost its memory, but those in mid-step."""
        rows = (row for row in self.store.held.tasks.values() if row.created_at < at_ms)
        open_ = (replace(row) for row in rows if row.finished_at is None)
        missing = [row for row in open_ if row.id not in self.index.shard(row.queue).held.live]
        if missing and not before:
            self._later(0.05, 0.05, self._look_for_missing, forgotten, at_ms, missing)
        elif forgotten == self._forgotten and any(row in before for row in missing):
            self.fail(f"two intervals after its loss Redis still lacks {[row.id for row in missing]}")

    def _jump(self) -> None:
        self._redis_ahead_ms += self.rng.choice([-2000, -500, 500, 2000])

    def _no_redis(self) -> None:
        self._away(self.network.redis)

    def _no_postgres(self) -> None:
        self._away(self.network.postgres)

    def _away(self, server: Server) -> None:
        server.down = True
        self._later(0.1, 0.8, setattr, server, "down", False)

    def _cancel(self) -> None:
        if self.accepted:
            id_ = self.rng.choice(sorted(self.accepted))
            self.cancelled.add(id_)
            self._begin(self._steer, cancel(self._desk.store, self._desk.index, id_))

    def _redrive(self) -> None:
        self._begin(self._steer, dlq.redrive(self._desk.store, self._desk.index, Filter(), lambda _: None))

    def _purge(self) -> None:
        self._begin(self._steer, dlq.purge(self._desk.store, self._desk.index, Filter(), lambda _: None))

    # what is seen

    def seen(self, call: Call, value: Any) -> None:
        """A call was carried out, or refused on its way."""
        self.note(call.name, value, who=call.sender, fault=call.fault)
        if call.server is self.network.redis and call.name not in READS:
            self._check_index(call.name)

    def _check_index(self, what: str) -> None:
        """Invariant I1, but between the loss of a key and the census that finds it."""
        for queue, shard in self.index.shards.items():
            if self._damaged.get(queue) is not shard.held and (why := shard.held.broken()):
                self.fail(f"after {what}, in {queue}: {'; '.join(why)}")
