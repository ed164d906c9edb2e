"""Job: what a simulated fleet is given to do: tasks, when they come, and how each type behaves."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from bench.arrivals import times
from bench.costs import Costs
from bench.scenario import Bulk, Closed, Scenario

NEVER: Final = 2**31
"""More failures than any task may have."""


@dataclass(frozen=True, slots=True)
class Job:
    """Tasks in the order of their coming. What is by type is found under the type's number.

    Attributes:
        types: Of each task: its type's number.
        priorities: Of each task: its list, 0 is the highest.
        coming: When each is in its list, in seconds.
        stamped_s: How long before that it was stamped with its commit.
        duration: By type: how many seconds a run keeps its slot without using CPU; 0 if it never waits.
        fails: By type: how often a task fails before it succeeds.
        renewed: By type: whether a run's lease is renewed while it lasts.
        max_retries: Of every task.
        bulky: Whether the API is busy until the last one has come.
    """

    types: bytes
    priorities: bytes
    coming: array[float]
    duration: Callable[[int], float]
    fails: Sequence[int]
    renewed: Sequence[bool]
    max_retries: int
    bulky: bool = False
    stamped_s: float = 0.0


def of(scenario: Scenario, costs: Costs, repeat: int = 0) -> Job:
    """The tasks of one repeat, counted from 0, and what the handlers do with them."""
    types, priorities = scenario.deck(repeat).columns
    mix = scenario.mix
    return Job(
        types=types,
        priorities=priorities,
        coming=_coming(scenario, costs, repeat),
        duration=(0.0, 0.0, 0.0, mix.sleep_ms / 1000).__getitem__,
        fails=(0, mix.flaky_attempts, NEVER, 0),
        renewed=(True, True, True, False),
        max_retries=mix.max_retries,
        bulky=isinstance(scenario.load, Bulk),
        stamped_s=costs.bulk_ms / 1000 if isinstance(scenario.load, Bulk) else 0.0,
    )


def _coming(scenario: Scenario, costs: Costs, repeat: int) -> array[float]:
    load = scenario.load
    if isinstance(load, Bulk):
        ends = (min((i // load.size + 1) * load.size, load.tasks) for i in range(load.tasks))
        return array("d", (end * costs.bulk_us / 1e6 for end in ends))
    if isinstance(load, Closed):
        return array("d", ((i // load.senders + 1) * costs.request_ms / 1000 for i in range(load.tasks)))
    return times(load, scenario.seed + repeat)
