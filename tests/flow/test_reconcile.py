"""Reconcile: whatever Redis has lost comes back from the rows, and what it has too much of goes."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest
from fix_flow import Flow, MakeFlow
from fix_proxy import Proxy
from fix_store import TOKEN, Database
from waiting import eventually

from scheduler.errors import StoreUnavailable
from scheduler.model import new_id
from scheduler.reconcile import Reconciler
from scheduler.store import FIRST_ID

LONG_MS = 60_000


async def epoch_of(flow: Flow) -> tuple[str | None, int]:
    """The epoch in Redis and in Postgres."""
    return (await flow.contents()).epoch, flow.db.value("SELECT epoch FROM queues WHERE name = 'default'")


def seen_before(flow: Flow) -> None:
    """Let the queue be one that a pass has seen, so that an empty Redis has lost something."""
    flow.db.rows("INSERT INTO queues (name, epoch) VALUES ('default', 1)")


async def one_of_each(flow: Flow) -> dict[str, str]:
    """A row of every status that only Postgres knows of."""
    seen_before(flow)
    columns = {"priority": "low"}
    return {
        "ready": flow.db.put("queued", **columns),
        "delayed": flow.db.put("queued", due_ms=LONG_MS, **columns),
        "retrying": flow.db.put("retrying", due_ms=LONG_MS, **columns),
        "retry is due": flow.db.put("retrying", **columns),
        "running": flow.db.put("running", lease_ms=LONG_MS, **columns),
        "lapsed": flow.db.put("running", lease_ms=-5, **columns),
        "dead": flow.db.put("dead", **columns),
        "purged": flow.db.put("dead", dead_at=None, **columns),
        "succeeded": flow.db.put("succeeded", **columns),
        "cancelled": flow.db.put("cancelled", **columns),
    }


PLACES = {
    "ready": "q:low",
    "delayed": "retry:low",
    "retrying": "retry:low",
    "retry is due": "q:low",
    "running": "leases",
    "lapsed": "leases",
    "dead": "dlq:low",
    "purged": None,
    "succeeded": None,
    "cancelled": None,
}


@pytest.mark.parametrize("page", [1, 3, 1000])
async def test_an_empty_redis_is_rebuilt_from_the_rows(make_flow: MakeFlow, page: int):
    flow = await make_flow(RECONCILE_BATCH_SIZE=page)
    ids = await one_of_each(flow)
    assert await flow.reconciler().reconcile() == {"rebuilt": 1, "pushed": 4, "adopted": 2, "dlq_added": 1}
    assert {name: await flow.place(id_) for name, id_ in ids.items()} == PLACES
    await flow.agree()
    assert await flow.reconciler().reconcile() == {}


async def test_what_waits_goes_on_waiting_for_what_remains(flow: Flow):
    ids = await one_of_each(flow)
    await flow.reconciler().reconcile()
    held = await flow.contents()
    now_ms = (await flow.client.time())[0] * 1000
    for score in (
        held.retry["low"][ids["delayed"]],
        held.retry["low"][ids["retrying"]],
        held.leases[ids["running"]],
    ):
        assert LONG_MS - 10_000 < score - now_ms <= LONG_MS + 1000
    assert held.leases[ids["lapsed"]] <= now_ms + 1000


async def test_a_running_task_is_adopted_by_its_own_lease(flow: Flow):
    """Its worker lives and knows nothing: it settles and acknowledges as if nothing had happened."""
    await flow.enqueue()
    (lease,) = await flow.lease()
    await flow.rest()
    await flow.client.flushall()
    await flow.reconciler().reconcile()
    assert (await flow.contents()).live == {lease.id: lease.token}
    await flow.settle(lease)
    assert flow.counted("acks_total") == 1
    await flow.agree()


async def test_a_lapsed_lease_is_adopted_too_and_only_the_reaper_reaps(flow: Flow):
    ids = await one_of_each(flow)
    await flow.reconciler().reconcile()
    assert flow.status(ids["lapsed"]) == "running"
    assert (await flow.contents()).live[ids["lapsed"]] == TOKEN
    await flow.reaper().step()
    assert (flow.status(ids["lapsed"]), await flow.place(ids["lapsed"])) == ("queued", "q:low")
    await flow.agree()


async def test_a_pass_that_finds_nothing_wrong_changes_nothing_but_the_epoch(flow: Flow):
    for _ in range(3):
        await flow.enqueue()
    await flow.enqueue(delay_ms=LONG_MS)
    await flow.lease(1)
    await flow.rest()
    before, rows = await flow.contents(), flow.db.rows("SELECT *, xmin FROM tasks ORDER BY id")
    assert await flow.reconciler().reconcile() == {}
    after = await flow.contents()
    assert int(after.epoch) == int(before.epoch) + 1
    after.epoch = before.epoch
    assert (after, flow.db.rows("SELECT *, xmin FROM tasks ORDER BY id")) == (before, rows)


async def test_a_task_that_was_committed_and_never_pushed_is_pushed(flow: Flow):
    """Its API died between the two. Not at once: it may be on its way."""
    await flow.enqueue()
    await flow.rest()
    id_ = await flow.enqueue(push=False)
    reconciler = flow.reconciler()
    assert await reconciler.reconcile() == {}, "it is young"
    flow.db.age(id_, 2000)
    assert await reconciler.reconcile() == {"pushed": 1}
    await flow.agree()


@pytest.mark.parametrize("hours", [-30, -1, 1, 30])
async def test_an_api_whose_clock_is_off_is_served_as_soon(flow: Flow, hours: int):
    """Ids are named by the clock of the API; when a row was made is for Postgres to say."""
    await flow.enqueue()
    await flow.rest()
    by = f"interval '{hours} hours'"
    id_ = flow.db.value(f"SELECT uuid_at(now() + {by})::text")[:-12] + new_id()[-12:]
    await flow.enqueue(id_=id_, push=False)
    flow.db.age(id_, 2000)
    assert await flow.reconciler().reconcile() == {"pushed": 1}
    await flow.agree()


async def test_a_redriven_task_that_was_not_pushed_is_pushed(flow: Flow):
    id_ = flow.db.put("dead", due_ms=-5000)
    await flow.enqueue()
    await flow.rest()
    flow.db.age(id_, 5000)
    flow.db.rows("UPDATE tasks SET status = 'queued', dead_at = NULL, dead_reason = NULL, finished_at = NULL")
    assert await flow.reconciler().reconcile() == {"pushed": 1}
    assert await flow.place(id_) == "q:default"
    await flow.agree()


async def test_the_second_look_does_not_push_what_was_settled_meanwhile(flow: Flow):
    """Between reading the rows and asking Redis a task may end; to push it again would be a stale message."""
    ended, retried, waiting = [await flow.enqueue() for _ in range(3)]
    for id_ in (ended, retried, waiting):
        flow.db.age(id_, 60_000)
    reconciler = flow.reconciler()
    await reconciler.reconcile()
    rows = await flow.store.open_page(FIRST_ID, 100)
    leases = await flow.lease()
    await flow.settle(leases[0])
    await flow.settle(leases[1], kind="failed")
    await flow.client.flushall()
    reconciler._found.clear()
    await reconciler._compare(flow.shard, rows, older=False)
    assert (await flow.contents()).live == {}, "the third runs now, and is no row to push either"
    assert await flow.reconciler().reconcile() == {"rebuilt": 1, "pushed": 1, "adopted": 1}
    await flow.agree()


async def test_a_run_that_ends_while_all_rows_are_compared_is_not_held_until_its_leases_end(flow: Flow):
    ended, failed, runs = [await flow.enqueue() for _ in range(3)]
    leases = await flow.lease()
    reconciler = flow.reconciler()
    await reconciler.reconcile()
    rows = await flow.store.open_page(FIRST_ID, 100)
    await flow.client.flushall()
    await flow.settle(leases[0])
    await flow.settle(leases[1], kind="failed")
    reconciler._found.clear()
    reconciler._second_look = False
    await reconciler._compare(flow.shard, rows, older=False)
    assert reconciler._found == {"adopted": 3, "nudged": 2}
    await flow.reaper().step()
    places = [await flow.place(id_) for id_ in (ended, failed, runs)]
    assert places == [None, "retry:default", "leases"]
    assert flow.db.outcomes(runs) == []


@pytest.mark.parametrize("kind", ["live", "leases", "q", "retry"])
async def test_an_evicted_key_is_noticed_and_all_is_rebuilt(flow: Flow, kind: str):
    ready = [await flow.enqueue() for _ in range(3)]
    delayed = await flow.enqueue(delay_ms=LONG_MS)
    (lease,) = await flow.lease(1)
    await flow.rest()
    await flow.client.delete(flow.shard.key(kind, "default" if kind in {"q", "retry"} else None))
    found = await flow.reconciler().reconcile()
    assert found == {"rebuilt": 1, "pushed": 3, "adopted": 1}
    assert [await flow.place(id_) for id_ in ready[1:]] == ["q:default"] * 2
    assert (await flow.place(delayed), await flow.place(lease.id)) == ("retry:default", "leases")
    await flow.agree()


async def test_a_lost_epoch_alone_is_a_lost_memory(flow: Flow):
    await flow.enqueue()
    await flow.rest()
    await flow.client.delete(flow.shard.key("epoch"))
    assert await flow.reconciler().reconcile() == {"rebuilt": 1}
    assert await flow.reconciler().reconcile() == {}


async def test_an_old_state_that_comes_back_is_completed_and_does_no_harm(flow: Flow):
    """A dump of an hour ago: finished tasks return, new ones are missing, and one is another worker's now."""
    done, taken, dead = [await flow.enqueue() for _ in range(3)]
    await flow.rest()
    old = await flow.contents()
    leases = {lease.id: lease for lease in await flow.lease()}
    await flow.settle(leases[done])
    await flow.settle(leases[dead], kind="rejected")
    new = await flow.enqueue()
    flow.db.age(new, LONG_MS)
    await flow.rest()
    await flow.restore(old)
    found = await flow.reconciler().reconcile()
    assert found["rebuilt"] == 1
    assert await flow.place(new) == "q:default"
    (again,) = await flow.lease()
    assert again.id == new
    assert (await flow.contents()).live == {new: again.token, taken: leases[taken].token}
    await flow.settle(leases[taken], again)
    assert flow.counted("tasks_succeeded_total", type="other", priority="default") == 3
    assert flow.db.value("SELECT max(attempts) FROM tasks") == 1
    await flow.reconciler().reconcile()
    await flow.agree()


