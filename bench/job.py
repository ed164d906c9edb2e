"""Job: what a simulated fleet is given to do: tasks, when they come, and how each type behaves."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from bench.arrivals import times
from bench.costs import Costs
from bench.scenario import Bulk, Closed, Locust, Scenario
from bench.workload import Card

NEVER: Final = 2**31
"""More failures than any task may have."""


@dataclass(frozen=True, slots=True)
class Job:
    """Tasks in the order of their coming. What is by card is found under the card's number.

    Attributes:
        types: Of each task: its type's number.
        priorities: Of each task: its list, 0 is the highest.
        coming: When each is in its list, in seconds.
        stamped_s: How long before that it was stamped with its commit.
        duration: By card: how many seconds a run keeps its slot without using CPU; 0 if it never waits.
        fails: By card: how often a task fails before it succeeds.
        renewed: By card: whether a run's lease is renewed while it lasts.
        max_retries: Of every task; of none if there are `budgets`.
        bulky: Whether the API is busy until the last one has come.
        cards: Of each task: its card's number; empty if that is its type's.
        budgets: By card: its retries; empty if all have the same.
        delays: Of each task: how many seconds after its coming it is due; empty if all are at once.
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
    cards: Sequence[int] = ()
    budgets: Sequence[int] = ()
    delays: Sequence[float] = ()


def of(scenario: Scenario, costs: Costs, repeat: int = 0) -> Job:
    """The tasks of one repeat, counted from 0, and what the handlers do with them."""
    dealt = scenario.deck(repeat)
    types, priorities = dealt.columns
    return Job(
        types=types,
        priorities=priorities,
        coming=_coming(scenario, costs, repeat),
        duration=[_lasts_s(card) for card in dealt.cards].__getitem__,
        fails=[_fails(card) for card in dealt.cards],
        renewed=[card.kind != "sleeper" for card in dealt.cards],
        max_retries=scenario.mix.max_retries,
        cards=dealt.numbers,
        budgets=[card.mix.max_retries for card in dealt.cards],
        delays=dealt.delays,
        bulky=isinstance(scenario.load, Bulk),
        stamped_s=costs.bulk_ms / 1000 if isinstance(scenario.load, Bulk) else 0.0,
    )


def _lasts_s(card: Card) -> float:
    return card.mix.sleep_ms / 1000 if card.kind == "sleeper" else 0.0


def _fails(card: Card) -> int:
    return {"flaky": card.mix.flaky_attempts, "always_fail": NEVER}.get(card.kind, 0)


def _coming(scenario: Scenario, costs: Costs, repeat: int) -> array[float]:
    load = scenario.load
    if isinstance(load, Bulk):
        ends = (min((i // load.size + 1) * load.size, load.tasks) for i in range(load.tasks))
        return array("d", (end * costs.bulk_us / 1e6 for end in ends))
    if isinstance(load, Closed | Locust):
        senders = load.senders if isinstance(load, Closed) else load.users
        return array("d", ((i // senders + 1) * costs.request_ms / 1000 for i in range(load.tasks)))
    return times(load, scenario.seed + repeat)
