"""Runs a simulation: its loop, its clock, and nothing of the real world."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import reduce
from multiprocessing import get_context
from operator import add
from random import Random
from time import process_time
from typing import Any

import structlog
from simulation import checks, fleet
from simulation.pace import Pace, yardstick
from simulation.plan import Plan, plan
from simulation.world import World

from scheduler import clock, loop, reconcile, settle, worker

_JOB = 50
REPLAY = "PYTHONPATH=tests .venv/bin/python -m simulation {seed}"


@dataclass(frozen=True)
class Report:
    """What came of a seed: what was broken, when all was at rest, and the log if it was asked for."""

    plan: Plan
    broken: list[str]
    seconds: float
    log: list[str]

    def __str__(self) -> str:
        kinds = " ".join(sorted(self.plan.kinds)) or "no trouble"
        why = "\n  ".join(self.broken) or "nothing is broken"
        return f"seed {self.plan.seed} ({kinds}):\n  {why}\nreplay: {REPLAY.format(seed=self.plan.seed)}"


def simulate(seed: int, *, verbose: bool = False) -> Report:
    """Run one seed."""
    world = World(plan(seed), verbose=verbose)
    with _instead(world):
        world.loop.set_exception_handler(lambda _, context: world.fail(_text(context)))
        try:
            world.loop.run_until_complete(world.run())
        except RuntimeError as error:
            world.fail(str(error))
        world.loop.set_exception_handler(lambda *_: None)
        world.loop.bury()
    broken = [*world.broken, *checks.violations(world)]
    return Report(world.plan, broken[:20], world.loop.time(), world.log or [])


def broken(seeds: range) -> list[Report]:
    """What came of the seeds that broke something."""
    return [report for report in map(simulate, seeds) if report.broken]


def all_broken(seeds: range) -> tuple[list[Report], Pace]:
    """The same, on all processors; and what it took."""
    jobs = [seeds[i : i + _JOB] for i in range(0, len(seeds), _JOB)]
    with ProcessPoolExecutor(os.cpu_count(), mp_context=get_context("spawn")) as pool:
        reports, paces = zip(*pool.map(_timed, jobs), strict=True)
    return [report for some in reports for report in some], reduce(add, paces)


def _timed(seeds: range) -> tuple[list[Report], Pace]:
    yardstick_s, began = yardstick(), process_time()
    found = broken(seeds)
    return found, Pace(process_time() - began, yardstick_s)


def _text(context: dict[str, Any]) -> str:
    error = context.get("exception")
    return f"{context['message']}: {error!r}" if error else str(context["message"])


@contextmanager
def _instead(world: World) -> Iterator[None]:
    """Put the simulation in the place of clock, chance, threads, child processes and the log.

    What reconcile waits for is shorter, too: a simulation is over in seconds.
    """
    seed = world.plan.seed
    places: list[tuple[Any, str, Any]] = [
        (clock, "monotonic", world.loop.time),
        (clock, "wall_ms", lambda: int(world.now_ms())),
        (settle, "_rng", Random(f"settle {seed}")),
        (loop, "_rng", Random(f"loop {seed}")),
        (reconcile, "_overlap_ms", lambda _: 200),
        (reconcile, "_GRACE_MS", 100),
        (reconcile, "_FIRST_LOOK_MS", 1000),
        (reconcile, "_LEAD_MS", 500),
        (worker, "Heartbeat", fleet.LoopHeartbeat),
        (worker, "Solo", fleet.LoopSolo),
        (worker, "identity", fleet.identity),
        (os, "_exit", fleet.leave),
    ]
    before = [(owner, name, getattr(owner, name)) for owner, name, _ in places]
    logging = structlog.get_config()
    for owner, name, value in places:
        setattr(owner, name, value)
    structlog.configure(
        processors=[_collector(world)],
        wrapper_class=structlog.make_filtering_bound_logger(10 if world.log is not None else 40),
        logger_factory=structlog.ReturnLoggerFactory(),
        cache_logger_on_first_use=False,
    )
    try:
        yield
    finally:
        structlog.configure(**logging)
        for owner, name, value in before:
            setattr(owner, name, value)


def _collector(world: World) -> Callable[..., Any]:
    """Logged errors are defects, but for that of a worker that leaves because it has been stuck."""

    def collect(_logger: Any, level: str, event: dict[str, Any]) -> str:
        text = " ".join(f"{key}={value!r}" for key, value in event.items())
        world.note(f"{level}: {text}")
        if level == "error" and event["component"] != "worker":
            world.fail(f"logged as an error: {text}")
        return ""

    return collect
