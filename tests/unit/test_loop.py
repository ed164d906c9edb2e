"""The one background loop: it repeats, it outlives every failure, and it stops at any moment."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from time import monotonic

import pytest
from waiting import eventually

from scheduler import loop as module
from scheduler.errors import StoreUnavailable
from scheduler.loop import Loop
from scheduler.metrics import Metrics

HOUR_S = 3600.0
Make = Callable[..., Loop]


@pytest.fixture
def metrics() -> Metrics:
    return Metrics()


@pytest.fixture
async def make(metrics: Metrics) -> AsyncIterator[Make]:
    """Make loops that are stopped after the test."""
    loops: list[Loop] = []

    def make(step: Callable[[], Awaitable[bool | None]], interval_s: float = HOUR_S) -> Loop:
        loops.append(Loop("test", interval_s, step, metrics))
        return loops[-1]

    yield make
    for each in loops:
        await each.stop()


class Step:
    """A step that counts its calls and says or raises what it is told."""

    def __init__(self, *answers: bool | Exception | None) -> None:
        self.answers = list(answers)
        self.times: list[float] = []

    async def __call__(self) -> bool | None:
        self.times.append(monotonic())
        answer = self.answers.pop(0) if self.answers else None
        if isinstance(answer, Exception):
            raise answer
        return answer

    async def called(self, n: int) -> None:
        await eventually(lambda: len(self.times) >= n)


def errors(metrics: Metrics) -> float | None:
    return metrics.registry.get_sample_value("loop_errors_total", {"loop": "test"})


async def test_it_begins_at_once_and_repeats_after_its_interval(make: Make):
    step = Step()
    make(step, 0.05).start()
    await step.called(4)
    gaps = [b - a for a, b in zip(step.times, step.times[1:], strict=False)]
    assert min(gaps) >= 0.05


async def test_work_left_behind_is_done_at_once(make: Make):
    step = Step(True, True, True, False)
    loop = make(step)
    loop.start()
    await step.called(4)
    assert step.times[-1] - step.times[0] < 1


async def test_endless_work_lets_the_others_run(make: Make):
    step = Step(*[True] * 10_000)
    make(step).start()
    turns = 0
    while len(step.times) < 100:
        turns += 1
        await asyncio.sleep(0)
    assert turns >= 50


@pytest.mark.parametrize("error", [StoreUnavailable("away"), RuntimeError("a defect"), TimeoutError()])
async def test_no_failure_ends_it(make: Make, metrics: Metrics, error: Exception):
    step = Step(error, error, None)
    loop = make(step)
    loop.start()
    async with asyncio.timeout(10):
        await loop.ticked.wait()
    assert errors(metrics) == 2


async def test_failures_are_followed_by_growing_pauses(make: Make, monkeypatch: pytest.MonkeyPatch):
    """They double from 0.1 s, no loop in step with another, so that no store that comes back is stormed."""
    monkeypatch.setattr(module, "_FIRST_PAUSE_S", 0.02)
    step = Step(*[StoreUnavailable("away")] * 5)
    make(step).start()
    await step.called(6)
    gaps = [b - a for a, b in zip(step.times, step.times[1:], strict=False)]
    for n, gap in enumerate(gaps[:5]):
        assert gap >= 0.02 * 2**n / 2, gaps


async def test_a_pause_is_never_longer_than_two_seconds(make: Make):
    loop = make(Step())
    slept: list[float] = []

    async def remember(seconds: float) -> None:
        slept.append(seconds)
        if len(slept) == 40:
            loop._stopping.set()

    loop._sleep = remember
    loop._step = Step(*[StoreUnavailable("away")] * 40)
    await loop._run()
    assert all(1 <= pause <= 2 for pause in slept[5:])
    assert 0.05 <= slept[0] <= 0.1


async def test_after_a_success_the_pauses_begin_anew(make: Make):
    away = StoreUnavailable("away")
    step = Step(away, away, away, True, away, None)
    loop = make(step)
    loop.start()
    await step.called(6)
    assert step.times[5] - step.times[4] < 0.3


async def test_each_success_is_signalled(make: Make):
    step = Step(RuntimeError("a defect"))
    loop = make(step, 0.01)
    loop.start()
    await step.called(1)
    assert not loop.ticked.is_set()
    for _ in range(3):
        loop.ticked.clear()
        async with asyncio.timeout(5):
            await loop.ticked.wait()


async def test_it_stops_at_once_while_it_waits(make: Make):
    step = Step()
    loop = make(step)
    loop.start()
    await step.called(1)
    before = monotonic()
    await loop.stop()
    assert monotonic() - before < 1


async def test_it_stops_at_once_while_it_pauses_after_a_failure(make: Make, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "_FIRST_PAUSE_S", HOUR_S)
    monkeypatch.setattr(module, "_LONGEST_PAUSE_S", HOUR_S)
    step = Step(RuntimeError("a defect"))
    loop = make(step)
    loop.start()
    await step.called(1)
    async with asyncio.timeout(5):
        await loop.stop()


async def test_it_lets_the_step_in_hand_finish(make: Make):
    began, may_end = asyncio.Event(), asyncio.Event()
    finished = False

    async def step() -> None:
        nonlocal finished
        began.set()
        await may_end.wait()
        finished = True

    loop = make(step)
    loop.start()
    await began.wait()
    stopping = asyncio.create_task(loop.stop())
    await asyncio.wait({stopping}, timeout=0.02)
    assert not stopping.done()
    may_end.set()
    await stopping
    assert finished


async def test_a_step_that_fails_while_it_stops_does_no_harm(make: Make):
    began, may_end = asyncio.Event(), asyncio.Event()

    async def step() -> None:
        began.set()
        await may_end.wait()
        raise RuntimeError("a defect")

    loop = make(step)
    loop.start()
    await began.wait()
    stopping = asyncio.create_task(loop.stop())
    may_end.set()
    async with asyncio.timeout(5):
        await stopping


async def test_stopping_twice_or_before_the_start_is_fine(make: Make):
    step = Step()
    never = make(step)
    await never.stop()
    never.start()
    await never.stop()
    assert step.times == [], "it was stopped before it began"
    loop = make(step)
    loop.start()
    await asyncio.gather(loop.stop(), loop.stop())
    await loop.stop()


@pytest.mark.parametrize("seed", range(3))
async def test_it_starts_and_stops_under_stress(make: Make, seed: int):
    """Hundreds of loops, each stopped at a moment of its own: none hangs, none steps after its stop."""
    rng = random.Random(seed)

    async def live() -> None:
        answers = [rng.choice([True, None, StoreUnavailable("away")]) for _ in range(50)]
        step = Step(*answers)
        loop = make(step, rng.choice([0.0, 0.001, HOUR_S]))
        loop.start()
        for _ in range(rng.randint(0, 20)):
            await asyncio.sleep(0)
        await asyncio.gather(*(loop.stop() for _ in range(rng.randint(1, 3))))
        steps = len(step.times)
        await asyncio.sleep(0)
        assert len(step.times) == steps

    async with asyncio.timeout(20):
        await asyncio.gather(*(live() for _ in range(200)))
