"""The heartbeat: leases live as long as their runs, whatever the loop does, and a lost one is noticed."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

from fix_flow import Flow, MakeFlow
from fix_proxy import Proxy
from fix_store import Database
from waiting import eventually

from scheduler import clock
from scheduler.errors import StoreUnavailable
from scheduler.heartbeat import Heartbeat, Pulse
from scheduler.held import Claim
from scheduler.model import Lease, new_id
from scheduler.store import Store, WorkerIdentity

VIS_MS = 400
LONG_S = 3 * VIS_MS / 1000
"""Longer than a lease lives by itself."""


async def test_an_async_handler_keeps_its_lease(make_flow: MakeFlow):
    flow = await make_flow(VIS_TIMEOUT_MS=VIS_MS)

    @flow.handler("long")
    async def long():
        await asyncio.sleep(LONG_S)

    id_ = await flow.enqueue("long")
    with flow.rival():
        async with flow.worker():
            await flow.ended(id_)
    assert flow.db.outcomes(id_) == ["succeeded"]
    await flow.agree()


async def test_a_handler_that_blocks_the_loop_keeps_its_lease(make_flow: MakeFlow):
    """With a heartbeat on the same loop it would be reaped, and run again, again and again."""
    flow = await make_flow(VIS_TIMEOUT_MS=VIS_MS)
    calls = 0

    @flow.handler("blocks")
    async def blocks():
        nonlocal calls
        calls += 1
        time.sleep(LONG_S)  # noqa: ASYNC251 - the loop must be blocked

    id_ = await flow.enqueue("blocks")
    with flow.rival():
        async with flow.worker():
            await flow.ended(id_)
    assert (calls, flow.db.outcomes(id_)) == (1, ["succeeded"])
    await flow.agree()


async def test_a_claim_whose_answer_waits_for_a_blocked_loop_keeps_its_leases(make_flow: MakeFlow):
    """What was granted would be lost before its worker knew of it, and cost every task a loss."""
    flow = await make_flow(VIS_TIMEOUT_MS=VIS_MS)
    ids = await flow.enqueue_many(3)

    class Blocked(Store):
        """A handler blocks the loop while the first claim is on its way."""

        async def claim(self, *args: Any, **options: Any) -> Any:
            answer = await super().claim(*args, **options)
            assert flow.db.value("SELECT count(*) FROM tasks WHERE status = 'running'") == 3
            time.sleep(LONG_S)  # noqa: ASYNC251 - the loop must be blocked
            return answer

    store = await Blocked.open(flow.settings, name="blocked", max_conns=4)
    try:
        with flow.rival():
            async with flow.worker(store=store):
                await flow.ended(*ids)
    finally:
        await store.close()
    assert [flow.db.outcomes(id_) for id_ in ids] == [["succeeded"]] * 3
    await flow.agree()


async def test_a_handler_in_a_thread_keeps_its_lease(make_flow: MakeFlow):
    flow = await make_flow(VIS_TIMEOUT_MS=VIS_MS)

    @flow.handler("long")
    def long():
        time.sleep(LONG_S)

    id_ = await flow.enqueue("long")
    with flow.rival():
        async with flow.worker():
            await flow.ended(id_)
    assert flow.db.outcomes(id_) == ["succeeded"]


async def test_a_task_that_waits_in_the_buffer_keeps_its_lease(make_flow: MakeFlow):
    flow = await make_flow(VIS_TIMEOUT_MS=VIS_MS, WORKER_POOL=1, LEASE_AHEAD_MS=2000)

    @flow.handler("shortish")
    async def shortish():
        await asyncio.sleep(VIS_MS / 1000 * 0.4)

    ids = [await flow.enqueue("shortish") for _ in range(6)]
    with flow.rival():
        async with flow.worker():
            await flow.ended(*ids)
    assert [flow.db.outcomes(id_) for id_ in ids] == [["succeeded"]] * 6
    await flow.agree()


async def test_leases_are_renewed_while_a_worker_drains(make_flow: MakeFlow):
    """Else each deployment would run its longest tasks twice."""
    flow = await make_flow(VIS_TIMEOUT_MS=VIS_MS, SHUTDOWN_GRACE_MS=10_000)
    began = asyncio.Event()

    @flow.handler("long")
    async def long():
        began.set()
        await asyncio.sleep(LONG_S)

    id_ = await flow.enqueue("long")
    with flow.rival():
        async with flow.worker() as worker:
            await began.wait()
            worker.stop()
    assert flow.db.outcomes(id_) == ["succeeded"]
    await flow.agree()


async def test_a_handler_whose_task_another_worker_has_is_cancelled(make_flow: MakeFlow):
    flow = await make_flow(VIS_TIMEOUT_MS=VIS_MS)
    began, cancelled = asyncio.Event(), asyncio.Event()

    @flow.handler("long")
    async def long():
        began.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.set()
            raise

    id_ = await flow.enqueue("long", max_retries=9)
    async with flow.worker():
        await began.wait()
        flow.db.change(id_, attempts=7, worker="other", lease_token="other")
        flow.db.rows("UPDATE tasks SET lease_expires_at = now() + interval '60 s'")
        async with asyncio.timeout(2 * VIS_MS / 1000):
            await cancelled.wait()
    assert (flow.status(id_), flow.db.task(id_)["attempts"], flow.db.runs(id_)) == ("running", 7, [])


def heartbeat(flow: Flow, lost: list[Lease], watch: Callable[[Store], Awaitable[None]]) -> Heartbeat:
    identity = WorkerIdentity("host:1:w1", "host", 1, ("default",), ("noop",), 4)
    polled = clock.monotonic() - 5
    return Heartbeat(
        flow.settings,
        flow.metrics,
        identity,
        flow.held,
        pulse=lambda: Pulse(3, polled),
        lost=lost.append,
        watch=watch,
    )


@asynccontextmanager
async def beating(flow: Flow):
    """A heartbeat by itself, and what it says is lost."""
    lost: list[Lease] = []
    watched: list[Store] = []

    async def watch(store: Store) -> None:
        watched.append(store)

    heart = heartbeat(flow, lost, watch)
    heart.start()
    try:
        yield lost, watched
    finally:
        await heart.stop()


async def test_a_beat_signs_the_registry_and_the_end_signs_off(flow: Flow):
    async with beating(flow) as (_, watched):
        (row,) = await eventually(lambda: flow.db.rows("SELECT *, alive_until - now() AS left FROM workers"))
        assert (row["id"], row["running"]) == ("host:1:w1", 3)
        assert 4 < (row["seen_at"] - row["polled_at"]).total_seconds() < 9
        # A worker that dies now is known to be dead before the youngest of its leases has run out.
        assert row["left"].total_seconds() < flow.settings.vis_timeout_ms / 1000
        await eventually(lambda: watched)
    assert flow.db.count("workers") == 0


async def test_a_beat_that_is_dropped_halfway_does_nothing_more(flow: Flow):
    """A coroutine that is collected must not await: that is an error, and would be told as the loop's."""

    class Silent:
        async def beat(self, *_: Any, **__: Any) -> None:
            await asyncio.sleep(60)

    async def watch(_: Store) -> None:
        await asyncio.sleep(60)

    beat = heartbeat(flow, [], watch).step(Silent())
    beat.send(None)
    beat.close()


