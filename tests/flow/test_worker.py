"""A whole worker: what each kind of handler leads to, and which task runs where and when."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from itertools import pairwise
from typing import Any

import pytest
from fix_flow import Flow, MakeFlow
from pydantic import BaseModel
from waiting import eventually

from scheduler.backoff import Backoff
from scheduler.errors import Reject, Retry
from scheduler.model import PRIORITIES
from scheduler.shard import Shard


async def test_a_task_succeeds(flow: Flow):
    async with flow.worker():
        id_ = await flow.enqueue()
        await flow.ended(id_)
    row, (run,) = flow.db.task(id_), flow.db.runs(id_)
    assert (row["status"], row["attempts"], row["failures"]) == ("succeeded", 1, 0)
    assert (run["outcome"], run["error"], run["late_outcome"]) == ("succeeded", None, None)
    assert row["created_at"] <= run["claimed_at"] <= run["started_at"] <= run["finished_at"]
    await flow.agree()


async def test_a_flaky_task_fails_waits_and_succeeds(flow: Flow):
    id_ = await flow.enqueue("flaky", {"fail_times": 3}, max_retries=3)
    async with flow.worker():
        await flow.ended(id_)
    row = flow.db.task(id_)
    assert flow.db.outcomes(id_) == ["failed"] * 3 + ["succeeded"]
    assert (row["status"], row["attempts"], row["failures"]) == ("succeeded", 4, 3)
    assert [run["error"].split(" (")[0] for run in flow.db.runs(id_)[:3]] == [
        f"RuntimeError: flaky: failure {n} of 3" for n in (1, 2, 3)
    ]
    assert flow.counted("tasks_retried_total") == 3
    await flow.agree()


@pytest.mark.parametrize("max_retries", [0, 2])
async def test_a_task_that_always_fails_ends_among_the_dead_letters(flow: Flow, max_retries: int):
    id_ = await flow.enqueue("always_fail", max_retries=max_retries, priority="low")
    async with flow.worker():
        await flow.ended(id_)
    row = flow.db.task(id_)
    assert flow.db.outcomes(id_) == ["failed"] * (max_retries + 1)
    assert (row["status"], row["dead_reason"], row["failures"]) == ("dead", "failed", max_retries + 1)
    assert await flow.place(id_) == "dlq:low"
    assert flow.counted("tasks_dead_total", type="always_fail", priority="low", reason="failed") == 1
    await flow.agree()


async def test_a_rejected_task_is_not_retried(flow: Flow):
    @flow.handler("rejects")
    async def rejects():
        raise Reject("never")

    id_ = await flow.enqueue("rejects", max_retries=9)
    async with flow.worker():
        await flow.ended(id_)
    assert (flow.db.outcomes(id_), flow.db.task(id_)["dead_reason"]) == (["failed"], "rejected")
    await flow.agree()


async def test_a_handler_may_say_when_to_try_again(flow: Flow):
    @flow.handler("asks", backoff=Backoff(base_ms=30_000, max_ms=30_000))
    async def asks(_: dict, ctx):
        if ctx.failures < 2:
            raise Retry(after_ms=100)

    id_ = await flow.enqueue("asks")
    async with flow.worker():
        await flow.ended(id_)
    assert flow.db.outcomes(id_) == ["failed", "failed", "succeeded"]
    first, second, _ = flow.db.runs(id_)
    # A run is dated by durations from its claim, which are counted from when the claim was sent.
    assert (second["claimed_at"] - first["finished_at"]).total_seconds() >= 0.07


async def test_a_task_past_its_timeout_is_cancelled_and_retried(flow: Flow):
    cancelled: list[int] = []

    @flow.handler("slow_once", timeout_ms=100)
    async def slow_once(_: dict, ctx):
        if ctx.failures == 0:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                cancelled.append(ctx.attempt)
                raise

    id_ = await flow.enqueue("slow_once")
    async with flow.worker():
        await flow.ended(id_)
    assert (flow.db.outcomes(id_), cancelled) == (["timed_out", "succeeded"], [1])
    (run, _) = flow.db.runs(id_)
    assert 0.1 <= (run["finished_at"] - run["started_at"]).total_seconds() < 2
    assert flow.counted("tasks_failed_total", type="slow_once", priority="default") == 1


async def test_timeouts_are_failures_and_kill_with_their_own_reason(flow: Flow):
    @flow.handler("endless", timeout_ms=60)
    async def endless():
        await asyncio.Event().wait()

    id_ = await flow.enqueue("endless", max_retries=1)
    async with flow.worker():
        await flow.ended(id_)
    assert (flow.db.outcomes(id_), flow.db.task(id_)["dead_reason"]) == (["timed_out"] * 2, "timed_out")


async def test_plain_functions_run_in_threads_beside_each_other(flow: Flow):
    together = threading.Barrier(4)

    @flow.handler("plain")
    def plain(payload: dict, ctx):
        together.wait(10)
        assert threading.current_thread() is not threading.main_thread()

    ids = [await flow.enqueue("plain") for _ in range(4)]
    async with flow.worker():
        await flow.ended(*ids)
    assert {flow.status(id_) for id_ in ids} == {"succeeded"}


async def test_a_payload_is_validated_before_the_handler_is_called(flow: Flow):
    class Order(BaseModel):
        items: list[int]

    seen: list[Order] = []

    async def order(payload: Order) -> None:
        seen.append(payload)

    order.__annotations__["payload"] = Order  # a local class has no name that could be looked up
    flow.handler("order")(order)
    good = await flow.enqueue("order", {"items": [1, "2"]})
    bad = await flow.enqueue("order", {"items": "hunter2"}, max_retries=9)
    async with flow.worker():
        await flow.ended(good, bad)
    assert seen == [Order(items=[1, 2])]
    assert (flow.db.outcomes(bad), flow.db.task(bad)["dead_reason"]) == (["failed"], "rejected")
    assert "hunter2" not in flow.db.task(bad)["last_error"]


async def test_an_unknown_type_is_given_back_for_a_while_and_then_dead(make_flow: MakeFlow):
    """Another version of the worker may know it. It is no failure of the task."""
    flow = await make_flow(UNKNOWN_TYPE_DELAY_MS=50, MAX_REFUSALS=2)
    id_ = await flow.enqueue("from_tomorrow", max_retries=0)
    async with flow.worker():
        await flow.ended(id_)
    row, runs = flow.db.task(id_), flow.db.runs(id_)
    assert flow.db.outcomes(id_) == ["released"] * 3
    assert (row["status"], row["dead_reason"], row["failures"], row["losses"]) == (
        "dead",
        "unknown_type",
        0,
        0,
    )
    assert "from_tomorrow" in row["last_error"]
    assert {run["started_at"] for run in runs} == {None}
    gaps = [(b["claimed_at"] - a["finished_at"]).total_seconds() for a, b in pairwise(runs)]
    assert min(gaps) >= 0.05
    await flow.agree()


async def test_a_type_that_becomes_known_meanwhile_is_run(make_flow: MakeFlow):
    flow = await make_flow(UNKNOWN_TYPE_DELAY_MS=50)
    id_ = await flow.enqueue("from_tomorrow")
    async with flow.worker():
        await eventually(lambda: flow.db.runs(id_))

        @flow.handler("from_tomorrow")
        async def from_tomorrow(): ...

        await flow.ended(id_)
    assert flow.db.outcomes(id_)[-1] == "succeeded"


async def test_a_sleeper_loses_each_lease_and_dies_as_lost(make_flow: MakeFlow):
    flow = await make_flow(VIS_TIMEOUT_MS=300, MAX_LOSSES=1)
    id_ = await flow.enqueue("sleeper", {"sleep_ms": 60_000}, max_retries=9)
    async with flow.worker():
        await flow.ended(id_)
        other = await flow.enqueue()
        await flow.ended(other)
    row = flow.db.task(id_)
    assert flow.db.outcomes(id_) == ["lost", "lost"]
    assert (row["status"], row["dead_reason"], row["losses"], row["failures"]) == ("dead", "lost", 2, 0)
    assert not row["suspect"], "its worker lives"
    assert flow.counted("tasks_reaped_total") == 2
    await flow.agree()


async def test_whatever_a_handler_raises_its_worker_goes_on(flow: Flow):
    class Mute(Exception):
        def __str__(self) -> str:
            raise SystemExit(4)

    errors = {
        "exit": SystemExit(3),
        "interrupt": KeyboardInterrupt(),
        "cancel": asyncio.CancelledError(),
        "stop": StopIteration(),
        "mute": Mute(),
        "nul": RuntimeError("a\0b"),
        "surrogate": RuntimeError("\ud800"),
        "long": RuntimeError("x" * 10_000_000),
        "quotes": RuntimeError("'; DROP TABLE tasks; -- %s {} \\"),
    }

    async def raise_later(payload: dict):
        raise errors[payload["what"]]

    def raise_now(payload: dict):
        raise errors[payload["what"]]

    flow.handler("later")(raise_later)
    flow.handler("now")(raise_now)
    ids = {
        (type_, what): await flow.enqueue(type_, {"what": what}, max_retries=0)
        for what in errors
        for type_ in ("later", "now")
    }
    async with flow.worker():
        await flow.ended(*ids.values())
        last = await flow.enqueue()
        await flow.ended(last)
    assert {flow.db.task(id_)["dead_reason"] for id_ in ids.values()} == {"failed"}
    assert Counter(outcome for id_ in ids.values() for outcome in flow.db.outcomes(id_)) == {
        "failed": len(ids)
    }
    for type_ in ("later", "now"):
        assert flow.db.task(ids[type_, "quotes"])["last_error"].startswith(
            f"RuntimeError: {errors['quotes']}"
        )
        assert len(flow.db.task(ids[type_, "long"])["last_error"]) < 5000
    await flow.agree()


async def test_a_retry_beyond_all_time_spoils_nothing(flow: Flow):
    @flow.handler("never")
    async def never():
        raise Retry(after_ms=10**30)

    ids = [await flow.enqueue("never" if n == 3 else "noop") for n in range(6)]
    async with flow.worker():
        await flow.ended(*ids[:3], *ids[4:])
        await flow.becomes(ids[3], "retrying")
    assert flow.db.task(ids[3])["due_in_ms"] > 360 * 86_400_000
    assert [flow.db.outcomes(id_) for id_ in ids[:3] + ids[4:]] == [["succeeded"]] * 5
    await flow.agree()


async def test_higher_priorities_start_first_and_the_lowest_is_not_forgotten(make_flow: MakeFlow):
    flow = await make_flow(WORKER_POOL=1, LEASE_AHEAD_MS=0)
    order: list[str] = []

    @flow.handler("notes")
    async def notes(payload: dict):
        order.append(payload["priority"])

    ids = [await flow.enqueue("notes", {"priority": p}, priority=p) for p in PRIORITIES for _ in range(15)]
    async with flow.worker():
        await flow.ended(*ids)
    assert Counter(order[:15]) == {"critical": 8, "high": 4, "default": 2, "low": 1}
    assert Counter(order) == dict.fromkeys(PRIORITIES, 15)


async def test_two_workers_run_each_task_once(flow: Flow):
    effects: Counter[str] = Counter()

    @flow.handler("counts")
    async def counts(_: dict, ctx):
        effects[ctx.id] += 1
        await asyncio.sleep(0)

    ids = await flow.enqueue_many(300, "counts")
    async with flow.worker(), flow.worker():
        await flow.ended(*ids)
    assert effects == dict.fromkeys(ids, 1)
    assert flow.db.value("SELECT max(attempts) FROM tasks") == 1
    await flow.agree()


async def test_what_waits_behind_slow_tasks_is_run_by_another_worker(make_flow: MakeFlow):
    """The first worker leased it before it knew that its slots would be taken for long."""
    flow = await make_flow(WORKER_POOL=1, LEASE_AHEAD_MS=1000)
    free = asyncio.Event()

    @flow.handler("slow")
    async def slow():
        await free.wait()

    first = await flow.enqueue("slow")
    ids = [await flow.enqueue() for _ in range(5)]
    async with flow.worker():
        await eventually(lambda: flow.db.value("SELECT count(*) FROM tasks WHERE status = 'running'") == 6)
        async with flow.worker():
            await flow.ended(*ids)
            assert flow.status(first) == "running"
            free.set()
            await flow.ended(first)
    assert [flow.db.outcomes(id_) for id_ in ids] == [["released", "succeeded"]] * 5
    assert flow.db.value("SELECT max(failures + losses) FROM tasks") == 0


async def test_a_worker_without_room_passes_a_call_on(make_flow: MakeFlow, monkeypatch: pytest.MonkeyPatch):
    """It began to wait before its slots were stuck, and so is woken before the one that idles."""
    monkeypatch.setattr("scheduler.worker._IDLE_WAIT_S", 60.0)  # or the other one would look by itself
    flow = await make_flow(WORKER_POOL=1, LEASE_AHEAD_MS=1000, RECONCILE_INTERVAL_MS=60_000)
    free = asyncio.Event()

    @flow.handler("slow")
    async def slow():
        await free.wait()

    first = await flow.enqueue("slow")
    async with flow.worker() as full:
        await flow.becomes(first, "running")
        await eventually(lambda: full._slots.room() == 0)
        async with flow.worker():
            await waiting(flow, 2)
            await flow.ended(await flow.enqueue())
            free.set()
            await flow.ended(first)


async def test_a_worker_that_used_its_call_passes_nothing_on(
    make_flow: MakeFlow, monkeypatch: pytest.MonkeyPatch
):
    flow = await make_flow(WORKER_POOL=1, LEASE_AHEAD_MS=0)
    asked: list[int] = []
    lease = Shard.lease

    async def noted(shard: Shard, n: int, *args: Any) -> list[str]:
        asked.append(n)
        return await lease(shard, n, *args)

    monkeypatch.setattr(Shard, "lease", noted)
    async with flow.worker():
        await waiting(flow, 1)
        id_ = await flow.enqueue("sleeper", {"sleep_ms": 50})
        await flow.ended(id_)
    assert set(asked) == {1}


async def waiting(flow: Flow, n: int) -> None:
    """Until so many workers wait to be woken."""

    async def blocked() -> bool:
        return sum("b" in client["flags"] for client in await flow.client.client_list()) == n

    await eventually(blocked)


async def test_a_worker_used_to_noops_does_not_hold_a_backlog_of_large_payloads(make_flow: MakeFlow):
    """It would take them by the hundred, and learn what they weigh when it has them."""
    flow = await make_flow(WORKER_POOL=12, LEASE_BATCH_SIZE=250)
    held: list[int] = []

    @flow.handler("large")
    async def large() -> None:
        held.append(sum(len(lease.payload["text"]) for lease in worker._held.all() if lease.payload))
        await asyncio.sleep(0.01)

    payload = {"text": "x" * 60_000}
    ids = [await flow.enqueue("large", payload, push=False) for _ in range(200)]
    async with flow.worker() as worker:
        await flow.ended(*await flow.enqueue_many(1000))
        await flow.shard.push([(id_, "default", 0) for id_ in ids])
        await flow.ended(*ids)
    assert max(held) < 4_000_000  # of twelve
    assert len(held) == 200
    assert flow.db.value("SELECT count(*) FROM task_runs WHERE outcome = 'succeeded'") == 1200
    await flow.agree()


async def test_a_lone_worker_with_slow_tasks_does_not_lease_and_give_back_all_the_time(make_flow: MakeFlow):
    flow = await make_flow(WORKER_POOL=1, LEASE_AHEAD_MS=10_000)
    free = asyncio.Event()

    @flow.handler("slow")
    async def slow():
        await free.wait()

    slow_one = await flow.enqueue("slow")
    async with flow.worker():
        await flow.becomes(slow_one, "running")
        id_ = await flow.enqueue()
        await eventually(lambda: flow.db.outcomes(id_) == ["released"])
        later = await flow.enqueue()
        await asyncio.sleep(0.5)  # in which it went round ten times
        assert len(flow.db.outcomes(id_)) + len(flow.db.outcomes(later)) <= 3
        free.set()
        await flow.ended(slow_one, id_, later)
