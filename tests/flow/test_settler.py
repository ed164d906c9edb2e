"""Settle: what a result makes of its task, recorded in Postgres first and told to Redis after."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest
from fix_flow import Flow, MakeFlow
from fix_proxy import Proxy
from fix_store import Database
from waiting import eventually

from scheduler.backoff import Backoff
from scheduler.model import PRIORITIES, Lease, Result, Settlement
from scheduler.settle import decide, move, retry_policy


async def leased(flow: Flow, type_: str = "noop", **fields: Any) -> Lease:
    """A task that is leased now; `fields` are columns of its row."""
    id_ = flow.db.put("queued", type=type_, **fields)
    await flow.shard.push([(id_, fields.get("priority", "default"), 0)])
    (lease,) = [lease for lease in await flow.lease() if lease.id == id_]
    return lease


RESULTS: dict[str, tuple[dict[str, Any], dict[str, Any], tuple[str, str, str | None]]] = {
    "succeeded": ({"kind": "succeeded"}, {}, ("succeeded", "succeeded", None)),
    "failed": ({"kind": "failed", "error": "why"}, {}, ("failed", "retrying", "retry:high")),
    "failed for good": ({"kind": "failed"}, {"failures": 3}, ("failed", "dead", "dlq:high")),
    "failed without retries": ({"kind": "failed"}, {"max_retries": 0}, ("failed", "dead", "dlq:high")),
    "timed out": ({"kind": "timed_out"}, {}, ("timed_out", "retrying", "retry:high")),
    "timed out for good": ({"kind": "timed_out"}, {"failures": 3}, ("timed_out", "dead", "dlq:high")),
    "asked for a retry": ({"kind": "retry", "after_ms": 60_000}, {}, ("failed", "retrying", "retry:high")),
    "put off": ({"kind": "interrupted", "after_ms": 60_000}, {}, ("released", "queued", "retry:high")),
    "asked in vain": ({"kind": "retry", "after_ms": 60_000}, {"failures": 3}, ("failed", "dead", "dlq:high")),
    "rejected": ({"kind": "rejected", "error": "why"}, {}, ("failed", "dead", "dlq:high")),
    "interrupted": ({"kind": "interrupted"}, {}, ("released", "queued", "q:high")),
    "unknown type": ({"kind": "unknown_type"}, {}, ("released", "queued", "retry:high")),
    "unknown for good": ({"kind": "unknown_type"}, {"refusals": 10}, ("released", "dead", "dlq:high")),
    "died alone": ({"kind": "died"}, {}, ("lost", "queued", "q:high")),
    "died alone for good": ({"kind": "died"}, {"losses": 3}, ("lost", "dead", "dlq:high")),
}
"""A result and what the row had before it: the run's outcome, the task's status, and the place in Redis."""


@pytest.mark.parametrize("what", RESULTS)
async def test_a_result_becomes_an_outcome_a_status_and_a_place(flow: Flow, what: str):
    result, columns, (outcome, status, place) = RESULTS[what]
    lease = await leased(flow, priority="high", attempts=20, **columns)
    await flow.settle(lease, **result)
    assert (flow.db.outcomes(lease.id), flow.status(lease.id)) == ([outcome], status)
    assert await flow.place(lease.id) == place
    assert flow.held.all() == []
    assert flow.counted("acks_total") == 1
    await flow.agree()


@pytest.mark.parametrize(
    ("result", "columns", "reason"),
    [
        ({"kind": "failed"}, {"failures": 3}, "failed"),
        ({"kind": "timed_out"}, {"failures": 3}, "timed_out"),
        ({"kind": "rejected"}, {}, "rejected"),
        ({"kind": "unknown_type"}, {"refusals": 10}, "unknown_type"),
        ({"kind": "died"}, {"losses": 3}, "lost"),
    ],
)
async def test_a_dead_letter_has_a_reason(flow: Flow, result: dict, columns: dict, reason: str):
    lease = await leased(flow, attempts=20, **columns)
    await flow.settle(lease, **result)
    assert flow.db.task(lease.id)["dead_reason"] == reason


async def test_what_is_counted_is_what_postgres_accepted(flow: Flow):
    flow.metrics.know_types({"noop"})
    labels = {"type": "noop", "priority": "low"}
    for kind, columns in (
        ("succeeded", {}),
        ("failed", {}),
        ("timed_out", {"failures": 3, "attempts": 9}),
        ("interrupted", {}),
        ("succeeded", {}),
    ):
        lease = await leased(flow, priority="low", **columns)
        await flow.settle(lease, kind=kind, run_us=1000)
    assert flow.counted("tasks_succeeded_total", **labels) == 2
    assert flow.counted("tasks_failed_total", **labels) == 2
    assert flow.counted("tasks_retried_total") == 1
    assert flow.counted("tasks_released_total") == 1
    assert flow.counted("tasks_dead_total", reason="timed_out", **labels) == 1
    assert flow.counted("task_run_seconds_count", type="noop") == 5


async def test_a_type_from_elsewhere_is_counted_as_other(flow: Flow):
    """Types are the users' words: as labels they would grow without end."""
    lease = await leased(flow, "some.users:type", priority="low")
    await flow.settle(lease)
    assert flow.counted("tasks_succeeded_total", type="other", priority="low") == 1


