"""Enqueue: requests share commits, one bad one does not spoil the others, and a push may fail."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from time import monotonic

import pytest
from fix_flow import Flow, MakeFlow
from fix_proxy import Proxy
from fix_store import Database, new_task
from waiting import eventually

from scheduler.enqueue import Enqueuer
from scheduler.errors import InputRefused, Overloaded, StoreUnavailable
from scheduler.supervisor import free_port


@asynccontextmanager
async def enqueuing(flow: Flow) -> AsyncIterator[Enqueuer]:
    enqueuer = Enqueuer(flow.store, flow.index, flow.settings, flow.metrics)
    enqueuer.start()
    try:
        yield enqueuer
    finally:
        async with asyncio.timeout(10):
            await enqueuer.stop()


async def test_a_task_is_committed_pushed_and_answered(flow: Flow):
    async with enqueuing(flow) as enqueuer:
        sent = new_task(priority="low")
        (accepted,) = await enqueuer.submit([sent])
    assert (accepted.result, accepted.task.id) == ("created", sent.id)
    assert await flow.place(sent.id) == "q:low"
    assert flow.counted("tasks_enqueued_total") == 1
    await flow.agree()


async def test_a_delayed_task_waits(flow: Flow):
    async with enqueuing(flow) as enqueuer:
        (accepted,) = await enqueuer.submit([new_task(delay_ms=60_000)])
    assert await flow.place(accepted.task.id) == "retry:default"
    await flow.agree()


async def test_requests_at_once_share_a_few_commits(flow: Flow):
    async with enqueuing(flow) as enqueuer:
        answers = await asyncio.gather(*(enqueuer.submit([new_task()]) for _ in range(100)))
    assert len({a.task.id for (a,) in answers}) == 100
    assert flow.db.value("SELECT count(DISTINCT xmin::text) FROM tasks") <= 4
    await flow.agree()


class Gate:
    """A store whose commits wait until they are let through; `sizes` has the tasks of each."""

    def __init__(self, flow: Flow, monkeypatch: pytest.MonkeyPatch) -> None:
        self.sizes: list[int] = []
        self.open = asyncio.Event()
        self._enqueue = flow.store.enqueue
        monkeypatch.setattr(flow.store, "enqueue", self)

    async def __call__(self, tasks):
        self.sizes.append(len(tasks))
        await self.open.wait()
        return await self._enqueue(tasks)


async def sent_behind(enqueuer: Enqueuer, gate: Gate, first: int, n: int) -> list[asyncio.Task]:
    """Send `first` tasks at once and, when these are on their way, `n` requests of one task."""
    waiting = [asyncio.create_task(enqueuer.submit([new_task() for _ in range(first)]))]
    await eventually(lambda: gate.sizes == [first])
    return waiting + [asyncio.create_task(enqueuer.submit([new_task()])) for _ in range(n)]


async def test_what_comes_while_a_small_group_is_in_flight_goes_together(
    flow: Flow, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("scheduler.enqueue._YOUNG_S", 60.0)
    gate = Gate(flow, monkeypatch)
    async with enqueuing(flow) as enqueuer:
        waiting = await sent_behind(enqueuer, gate, 1, 0)
        for _ in range(5):  # one after the other, and a flusher is free
            waiting.append(asyncio.create_task(enqueuer.submit([new_task()])))
            await asyncio.sleep(0.01)
        gate.open.set()
        await asyncio.gather(*waiting)
    assert gate.sizes == [1, 5]


@pytest.mark.parametrize(("first", "young_s"), [(1, 0.02), (100, 60.0)], ids=["stuck", "large"])
async def test_a_commit_that_is_stuck_or_large_holds_no_small_one_up(
    flow: Flow, monkeypatch: pytest.MonkeyPatch, first: int, young_s: float
):
    monkeypatch.setattr("scheduler.enqueue._YOUNG_S", young_s)
    gate = Gate(flow, monkeypatch)
    async with enqueuing(flow) as enqueuer:
        waiting = await sent_behind(enqueuer, gate, first, 3)
        await eventually(lambda: gate.sizes == [first, 3])
        gate.open.set()
        await asyncio.gather(*waiting)


async def test_a_group_is_no_larger_than_what_is_sent_in_good_time(
    flow: Flow, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("scheduler.enqueue._LARGEST_GROUP", 1000)
    gate = Gate(flow, monkeypatch)

    def sent(*sizes: int) -> list[asyncio.Task]:
        payloads = ['{"x": "' + size * "x" + '"}' for size in sizes]
        return [asyncio.create_task(enqueuer.submit([new_task(payload=text)])) for text in payloads]

    async with enqueuing(flow) as enqueuer:
        waiting = await sent_behind(enqueuer, gate, 100, 0)
        waiting += sent(400, 400, 400, 5000, 100)
        gate.open.set()
        await asyncio.gather(*waiting)
    assert gate.sizes == [100, 2, 1, 1, 1]


async def test_a_request_of_many_tasks_is_one_commit_and_answered_in_its_order(make_flow: MakeFlow):
    flow = await make_flow(ENQUEUE_BATCH_SIZE=3)
    async with enqueuing(flow) as enqueuer:
        sent = [new_task(queue=queue) for queue in ("default", "mail") * 4]
        answers, _ = await asyncio.gather(enqueuer.submit(sent), enqueuer.submit([new_task()]))
    assert [a.task.id for a in answers] == [t.id for t in sent]
    ids = [t.id for t in sent]
    assert flow.db.value("SELECT count(DISTINCT xmin::text) FROM tasks WHERE id = ANY(%s::uuid[])", ids) == 1
    await flow.agree()


async def test_a_replay_is_answered_and_neither_counted_nor_pushed(flow: Flow):
    async with enqueuing(flow) as enqueuer:
        first, again, other = (
            new_task(idempotency_key="a", fingerprint=fingerprint) for fingerprint in ("f", "f", "g")
        )
        answers = [(await enqueuer.submit([t]))[0] for t in (first, again, other)]
    assert [a.result for a in answers] == ["created", "existing", "conflict"]
    assert {a.task.id for a in answers} == {first.id}
    assert flow.counted("tasks_enqueued_total") == 1
    assert list((await flow.contents()).live) == [first.id]


async def test_one_key_in_many_requests_at_once_makes_one_task(flow: Flow):
    """The test that tells a constraint from a look before the insert."""
    async with enqueuing(flow) as enqueuer:
        tasks = [new_task(idempotency_key="a", fingerprint="f") for _ in range(50)]
        answers = await asyncio.gather(*(enqueuer.submit([t]) for t in tasks))
    assert len({a.task.id for (a,) in answers}) == 1
    assert sorted(a.result for (a,) in answers) == ["created"] + ["existing"] * 49
    assert flow.db.count("tasks") == 1
    await flow.agree()


@pytest.mark.parametrize("bad", [0, 4, 8])
async def test_a_request_that_is_refused_does_not_spoil_its_neighbours(flow: Flow, bad: int):
    async with enqueuing(flow) as enqueuer:
        payloads = [r'{"a": "\u0000"}' if n == bad else "{}" for n in range(9)]
        submits = [enqueuer.submit([new_task(), new_task(payload=p)]) for p in payloads]
        answers = await asyncio.gather(*submits, return_exceptions=True)
    assert [isinstance(a, InputRefused) for a in answers] == [n == bad for n in range(9)]
    assert flow.db.count("tasks") == 16, "of the bad request nothing is written"
    assert flow.counted("tasks_enqueued_total") == 16
    await flow.agree()


async def test_tasks_are_accepted_while_redis_is_away_and_pushed_by_reconcile(make_flow: MakeFlow):
    flow = await make_flow()
    await flow.enqueue()
    await flow.reconciler().reconcile()
    away = await make_flow(REDIS_ADDR=f"127.0.0.1:{free_port()}")
    async with enqueuing(away) as enqueuer:
        ids = [(await enqueuer.submit([new_task()]))[0].task.id for _ in range(5)]
    assert [await flow.place(id_) for id_ in ids] == [None] * 5
    for id_ in ids:
        flow.db.age(id_, 2000)
    assert await flow.reconciler().reconcile() == {"pushed": 5}
    await flow.agree()


async def test_no_request_waits_for_a_silent_redis_more_than_once_in_a_while(
    make_flow: MakeFlow, redis_url: str, proxy: Callable[[str], Proxy]
):
    """While it is away it is tried at growing intervals, not by every request."""
    link = proxy(redis_url)
    flow = await make_flow(REDIS_ADDR=link.url, STORE_TIMEOUT_MS=300)
    async with enqueuing(flow) as enqueuer:
        await enqueuer.submit([new_task()])
        link.swallow("down")
        waits = []
        for _ in range(40):
            before = monotonic()
            await enqueuer.submit([new_task()])
            waits.append(monotonic() - before)
        assert sum(wait > 0.25 for wait in waits) < 10, waits
        link.heal()
        last = await eventually(lambda: pushed(flow, enqueuer))
    assert await flow.place(last) == "q:default"


async def pushed(flow: Flow, enqueuer: Enqueuer) -> str | None:
    """Submit a task; its id if it was pushed at once."""
    (accepted,) = await enqueuer.submit([new_task()])
    return accepted.task.id if await flow.place(accepted.task.id) else None


async def test_a_commit_whose_answer_is_lost_is_asked_again_and_made_once(
    make_flow: MakeFlow, flow_db: Database, proxy: Callable[[str], Proxy]
):
    link = proxy(flow_db.url)
    flow = await make_flow(POSTGRES_URL=link.url, STORE_TIMEOUT_MS=300)
    async with enqueuing(flow) as enqueuer:
        await enqueuer.submit([new_task()])
        link.swallow("down")
        waiting = asyncio.create_task(enqueuer.submit([new_task(delay_ms=60_000), new_task()]))
        await eventually(lambda: flow.db.count("tasks") == 3)
        link.reset()
        link.heal()
        answers = await waiting
    assert [a.result for a in answers] == ["created", "created"]
    assert [await flow.place(a.task.id) for a in answers] == ["retry:default", "q:default"]
    assert (flow.db.count("tasks"), flow.counted("tasks_enqueued_total")) == (3, 3)


async def test_a_key_that_is_forgotten_while_it_is_looked_up_is_used_anew(
    flow: Flow, monkeypatch: pytest.MonkeyPatch
):
    """Taken when the task was to be inserted, and gone when its task was looked for."""
    key = {"idempotency_key": "a", "fingerprint": "f"}
    known = flow.store._known

    async def forgotten(tasks):
        flow.db.rows("DELETE FROM idempotency_keys")
        return await known(tasks)

    async with enqueuing(flow) as enqueuer:
        (first,) = await enqueuer.submit([new_task(**key)])
        monkeypatch.setattr(flow.store, "_known", forgotten)
        other, again = new_task(), new_task(**key)
        answers = await asyncio.gather(*(enqueuer.submit([task]) for task in (other, again)))
    assert [(a.result, a.task.id) for (a,) in answers] == [("created", other.id), ("created", again.id)]
    assert flow.db.count("tasks") == 3
    assert again.id != first.task.id
    await flow.agree()


async def test_a_request_outlasts_a_time_without_a_free_connection(make_flow: MakeFlow):
    flow = await make_flow(STORE_TIMEOUT_MS=100)
    places = flow.store._connections._places
    for _ in range(6):
        await places.acquire()
    async with enqueuing(flow) as enqueuer:
        waiting = asyncio.create_task(enqueuer.submit([new_task()]))
        await asyncio.sleep(0.3)  # the store is unavailable for the first try and the second
        for _ in range(6):
            places.release()
        (accepted,) = await waiting
    assert await flow.place(accepted.task.id) == "q:default"


async def test_whoever_has_waited_long_does_not_fail_those_who_have_not(
    make_flow: MakeFlow, monkeypatch: pytest.MonkeyPatch
):
    flow = await make_flow(ENQUEUE_TIMEOUT_MS=2000)
    enqueue = flow.store.enqueue
    tries = []

    async def away(tasks):
        tries.append(len(tasks))
        if len(tries) == 1 or len(tasks) > 1:
            raise StoreUnavailable("away")
        return await enqueue(tasks)

    monkeypatch.setattr(flow.store, "enqueue", away)
    enqueuer = Enqueuer(flow.store, flow.index, flow.settings, flow.metrics)
    waiting = [asyncio.create_task(enqueuer.submit([new_task()]))]
    await asyncio.sleep(1)
    waiting.append(asyncio.create_task(enqueuer.submit([new_task()])))
    await asyncio.sleep(0)  # let it take its place in the line
    enqueuer.start()
    old, young = await asyncio.gather(*waiting, return_exceptions=True)
    await enqueuer.stop()
    assert isinstance(old, StoreUnavailable)
    assert [a.result for a in young] == ["created"]
    assert tries[0] == 2, "they went together"
    await flow.agree()


async def test_without_postgres_a_request_is_told_in_time(make_flow: MakeFlow):
    flow = await make_flow(
        POSTGRES_URL=f"postgres://a:b@127.0.0.1:{free_port()}/x", ENQUEUE_TIMEOUT_MS=300, STORE_TIMEOUT_MS=200
    )
    async with enqueuing(flow) as enqueuer:
        before = monotonic()
        answers = await asyncio.gather(
            *(enqueuer.submit([new_task()]) for _ in range(5)), return_exceptions=True
        )
        assert {type(a) for a in answers} == {StoreUnavailable}
        assert monotonic() - before < 3


async def test_more_than_may_wait_is_refused_at_once_and_nothing_of_it_written(make_flow: MakeFlow):
    flow = await make_flow(ENQUEUE_MAX_WAITING=3)
    enqueuer = Enqueuer(flow.store, flow.index, flow.settings, flow.metrics)
    waiting = asyncio.create_task(enqueuer.submit([new_task(), new_task()]))
    await asyncio.sleep(0)  # let it take its place in the line
    with pytest.raises(Overloaded):
        await enqueuer.submit([new_task(), new_task()])
    enqueuer.start()
    assert len(await waiting) == 2
    assert len(await enqueuer.submit([new_task() for _ in range(5)])) == 5, "alone, even more may come"
    await enqueuer.stop()
    assert flow.db.count("tasks") == 7


async def test_whoever_gave_up_before_the_commit_gets_no_task(flow: Flow):
    enqueuer = Enqueuer(flow.store, flow.index, flow.settings, flow.metrics)
    gone, stays = (asyncio.create_task(enqueuer.submit([new_task()])) for _ in range(2))
    await asyncio.sleep(0)  # let them take their places in the line
    gone.cancel()
    enqueuer.start()
    (accepted,) = await stays
    await enqueuer.stop()
    assert [row["id"] for row in flow.db.rows("SELECT id::text FROM tasks")] == [accepted.task.id]


async def test_stopping_commits_what_waits_and_takes_no_more(flow: Flow):
    enqueuer = Enqueuer(flow.store, flow.index, flow.settings, flow.metrics)
    waiting = [asyncio.create_task(enqueuer.submit([new_task()])) for _ in range(5)]
    await asyncio.sleep(0)  # let them take their places in the line
    enqueuer.start()
    await enqueuer.stop()
    assert [len(await w) for w in waiting] == [1] * 5
    with pytest.raises(Overloaded):
        async with asyncio.timeout(1):
            await enqueuer.submit([new_task()])