async def test_a_redis_that_was_restarted_is_compared_with_all_rows(flow: Flow):
    """It may have lost its last second; nothing in it says so, but its run has another name."""
    await flow.enqueue()
    await flow.rest()
    flow.db.rows("UPDATE queues SET redis_run_id = 'another run'")
    old = flow.db.put("queued")  # older than any pass looks back would not matter
    flow.db.age(old, LONG_MS)
    assert await flow.reconciler().reconcile() == {"rebuilt": 1, "pushed": 1}
    assert await flow.reconciler().reconcile() == {}


async def test_the_epoch_rises_with_every_pass_and_is_mirrored(flow: Flow):
    await flow.enqueue()
    reconciler = flow.reconciler()
    for expected in (1, 2, 3):
        await reconciler.reconcile()
        assert await epoch_of(flow) == (str(expected), expected)
    run_id = flow.db.value("SELECT redis_run_id FROM queues")
    assert run_id == (await flow.client.info("server"))["run_id"]


@pytest.mark.parametrize("swept", [True, False])
async def test_a_loss_in_the_middle_of_a_pass_is_not_papered_over(flow: Flow, swept: bool):
    """The pass ends as if all were well; the next one must see that it was not."""
    ids = [await flow.enqueue() for _ in range(3)]
    await flow.rest()
    if swept:
        await flow.client.flushall()
    with flow.db.transaction() as other:
        other.rows("LOCK TABLE tasks IN ACCESS EXCLUSIVE MODE")
        passing = asyncio.create_task(flow.reconciler().reconcile())
        await flow.db.blocked()
        await flow.client.flushall()
    await passing
    assert not str((await flow.contents()).epoch).isdecimal()
    await flow.client.delete(flow.shard.key("q", "default"), flow.shard.key("live"))  # half of what it added
    assert await flow.reconciler().reconcile() == {"rebuilt": 1, "pushed": 3}
    assert (await flow.contents()).q["default"] == ids
    await flow.agree()