async def test_the_wait_before_a_retry_is_the_settings(make_flow: MakeFlow):
    flow = await make_flow(RETRY_BASE_MS=20_000, RETRY_MAX_MS=60_000)
    for failures, expected in ((0, 20_000), (1, 40_000), (2, 60_000)):
        lease = await leased(flow, failures=failures, attempts=failures)
        await flow.settle(lease, kind="failed")
        assert expected - 5000 < flow.db.task(lease.id)["due_in_ms"] <= expected


async def test_a_type_has_a_backoff_of_its_own_and_a_task_before_it(flow: Flow):
    of_type = Backoff("constant", base_ms=20_000, jitter="none")

    @flow.handler("slow_retry", backoff=of_type)
    async def slow_retry(): ...

    typed = await leased(flow, "slow_retry")
    own = await leased(flow, "slow_retry", backoff=json.dumps({"base_ms": 40_000, "max_ms": 80_000}))
    await flow.settle(typed, own, kind="failed")
    assert 15_000 < flow.db.task(typed.id)["due_in_ms"] <= 20_000
    assert 35_000 < flow.db.task(own.id)["due_in_ms"] <= 40_000
    policy = retry_policy(own, flow.registry.get("slow_retry"), flow.settings)
    assert policy == replace(of_type, base_ms=40_000, max_ms=80_000)


async def test_a_handler_asks_for_its_own_wait(flow: Flow):
    lease = await leased(flow)
    await flow.settle(lease, kind="retry", after_ms=40_000)
    assert 35_000 < flow.db.task(lease.id)["due_in_ms"] <= 40_000


async def test_redis_is_told_after_postgres_and_by_the_lease_that_it_was(flow: Flow):
    lease = await leased(flow)
    with flow.db.transaction() as other:
        other.rows("SELECT FROM tasks WHERE id = %s FOR UPDATE", lease.id)
        settling = asyncio.create_task(flow.settle(lease))
        await flow.db.blocked()
        assert await flow.place(lease.id) == "leases"
    await settling
    assert await flow.place(lease.id) is None


async def lost_and_taken(flow: Flow) -> tuple[Lease, Lease]:
    """A lease that was reaped, and the one that took over."""
    old = await leased(flow)
    await flow.lapse(old.id)
    await flow.reaper().step()
    (new,) = await flow.lease()
    assert (new.id, new.attempt) == (old.id, 2)
    return old, new


