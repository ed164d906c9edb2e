"""Lease: ids become claims once, refused ids go where their rows say, and an unclear claim is asked again."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest
from fix_flow import Flow, MakeFlow
from fix_proxy import Proxy
from fix_store import Database
from waiting import eventually

from scheduler import clock
from scheduler.errors import QueueUnavailable, StoreBusy, StoreUnavailable
from scheduler.model import Priority, new_id
from scheduler.store import Store
from scheduler.supervisor import free_port


async def test_a_ready_task_becomes_a_lease(flow: Flow):
    id_ = await flow.enqueue(payload={"a": 1})
    (lease,) = await flow.lessor("host:1:w1").take(10)
    assert (lease.id, lease.attempt, lease.payload, lease.token) == (id_, 1, {"a": 1}, "w1:1")
    assert flow.held.all() == [lease]
    assert await flow.place(id_) == "leases"
    assert (await flow.contents()).live == {id_: "w1:1"}
    assert flow.counted("tasks_dequeued_total", priority="default") == 1
    await flow.agree()


async def test_nothing_ready_is_nothing_leased(flow: Flow):
    assert await flow.lessor().take(10) == []


async def test_no_two_calls_share_a_token(flow: Flow):
    """Not even of two workers, nor of one that starts again: the base is new for every process."""
    for _ in range(3):
        await flow.enqueue()
    lessor = flow.lessor("host:1:w1")
    tokens = [(await lessor.take(1))[0].token, (await lessor.take(1))[0].token]
    tokens += [(await flow.lessor("host:1:w2").take(1))[0].token]
    assert tokens == ["w1:1", "w1:2", "w2:1"]


async def test_a_lease_ends_for_its_worker_before_it_ends_for_postgres(flow: Flow):
    """The worker counts from before it asked, so it never works on what may be another's."""
    await flow.enqueue()
    before = asyncio.get_running_loop().time()
    (lease,) = await flow.lease()
    assert before <= lease.claimed == lease.renewed <= asyncio.get_running_loop().time()
    assert lease.expires - lease.claimed == pytest.approx(flow.settings.vis_timeout_ms / 1000)


async def test_the_priorities_share_by_weight(flow: Flow):
    for priority in ("critical", "high", "default", "low"):
        for _ in range(15):
            await flow.enqueue(priority=priority)
    leases = await flow.lease(15)
    shares = [sum(lease.priority == p for lease in leases) for p in ("critical", "high", "default", "low")]
    assert shares == [8, 4, 2, 1]
    assert [lease.priority for lease in leases][:4] == ["critical", "high", "critical", "default"]


async def test_within_a_priority_the_first_comes_first(flow: Flow):
    ids = [await flow.enqueue() for _ in range(5)]
    assert [lease.id for lease in await flow.lease()] == ids


async def test_each_queue_comes_first_in_its_turn(make_flow: MakeFlow):
    flow = await make_flow(WORKER_QUEUES="mail,default")
    for queue in ("mail", "default") * 2:
        await flow.enqueue(queue=queue)
    lessor = flow.lessor()
    assert [(await lessor.take(1))[0].queue for _ in range(4)] == ["mail", "default"] * 2
    await flow.enqueue(queue="default")
    await flow.enqueue(queue="default")
    assert [(await lessor.take(1))[0].queue for _ in range(2)] == ["default"] * 2, (
        "an empty queue is passed over"
    )


async def test_a_queue_that_a_worker_does_not_serve_is_left_alone(flow: Flow):
    id_ = await flow.enqueue(queue="other")
    assert await flow.lease() == []
    assert flow.status(id_) == "queued"


async def stale(flow: Flow, status: str, **columns: object) -> str:
    """An id that waits in a list though its row says otherwise."""
    priority: Priority = "low"
    id_ = flow.db.put(status, priority=priority, **columns)
    await flow.shard.push([(id_, priority, 0)])
    return id_


@pytest.mark.parametrize(
    ("status", "columns", "place", "reason"),
    [
        ("succeeded", {}, None, "terminal"),
        ("cancelled", {}, None, "terminal"),
        ("dead", {"dead_at": None}, None, "terminal"),
        ("dead", {}, "dlq:low", "dead"),
        ("queued", {"due_ms": 60_000}, "retry:low", "not_due"),
        ("retrying", {"due_ms": 60_000}, "retry:low", "not_due"),
        ("running", {}, "leases", "running"),
    ],
)
async def test_a_stale_message_goes_where_its_row_says(
    flow: Flow, status: str, columns: dict, place: str | None, reason: str
):
    id_ = await stale(flow, status, **columns)
    good = await flow.enqueue(priority="low")
    assert [lease.id for lease in await flow.lease()] == [good]
    assert await flow.place(id_) == place
    assert flow.counted("messages_refused_total", reason=reason) == 1
    assert flow.db.task(id_)["attempts"] <= 1
    await flow.agree()