async def test_a_sweep_that_did_not_come_to_its_end_is_done_again(
    make_flow: MakeFlow, flow_db: Database, proxy: Callable[[str], Proxy]
):
    """The index is marked as lost before, so that half a rebuild does not look like a whole one."""
    link = proxy(flow_db.url)
    flow = await make_flow(POSTGRES_URL=link.url, STORE_TIMEOUT_MS=500, RECONCILE_BATCH_SIZE=2)
    ids = [await flow.enqueue() for _ in range(7)]
    await flow.rest()
    await flow.client.flushall()
    link.latency_s = 0.02
    sweeping = asyncio.create_task(flow.reconciler().reconcile())
    await eventually(lambda: flow.client.hlen(flow.shard.key("live")))
    link.stop()
    with pytest.raises(StoreUnavailable):
        await sweeping
    assert 0 < len((await flow.contents()).live) < 7
    link.latency_s = 0.0
    link.start()
    assert (await flow.reconciler().reconcile())["rebuilt"] == 1
    assert sorted((await flow.contents()).live) == ids
    await flow.agree()


async def test_a_retry_that_redis_would_keep_for_too_long_is_nudged(flow: Flow):
    """A failover to a server whose clock is far behind: due by Postgres, not by Redis."""
    ids = [await flow.enqueue(delay_ms=1) for _ in range(2)]
    for status, id_ in zip(("queued", "retrying"), ids, strict=True):
        columns = {"attempts": 1, "claimed_at": flow.db.value("SELECT now()")} if status == "retrying" else {}
        flow.db.change(id_, status=status, **columns)
        flow.db.age(id_, LONG_MS)
        await flow.client.zadd(flow.shard.key("retry", "default"), {id_: 10**15})
    assert await flow.reconciler().reconcile() == {"nudged": 2}
    await flow.pump().step()
    assert sorted((await flow.contents()).q["default"]) == ids


