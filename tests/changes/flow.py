"""How tasks come in, are dealt out, run and settled."""

from __future__ import annotations

import asyncio
from time import monotonic

import pytest
from changes.world import World, change
from fix_store import lease_of
from waiting import eventually

from scheduler.enqueue import Enqueuer
from scheduler.errors import Overloaded, QueueUnavailable, StoreUnavailable
from scheduler.handlers import Registry
from scheduler.held import Held
from scheduler.metrics import Metrics
from scheduler.model import NewTask, Result, Settlement, new_id
from scheduler.settle import Settler, decide
from scheduler.supervisor import HOST, free_port

# --- in ---


@change("ENQUEUE_BATCH_SIZE")
async def so_many_requests_share_a_commit(world: World) -> None:
    for batch, commits in ((1, {12}), (500, {1, 2})):
        settings = world.settings(ENQUEUE_BATCH_SIZE=batch)
        store, index = await world.store(settings), await world.index(settings)
        enqueuer = Enqueuer(store, index, settings, Metrics())
        waiting = [asyncio.ensure_future(enqueuer.submit([NewTask(new_id(), "noop")])) for _ in range(12)]
        await asyncio.sleep(0)  # all are in line before the first flusher looks
        enqueuer.start()
        await asyncio.gather(*waiting)
        await enqueuer.stop()
        assert world.db.value("SELECT count(DISTINCT xmin::text) FROM tasks") in commits
        await world.forget()


@change("ENQUEUE_MAX_WAITING")
async def so_many_tasks_may_wait_for_their_commit(world: World) -> None:
    for most in (1, 2):
        settings = world.settings(ENQUEUE_MAX_WAITING=most)
        store, index = await world.store(settings), await world.index(settings)
        enqueuer = Enqueuer(store, index, settings, Metrics())
        waiting = [asyncio.ensure_future(enqueuer.submit([NewTask(new_id(), "noop")])) for _ in range(most)]
        await asyncio.sleep(0)
        with pytest.raises(Overloaded):
            await asyncio.wait_for(enqueuer.submit([NewTask(new_id(), "noop")]), 5)
        enqueuer.start()
        await asyncio.gather(*waiting)
        await enqueuer.stop()


@change("ENQUEUE_TIMEOUT_MS")
async def a_request_waits_so_long_for_its_commit(world: World) -> None:
    took = {}
    for ms in (100, 800):
        nobody = f"postgres://app:app@{HOST}:{free_port()}/app"
        settings = world.settings(ENQUEUE_TIMEOUT_MS=ms, POSTGRES_URL=nobody)
        store, index = await world.store(settings), await world.index(settings)
        enqueuer = Enqueuer(store, index, settings, Metrics())
        enqueuer.start()
        began = monotonic()
        with pytest.raises(StoreUnavailable):
            await enqueuer.submit([NewTask(new_id(), "noop")])
        took[ms] = monotonic() - began
        await enqueuer.stop()
    assert took[100] < 0.7 < took[800]


@change("MAX_RETRIES")
async def a_task_that_names_none_has_so_many_retries(world: World) -> None:
    for most in (0, 9):
        async with world.api(world.settings(MAX_RETRIES=most)) as api:
            assert (await api.post("/v1/tasks", json={"type": "noop"})).json()["max_retries"] == most


@change("MAX_PAYLOAD_BYTES")
async def a_payload_may_be_so_large(world: World) -> None:
    for most, status in ((1000, 413), (1010, 201)):
        async with world.api(world.settings(MAX_PAYLOAD_BYTES=most)) as api:
            answer = await api.post("/v1/tasks", json={"type": "noop", "payload": {"x": "a" * 1000}})
            assert answer.status_code == status


@change("MAX_BODY_BYTES")
async def a_body_may_be_so_large(world: World) -> None:
    body = {"tasks": [{"type": "noop", "payload": {"x": "a" * 100}}] * 20}
    for most, status in ((2000, 413), (20_000, 200)):
        async with world.api(world.settings(MAX_BODY_BYTES=most, MAX_PAYLOAD_BYTES=200)) as api:
            assert (await api.post("/v1/tasks/bulk", json=body)).status_code == status


# --- the stores ---


@change("STORE_TIMEOUT_MS")
async def an_answer_is_waited_for_so_long(world: World) -> None:
    settings = world.settings()
    postgres, redis = world.proxy(settings.postgres_url), world.proxy(settings.redis_addr)
    took = []
    for ms in (150, 800):
        through = world.settings(STORE_TIMEOUT_MS=ms, POSTGRES_URL=postgres.url, REDIS_ADDR=redis.url)
        store, index = await world.store(through), await world.index(through)
        await asyncio.gather(store.ping(), index.ping())
        for wire in (postgres, redis):
            wire.swallow("down")
        for ping, error in ((store.ping, StoreUnavailable), (index.ping, QueueUnavailable)):
            began = monotonic()
            with pytest.raises(error):
                await ping()
            took.append(monotonic() - began)
        for wire in (postgres, redis):
            wire.heal()
    assert max(took[:2]) < 0.7 < min(took[2:])


