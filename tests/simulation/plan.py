"""What happens in a simulation, and when: all of it follows from the seed.

Each seed has a few kinds of trouble only. Which go together is drawn anew for each, so that some seeds show
one kind alone and others many at once.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from random import Random
from typing import Any

from scheduler import config
from scheduler.config import Settings
from scheduler.model import PRIORITIES, Priority

ACTIVE_S = 1.5
"""How long new tasks and trouble keep coming."""

NETWORK = ("refused", "slow", "lost", "late")
EVENTS = (
    "crash",  # a worker ends between two of its steps
    "stall",  # a worker stands still, its heartbeat too, for longer than its leases last
    "block",  # a worker stands still while its heartbeat goes on
    "stop",  # a worker is asked to stop
    "api_crash",
    "flush",  # Redis forgets everything
    "old",  # Redis comes back with what it held a while ago
    "evict",  # Redis loses one key
    "jump",  # the clock of Redis is set forward or back
    "no_redis",  # a store cannot be reached for a while
    "no_postgres",
    "cancel",
    "redrive",
    "purge",
)
TASKS = ("poison", "sleeper", "rare", "slow_clock", "fast_clock")
ALL = (*NETWORK, *EVENTS, *TASKS)

RUN_LOST = {"crash", "stall", "block", "late", "no_postgres", "poison", "sleeper"}
"""Trouble by which a run may be lost though its handler did its work."""

CALM = tuple(kind for kind in ALL if kind not in RUN_LOST)

FORGETFUL = (
    "flush",
    "old",
    "evict",
    "jump",
    "cancel",
    "redrive",
    "purge",
    "rare",
    "slow_clock",
    "fast_clock",
)
"""Trouble that costs Redis its memory and nobody an answer: then it must be whole again soon."""

_BASE = config.load({})[0]


@dataclass(frozen=True)
class Order:
    """A task that a client submits, at `at_s` seconds; `key` is its idempotency key."""

    at_s: float
    type: str
    priority: Priority
    queue: str
    script: dict[str, Any]
    max_retries: int
    timeout_ms: int | None
    delay_ms: int | None
    key: str | None

    @property
    def payload(self) -> str:
        return json.dumps(self.script)


@dataclass(frozen=True)
class Plan:
    """One simulation. `events` are pairs of seconds and a kind of trouble."""

    seed: int
    kinds: frozenset[str]
    settings: Settings
    workers: int
    orders: list[Order]
    events: list[tuple[float, str]]

    @property
    def calm(self) -> bool:
        """May no run be lost?"""
        return not self.kinds & RUN_LOST


def plan(seed: int) -> Plan:
    """The plan of a seed."""
    rng = Random(f"plan {seed}")
    often, possible = rng.choice([0.15, 0.3, 0.5]), rng.choice([ALL, ALL, ALL, CALM, FORGETFUL])
    kinds = frozenset(kind for kind in possible if rng.random() < often)
    times = {kind: rng.choice([1, 2, 3]) for kind in EVENTS if kind in kinds}
    events = [(rng.uniform(0, ACTIVE_S), kind) for kind in times for _ in range(times[kind])]
    queues = rng.choice([("default",), ("default",), ("default", "mail")])
    orders = [_order(rng, kinds, queues) for _ in range(rng.randint(2, 9))]
    return Plan(seed, kinds, _settings(rng, queues), rng.choice([1, 2, 2]), orders, events)


def _settings(rng: Random, queues: tuple[str, ...]) -> Settings:
    """Small batches and short waits, so that there is much to happen between."""
    return replace(
        _BASE,
        vis_timeout_ms=1000,
        worker_queues=queues,
        worker_pool=rng.randint(1, 3),
        lease_batch_size=rng.choice([1, 3, 100]),
        lease_ahead_ms=rng.choice([0, 50]),
        settle_batch_size=rng.choice([1, 2, 500]),
        enqueue_batch_size=rng.choice([1, 500]),
        enqueue_timeout_ms=400,
        reaper_batch_size=rng.choice([1, 3, 100]),
        reaper_scan_interval_ms=300,
        retry_batch_size=rng.choice([1, 100]),
        retry_scan_interval_ms=250,
        reconcile_batch_size=rng.choice([1, 3, 1000]),
        reconcile_interval_ms=400,
        retry_base_ms=50,
        retry_max_ms=200,
        retry_jitter_ms=50,
        max_losses=rng.choice([0, 1, 3]),
        unknown_type_delay_ms=100,
        task_timeout_ms=3000,
        shutdown_grace_ms=rng.choice([0, 300]),
        metrics_sample_ms=10**8,
        housekeeping_interval_ms=10**8,
    )


def _order(rng: Random, kinds: frozenset[str], queues: tuple[str, ...]) -> Order:
    type_ = "work"
    # A worker that stalls is missed only if it was at work.
    durations_ms = [300, 300, 1200] if "stall" in kinds else [0, 0, 5, 50, 300, 1200]
    script = {
        "ms": rng.choice(durations_ms),
        "fails": rng.choice([0, 0, 0, 1, 2, 9]),
        "how": rng.choice(["error", "error", "retry", "reject"]),
    }
    special = rng.choice(TASKS[:3])
    if special in kinds and rng.random() < 0.3:
        if special == "poison":
            script["how"] = "poison"
        else:
            type_ = special
    return Order(
        at_s=rng.uniform(0, ACTIVE_S * 0.9),
        type=type_,
        priority=rng.choice(PRIORITIES),
        queue=rng.choice(queues),
        script=script,
        max_retries=rng.choice([0, 1, 2]),
        timeout_ms=rng.choice([None, None, None, 100]),
        delay_ms=rng.choice([None, None, 300, 1500]),
        key=rng.choice([None, "a", "b"]),
    )