async def test_a_lapsed_lease_that_redis_would_keep_for_too_long_is_nudged(flow: Flow):
    id_ = await flow.enqueue()
    await flow.lease()
    await flow.rest()
    flow.db.age(id_, LONG_MS)
    assert await flow.reconciler().reconcile() == {"nudged": 1}
    await flow.reaper().step()
    assert (flow.status(id_), await flow.place(id_)) == ("queued", "q:default")
    await flow.agree()


def old_ids(flow: Flow, n: int) -> list[str]:
    """Ids of tasks that were accepted hours ago, the oldest first."""
    hours = range(n + 3, 3, -1)
    return [flow.db.value(f"SELECT uuid_at(now() - interval '{each} hours')::text") for each in hours]


async def test_older_rows_take_turns_page_by_page(make_flow: MakeFlow):
    flow = await make_flow(RECONCILE_BATCH_SIZE=2)
    await flow.enqueue()
    old = [await flow.enqueue(id_=id_, delay_ms=LONG_MS) for id_ in old_ids(flow, 6)]
    await flow.rest()
    for id_ in old:
        flow.db.age(id_, 2 * LONG_MS)
    reconciler = flow.reconciler()
    assert [await reconciler.reconcile() for _ in range(4)] == [{"nudged": 2}] * 3 + [{}]
    await flow.agree()


async def test_older_rows_that_redis_lacks_are_all_added_at_once(make_flow: MakeFlow):
    """Dead letters that were redriven while Redis was away, by the thousand, say."""
    flow = await make_flow(RECONCILE_BATCH_SIZE=2)
    await flow.enqueue()
    await flow.rest()
    for id_, status in zip(old_ids(flow, 7), ("queued", "running") * 4, strict=False):
        flow.db.put(status, id=id_)
        flow.db.age(id_, LONG_MS)
    flow.db.rows("UPDATE tasks SET lease_expires_at = now() + interval '1 hour' WHERE status = 'running'")
    reconciler = flow.reconciler()
    assert await reconciler.reconcile() == {"pushed": 4, "adopted": 3}
    assert await reconciler.reconcile() == {}
    await flow.agree()


async def test_a_row_that_waited_long_for_its_commit_is_a_recent_one(make_flow: MakeFlow):
    """Its id is from when it came in. Among the older rows it would wait for its page's turn."""
    flow = await make_flow(RECONCILE_BATCH_SIZE=2, ENQUEUE_TIMEOUT_MS=20_000)
    for id_ in old_ids(flow, 9):
        await flow.enqueue(id_=id_)
    reconciler = flow.reconciler()
    await reconciler.reconcile()
    late = flow.db.value("SELECT uuid_at(now() - interval '18 s')::text")
    await flow.enqueue(id_=late, push=False)
    flow.db.age(late, 2000)
    assert await reconciler.reconcile() == {"pushed": 1}
    assert await flow.place(late) == "q:default"


async def test_every_queue_is_rebuilt(flow: Flow):
    ids = {queue: await flow.enqueue(queue=queue) for queue in ("default", "mail")}
    await flow.rest()
    await flow.client.delete(*flow.index.shard("mail").names)
    assert await flow.reconciler().reconcile() == {"rebuilt": 1, "pushed": 1}
    assert [(await flow.contents(queue)).q["default"] for queue in ids] == [[id_] for id_ in ids.values()]


async def test_one_of_many_leads(flow: Flow):
    await flow.enqueue()
    first, second = flow.reconciler("a"), flow.reconciler("b")
    await first.step()
    await second.step()
    assert (await epoch_of(flow))[1] == 1
    flow.db.rows("UPDATE leaders SET expires_at = now()")
    await second.step()
    assert (await epoch_of(flow))[1] == 2