@change("PG_PREPARE_THRESHOLD")
async def statements_are_prepared_after_so_many_executions(world: World) -> None:
    sql = "SELECT count(*) FROM pg_prepared_statements WHERE statement LIKE '%%FROM ' || 'tasks%%'"
    for threshold, prepared in ((0, [1, 1, 1]), (2, [0, 0, 1]), ("off", [0, 0, 0])):
        store = await world.store(world.settings(PG_PREPARE_THRESHOLD=threshold), max_conns=1)
        seen = []
        for _ in range(3):
            await store.task(new_id())
            seen.append((await store._connections.run(sql, {}))[0][0])
        assert seen == prepared


# --- dealt out ---


@change("VIS_TIMEOUT_MS")
async def a_lease_lasts_so_long(world: World) -> None:
    for ms in (1000, 5000):
        [lease] = await world.leased(world.settings(VIS_TIMEOUT_MS=ms))
        row = world.db.task(lease.id)
        assert (row["lease_expires_at"] - row["claimed_at"]).total_seconds() == ms / 1000


@change("WORKER_QUEUES")
async def the_queues_that_are_named_are_served(world: World) -> None:
    for queue in ("default", "mail"):
        await world.enqueued(world.settings(), queue=queue)
    for names, queues in (("mail", ["mail"]), ("mail,default", ["default"])):
        lessor = await world.lessor(world.settings(WORKER_QUEUES=names))
        assert [lease.queue for lease in await lessor.take(1) + await lessor.take(1)] == queues


async def order(world: World, n: int, **variables: object) -> list[str]:
    """The priorities of the first `n` of four critical and four low tasks."""
    settings = world.settings(**variables)
    for priority in ("critical", "low"):
        await world.enqueued(settings, 4, priority=priority)
    taken = [lease.priority for lease in await (await world.lessor(settings)).take(n)]
    await world.forget()
    return taken


@change("PRIORITY_MODE")
async def the_mode_decides_whether_the_low_wait_for_the_high(world: World) -> None:
    even = {"PRIORITY_WEIGHTS": "critical=1,high=1,default=1,low=1"}
    assert await order(world, 4, PRIORITY_MODE="strict", **even) == ["critical"] * 4
    assert await order(world, 4, PRIORITY_MODE="weighted", **even) == ["critical", "low"] * 2


@change("PRIORITY_WEIGHTS")
async def the_weights_are_the_shares(world: World) -> None:
    for weights, low in (("critical=3,high=1,default=1,low=1", 1), ("critical=1,high=1,default=1,low=3", 3)):
        assert (await order(world, 4, PRIORITY_WEIGHTS=weights)).count("low") == low


@change("PRIORITY_MAX_WAIT_MS")
async def a_list_waits_no_longer_than_the_bound(world: World) -> None:
    for ms, next_two in ((0, ["critical", "critical"]), (1, ["critical", "low"])):
        settings = world.settings(PRIORITY_MODE="strict", PRIORITY_MAX_WAIT_MS=ms)
        for priority in ("critical", "low"):
            await world.enqueued(settings, 3, priority=priority)
        lessor = await world.lessor(settings)
        assert [lease.priority for lease in await lessor.take(1)] == ["critical"]
        await world.passed(2)
        assert [lease.priority for lease in await lessor.take(2)] == next_two
        await world.forget()


class Gate:
    """A handler `wait` that runs until it is let go, and what was seen of it."""

    def __init__(self) -> None:
        self.registry = Registry()
        self.running = self.most = 0
        self.open = asyncio.Event()
        self.registry.register("wait")(self._wait)

    async def _wait(self) -> None:
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            await self.open.wait()
        finally:
            self.running -= 1


@change("WORKER_POOL")
async def so_many_handlers_run_at_once(world: World) -> None:
    for slots in (1, 4):
        settings = world.settings(WORKER_POOL=slots)
        ids = await world.enqueued(settings, 8, "wait")
        gate = Gate()
        async with world.working(settings, gate.registry) as worker:
            await eventually(lambda gate=gate, slots=slots: gate.running >= slots)
            await worker._store.ping()  # time enough for one more to start
            gate.open.set()
            await world.ended(ids)
        assert gate.most == slots


@change("LEASE_BATCH_SIZE")
async def so_many_are_leased_at_once(world: World) -> None:
    for batch, calls in ((1, 8), (100, 1)):
        settings = world.settings(LEASE_BATCH_SIZE=batch)
        ids = await world.enqueued(settings, 8)
        async with world.working(settings):
            await world.ended(ids)
        assert world.db.value("SELECT count(DISTINCT lease_token) FROM task_runs") == calls
        await world.forget()


