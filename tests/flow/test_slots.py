"""Slots: what runs, what waits, what is worth leasing, and what is given back."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable, Sequence

import pytest
from fix_store import lease_of
from waiting import eventually

from scheduler import clock, config
from scheduler.handlers import REGISTRY, Registry
from scheduler.metrics import Metrics
from scheduler.model import Lease, Result, new_id
from scheduler.run import Cause
from scheduler.slots import _STUCK_S, Slots
from scheduler.solo import Solo

LONG_S = 60.0


class Bench:
    """Slots whose results and returns are collected."""

    def __init__(self, settings: config.Settings, solo: Callable[[], Solo] = lambda: Solo(None)) -> None:
        self.registry = Registry(dict(REGISTRY.handlers))
        self.results: list[tuple[str, Result]] = []
        self.given_back: list[str] = []
        self.put_off_ms: list[int] = []
        self.open = asyncio.Event()
        self.started: list[str] = []
        self.metrics = Metrics()
        self.slots = Slots(
            self.registry,
            settings,
            self.metrics,
            lambda lease, result, _: self.results.append((lease.id, result)),
            self.give_back,
            solo,
        )

        @self.registry.register("waits")
        async def waits(_: dict, ctx):
            self.started.append(ctx.id)
            await self.open.wait()

    def give_back(self, leases: Sequence[Lease], after_ms: int) -> None:
        self.given_back += [lease.id for lease in leases]
        self.put_off_ms += [after_ms] * len(leases)

    def lease(self, type_: str = "noop", *, expires_s: float = LONG_S, **fields) -> Lease:
        lease = lease_of(new_id(), type=type_, **fields)
        lease.claimed = lease.renewed = clock.monotonic()
        lease.expires = lease.claimed + expires_s
        return lease

    def put(self, *types: str, **fields) -> list[str]:
        leases = [self.lease(type_, **fields) for type_ in types]
        self.slots.put(leases)
        return [lease.id for lease in leases]

    def waits_counted(self) -> int:
        """How many starts are in `enqueue_to_start_seconds`."""
        families = self.metrics.registry.collect()
        samples = (sample for family in families for sample in family.samples)
        return sum(int(s.value) for s in samples if s.name == "enqueue_to_start_seconds_count")

    async def ended(self, n: int) -> list[Result]:
        """The first `n` results, once there are as many."""
        await eventually(lambda: len(self.results) >= n)
        return [result for _, result in self.results[:n]]

    def kinds(self) -> dict[str, str]:
        return {id_: result.kind for id_, result in self.results}


@pytest.fixture
async def make_bench() -> AsyncIterator[Callable[..., Bench]]:
    benches: list[Bench] = []

    def make(*solo: Callable[[], Solo], **variables: object) -> Bench:
        env = {"WORKER_POOL": "2"} | {name: str(value) for name, value in variables.items()}
        bench = Bench(config.load(env)[0], *solo)
        bench.slots.start()
        benches.append(bench)
        return bench

    yield make
    for bench in benches:
        bench.open.set()
        bench.slots.interrupt()
        await eventually(lambda slots=bench.slots: not slots.busy)
        await bench.slots.close()
        await asyncio.gather(*bench.slots._tasks, return_exceptions=True)


async def test_as_many_run_as_there_are_slots_and_in_order(make_bench):
    bench = make_bench()
    ids = bench.put(*["waits"] * 5)
    await eventually(lambda: bench.slots.busy == 2)
    assert bench.started == ids[:2]
    bench.open.set()
    await bench.ended(5)
    assert bench.started == ids
    assert set(bench.kinds().values()) == {"succeeded"}


async def test_quick_runs_earn_a_large_buffer_and_slow_ones_none(make_bench):
    bench = make_bench(LEASE_AHEAD_MS=50, LEASE_BATCH_SIZE=100)
    bench.put(*["noop"] * 500)
    await bench.ended(500)
    assert bench.slots.room() == 100

    @bench.registry.register("slow")
    async def slow():
        await asyncio.sleep(0.04)

    bench.put(*["slow"] * 100)
    await eventually(lambda: len(bench.results) >= 540)
    assert bench.slots.room() == 0, "as many wait as it could run in a long time"
    bench.slots.take_back()
    await eventually(lambda: not bench.slots.busy)
    assert bench.slots.room() <= 2 + 4, "little more than the free slots"


async def test_large_payloads_wait_in_postgres(make_bench):
    bench = make_bench(LEASE_BATCH_SIZE=100, LEASE_AHEAD_MS=60_000)
    assert bench.slots.room() <= 2 + 8, "before any was seen they may be large"
    bench.put("noop")
    await bench.ended(1)
    assert bench.slots.room() == 100
    bench.put("noop", payload={"text": "x" * 2**20})
    await bench.ended(2)
    assert bench.slots.room() <= 2 + 2
    for n in range(60):
        bench.put("noop")
        await bench.ended(3 + n)
    assert bench.slots.room() == 100


async def test_before_any_run_was_seen_a_worker_takes_little_more_than_it_can_start(make_bench):
    """Two new workers share what waits; some dozens of quick runs later it is taken by the batch."""
    bench = make_bench(WORKER_POOL=12, LEASE_AHEAD_MS=50)
    bench.slots._payload_bytes = 1.0
    assert bench.slots.room() == 2 * 12
    bench.put(*["noop"] * 300)
    await bench.ended(300)
    assert bench.slots.room() == 500


async def test_what_came_without_its_payload_is_given_back_and_the_next_batch_is_small(make_bench):
    bench = make_bench(LEASE_AHEAD_MS=1000, WORKER_POOL=12)
    bench.put(*["noop"] * 300)
    await bench.ended(300)
    assert bench.slots.room() == 500
    leases = [bench.lease(payload=None if n % 2 else {}) for n in range(6)]
    bench.slots.put(leases)
    await bench.ended(303)
    assert bench.given_back == [lease.id for lease in leases[1::2]]
    assert bench.kinds().keys().isdisjoint(bench.given_back)
    assert bench.slots.most(n := bench.slots.room()) is None
    assert 12 < n <= 24


@pytest.mark.parametrize("pool", [1, 12, 100])
async def test_payloads_as_large_as_the_guess_come_with_every_batch(make_bench, pool):
    """Else a batch of them would be given back, again and again; and never come more than 8 MiB of them."""
    bench = make_bench(LEASE_AHEAD_MS=60_000, WORKER_POOL=pool)
    for size in (100, 5_000, 20_000, 60_000, 200_000, 2**18):
        bench.slots._payload_bytes = float(size)
        batch = bench.slots.room()
        for n in (batch - pool, batch):
            most = bench.slots.most(n)
            assert most is None or most >= size
            assert n * min(size, most or size) <= max(8 * 2**20, (2 * pool + 8) * 2**18)


async def test_runs_in_progress_count_before_they_have_ended(make_bench):
    """Else the first slow ones would be hoarded: the average knows of none yet."""
    bench = make_bench(LEASE_AHEAD_MS=10, WORKER_POOL=4)
    bench.put(*["noop"] * 300)
    await bench.ended(300)
    bench.put("waits", "waits")
    await eventually(lambda: bench.slots.busy == 2)
    at_once = bench.slots.room()
    assert at_once > 20
    await eventually(lambda: bench.slots.room() < at_once / 4)


async def test_without_lead_only_free_slots_are_filled(make_bench):
    bench = make_bench(LEASE_AHEAD_MS=0, WORKER_POOL=3)
    assert bench.slots.room() == 3
    bench.put("waits")
    await eventually(lambda: bench.slots.busy == 1)
    assert bench.slots.room() == 2


async def test_room_is_announced_when_a_run_ends(make_bench):
    bench = make_bench()
    bench.slots.room_made.clear()
    bench.put("noop")
    async with asyncio.timeout(5):
        await bench.slots.room_made.wait()


async def test_what_waits_behind_slow_runs_is_given_back_in_order(make_bench):
    """Another worker may idle."""
    bench = make_bench()
    ids = bench.put(*["waits"] * 6)
    before = time.monotonic()
    await eventually(lambda: bench.given_back)
    assert time.monotonic() - before > _STUCK_S * 0.9
    assert bench.given_back == ids[2:]
    bench.open.set()
    await bench.ended(2)
    assert list(bench.kinds()) == ids[:2]


async def test_nothing_is_given_back_while_runs_end(make_bench):
    bench = make_bench(WORKER_POOL=1)

    @bench.registry.register("short")
    async def short():
        await asyncio.sleep(_STUCK_S / 3)

    bench.put(*["short"] * 6)
    await bench.ended(6)
    assert bench.given_back == []


async def test_a_long_rest_is_not_taken_for_slow_runs(make_bench):
    """Nothing has ended for long because nothing has run: the runs that begin now are given their time."""
    bench = make_bench(WORKER_POOL=1)

    @bench.registry.register("short")
    async def short():
        await asyncio.sleep(_STUCK_S / 3)

    await asyncio.sleep(_STUCK_S * 1.2)  # the rest is what is tested
    bench.put("short", "short")
    await bench.ended(2)
    assert bench.given_back == []


async def test_while_all_slots_are_stuck_nothing_is_worth_leasing(make_bench):
    """It would only be given back, again and again."""
    bench = make_bench(LEASE_AHEAD_MS=10_000)
    bench.put("waits", "waits")
    await eventually(lambda: bench.slots.busy == 2)
    assert bench.slots.room() > 0
    await eventually(lambda: bench.slots.room() == 0, within_s=2 * _STUCK_S)
    bench.open.set()
    await bench.ended(2)
    assert bench.slots.room() > 0


async def test_a_lease_lost_while_it_waited_is_not_run(make_bench):
    bench = make_bench(WORKER_POOL=1)
    bench.put("waits")
    lost, other = bench.lease("waits"), bench.lease("waits")
    bench.slots.put([lost, other])
    bench.slots.lose(lost)
    bench.open.set()
    await bench.ended(3)
    assert bench.kinds()[lost.id] == "lost"
    assert lost.id not in bench.started


async def test_a_lease_that_ended_while_it_waited_is_not_run(make_bench):
    """It may be another's by now. The heartbeat could not renew it."""
    bench = make_bench(WORKER_POOL=1)
    bench.put("waits")
    (ended,) = bench.put("waits", expires_s=0.05)
    await asyncio.sleep(0.1)  # its time passes
    bench.open.set()
    await bench.ended(2)
    assert bench.kinds()[ended] == "lost"
    assert ended not in bench.started


