"""Planner: questions to the simulator, asked over a grid: how many slots a rate needs, what a setting does.

Everything here is virtual time. The answers are as good as the twin's costs are for a machine; with FREE ones
they tell what queueing alone demands, on any machine.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import floor, nan
from typing import Final

import pandas as pd

from bench import theory
from bench.costs import Costs
from bench.scenario import Open, Scenario
from bench.simulate import simulate, summary

_SIDES: Final = {"halved": 0.5, "doubled": 2.0}


def grid(
    planned: Scenario, rates: Sequence[float], slots: Sequence[int], costs: Costs, *, seeds: int = 3
) -> pd.DataFrame:
    """The waits of a scenario with an open load, by rate and by the slots of each of its workers.

    Returns a row a simulation. Columns:
        rate (float), seed (int)
        slots (int): in all.
        offered (float): the share of the slots that the work takes on average; above 1 the backlog grows.
        p50_wait_s, p95_wait_s, drain_s (float)
        exact (bool): whether every count is that of the closed form.

    Raises:
        TypeError: the scenario's load is not open.
    """
    if not isinstance(planned.load, Open):
        raise TypeError(f"the load of {planned.name} has no rate to vary")
    rows = []
    for rate in rates:
        for each in slots:
            load, fleet = replace(planned.load, rate=rate), replace(planned.fleet, slots=each)
            cell = replace(planned, load=load, fleet=fleet)
            for seed in range(seeds):
                figures, due = summary(cell, simulate(cell, costs, seed)), theory.forecast(cell, seed)
                waits = figures.wait.p50_s, figures.wait.p95_s
                exact = figures.counts == due.counts
                place = rate, seed, each * fleet.processes, due.offered
                rows.append((*place, *waits, figures.drain_s, exact))
    columns = ["rate", "seed", "slots", "offered", "p50_wait_s", "p95_wait_s", "drain_s", "exact"]
    return pd.DataFrame(rows, columns=columns)


def needed(found: pd.DataFrame, target_s: float) -> pd.Series[float]:
    """By rate: the fewest slots of a grid from which on every seed's p95 wait keeps the target.

    It is nan where no size of the grid does.
    """
    rows = {}
    for rate, own in found.groupby("rate"):
        worst = own.groupby("slots")["p95_wait_s"].max()
        enough = [slots for slots in worst.index if (worst[worst.index >= slots] <= target_s).all()]
        rows[rate] = min(enough, default=nan)
    return pd.Series(rows, dtype=float, name="slots").rename_axis("rate")


def erlang(rates: Sequence[float], run_s: float, target_s: float) -> dict[float, int]:
    """By rate: the fewest servers of M/M/c with mean run times of `run_s` whose p95 wait keeps the target."""
    found = {}
    for rate in rates:
        servers = floor(rate * run_s) + 1
        while theory.Queue(rate, 1 / run_s, servers).wait_s(95) > target_s:
            servers += 1
        found[rate] = servers
    return found


def sensitivity(
    planned: Scenario, names: Sequence[str], costs: Costs, *, seeds: int = 3
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """What halving and doubling each of some settings does to the drain, against the same seed unchanged.

    Returns two frames: the changes, with the columns `setting`, `how` (`halved` or `doubled`), `seed`,
    `drain_s`, `change_s` (float) and `exact` (bool); and the base, with `seed`, `drain_s` and `exact`.
    """
    base = [_drain(planned, costs, seed) for seed in range(seeds)]
    rows = []
    for name in names:
        now = int(getattr(planned.fleet.config, name.lower()))
        for how, factor in _SIDES.items():
            settings: Mapping[str, str] = {**planned.fleet.settings, name: str(max(round(now * factor), 1))}
            changed = replace(planned, fleet=replace(planned.fleet, settings=settings))
            for seed, (before, _) in enumerate(base):
                drain_s, exact = _drain(changed, costs, seed)
                rows.append((name, how, seed, drain_s, drain_s - before, exact))
    changes = pd.DataFrame(rows, columns=["setting", "how", "seed", "drain_s", "change_s", "exact"])
    kept = [(seed, drain_s, exact) for seed, (drain_s, exact) in enumerate(base)]
    return changes, pd.DataFrame(kept, columns=["seed", "drain_s", "exact"])


def _drain(planned: Scenario, costs: Costs, seed: int) -> tuple[float, bool]:
    """The drain of one seed, and whether its counts are those of the closed form."""
    figures = summary(planned, simulate(planned, costs, seed))
    return figures.drain_s, figures.counts == theory.forecast(planned, seed).counts
