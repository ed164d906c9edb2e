"""Sweeps: plots of a figure over something that was varied; each draws into the axes it is given.

The look and the rules are those of `plots.py`. What was repeated is drawn as points, its median as a line.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import isfinite
from typing import Final

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from bench.plots import BLACK, BLUE, GREEN, ORANGE, PRIORITY, PURPLE, SKY, VERMILION, legend, named_rows
from bench.plots import entries as explained
from bench.stats import Effect

_LOOKS: Final = (
    (BLUE, "-", "o"),
    (VERMILION, "--", "s"),
    (GREEN, "-.", "^"),
    (ORANGE, ":", "D"),
    (PURPLE, "-", "v"),
)


def standing(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows that count in a median: those that no other work has disturbed, or all if there are none."""
    found = rows[~rows["disturbed"]]
    return rows if found.empty else found


def scaling(ax: Axes, cells: pd.DataFrame) -> Axes:
    """Throughput by slots, a line for each number of workers, and the bound that slots set.

    Args:
        ax: Where.
        cells: See `scaling.grid`.
    """
    for (workers, own), (colour, dashes, marker) in zip(cells.groupby("workers"), _LOOKS, strict=False):
        total = own["workers"] * own["slots"]
        ax.plot(total, own["per_s"], marker, color=colour, alpha=0.5, markersize=4)
        middle = standing(own)["per_s"].groupby(total).median()
        ax.plot(middle.index, middle, color=colour, linestyle=dashes, label=f"workers: {workers}")
    bounds = cells["slot_bound_per_s"].groupby(cells["workers"] * cells["slots"]).max()
    ax.plot(bounds.index, bounds, color=BLACK, linewidth=0.8, linestyle="--", label="bound: slots / run time")
    bound = standing(cells)["cpu_bound_per_s"].median()
    ax.axhline(bound, color=BLACK, linewidth=0.8, linestyle=":", label="bound: cores / CPU a task (median)")
    ax.set(xlabel="slots in all", ylabel="tasks ended (1/s)")
    ax.set_xlim(left=0)
    ax.set_ylim(0, 1.1 * max(cells["per_s"].max(), bound))
    return legend(ax)


def efficiency(ax: Axes, cells: pd.DataFrame) -> Axes:
    """The share of the slots' bound that each cell reached: workers by slots."""
    table = standing(cells).pivot_table(
        index="workers", columns="slots", values="efficiency", aggfunc="median"
    )
    ax.imshow(table, cmap="Blues", vmin=0, vmax=1, aspect="auto", origin="lower")
    for row, workers in enumerate(table.index):
        for column, slots in enumerate(table.columns):
            value = table.loc[workers, slots]
            colour = "white" if value > 0.6 else BLACK
            ax.text(column, row, f"{value:.0%}", color=colour, ha="center", va="center")
    ax.set_xticks(range(len(table.columns)), [str(slots) for slots in table.columns])
    ax.set_yticks(range(len(table.index)), [str(workers) for workers in table.index])
    ax.set(xlabel="slots of each worker", ylabel="workers (processes)")
    ax.grid(visible=False)
    return ax


def retry_waits(ax: Axes, waits: pd.DataFrame, bounds: Mapping[int, tuple[float, float]]) -> Axes:
    """How long every retry waited, by the number of failures, over the band that backoff and pump allow.

    Args:
        ax: Where.
        waits: See `findings.retry_waits`.
        bounds: By failures: the shortest and the longest wait, in seconds.
    """
    rng = np.random.default_rng(1)
    for number, (low, high) in bounds.items():
        ax.bar(number, high - low, 0.8, low, color=ORANGE, alpha=0.35)
        own = waits["wait_s"][waits["failures"] == number]
        ax.plot(number + rng.uniform(-0.3, 0.3, len(own)), own, ".", color=BLUE, alpha=0.5, markersize=4)
        if len(own):
            ax.plot(number, own.median(), "_", color=BLACK, markersize=24, markeredgewidth=2)
    explained(
        ax,
        ("one retry", {"color": BLUE, "marker": "."}),
        ("their median", {"color": BLACK, "marker": "_", "markeredgewidth": 2}),
        ("backoff and one scan of the pump", {"color": ORANGE, "marker": "s", "alpha": 0.35}),
    )
    ax.set_xticks(list(bounds))
    ax.set(xlabel="failures so far", ylabel="wait until the next claim (s)")
    ax.set_ylim(bottom=0)
    return legend(ax)