async def test_a_run_whose_lease_is_lost_is_cancelled(make_bench):
    bench = make_bench()
    lease = bench.lease("waits")
    bench.slots.put([lease])
    await eventually(lambda: bench.started)
    bench.slots.lose(lease)
    assert [r.kind for r in await bench.ended(1)] == ["lost"]


async def test_a_run_whose_lease_ends_is_cancelled(make_bench):
    bench = make_bench()
    bench.put("waits", expires_s=0.1)
    assert [r.kind for r in await bench.ended(1)] == ["lost"]


async def test_a_run_past_its_timeout_is_cancelled(make_bench):
    bench = make_bench()
    before = time.monotonic()
    bench.put("waits", timeout_ms=100)
    (result,) = await bench.ended(1)
    assert 0.1 <= time.monotonic() - before < 1
    assert (result.kind, result.error) == ("timed_out", "waits ran longer than its timeout of 0.100 s")
    assert 100_000 <= result.run_us < 1_000_000


@pytest.mark.parametrize(
    ("of_task", "of_type", "of_settings", "expected"),
    [(100, 60_000, 60_000, 0.1), (None, 100, 60_000, 0.1), (None, None, 100, 0.1)],
)
async def test_the_nearest_timeout_counts(make_bench, of_task, of_type, of_settings, expected):
    """The task's before its type's before the settings'."""
    bench = make_bench(TASK_TIMEOUT_MS=of_settings)

    @bench.registry.register("typed", timeout_ms=of_type)
    async def typed():
        await bench.open.wait()

    bench.put("typed", timeout_ms=of_task)
    (result,) = await bench.ended(1)
    assert (result.kind, f"{expected:.3f}" in result.error) == ("timed_out", True)