async def test_a_worker_that_cannot_renew_says_all_the_same_that_it_lives(make_flow: MakeFlow, monkeypatch):
    """What it holds would be the less its own if it counted as dead, too."""
    flow = await make_flow(VIS_TIMEOUT_MS=VIS_MS)

    async def renew(*_: Any, **__: Any) -> Any:
        raise StoreUnavailable("somebody else has locked the row of one task")

    monkeypatch.setattr(Store, "renew", renew)
    await flow.enqueue()
    (lease,) = await flow.lease()
    lease.renewed -= VIS_MS
    async with beating(flow) as (lost, watched):
        await eventually(lambda: flow.db.rows("SELECT id FROM workers WHERE alive_until > now()") and watched)
    assert lost == []


async def test_a_claim_of_which_nothing_is_granted_yet_does_not_count_as_renewed(make_flow: MakeFlow):
    """Postgres may grant it at any time, and the lease counts from when it was asked for."""
    flow = await make_flow(VIS_TIMEOUT_MS=VIS_MS)
    asked = clock.monotonic() - VIS_MS
    claim = Claim([new_id()], "t:1", sent=asked, renewed=asked)
    flow.held.asked(claim)
    async with beating(flow) as (_, watched):
        await eventually(lambda: len(watched) > 1)
    assert claim.renewed == asked