def load_curve(ax: Axes, steps: pd.DataFrame, limit_s: float) -> Axes:
    """Latency by the rate that was offered: each step's p50 and p95, their medians, and the limit.

    Args:
        ax: Where.
        steps: See `offered.ladder`.
        limit_s: The latency that 95 % of the requests must keep.
    """
    for (name, label), (colour, dashes, marker) in zip(
        {"p50_s": "p50", "p95_s": "p95"}.items(), _LOOKS, strict=False
    ):
        ax.plot(steps["rate"], 1000 * steps[name], marker, color=colour, alpha=0.5, markersize=4)
        middle = 1000 * standing(steps).groupby("rate")[name].median()
        ax.plot(middle.index, middle, color=colour, linestyle=dashes, label=f"{label} of a step's requests")
    ax.axhline(1000 * limit_s, color=BLACK, linewidth=0.8, linestyle="--", label="the limit for p95")
    ax.set(xlabel="requests offered (1/s)", ylabel="latency of the answer (ms)")
    ax.set_xlim(left=0)
    ax.set_ylim(0, 1000 * max(3 * limit_s, steps["p50_s"].max()))
    return legend(ax)


def shares(ax: Axes, found: Mapping[str, pd.DataFrame], weights: Mapping[str, int]) -> Axes:
    """The share of claims that each priority got, beside the share that its weight stands for.

    Args:
        ax: Where.
        found: See `findings.shares`: by the fleet's name.
        weights: By priority.
    """
    names = list(weights)
    due = [weights[name] / sum(weights.values()) for name in names]
    places = np.arange(len(names))
    ax.bar(places, due, 0.8, color=SKY, alpha=0.5, label="by weight")
    for (title, table), (colour, _, marker) in zip(found.items(), _LOOKS, strict=False):
        share = table["share"].reindex(names, fill_value=0)
        label = f"{title}: {int(table['claims'].sum()):,} claims"
        ax.plot(places, share, marker, color=colour, label=label, clip_on=False)
    ax.set_xticks(places, names)
    ax.set(xlabel="priority", ylabel="share of the claims", ylim=(0, 1))
    return legend(ax)


def gaps(ax: Axes, found: pd.DataFrame, bound_s: float) -> Axes:
    """How long each list went unserved while it had tasks: every gap, the longest, and the bound.

    Args:
        ax: Where.
        found: See `findings.gaps`.
        bound_s: PRIORITY_MAX_WAIT_MS.
    """
    rng, names = np.random.default_rng(1), []
    for row, (priority, own) in enumerate(found.groupby("priority", observed=True)):
        colour = PRIORITY[str(priority)][0]
        spots = row + rng.uniform(-0.25, 0.25, len(own))
        ax.plot(own["gap_s"], spots, ".", color=colour, alpha=0.5, markersize=4)
        ax.plot(own["gap_s"].max(), row, "D", color=BLACK, markersize=5)
        names.append(str(priority))
    explained(
        ax,
        ("one gap", {"color": BLUE, "marker": "."}),
        ("the longest", {"color": BLACK, "marker": "D", "markersize": 5}),
    )
    ax.axvline(bound_s, color=BLACK, linewidth=0.8, linestyle="--", label="PRIORITY_MAX_WAIT_MS")
    named_rows(ax, names)
    ax.set_xlabel("time unserved while tasks waited (s)")
    ax.set_xlim(left=0)
    return legend(ax)