async def test_a_handler_that_swallows_its_cancellation_is_told_again(make_bench):
    bench = make_bench()
    told = 0

    @bench.registry.register("stubborn")
    async def stubborn():
        nonlocal told
        while told < 3:
            try:
                await bench.open.wait()
            except asyncio.CancelledError:
                told += 1

    bench.put("stubborn", timeout_ms=50)
    (result,) = await bench.ended(1)
    assert (result.kind, told) == ("timed_out", 3)
    bench.put("noop")
    assert [r.kind for r in await bench.ended(2)] == ["timed_out", "succeeded"], "its slot is as good as new"


async def test_a_type_that_nobody_here_knows_is_no_failure(make_bench):
    bench = make_bench()
    bench.put("unheard_of")
    (result,) = await bench.ended(1)
    assert (result.kind, result.run_us) == ("unknown_type", None)


async def test_stopping_interrupts_what_runs(make_bench):
    bench = make_bench()
    bench.put("waits", "waits")
    await eventually(lambda: bench.slots.busy == 2)
    bench.slots.interrupt()
    assert [r.kind for r in await bench.ended(2)] == ["interrupted"] * 2


async def test_what_has_not_started_is_taken_back_in_order(make_bench):
    bench = make_bench(WORKER_POOL=1)
    ids = bench.put(*["waits"] * 4)
    await eventually(lambda: bench.slots.busy == 1)
    assert [lease.id for lease in bench.slots.take_back()] == ids[1:]
    bench.open.set()
    await bench.ended(1)
    assert list(bench.kinds()) == ids[:1]