@pytest.mark.parametrize("kind", ["succeeded", "failed", "interrupted", "rejected"])
async def test_a_fenced_outcome_changes_nothing_and_leaves_redis_alone(flow: Flow, kind: str):
    old, new = await lost_and_taken(flow)
    before, held = flow.db.task(new.id), await flow.contents()
    await flow.settle(old, kind=kind)
    after = flow.db.task(new.id)
    for moving in ("due_in_ms", "lease_ms"):
        del before[moving], after[moving]
    assert (after, await flow.contents()) == (before, held)
    assert flow.counted("outcomes_fenced_total") == 1
    assert flow.counted("acks_total") == 0
    (run,) = flow.db.runs(old.id)
    assert run["outcome"] == "lost"
    assert run["late_outcome"] == decide(old, Result(kind), None, flow.settings).outcome
    await flow.settle(new)
    assert flow.db.outcomes(new.id) == ["lost", "succeeded"]
    await flow.agree()


async def test_of_two_workers_with_one_task_one_success_counts(flow: Flow):
    old, new = await lost_and_taken(flow)
    await asyncio.gather(flow.settle(old), flow.settle(new))
    assert flow.db.outcomes(new.id) == ["lost", "succeeded"]
    assert flow.counted("outcomes_fenced_total") == 1
    await flow.agree()


async def test_a_worker_that_took_a_task_again_tells_its_two_outcomes_apart(flow: Flow):
    old, new = await lost_and_taken(flow)
    await flow.settle(old, new)
    assert flow.db.outcomes(new.id) == ["lost", "succeeded"]
    assert [run["late_outcome"] for run in flow.db.runs(new.id)] == ["succeeded", None]
    assert flow.counted("outcomes_fenced_total") == 1
    assert flow.counted("tasks_succeeded_total", type="other", priority="default") == 1
    await flow.agree()


async def test_many_outcomes_are_settled_in_batches(make_flow: MakeFlow):
    flow = await make_flow(SETTLE_BATCH_SIZE=7)
    for n in range(40):
        await flow.enqueue(priority=PRIORITIES[n % 4])
    leases = await flow.lease()
    await flow.settle(*leases)
    assert len(leases) == flow.db.value("SELECT count(*) FROM tasks WHERE status = 'succeeded'") == 40
    batches = flow.db.value("SELECT count(DISTINCT xmin::text) FROM tasks")
    assert 6 <= batches <= 12
    await flow.agree()


class Gate:
    """A store whose settles wait until they are let through; `sizes` has the outcomes of each."""

    def __init__(self, flow: Flow, monkeypatch: pytest.MonkeyPatch) -> None:
        self.sizes: list[int] = []
        self.open = asyncio.Event()
        self.add: Callable[[Settlement], None]
        self._settle = flow.store.settle
        monkeypatch.setattr(flow.store, "settle", self)

    async def __call__(self, settlements, *, worker):
        self.sizes.append(len(settlements))
        await self.open.wait()
        return await self._settle(settlements, worker=worker)

    @asynccontextmanager
    async def behind(self, flow: Flow, n: int) -> AsyncIterator[list[Settlement]]:
        """A settler with one outcome on its way; `n` more, to be added, after which the gate opens."""
        for _ in range(1 + n):
            await flow.enqueue()
        first, *rest = [decide(x, Result("succeeded"), None, flow.settings) for x in await flow.lease()]
        settler = flow.settler()
        settler.start()
        settler.add(first)
        await eventually(lambda: self.sizes == [1])
        self.add = settler.add
        yield rest
        self.open.set()
        await settler.stop()
        await flow.agree()


