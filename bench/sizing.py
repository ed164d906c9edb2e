"""Sizing: the cheapest fleet that lets 95 % of tasks wait no longer than a target, found by simulation.

Fewest slots first, then fewest processes. What theory excludes is not tried: fewer slots than the work fills,
fewer processes than their loops have work for. A fleet meets the target if each of some seeds does.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from math import ceil, floor, isqrt
from typing import Any, Final

from bench import theory
from bench.costs import Costs
from bench.figure import shown
from bench.report import seconds
from bench.scenario import Scenario
from bench.simulate import simulate, summary
from scheduler.errors import StartError

SEEDS: Final = 3
MOST_PROCESSES: Final = 8
MOST_SLOTS: Final = 256
"""Of one process."""

HEADERS: Final = ("Processes", "Slots each", "Slots", "p95 wait", "Slots in use", "")


@dataclass(frozen=True, slots=True)
class Tried:
    """One fleet.

    Attributes:
        processes, slots: Slots are those of each process.
        p95_wait_s: The longest of the seeds'.
        utilisation: The share of the slots that was in use on average, of the seed with the most.
        meets: Whether the wait is within the target.
    """

    processes: int
    slots: int
    p95_wait_s: float
    utilisation: float
    meets: bool

    @property
    def total(self) -> int:
        """Slots in all."""
        return self.processes * self.slots

    def cells(self) -> tuple[str, ...]:
        """A row under HEADERS."""
        wait, used = seconds(self.p95_wait_s), shown(100 * self.utilisation, "%")
        numbers = (f"{n:,}" for n in (self.processes, self.slots, self.total))
        return (*numbers, wait, used, "meets it" if self.meets else "")

    def content(self) -> dict[str, Any]:
        """As JSON has it."""
        return {
            "processes": self.processes,
            "slots": self.slots,
            "p95_wait_s": self.p95_wait_s,
            "utilisation": self.utilisation,
            "meets": self.meets,
        }


def with_fleet(planned: Scenario, processes: int, slots: int) -> Scenario:
    """The scenario on another fleet with the same settings."""
    return replace(planned, fleet=replace(planned.fleet, processes=processes, slots=slots))


def least_slots(planned: Scenario) -> int:
    """With fewer in all a backlog grows for as long as the load lasts; 1 for a load without a rate."""
    forecast = theory.forecast(planned)
    if forecast.offered is None:
        return 1
    return max(1, ceil(forecast.offered * planned.fleet.processes * planned.fleet.slots))


def least_processes(planned: Scenario, priced: Costs) -> int:
    """So many loops have work all the time; 1 for a load without a rate.

    Raises:
        StartError: the cores cannot do what comes, whatever the fleet.
    """
    forecast = theory.forecast(planned)
    if forecast.offered is None or not forecast.floor.arrivals_s:
        return 1
    rate = forecast.counts.runs / forecast.floor.arrivals_s
    if rate * priced.cpu_s >= priced.cores:
        raise StartError(
            f"{rate:,.0f} runs a second need {rate * priced.cpu_s:.1f} cores and there are {priced.cores:g}:"
            " no fleet of this machine keeps up"
        )
    return floor(rate * priced.loop_s) + 1


def cheapest(planned: Scenario, priced: Costs, target_s: float) -> tuple[Tried | None, list[Tried]]:
    """The cheapest fleet that meets the target, None if there is none, and all that were tried, in order."""
    tried: list[Tried] = []

    def attempt(processes: int, slots: int) -> Tried:
        tried.append(_tried(with_fleet(planned, processes, slots), priced, target_s))
        return tried[-1]

    best: Tried | None = None
    least = least_slots(planned)
    for processes in range(least_processes(planned, priced), MOST_PROCESSES + 1):
        low = ceil(least / processes)
        high = MOST_SLOTS if best is None else (best.total - 1) // processes
        found = _fewest(processes, low, high, attempt)
        best = best if found is None else found
    return best, tried


def _fewest(processes: int, low: int, high: int, attempt: Callable[[int, int], Tried]) -> Tried | None:
    """The fewest slots of each process, from `low` to `high`, that meet the target; None if `high` do not."""
    if low > high or not (best := attempt(processes, high)).meets:
        return None
    while low < best.slots:
        found = attempt(processes, isqrt(low * best.slots))  # at `low` or above, and below what is known
        if found.meets:
            best = found
        else:
            low = found.slots + 1
    return best


def _tried(planned: Scenario, priced: Costs, target_s: float) -> Tried:
    found = [summary(planned, simulate(planned, priced, seed)) for seed in range(SEEDS)]
    wait_s = max(each.wait.p95_s for each in found)
    used = max(each.utilisation for each in found)
    fleet = planned.fleet
    return Tried(fleet.processes, fleet.slots, wait_s, used, wait_s <= target_s)