async def test_handlers_that_never_wait_leave_time_for_the_others(make_bench):
    bench = make_bench(WORKER_POOL=1)

    @bench.registry.register("spins")
    async def spins():
        time.sleep(0.002)  # noqa: ASYNC251 - the loop must be blocked

    bench.put(*["spins"] * 200)
    turns = 0
    while len(bench.results) < 200:
        turns += 1
        await asyncio.sleep(0)
    assert turns > 20


async def test_a_handler_may_do_without_the_heartbeat(make_bench):
    bench = make_bench()

    @bench.registry.register("alone", heartbeat=False)
    async def alone():
        await bench.open.wait()

    leases = [bench.lease("alone"), bench.lease("waits")]
    bench.slots.put(leases)
    await eventually(lambda: bench.slots.busy == 2)
    assert [lease.renews for lease in leases] == [False, True]


async def test_suspects_run_several_at_once_each_in_a_process_that_ends_when_nothing_is_left(
    make_bench, monkeypatch
):
    monkeypatch.setattr("scheduler.slots._LANE_IDLE_S", 0.1)
    bench = make_bench()
    suspects = [bench.lease("sleeper", payload={"sleep_ms": 2000}, suspect=True) for _ in range(5)]
    bench.slots.put(suspects)
    await eventually(lambda: bench.slots.busy == 4)
    await eventually(lambda: all(child and child.pid for child in (s._child for s in bench.slots._lanes)))
    children = [solo._child for solo in bench.slots._lanes]
    assert [result.kind for result in await bench.ended(5)] == ["succeeded"] * 5
    await eventually(lambda: all(child.returncode is not None for child in children))
    bench.slots.put([bench.lease(suspect=True)])
    assert [result.kind for result in await bench.ended(6)] == ["succeeded"] * 6
    assert bench.waits_counted() == 6


class Endless(Solo):
    """Runs a suspect until it is told to end."""

    def __init__(self) -> None:
        super().__init__(None)
        self._ended = asyncio.Event()

    async def run(self, lease: Lease, timeout_ms: int) -> Result:
        self.began = clock.monotonic()
        await self._ended.wait()
        return Result("interrupted")

    def end(self, cause: Cause) -> None:
        self._ended.set()


