"""Timelines: plots of what happened when: each function draws into the axes it is given and returns them.

The look and the rules are those of `plots.py`: units on every axis, zero as the beginning, every value as a
point behind what sums it up.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import pandas as pd
from matplotlib.axes import Axes

from bench import ledger as history
from bench.ledger import Ledger
from bench.plots import BLACK, BLUE, GREEN, ORANGE, POSTGRES, SKY, VERMILION, legend, raw
from bench.receipts import LoadResult
from bench.report import seconds

_SINCE: Final = "time since the first commit (s)"
_SAMPLED: Final[dict[str, Any]] = {"linewidth": 1.2, "marker": ".", "markersize": 5}
"""A line from sample to sample."""

_HIGHEST: Final = 12
_DASHES: Final = ((BLUE, "-"), (VERMILION, "--"), (GREEN, "-."), (ORANGE, ":"))


def leases(ax: Axes, lapses: pd.DataFrame, lease_s: float, *, most: int = 60) -> Axes:
    """Each lost run as a bar: its lease, and the time until it was found. The first `most` of them.

    Args:
        ax: Where.
        lapses: See `findings.lapses`.
        lease_s: How long a lease lasts.
        most: Bars at the most.
    """
    shown = lapses.head(most)
    rows = range(len(shown))
    after = (shown["held_s"] - lease_s).clip(lower=0)
    ax.barh(rows, shown["held_s"] - after, left=shown["claimed_s"], color=SKY, label="the lease")
    ax.barh(
        rows, after, left=shown["claimed_s"] + lease_s, color=VERMILION, label="over, and not yet found lost"
    )
    ax.set(xlabel=_SINCE, ylabel=f"lost runs ({len(shown):,} of {len(lapses):,} shown)")
    ax.set_xlim(left=0)
    ax.set_ylim(-0.5, max(len(shown), 1) - 0.5)
    return legend(ax)


def stalls(ax: Axes, loads: Mapping[str, LoadResult]) -> Axes:
    """The latency of every request by the time at which it was to be sent, and each load's p95."""
    for (name, load), (colour, dashes) in zip(loads.items(), _DASHES, strict=False):
        at = [receipt.intended for receipt in load.receipts]
        took = [receipt.answered - receipt.intended for receipt in load.receipts]
        p95 = load.latency_s(95)
        ax.plot(at, took, ".", color=colour, alpha=0.6, markersize=5)
        label = f"{name}: n = {load.accepted:,}, p95 {seconds(p95)}"
        ax.axhline(p95, color=colour, linestyle=dashes, linewidth=1, label=label)
    ax.set(xlabel="time at which a request was to be sent (s)", ylabel="latency from then on (s)")
    ax.set_xlim(left=0)
    ax.set_ylim(bottom=0)
    return legend(ax)


def faults(ax: Axes, struck: Sequence[Mapping[str, Any]], began_s: float) -> Axes:
    """Where faults struck, on axes whose x is the time since the first commit.

    Args:
        ax: Where.
        struck: A record's `timeline/faults`.
        began_s: When the load began, in seconds since the first commit.
    """
    for number, fault in enumerate(struck):
        if fault["struck_s"] is None:
            continue
        at = began_s + fault["struck_s"]
        ax.axvline(at, color=VERMILION, linewidth=1, linestyle="--")
        words = f"{fault['kind'].replace('_', ' ')}: {fault['what']}"
        top = 0.98 - 0.09 * (number % 5)
        ax.annotate(
            words, (at, top), (4, 0), ("data", "axes fraction"), "offset points", fontsize=7, va="top"
        )
    return ax


def forecast(ax: Axes, ledger: Ledger, simulated: Sequence[Ledger]) -> Axes:
    """Open tasks over time as they were, over what a simulation made of the same scenario, a line a seed."""
    for number, each in enumerate(simulated):
        depth = history.depth(each)
        label = f"simulated, {len(simulated)} seeds" if number == 0 else None
        ax.step(depth.index, depth, where="post", color=ORANGE, alpha=0.5, linewidth=1, label=label)
    depth = history.depth(ledger)
    raw(ax, depth.index, depth, POSTGRES)
    ax.step(depth.index, depth, where="post", color=POSTGRES, label="measured")
    ax.set(xlabel=_SINCE, ylabel="open tasks")
    ax.set_xlim(left=0)
    ax.set_ylim(bottom=0)
    return legend(ax)


def alarms(ax: Axes, levels: pd.DataFrame) -> Axes:
    """What each alert's expression came to over time, as a multiple of its threshold; above 1 it holds.

    What is more than 12 times the threshold, or infinite, is drawn there.

    Args:
        ax: Where.
        levels: See `alarms.levels`.
    """
    for (name, own), (colour, dashes) in zip(levels.groupby("alert"), _DASHES, strict=False):
        known = own.dropna(subset=["level"])
        shown = known["level"].clip(upper=_HIGHEST)
        look: dict[str, Any] = {"color": colour, "linestyle": dashes, **_SAMPLED}
        ax.plot(known["t_s"], shown, label=str(name), **look)
    ax.axhline(1, color=BLACK, linewidth=0.8, linestyle="--", label="the threshold")
    ax.set(xlabel="time since the first scrape (s)", ylabel="value / threshold", ylim=(0, 1.02 * _HIGHEST))
    ax.set_xlim(left=0)
    return legend(ax)


def live(ax: Axes, totals: Mapping[str, pd.Series[float]], unit: str) -> Axes:
    """Scraped series over time, as far as they go: names to values by seconds."""
    for (name, series), (colour, dashes) in zip(totals.items(), _DASHES, strict=False):
        look: dict[str, Any] = {"color": colour, "linestyle": dashes, **_SAMPLED}
        ax.plot(series.index, series, label=name, **look)
    ax.set(xlabel="time since the first scrape (s)", ylabel=unit)
    ax.set_xlim(left=0)
    ax.set_ylim(bottom=0)
    return legend(ax)