async def test_a_running_task_stays_with_whoever_holds_it(flow: Flow):
    """To drop its entry would hide it from the reaper; the trace of guard 11."""
    id_ = await stale(flow, "running", lease_token="holder", lease_ms=60_000)
    await flow.lease()
    held = await flow.contents()
    assert held.live == {id_: "holder"}
    now_ms = (await flow.client.time())[0] * 1000
    assert 50_000 < held.leases[id_] - now_ms <= 61_000


async def test_a_task_that_is_not_due_waits_for_what_postgres_says_remains(flow: Flow):
    await stale(flow, "retrying", due_ms=60_000)
    await flow.lease()
    ((due_ms,),) = [(await flow.contents()).retry["low"].values()]
    now_ms = (await flow.client.time())[0] * 1000
    assert 50_000 < due_ms - now_ms <= 61_000


async def test_an_id_that_no_row_has_is_forgotten(flow: Flow):
    await flow.shard.push([(new_id(), "low", 0), ("'; DROP TABLE tasks", "low", 0), ("", "low", 0)])
    good = await flow.enqueue(priority="low")
    assert [lease.id for lease in await flow.lease()] == [good]
    assert list((await flow.contents()).live) == [good]
    assert flow.counted("messages_refused_total", reason="unknown") == 3


async def test_foreign_bytes_in_a_list_are_forgotten(flow: Flow):
    """Somebody else's message: no id, no text, perhaps a pickle. Nothing of it is run."""
    pickled = b"\x80\x04\x95\xff\xfe\x00cos\nsystem\n"
    await flow.client.rpush(flow.shard.key("q", "low"), pickled)
    await flow.client.hset(flow.shard.key("live"), pickled, "")
    good = await flow.enqueue(priority="low")
    assert [lease.id for lease in await flow.lease()] == [good]
    assert list((await flow.contents()).live) == [good]


async def test_a_due_time_far_away_is_kept(flow: Flow):
    id_ = await flow.enqueue(run_at=datetime(9999, 12, 29, tzinfo=UTC))
    assert await flow.lease() == []
    assert await flow.place(id_) == "retry:default"
    past = await flow.enqueue(run_at=datetime(1970, 1, 1, tzinfo=UTC))
    assert [lease.id for lease in await flow.lease()] == [past]


async def test_redis_away_is_said(make_flow: MakeFlow):
    flow = await make_flow(REDIS_ADDR=f"127.0.0.1:{free_port()}")
    with pytest.raises(QueueUnavailable):
        await flow.lessor().take(1)
    assert flow.held.all() == []


async def test_a_claim_whose_answer_is_lost_is_asked_again_and_starts_nothing_twice(
    make_flow: MakeFlow, flow_db: Database, proxy: Callable[[str], Proxy]
):
    link = proxy(flow_db.url)
    flow = await make_flow(POSTGRES_URL=link.url, STORE_TIMEOUT_MS=300)
    ids = [await flow.enqueue() for _ in range(3)]
    link.swallow("down")
    taking = asyncio.create_task(flow.lease())
    await eventually(lambda: flow.db.value("SELECT count(*) FROM tasks WHERE status = 'running'") == 3)
    granted = clock.monotonic()
    link.reset()
    link.heal()
    leases = await taking
    assert [(lease.id, lease.attempt) for lease in leases] == [(id_, 1) for id_ in ids]
    assert all(lease.renewed < granted < lease.claimed for lease in leases), "to be renewed in time"
    await flow.agree()


async def test_a_claim_that_arrives_late_is_counted_from_when_it_was_sent_last(
    make_flow: MakeFlow, flow_db: Database, proxy: Callable[[str], Proxy]
):
    """The start and the end of its run are told from there: they would come out later than they were."""
    link = proxy(flow_db.url)
    flow = await make_flow(POSTGRES_URL=link.url, STORE_TIMEOUT_MS=300)
    await flow.enqueue()
    link.stop()
    began = clock.monotonic()
    taking = asyncio.create_task(flow.lease())
    await eventually(lambda: clock.monotonic() - began > 0.5)
    link.start()
    (lease,) = await taking
    assert lease.claimed > began + 0.2
    assert lease.expires == lease.claimed + flow.settings.vis_timeout_ms / 1000


