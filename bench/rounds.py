"""Rounds: everything that is compared is measured once a round, in an order that the round draws.

An arm is one measurement of some seconds; it returns its measures by name. A topic makes arms that share what
they run on. Two arms of one round meet the same machine within seconds of each other, so the ratio of their
measures says more than two runs could; the drawn order keeps the one from always coming after the other.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Collection, Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Final

from bench.company import DISTURBED, Company
from bench.figure import shown
from bench.rows import Limit
from bench.system import OWN_SERVERS, System

SLOTS: Final = 12
SETTINGS: Final = OWN_SERVERS | {
    "HTTP_ADDR": "127.0.0.1:0",
    "METRICS_ADDR": "127.0.0.1:0",
    "LOG_LEVEL": "warning",
    "WORKER_POOL": str(SLOTS),
}
"""What the system of all topics is started with."""

Arm = Callable[[], Mapping[str, float]]
Arms = Mapping[str, Arm]
Round = dict[str, float]
"""The measures of one round, by `arm.measure`; `arm.disturbed`, in percent of the cores, where it was."""


@dataclass(frozen=True, slots=True)
class Size:
    """How much is measured. Counts are tasks, times are seconds.

    Attributes:
        rounds: Rounds of most topics.
        starts: Rounds of what is started.
        workers: Processes of the fleet.
        drain: Noops of a drain.
        ones: Noops of a drain in batches of one.
        singles: Tasks of an arm that sends one a request.
        bulk: Tasks of an arm that sends many a request.
        pgbench_s: How long pgbench runs.
        probe_s: How long latency is probed at one rate.
        low: The burst of low tasks.
        mix: Tasks of the mix of short and long ones.
        idle_s: How long an idle system is watched.
        stream: Tasks that stream through while memory is watched.
        queued: Tasks that lie in Redis while they are weighed.
        press_s: How long the API is pressed with one number of connections.
        skips: Arms that are left out.
    """

    rounds: int = 3
    starts: int = 5
    workers: int = 3
    drain: int = 20_000
    ones: int = 4_000
    singles: int = 16_000
    bulk: int = 30_000
    pgbench_s: int = 5
    probe_s: float = 5.0
    low: int = 10_000
    mix: int = 2_000
    idle_s: float = 10.0
    stream: int = 100_000
    queued: int = 50_000
    press_s: float = 4.0
    skips: frozenset[str] = frozenset()


FULL: Final = Size()
QUICK: Final = Size(
    rounds=1,
    starts=1,
    drain=5_000,
    ones=500,
    singles=1_000,
    bulk=5_000,
    pgbench_s=1,
    probe_s=1.0,
    low=2_000,
    mix=500,
    idle_s=2.0,
    stream=5_000,
    queued=5_000,
    press_s=1.0,
    skips=frozenset({"payloads", "after-noops", "half-200", "half-1000", "256"}),
)

Topic = Callable[[System, Size], AbstractContextManager[Arms]]


def arms_of(limits: Iterable[Limit]) -> set[str]:
    """The arms that some limits need."""
    return {measure.partition(".")[0] for limit in limits for measure in limit.measures}


def measured(
    arms: Arms, rounds: int, seed: int, *, title: str, wanted: Collection[str] | None = None
) -> list[Round]:
    """Measure the wanted arms (all if None) once in each round, and tell each measure as it is found."""
    rng = random.Random(seed)
    names = [name for name in arms if wanted is None or name in wanted]
    found: list[Round] = []
    for number in range(1, rounds + 1):
        this: Round = {}
        for name in rng.sample(names, len(names)):
            with Company() as company:
                measures = dict(arms[name]())
            if company.disturbed:
                measures[DISTURBED] = max(company.busy_percent, company.steal_percent)
            told = "  ".join(f"{key} {shown(value)}" for key, value in measures.items())
            print(f"{title} {number}/{rounds}  {name:<12} {told}", flush=True)
            this |= {f"{name}.{key}": value for key, value in measures.items()}
        found.append(this)
    return found