async def test_a_row_that_somebody_has_locked_costs_no_other_task_its_lease(make_flow: MakeFlow):
    """An operator's open transaction, say. Its own lease is not given up either: nobody else can have it."""
    flow = await make_flow(VIS_TIMEOUT_MS=2000, STORE_TIMEOUT_MS=300)
    for _ in range(5):
        await flow.enqueue()
    leases = await flow.lease()
    locked, others = leases[1], [lease for lease in leases if lease is not leases[1]]
    for lease in leases:
        lease.renewed -= 1.5
    with flow.db.transaction() as operator:
        operator.rows("SELECT FROM tasks WHERE id = %s FOR UPDATE", locked.id)
        async with beating(flow) as (lost, _):
            await eventually(lambda: all(lease.renewed > lease.claimed for lease in others))
        assert lost == []
        assert locked.renewed < locked.claimed


async def test_only_leases_that_are_half_over_are_renewed(make_flow: MakeFlow):
    flow = await make_flow(VIS_TIMEOUT_MS=2000)
    for _ in range(2):
        await flow.enqueue()
    old, young = await flow.lease()
    old.renewed -= 1.5
    before = flow.db.task(young.id)["lease_expires_at"]
    async with beating(flow):
        await eventually(lambda: flow.db.task(old.id)["lease_expires_at"] > before)
    assert flow.db.task(young.id)["lease_expires_at"] == before
    assert old.expires > young.expires


async def test_a_lease_that_may_not_be_renewed_is_not(make_flow: MakeFlow):
    flow = await make_flow(VIS_TIMEOUT_MS=VIS_MS)
    for _ in range(2):
        await flow.enqueue()
    without, with_ = await flow.lease()
    without.renews = False
    async with beating(flow):
        await eventually(lambda: with_.renewed > with_.claimed)
        await eventually(lambda: flow.db.task(without.id)["lease_ms"] < 0)
    assert flow.db.task(with_.id)["lease_ms"] > 0


async def test_a_lease_that_is_lost_is_told_and_one_that_was_just_settled_is_not(make_flow: MakeFlow):
    flow = await make_flow(VIS_TIMEOUT_MS=VIS_MS)
    for _ in range(3):
        await flow.enqueue()
    lost, settled, kept = await flow.lease()
    settled.ended = True
    flow.db.rows("UPDATE tasks SET attempts = attempts + 1 WHERE id = ANY(%s::uuid[])", [lost.id, settled.id])
    async with beating(flow) as (told, _):
        await eventually(lambda: kept.renewed > kept.claimed)
        await eventually(lambda: lost in told)
        assert settled not in told


async def test_a_beat_that_fails_is_made_up_for(
    make_flow: MakeFlow, flow_db: Database, proxy: Callable[[str], Proxy]
):
    link = proxy(flow_db.url)
    flow = await make_flow(POSTGRES_URL=link.url, STORE_TIMEOUT_MS=200, VIS_TIMEOUT_MS=2000)
    await flow.enqueue()
    (lease,) = await flow.lease()
    lease.renewed -= 1.5
    link.stop()
    async with beating(flow) as (told, _):
        await eventually(lambda: flow.counted("loop_errors_total", loop="heartbeat") >= 1)
        assert told == [], "unknown is not lost"
        link.start()
        await eventually(lambda: lease.renewed > lease.claimed)