async def test_a_claim_that_cannot_be_asked_is_let_go_at_the_leases_end(
    make_flow: MakeFlow, flow_db: Database, proxy: Callable[[str], Proxy]
):
    """It is not put back: a late claim would then hold the row with nobody who runs it."""
    link = proxy(flow_db.url)
    flow = await make_flow(POSTGRES_URL=link.url, VIS_TIMEOUT_MS=400, STORE_TIMEOUT_MS=100)
    id_ = await flow.enqueue()
    link.stop()
    assert await flow.lease() == []
    assert flow.held.all() == []
    assert await flow.place(id_) == "leases"
    link.start()
    while await flow.place(id_) == "leases":
        await flow.reaper().step()
    assert await flow.place(id_) == "q:default"
    assert (flow.db.task(id_)["losses"], flow.db.task(id_)["attempts"]) == (0, 0)


async def test_ids_that_cannot_be_put_right_now_stay_until_the_reaper_looks(
    make_flow: MakeFlow, redis_url: str, proxy: Callable[[str], Proxy]
):
    """Redis goes between the lease and the answer about a refused id; the good one is claimed."""
    flow = await make_flow()
    bad = await stale(flow, "cancelled")
    good = await flow.enqueue()
    link = proxy(redis_url)
    behind = await make_flow(REDIS_ADDR=link.url, STORE_TIMEOUT_MS=300)
    with flow.db.transaction() as other:
        other.rows("SELECT FROM tasks WHERE id = %s FOR UPDATE", good)
        taking = asyncio.create_task(behind.lessor().take(10))
        await flow.db.blocked()
        link.stop()
    (lease,) = await taking
    assert lease.id == good
    assert await flow.place(bad) == "leases"
    await flow.lapse(bad)
    await flow.reaper().step()
    assert await flow.place(bad) is None
    await flow.agree()


async def test_a_store_and_an_index_open_without_a_word_to_their_servers(make_flow: MakeFlow):
    await make_flow(
        POSTGRES_URL=f"postgres://a:b@127.0.0.1:{free_port()}/x", REDIS_ADDR=f"127.0.0.1:{free_port()}"
    )


async def test_a_row_that_somebody_has_locked_keeps_no_other_task_from_its_worker(make_flow: MakeFlow):
    """An operator's open transaction, say. The id stays leased: the reaper finds it and puts it back."""
    flow = await make_flow(STORE_TIMEOUT_MS=300)
    ids = [await flow.enqueue() for _ in range(5)]
    with flow.db.transaction() as operator:
        operator.rows("SELECT FROM tasks WHERE id = %s FOR UPDATE", ids[1])
        leases = await flow.lease()
        assert [lease.id for lease in leases] == [ids[0], *ids[2:]]
        assert flow.held.all() == leases
        assert await flow.place(ids[1]) == "leases"
    await flow.lapse(ids[1])
    await flow.reaper().step()
    assert [lease.id for lease in await flow.lease()] == [ids[1]]
    await flow.settle(*leases)
    await flow.agree()


async def test_a_claim_that_waited_for_another_lock_than_that_of_a_row_is_asked_again(
    flow: Flow, monkeypatch: pytest.MonkeyPatch
):
    ids = [await flow.enqueue() for _ in range(4)]
    claim, asked = Store.claim, []

    async def busy_once(self: Store, wanted: Any, **options: Any) -> Any:
        asked.append(len(wanted))
        if len(asked) == 1:
            raise StoreBusy("somebody alters the table")
        return await claim(self, wanted, **options)

    monkeypatch.setattr(Store, "claim", busy_once)
    assert [lease.id for lease in await flow.lessor().take(10)] == ids
    assert asked == [4, 4]


async def test_rows_that_an_earlier_try_of_the_claim_has_locked_are_not_given_up(
    flow: Flow, monkeypatch: pytest.MonkeyPatch
):
    """Its commit is late: it has no answer in time, holds its rows, and grants them in the end."""
    ids = [await flow.enqueue() for _ in range(3)]
    claim, asked = Store.claim, []

    async def late(self: Store, wanted: Any, **options: Any) -> Any:
        asked.append(len(wanted))
        if len(asked) == 1:
            raise StoreUnavailable("no answer in time")
        if len(asked) == 2:
            raise StoreBusy("the rows are locked")
        return await claim(self, wanted, **options)

    async def all_of_them(_: Store, wanted: Any) -> set[str]:
        return set(wanted)

    monkeypatch.setattr(Store, "claim", late)
    monkeypatch.setattr(Store, "locked", all_of_them)
    assert [lease.id for lease in await flow.lessor().take(10)] == ids
    assert asked == [3, 3, 3]