def before_each_page(reconciler: Reconciler, happens: Callable[[], Awaitable[None]]) -> None:
    """Let something happen before each page of open rows that this one reads."""
    page = reconciler._open_rows

    async def meanwhile(*args, **options) -> str | None:
        await happens()
        return await page(*args, **options)

    reconciler._open_rows = meanwhile


async def rebuilding(make_flow: MakeFlow, n: int = 6) -> Flow:
    """So many tasks, a page each, and a Redis that has lost them."""
    flow = await make_flow(RECONCILE_BATCH_SIZE=1, RECONCILE_INTERVAL_MS=50)
    await flow.enqueue_many(n)
    await flow.rest()
    await flow.client.flushall()
    return flow


async def test_a_pass_that_outlives_its_lead_renews_it(make_flow: MakeFlow):
    """Two leaders that take turns at a rebuild, each from its start, would never come to an end."""
    flow = await rebuilding(make_flow)
    first, second = flow.reconciler("a"), flow.reconciler("b")

    async def time_passes() -> None:
        await asyncio.sleep(0.06)  # an interval
        flow.db.rows("UPDATE leaders SET expires_at = expires_at - interval '3 s'")
        await second.step()

    before_each_page(first, time_passes)
    rebuilt = flow.counted("reconcile_repairs_total", kind="rebuilt")
    await first.step()
    assert flow.counted("reconcile_repairs_total", kind="rebuilt") == rebuilt + 1
    assert (await flow.contents()).epoch.isdecimal()
    await flow.agree()


async def test_a_pass_ends_when_another_one_leads(make_flow: MakeFlow):
    flow = await rebuilding(make_flow)
    first, second = flow.reconciler("a"), flow.reconciler("b")

    async def deposed() -> None:
        await asyncio.sleep(0.06)  # an interval
        if len((await flow.contents()).live) == 2:
            flow.db.rows("UPDATE leaders SET holder = 'b'")

    before_each_page(first, deposed)
    await first.step()
    held = await flow.contents()
    assert (len(held.live), held.epoch.isdecimal()) == (2, False)
    await second.step()
    assert (await flow.contents()).epoch.isdecimal()
    await flow.agree()


async def test_a_pass_ends_when_its_process_stops(make_flow: MakeFlow):
    flow = await rebuilding(make_flow)
    reconciler = flow.reconciler()

    async def stop() -> None:
        if len((await flow.contents()).live) == 2:
            reconciler.stop()

    before_each_page(reconciler, stop)
    await reconciler.step()
    held = await flow.contents()
    assert (len(held.live), held.epoch.isdecimal()) == (2, False)
    assert (await flow.reconciler().reconcile())["rebuilt"] == 1
    await flow.agree()


async def test_a_pass_that_begins_amid_another_does_not_undo_it(make_flow: MakeFlow):
    """People may ask for one at any time."""
    flow = await rebuilding(make_flow)
    first, second = flow.reconciler("a"), flow.reconciler("b")
    begun, may_end = asyncio.Event(), asyncio.Event()
    passing: list[asyncio.Task] = []

    async def hold() -> None:
        begun.set()
        await may_end.wait()

    async def begin() -> None:
        if not passing:
            passing.append(asyncio.create_task(second.reconcile(everything=True)))
            await begun.wait()

    before_each_page(second, hold)
    before_each_page(first, begin)
    await first.step()
    assert (await flow.contents()).epoch.isdecimal()
    may_end.set()
    await asyncio.gather(*passing)
    assert await flow.reconciler().reconcile() == {}
    await flow.agree()


async def test_any_number_at_once_is_correct(flow: Flow):
    ids = await one_of_each(flow)
    await asyncio.gather(*(flow.reconciler(f"w{n}").reconcile() for n in range(4)))
    assert {name: await flow.place(id_) for name, id_ in ids.items()} == PLACES
    assert (await flow.contents()).broken() == []
    await flow.reconciler().reconcile()
    assert await flow.reconciler().reconcile() == {}


async def test_people_can_ask_for_all_rows(flow: Flow):
    await flow.enqueue()
    await flow.rest()
    old = flow.db.put("queued", id=flow.db.value("SELECT uuid_at(now() - interval '90 days')::text"))
    assert await flow.reconciler().reconcile(everything=True) == {"rebuilt": 1, "pushed": 1}
    assert await flow.place(old) == "q:default"