def ratios(ax: Axes, rows: Sequence[tuple[str, Effect, Effect | None]]) -> Axes:
    """B / A of several figures with their intervals, over what A came to against itself.

    Args:
        ax: Where.
        rows: Of each figure its name, the effect, and the floor if there is one.
    """
    for y, (_, effect, floor) in enumerate(rows):
        if floor is not None:
            low, high = min(floor.ratio.low, 1), max(floor.ratio.high, 1)
            ax.barh(y, high - low, 0.6, low, color=SKY, alpha=0.5)
        ax.plot([effect.ratio.low, effect.ratio.high], [y, y], color=BLUE)
        ax.plot(effect.ratio.value, y, "o", color=BLUE, markersize=5)
    explained(
        ax,
        ("B / A and its interval", {"color": BLUE, "marker": "o"}),
        ("A / A: no difference means anything here", {"color": SKY, "marker": "s", "alpha": 0.5}),
    )
    ax.axvline(1, color=BLACK, linewidth=0.8, linestyle="--")
    named_rows(ax, [name for name, _, _ in rows])
    ax.set(xscale="log", xlabel="B / A (ratio, logarithmic)")
    ax.xaxis.set_major_formatter("{x:g}")
    ax.xaxis.set_minor_formatter("{x:g}")
    return legend(ax)


def predictions(ax: Axes, rows: Sequence[tuple[str, float, Sequence[float]]]) -> Axes:
    """What was measured beside what each seed simulated: rows of name, measured, simulated, in seconds."""
    rng = np.random.default_rng(1)
    for y, (_, measured, simulated) in enumerate(rows):
        spots = y + rng.uniform(-0.25, 0.25, len(simulated))
        ax.plot(simulated, spots, ".", color=ORANGE, alpha=0.7, markersize=5)
        ax.plot(np.median(simulated), y, "|", color=BLACK, markersize=20, markeredgewidth=2)
        ax.plot(measured, y, "D", color=BLUE, markersize=6)
    explained(
        ax,
        ("one seed of the simulation", {"color": ORANGE, "marker": "."}),
        ("their median", {"color": BLACK, "marker": "|", "markeredgewidth": 2}),
        ("measured, once", {"color": BLUE, "marker": "D", "markersize": 6}),
    )
    named_rows(ax, [name for name, _, _ in rows])
    ax.set_xlabel("time (s)")
    ax.set_xlim(left=0)
    return legend(ax)


def capacity(ax: Axes, grid: pd.DataFrame, target_s: float) -> Axes:
    """The p95 wait by slots, a line for each rate: every seed, their median, and the target.

    A logarithmic axis has no 0: waits of less than a thousandth of the target are drawn there.

    Args:
        ax: Where.
        grid: See `planner.grid`.
        target_s: What 95 % of the waits must keep.
    """
    least = target_s / 1000
    for (rate, own), (colour, dashes, marker) in zip(grid.groupby("rate"), _LOOKS, strict=False):
        waits = own["p95_wait_s"].clip(lower=least)
        ax.plot(own["slots"], waits, marker, color=colour, alpha=0.4, markersize=4)
        middle = waits.groupby(own["slots"]).median()
        ax.plot(middle.index, middle, color=colour, linestyle=dashes, label=f"{rate:g} tasks/s")
    ax.axhline(target_s, color=BLACK, linewidth=0.8, linestyle="--", label="the target")
    ax.set(xlabel="slots in all", ylabel="p95 wait (s, logarithmic)", yscale="log")
    ax.set_xlim(left=0)
    ax.yaxis.set_major_formatter("{x:g}")
    return legend(ax)


def tornado(ax: Axes, changes: pd.DataFrame) -> Axes:
    """By how much the drain changes if one setting is halved or doubled, the strongest setting on top.

    Args:
        ax: Where.
        changes: See `planner.sensitivity`.
    """
    reach = changes.groupby("setting")["change_s"].agg(lambda values: values.abs().max())
    names = list(reach.sort_values(ascending=False).index)
    looks = {"halved": (BLUE, "o"), "doubled": (VERMILION, "s")}
    for y, name in enumerate(names):
        for how, (colour, marker) in looks.items():
            own = changes[(changes["setting"] == name) & (changes["how"] == how)]["change_s"]
            middle = own.median() if len(own) else np.nan
            if isfinite(middle):
                ax.barh(y, middle, 0.6, color=colour, alpha=0.35)
            ax.plot(own, [y] * len(own), marker, color=colour, markersize=4, alpha=0.7)
    for how, (colour, marker) in looks.items():
        explained(ax, (f"{how}, one seed", {"color": colour, "marker": marker, "markersize": 4}))
    ax.axvline(0, color=BLACK, linewidth=0.8)
    named_rows(ax, names)
    ax.set_xlabel("change of the drain (s)")
    return legend(ax)
