"""A handler that nothing can end: who is to blame, and when the worker leaves because of it."""

from __future__ import annotations

import asyncio
import threading
import time
from typing import Any, NoReturn

import pytest
from fix_flow import Flow, MakeFlow
from waiting import eventually

from scheduler import clock
from scheduler.store import Store

QUICK = {"VIS_TIMEOUT_MS": 800, "RETRY_BASE_MS": 60_000, "RETRY_MAX_MS": 60_000}
"""With a beat every 0.1 s. What is tried again comes too late for the test."""

BLOCK_S = 2.0


@pytest.fixture
def left(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The exit codes of workers that have left; in these tests they live on."""
    codes: list[int] = []

    def leave(code: int) -> NoReturn:
        codes.append(code)
        raise RuntimeError("the process would have ended")

    monkeypatch.setattr("scheduler.worker.os._exit", leave)
    monkeypatch.setattr("scheduler.worker._STUCK_AFTER_S", 0.4)
    monkeypatch.setattr("scheduler.worker._MOMENT_S", 0.25)
    monkeypatch.setattr("scheduler.slots._BLOCKED_S", 0.2)
    return codes


@pytest.fixture
async def flow(make_flow: MakeFlow) -> Flow:
    """With a handler that blocks the loop, one that starts a task that does, and one that waits for ever."""
    flow = await make_flow(**QUICK)
    waiting = asyncio.Event()

    async def block() -> None:
        await waiting.wait()
        time.sleep(BLOCK_S)  # noqa: ASYNC251 - the loop must be blocked

    @flow.handler("blocks")
    async def blocks():
        await block()

    @flow.handler("blocks_in_a_task")
    async def blocks_in_a_task():
        await asyncio.create_task(block())

    @flow.handler("waits")
    async def waits():
        waiting.set()
        await asyncio.Event().wait()

    return flow


@pytest.mark.parametrize("type_", ["blocks", "blocks_in_a_task"])
async def test_a_neighbour_that_cannot_be_ended_while_the_loop_is_blocked_is_not_to_blame(
    flow: Flow, left: list[int], type_: str
):
    culprit = await flow.enqueue(type_, timeout_ms=60_000)
    async with flow.worker():
        await flow.becomes(culprit, "running")
        neighbour = await flow.enqueue("waits", timeout_ms=100)
        await flow.ended(culprit)
        await eventually(lambda: flow.db.outcomes(neighbour))
    assert left == []
    assert (flow.db.outcomes(culprit), flow.db.outcomes(neighbour)) == (["succeeded"], ["timed_out"])
    assert "could not be ended" not in flow.db.runs(neighbour)[0]["error"]


async def test_the_handler_that_blocks_the_loop_past_its_timeout_is_to_blame(flow: Flow, left: list[int]):
    culprit = await flow.enqueue("blocks", timeout_ms=800)
    async with flow.worker():
        await flow.becomes(culprit, "running")
        neighbour = await flow.enqueue("waits", timeout_ms=100)
        await eventually(lambda: flow.db.outcomes(culprit))
    assert set(left) == {70}
    assert (flow.db.outcomes(culprit), flow.db.outcomes(neighbour)) == (["timed_out"], ["released"])
    assert "could not be ended" in flow.db.runs(culprit)[0]["error"]


async def test_where_nobody_knows_who_blocks_the_loop_the_time_of_all_must_be_up(flow: Flow, left: list[int]):
    culprit = await flow.enqueue("blocks_in_a_task", timeout_ms=800)
    async with flow.worker():
        await flow.becomes(culprit, "running")
        neighbour = await flow.enqueue("waits", timeout_ms=100)
        await eventually(lambda: flow.db.outcomes(culprit))
    assert set(left) == {70}
    assert (flow.db.outcomes(culprit), flow.db.outcomes(neighbour)) == (["timed_out"], ["timed_out"])


async def test_a_thread_that_hangs_is_to_blame_while_the_loop_turns(flow: Flow, left: list[int]):
    may_end = threading.Event()

    @flow.handler("hangs")
    def hangs():
        may_end.wait(10)

    culprit, neighbour = await flow.enqueue("hangs", timeout_ms=100), await flow.enqueue("noop")
    async with flow.worker():
        await eventually(lambda: left)
        may_end.set()
    assert set(left) == {70}
    assert (flow.db.outcomes(culprit), flow.db.outcomes(neighbour)) == (["timed_out"], ["succeeded"])


async def test_what_was_granted_to_a_claim_that_nobody_will_read_is_given_back(
    flow: Flow, left: list[int], monkeypatch: pytest.MonkeyPatch
):
    """A worker that has signed off is dead, and what it still held would be lost."""
    granted = asyncio.Event()
    claims = 0

    class Slow(Store):
        """Postgres grants the second claim, whose answer comes after the loop was blocked."""

        async def claim(self, *args: Any, **options: Any) -> Any:
            nonlocal claims
            claims += 1
            answer = await super().claim(*args, **options)
            if claims > 1 and answer[0]:
                granted.set()
                await asyncio.sleep(2 * BLOCK_S)
            return answer

    @flow.handler("blocks_when_granted")
    async def blocks_when_granted():
        await granted.wait()
        time.sleep(BLOCK_S)  # noqa: ASYNC251 - the loop must be blocked

    store = await Slow.open(flow.settings, name="slow", max_conns=4)
    try:
        culprit = await flow.enqueue("blocks_when_granted", timeout_ms=400)
        async with flow.worker(store=store):
            await flow.becomes(culprit, "running")
            neighbour = await flow.enqueue("noop")
            await eventually(lambda: flow.db.outcomes(culprit))
            await eventually(lambda: flow.db.outcomes(neighbour))
    finally:
        await store.close()
    assert set(left) == {70}
    assert (flow.db.outcomes(culprit), flow.db.outcomes(neighbour)) == (["timed_out"], ["released"])


async def test_a_run_that_was_overdue_because_all_of_the_process_stood_still_is_no_reason_to_leave(
    flow: Flow, left: list[int], monkeypatch: pytest.MonkeyPatch
):
    """As after SIGSTOP and SIGCONT, when the heartbeat's thread happens to go on first."""
    stood_s, now = 0.0, clock.monotonic
    monkeypatch.setattr(clock, "monotonic", lambda: now() + stood_s)
    looks: list[threading.Thread] = []
    task = await flow.enqueue("waits", timeout_ms=1000)
    async with flow.worker() as worker:
        await flow.becomes(task, "running")

        def go_on() -> None:
            nonlocal stood_s
            stood_s = 5.0
            looks.append(threading.Thread(target=lambda: asyncio.run(worker._end_if_stuck(None))))
            looks[0].start()
            time.sleep(0.1)  # it looks before anything here can

        asyncio.get_running_loop().call_soon(go_on)
        await eventually(lambda: looks and not looks[0].is_alive())
    assert left == []