async def test_a_few_suspects_wait_for_slow_lanes_and_the_others_are_put_off(make_bench, monkeypatch):
    monkeypatch.setattr("scheduler.slots._LANES_STUCK_S", 0.1)
    bench = make_bench(Endless)
    bench.put("noop")
    await bench.ended(1)
    suspects = bench.put(*["noop"] * 30, suspect=True)
    await eventually(lambda: bench.given_back)
    assert bench.slots.busy == 4
    assert bench.given_back == suspects[4 + 12 :]
    assert set(bench.put_off_ms) == {5000}, "or they would be leased again before all others"
    assert bench.slots.room() > 0, "other tasks are leased as if no suspect waited"
    assert [lease.id for lease in bench.slots.take_back()] == suspects[4:16]


async def test_suspects_beyond_a_few_take_the_room_of_others(make_bench):
    bench = make_bench(Endless, LEASE_AHEAD_MS=0)
    bench.put(*["noop"] * 16, suspect=True)
    await eventually(lambda: bench.slots.busy == 4)
    assert bench.slots.room() == 2
    bench.put("noop", suspect=True)
    assert bench.slots.room() == 1
    bench.put("noop", suspect=True)
    assert bench.slots.room() == 0


async def test_a_suspect_whose_lease_ends_while_it_waits_is_not_run(make_bench):
    bench = make_bench(Endless)
    bench.put("noop", suspect=True, expires_s=0.0)
    assert [result.kind for result in await bench.ended(1)] == ["lost"]


async def test_a_run_may_still_end_once_the_loop_turns_again(make_bench, monkeypatch):
    """Its time ran out while another handler kept the loop, so nobody could tell it."""
    monkeypatch.setattr("scheduler.slots._BLOCKED_S", 0.1)
    bench = make_bench()
    bench.put("waits", timeout_ms=50)
    await eventually(lambda: bench.slots.busy)
    time.sleep(0.5)  # noqa: ASYNC251 - the loop must be blocked
    bench.slots._turn()
    assert bench.slots.unending(0.2) == []
    assert [r.kind for r in await bench.ended(1)] == ["timed_out"]


async def test_a_run_that_ended_while_the_loop_was_blocked_was_in_time(make_bench, monkeypatch):
    """Its thread is done, and its result and the end of its time are met in the same turn."""
    monkeypatch.setattr("scheduler.slots._BLOCKED_S", 0.1)
    bench = make_bench()

    @bench.registry.register("brief")
    def brief() -> None:
        time.sleep(0.05)

    bench.put("brief", timeout_ms=300)
    await eventually(lambda: bench.slots.busy)
    time.sleep(0.6)  # noqa: ASYNC251 - the loop must be blocked
    assert [r.kind for r in await bench.ended(1)] == ["succeeded"]


async def test_a_run_that_blocks_the_loop_again_and_again_is_ended(make_bench, monkeypatch):
    monkeypatch.setattr("scheduler.slots._BLOCKED_S", 0.1)
    bench = make_bench()

    @bench.registry.register("chews")
    async def chews() -> None:
        while True:
            time.sleep(0.2)  # noqa: ASYNC251 - the loop must be blocked
            await asyncio.sleep(0)

    bench.put("chews", timeout_ms=300)
    assert [r.kind for r in await bench.ended(1)] == ["timed_out"]


async def test_a_run_whose_task_was_given_back_is_no_reason_to_leave(make_bench):
    """A worker that stops gives back what does not end; its thread goes on for a while."""
    bench, may_end = make_bench(), threading.Event()

    @bench.registry.register("hangs")
    def hangs() -> None:
        may_end.wait(10)

    bench.put("hangs", timeout_ms=10)
    await eventually(lambda: bench.slots.unending(0.0))
    [running] = bench.slots._running.values()
    running.lease.ended = True
    assert bench.slots.unending(0.0) == []
    may_end.set()