async def test_a_few_outcomes_wait_for_the_batch_before_them(flow: Flow, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("scheduler.settle._YOUNG_S", 60.0)
    gate = Gate(flow, monkeypatch)
    async with gate.behind(flow, 5) as rest:
        for settlement in rest:  # one after the other, and a flusher is free
            gate.add(settlement)
            await asyncio.sleep(0.01)
    assert gate.sizes == [1, 5]


@pytest.mark.parametrize(("young_s", "batch"), [(0.0, 500), (60.0, 5)], ids=["stuck", "a full batch"])
async def test_outcomes_do_not_wait_for_a_batch_that_is_stuck_nor_once_they_fill_one(
    make_flow: MakeFlow, monkeypatch: pytest.MonkeyPatch, young_s: float, batch: int
):
    monkeypatch.setattr("scheduler.settle._YOUNG_S", young_s)
    flow = await make_flow(SETTLE_BATCH_SIZE=batch)
    gate = Gate(flow, monkeypatch)
    async with gate.behind(flow, 5) as rest:
        for settlement in rest:
            gate.add(settlement)
        await eventually(lambda: gate.sizes == [1, 5])


async def test_what_comes_meanwhile_does_not_make_an_outcome_wait_longer(
    flow: Flow, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("scheduler.settle._YOUNG_S", 1.0)
    gate = Gate(flow, monkeypatch)
    async with gate.behind(flow, 2) as rest:
        gate.add(rest[0])
        await asyncio.sleep(0.7)
        gate.add(rest[1])
        await eventually(lambda: gate.sizes == [1, 2], 0.7)


async def test_outcomes_do_not_wait_for_a_flusher_that_only_tells_redis(
    make_flow: MakeFlow, monkeypatch: pytest.MonkeyPatch, redis_url: str, proxy: Callable[[str], Proxy]
):
    monkeypatch.setattr("scheduler.settle._YOUNG_S", 60.0)
    link = proxy(redis_url)
    flow = await make_flow(REDIS_ADDR=link.url, STORE_TIMEOUT_MS=5000)
    first, second = await leased(flow), await leased(flow)
    settler = flow.settler()
    settler.start()
    link.stop()
    settler.add(decide(first, Result("succeeded"), None, flow.settings))
    await eventually(lambda: flow.held.all() == [second])
    link.start()
    link.swallow("down")
    await eventually(
        lambda: list(settler._in_hand.values()) == [[]]
    )  # asked Redis again, and is not answered
    settler.add(decide(second, Result("succeeded"), None, flow.settings))
    await eventually(lambda: flow.status(second.id) == "succeeded", 3)
    link.heal()
    link.reset()
    await settler.stop()
    await flow.agree()


@pytest.mark.parametrize("poisoned", [0, 3, 6])
async def test_a_poisoned_error_is_settled_without_its_text_and_its_neighbours_with_theirs(
    flow: Flow, poisoned: int
):
    """Texts are made safe before; should one slip through, its batch must not pay for it."""
    for _ in range(7):
        await flow.enqueue()
    leases = await flow.lease()
    settler = flow.settler()
    for n, lease in enumerate(leases):
        text = "a\0b" if n == poisoned else f"failure {n}"
        settler.add(Settlement(lease, "failed", "retrying", delay_ms=60_000, error=text))
    settler.start()
    await settler.stop()
    assert [flow.status(lease.id) for lease in leases] == ["retrying"] * 7
    errors = [flow.db.task(lease.id)["last_error"] for lease in leases]
    assert errors == [None if n == poisoned else f"failure {n}" for n in range(7)]
    await flow.agree()


@pytest.mark.parametrize("poisoned", [0, 3, 6])
async def test_an_outcome_that_cannot_be_recorded_does_not_keep_its_neighbours(flow: Flow, poisoned: int):
    """A defect of ours. The neighbours are settled and told; the culprit is the reaper's."""
    for _ in range(7):
        await flow.enqueue()
    leases = await flow.lease()
    settler = flow.settler()
    for n, lease in enumerate(leases):
        delay = 2**62 if n == poisoned else 60_000
        settler.add(Settlement(lease, "failed", "retrying", delay_ms=delay, error="why"))
    settler.start()
    await settler.stop()
    statuses = [flow.status(lease.id) for lease in leases]
    assert statuses == ["running" if n == poisoned else "retrying" for n in range(7)]
    assert flow.held.all() == []
    await flow.agree()
    await flow.lapse(leases[poisoned].id)
    await flow.reaper().step()
    assert flow.status(leases[poisoned].id) == "queued"


async def test_an_outcome_that_breaks_a_rule_of_the_schema_does_not_keep_its_neighbours(flow: Flow):
    for _ in range(4):
        await flow.enqueue()
    leases = await flow.lease()
    settler = flow.settler()
    for n, lease in enumerate(leases):
        settler.add(Settlement(lease, "failed", "dead", reason=None if n == 1 else "failed"))
    settler.start()
    async with asyncio.timeout(5):
        await settler.stop()
    assert [flow.status(lease.id) for lease in leases] == ["dead", "running", "dead", "dead"]
    await flow.agree()


async def test_a_settle_whose_answer_is_lost_is_sent_again_and_counts_once(
    make_flow: MakeFlow, flow_db: Database, proxy: Callable[[str], Proxy]
):
    link = proxy(flow_db.url)
    flow = await make_flow(POSTGRES_URL=link.url, STORE_TIMEOUT_MS=300)
    await flow.enqueue("always_fail")
    (lease,) = await flow.lease()
    link.swallow("down")
    settling = asyncio.create_task(flow.settle(lease, kind="failed"))
    await flow.becomes(lease.id, "retrying")
    link.reset()
    link.heal()
    await settling
    assert (flow.db.outcomes(lease.id), flow.db.task(lease.id)["failures"]) == (["failed"], 1)
    assert flow.db.runs(lease.id)[0]["late_outcome"] is None
    assert flow.counted("outcomes_fenced_total") == 0
    await flow.agree()


async def test_a_settle_waits_for_postgres_with_the_same_fence(
    make_flow: MakeFlow, flow_db: Database, proxy: Callable[[str], Proxy]
):
    link = proxy(flow_db.url)
    flow = await make_flow(POSTGRES_URL=link.url, STORE_TIMEOUT_MS=300)
    id_ = await flow.enqueue()
    (lease,) = await flow.lease()
    link.stop()
    settling = asyncio.create_task(flow.settle(lease))
    await asyncio.wait({settling}, timeout=0.3)
    assert not settling.done()
    assert flow.held.all() == [lease], "the heartbeat goes on for it"
    link.start()
    await settling
    assert flow.db.outcomes(id_) == ["succeeded"]
    assert flow.held.all() == []
    await flow.agree()


async def test_an_outcome_is_given_up_at_its_leases_end(
    make_flow: MakeFlow, flow_db: Database, proxy: Callable[[str], Proxy]
):
    link = proxy(flow_db.url)
    flow = await make_flow(POSTGRES_URL=link.url, STORE_TIMEOUT_MS=100, VIS_TIMEOUT_MS=400)
    id_ = await flow.enqueue()
    (lease,) = await flow.lease()
    link.stop()
    async with asyncio.timeout(5):
        await flow.settle(lease)
    assert flow.held.all() == []
    assert (flow.status(id_), await flow.place(id_)) == ("running", "leases")
    link.start()
    await eventually(lambda: flow.db.task(id_)["lease_ms"] <= 0)
    await flow.lapse(id_)
    await flow.reaper().step()
    assert (flow.db.outcomes(id_), await flow.place(id_)) == (["lost"], "q:default")


@pytest.mark.parametrize("then", ["it comes back", "another outcome comes", "the worker stops"])
async def test_redis_is_told_later_what_it_could_not_be_told(
    make_flow: MakeFlow, redis_url: str, proxy: Callable[[str], Proxy], then: str
):
    link = proxy(redis_url)
    flow = await make_flow(REDIS_ADDR=link.url, STORE_TIMEOUT_MS=300)
    first, second = await leased(flow), await leased(flow)
    settler = flow.settler()
    settler.start()
    link.stop()
    settler.add(decide(first, Result("succeeded"), None, flow.settings))
    await eventually(lambda: flow.held.all() == [second])
    assert (flow.status(first.id), await flow.place(first.id)) == ("succeeded", "leases")
    link.start()
    if then == "it comes back":
        await eventually(lambda: flow.counted("acks_total") == 1)
    if then == "another outcome comes":
        settler.add(decide(second, Result("succeeded"), None, flow.settings))
        await eventually(lambda: flow.counted("acks_total") == 2)
    await settler.stop()
    assert await flow.place(first.id) is None
    await flow.agree()


async def test_stopping_records_what_waits(flow: Flow):
    for _ in range(5):
        await flow.enqueue()
    leases = await flow.lease()
    settler = flow.settler()
    settler.start()
    for lease in leases:
        settler.add(decide(lease, Result("succeeded"), None, flow.settings))
    assert [s.lease for s in settler.outstanding()] == leases
    await settler.stop()
    assert settler.outstanding() == []
    assert {flow.status(lease.id) for lease in leases} == {"succeeded"}


async def test_every_settlement_has_one_destination(flow: Flow):
    lease = await leased(flow, priority="low")
    for kind, place in (
        ("succeeded", "gone"),
        ("failed", "retry"),
        ("rejected", "dead"),
        ("interrupted", "head"),
    ):
        moved = move(decide(lease, Result(kind), None, flow.settings))
        assert (moved.id, moved.token, moved.where) == (lease.id, lease.token, place)
        assert moved.priority == ("low" if place != "gone" else "default")


SLOW_HISTORY = """
CREATE FUNCTION be_slow() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN PERFORM pg_sleep(0.02); RETURN NEW; END';
CREATE TRIGGER be_slow BEFORE INSERT ON task_runs FOR EACH ROW EXECUTE FUNCTION be_slow();
"""


async def test_a_batch_that_takes_too_long_is_recorded_in_parts(make_flow: MakeFlow, flow_db: Database):
    """Sent again as it was, it would take too long again, until the leases end and all of it runs again."""
    db = flow_db
    flow = await make_flow(STORE_TIMEOUT_MS=300, VIS_TIMEOUT_MS=20_000)
    await flow.enqueue_many(40)  # 0.8 s of history at once
    leases = await flow.lease()
    db.rows(SLOW_HISTORY)
    try:
        await flow.settle(*leases)
    finally:
        db.rows("DROP TRIGGER be_slow ON task_runs; DROP FUNCTION be_slow()")
    assert [db.outcomes(lease.id) for lease in leases] == [["succeeded"]] * 40
    await flow.agree()


async def test_rows_that_somebody_has_locked_hold_up_no_batch(make_flow: MakeFlow):
    """Two of them, as there are two flushers. What is recorded is placed, and no lease of it is held."""
    flow = await make_flow(STORE_TIMEOUT_MS=300)
    for _ in range(9):
        await flow.enqueue()
    leases = await flow.lease()
    done = [decide(lease, Result("succeeded"), None, flow.settings) for lease in leases]
    settler = flow.settler()
    settler.start()
    with flow.db.transaction() as operator:
        locked = [leases[0].id, leases[4].id]
        operator.rows("SELECT FROM tasks WHERE id = ANY (%s::uuid[]) FOR UPDATE", locked)
        for part in (done[:4], done[4:8]):
            for settlement in part:
                settler.add(settlement)
            await eventually(lambda part=part: flow.status(part[1].lease.id) == "succeeded")
        await eventually(lambda: {lease.id for lease in flow.held.all()} == {*locked, leases[8].id})
        assert {s.lease.id for s in settler.outstanding()} == set(locked)
        assert (await flow.contents()).leases.keys() == {*locked, leases[8].id}
        settler.add(done[8])
        await eventually(lambda: {lease.id for lease in flow.held.all()} == set(locked))
    await eventually(lambda: all(flow.status(lease.id) == "succeeded" for lease in leases))
    await eventually(lambda: flow.held.all() == [])
    await settler.stop()
    await flow.agree()


async def test_a_row_that_somebody_has_locked_keeps_no_other_outcome_waiting(make_flow: MakeFlow):
    """An operator's open transaction, say. What is first in the batch must not stay first."""
    flow = await make_flow(STORE_TIMEOUT_MS=300)
    for _ in range(8):
        await flow.enqueue()
    leases = await flow.lease()
    with flow.db.transaction() as operator:
        operator.rows("SELECT FROM tasks WHERE id = %s FOR UPDATE", leases[0].id)
        settling = asyncio.create_task(flow.settle(*leases))
        await eventually(lambda: all(flow.status(lease.id) == "succeeded" for lease in leases[1:]))
        assert flow.status(leases[0].id) == "running"
    await settling
    assert flow.status(leases[0].id) == "succeeded"
    await flow.agree()