@change("LEASE_AHEAD_MS")
async def so_much_is_leased_beyond_the_slots(world: World) -> None:
    held = {}
    for ms in (0, 250):
        settings = world.settings(WORKER_POOL=1, LEASE_AHEAD_MS=ms)
        await world.enqueued(settings, 20, "wait")
        gate = Gate()
        async with world.working(settings, gate.registry):
            await eventually(lambda gate=gate: gate.running)
            held[ms] = world.db.value("SELECT count(*) FROM tasks WHERE status = 'running'")
            gate.open.set()
        await world.forget()
    assert held == {0: 1, 250: 6}  # a slot, and five runs that are taken to last 50 ms each


# --- run and settled ---


@change("TASK_TIMEOUT_MS")
async def a_run_may_last_so_long(world: World) -> None:
    for ms, outcome in ((50, "timed_out"), (10_000, "succeeded")):
        settings = world.settings(TASK_TIMEOUT_MS=ms)
        [id_] = await world.enqueued(settings, 1, "sleeper", payload='{"sleep_ms": 200}', max_retries=0)
        async with world.working(settings):
            await eventually(lambda id_=id_: world.db.outcomes(id_))
        assert world.db.outcomes(id_) == [outcome]


@change("SHUTDOWN_GRACE_MS")
async def a_stop_waits_so_long_for_handlers(world: World) -> None:
    for ms, outcome in ((0, "released"), (10_000, "succeeded")):
        settings = world.settings(SHUTDOWN_GRACE_MS=ms)
        [id_] = await world.enqueued(settings, 1, "wait")
        gate = Gate()
        async with world.working(settings, gate.registry) as worker:
            await eventually(lambda gate=gate: gate.running)
            worker.stop()
            began = monotonic()
            if ms:
                gate.open.set()
        assert monotonic() - began < 5
        assert world.db.outcomes(id_) == [outcome]
        await world.forget()


@change("SETTLE_BATCH_SIZE")
async def so_many_outcomes_share_a_statement(world: World) -> None:
    for batch, commits in ((1, 12), (500, 1)):
        settings = world.settings(SETTLE_BATCH_SIZE=batch)
        leases = await world.leased(settings, 12)
        store, index = await world.store(settings), await world.index(settings)
        settler = Settler(store, index, settings, Metrics(), worker="host:1:test", held=Held())
        for lease in leases:
            settler.add(decide(lease, Result("succeeded"), None, settings))
        settler.start()
        await settler.stop()
        assert world.db.value("SELECT count(DISTINCT xmin::text) FROM task_runs") == commits
        await world.forget()


def failed(world: World, failures: int = 0, kind: str = "failed", **variables: object) -> Settlement:
    """What becomes of a run that ended so, after so many failures before."""
    lease = lease_of(new_id(), failures=failures, refusals=failures, max_retries=100)
    return decide(lease, Result(kind), None, world.settings(**variables))


@change("RETRY_BASE_MS", "RETRY_MAX_MS", "RETRY_STRATEGY")
async def the_wait_before_a_retry_grows_as_is_asked_for(world: World) -> None:
    def wait(failures: int, **variables: object) -> int:
        return failed(world, failures, RETRY_JITTER="none", **variables).delay_ms

    assert [wait(0, RETRY_BASE_MS=ms) for ms in (100, 200)] == [100, 200]
    assert [wait(5, RETRY_MAX_MS=ms) for ms in (600, 4000)] == [600, 4000]
    strategies = ("exponential", "linear", "constant")
    assert [wait(2, RETRY_STRATEGY=name) for name in strategies] == [2000, 1500, 500]


@change("RETRY_JITTER", "RETRY_JITTER_MS")
async def the_wait_before_a_retry_is_spread_as_is_asked_for(world: World) -> None:
    def waits(**variables: object) -> list[int]:
        return [failed(world, RETRY_BASE_MS=1000, **variables).delay_ms for _ in range(50)]

    assert set(waits(RETRY_JITTER="none")) == set(waits(RETRY_JITTER_MS=0)) == {1000}
    added, wide = waits(RETRY_JITTER_MS=10), waits(RETRY_JITTER_MS=1000)
    assert 1000 <= min(added) < max(added) <= 1010 < max(wide) <= 2000
    equal, full = waits(RETRY_JITTER="equal"), waits(RETRY_JITTER="full")
    assert 500 <= min(equal) < max(equal) <= 1000
    assert min(full) < 500 < max(full) <= 1000


@change("UNKNOWN_TYPE_DELAY_MS", "MAX_REFUSALS")
async def a_type_that_nobody_knows_waits_and_dies_as_is_asked_for(world: World) -> None:
    def refused(times: int, **variables: object) -> tuple[str, int]:
        settled = failed(world, times, "unknown_type", **variables)
        return settled.status, settled.delay_ms

    assert [refused(0, UNKNOWN_TYPE_DELAY_MS=ms) for ms in (50, 9000)] == [("queued", 50), ("queued", 9000)]
    assert [refused(1, MAX_REFUSALS=n)[0] for n in (0, 1, 2)] == ["dead", "dead", "queued"]
