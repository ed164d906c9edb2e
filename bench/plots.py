"""Plots: each function draws one picture of a burst into the axes that it is given, and returns them.

Axes name their units and begin at 0, unless they say that they are logarithmic. Whatever sums values up is
drawn over the values. The colours are those of Okabe and Ito, which colour-blind eyes tell apart.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import isfinite
from typing import Any, Final

import numpy as np
import pandas as pd
from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.rcsetup import cycler

from bench import ledger as history
from bench import sampling
from bench.agreement import P95
from bench.ledger import Ledger
from bench.report import seconds
from bench.workload import Expected

BLACK, ORANGE, SKY, GREEN = "#000000", "#e69f00", "#56b4e9", "#009e73"
BLUE, VERMILION, PURPLE = "#0072b2", "#d55e00", "#cc79a7"

POSTGRES: Final = BLUE
SCRAPED: Final = VERMILION
PRIORITY: Final = {
    "critical": (VERMILION, "-"),
    "high": (ORANGE, "--"),
    "default": (BLUE, "-."),
    "low": (GREEN, ":"),
}
"""Colour and dashes of each priority's line."""

STYLE: Final[dict[str, Any]] = {
    "figure.dpi": 110,
    "figure.figsize": (6.4, 3.6),
    "figure.constrained_layout.use": True,
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.prop_cycle": cycler(color=[BLUE, VERMILION, GREEN, ORANGE, SKY, PURPLE, BLACK]),
    "grid.color": "#e6e6e6",
    "legend.frameon": False,
    "legend.fontsize": 8,
    "lines.linewidth": 1.6,
    "svg.hashsalt": "scheduler",  # the same plot is the same file
}

OPEN: Final = ("queue_depth", "retry_set_depth", "processing_inflight")
ENDED: Final = ("tasks_succeeded_total", "tasks_dead_total")


def use_style() -> None:
    """Make STYLE the style of all plots that follow."""
    style.use(STYLE)


def drain(ax: Axes, ledger: Ledger, samples: pd.DataFrame) -> Axes:
    """Open tasks over time: from Postgres, and what the gauges said at each scrape."""
    depth = history.depth(ledger)
    ax.step(depth.index, depth, where="post", color=POSTGRES, label="in Postgres")
    _scraped(ax, ledger, sampling.total(samples, *OPEN), "scraped: ready + retry set + in flight")
    ax.axvline(ledger.arrival_s, color=BLACK, linewidth=0.8, linestyle=":", label="last task committed")
    ax.set_ylabel("open tasks")
    return _over_time(ax, ledger)


def throughput(ax: Axes, ledger: Ledger, samples: pd.DataFrame, *, every_s: float | None = None) -> Axes:
    """Tasks that ended a second: by interval (about 20 unless `every_s` is given), and their mean."""
    end = history.depth(ledger).index[-1]
    every_s = every_s or nice(end / 20)
    rates = history.throughput(ledger, every_s)
    edges = np.append(rates.index, rates.index[-1] + every_s)
    commits = ledger.seconds(ledger.tasks["finished_at"].dropna()).drop_duplicates()
    ax.plot(commits, np.zeros(len(commits)), "|", color=BLACK, markersize=7, clip_on=False, label="a commit")
    ax.stairs(rates, edges, color=POSTGRES, linewidth=1.6, label=f"Postgres, by {seconds(every_s)}")
    _scraped(ax, ledger, sampling.rate(samples, *ENDED), "scraped counters, between scrapes")
    mean = len(ledger.tasks["finished_at"].dropna()) / end
    ax.axhline(mean, color=BLACK, linestyle="--", linewidth=1, label=f"mean {mean:,.0f}/s")
    ax.set_ylabel("tasks ended (1/s)")
    return _over_time(ax, ledger)


def waits(ax: Axes, ledger: Ledger) -> Axes:
    """The distribution of waits by priority: the share of tasks that had started within each time."""
    for priority, runs in ledger.first_starts.groupby("priority", observed=True):
        colour, dashes = PRIORITY.get(str(priority), (BLACK, "-"))
        share = history.ecdf(runs["wait_s"])
        p95 = float(runs["wait_s"].quantile(0.95))
        raw(ax, share.index, share, colour)
        label = f"{priority}: p95 {seconds(p95)}, n = {len(runs):,}"
        ax.step(share.index, share, where="post", color=colour, linestyle=dashes, label=label)
        ax.plot([p95], [0.95], "o", color=colour, markersize=5, clip_on=False)
    ax.axhline(0.95, color=BLACK, linewidth=0.8, linestyle="--")
    ax.set(xlabel="wait from due to start (s)", ylabel="share of tasks started", ylim=(0, 1.02))
    ax.set_xlim(left=0)
    return legend(ax)


def run_times(ax: Axes, ledger: Ledger) -> Axes:
    """How long runs took by type: every run, their median and p95; and how long lost runs were held."""
    runs = ledger.executions
    held = (runs["finished_at"] - runs["claimed_at"]).dt.total_seconds()
    names = []
    for row, name in enumerate(runs["type"].cat.remove_unused_categories().cat.categories):
        own = runs["type"] == name
        ran, lost = runs["run_s"][own].dropna(), held[own & (runs["outcome"] == "lost")]
        names.append(f"{name}\n{len(ran):,} ran, {len(lost):,} lost")
        strip(ax, ran, row, SKY)
        strip(ax, lost, row, VERMILION)
        if len(ran):
            ax.plot(ran.quantile(0.5), row, "|", color=BLACK, markersize=18, markeredgewidth=2)
            ax.plot(ran.quantile(0.95), row, "D", color=BLACK, markersize=5)
    entries(
        ax,
        ("one run", {"color": SKY, "marker": "."}),
        ("one lost run, from claim to reaping", {"color": VERMILION, "marker": "."}),
        ("median of the runs", {"color": BLACK, "marker": "|", "markeredgewidth": 2}),
        ("p95 of the runs", {"color": BLACK, "marker": "D", "markersize": 5}),
    )
    named_rows(ax, names)
    ax.set(xscale="log", xlabel="run time (logarithmic)")
    ax.xaxis.set_major_formatter(lambda value, _: seconds(value))
    return legend(ax)


def again(ax: Axes, ledger: Ledger, samples: pd.DataFrame, expected: Expected) -> Axes:
    """What was done again over time, counted up: retries after failures, and runs that were reaped."""
    kinds = (
        ("retries", ledger.retried, "tasks_retried_total", BLUE, expected.retries),
        ("reaped", ledger.reaped, "tasks_reaped_total", VERMILION, expected.lost),
    )
    for name, runs, metric, colour, due in kinds:
        count = history.accumulated(ledger, runs["finished_at"])
        raw(ax, count.index, count, colour)
        ax.step(count.index, count, where="post", color=colour, label=f"{name} in Postgres: {len(runs):,}")
        scraped = sampling.total(samples, metric)
        if len(scraped):
            at, gained = _since_start(ledger, scraped - scraped.iloc[0])
            ax.plot(at, gained, "+", color=colour, alpha=0.5, zorder=1.9, label=f"{name}, scraped")
        ax.axhline(due, color=colour, linewidth=0.8, linestyle="--", label=f"{name} by the deck: {due:,}")
    ax.set_ylabel("runs so far")
    return _over_time(ax, ledger)


def p95s(ax: Axes, rows: Sequence[P95]) -> Axes:
    """Each p95 by Postgres and by the scraped histogram, the latter with its bucket, over the values."""
    bounds = [bound for row in rows for bound in (row.postgres_s, row.low_s, row.high_s)]
    end = 1.15 * max(filter(isfinite, bounds))
    scale, unit = (1, "s") if end >= 1 else (1000, "ms")
    for y, row in enumerate(rows):
        shown = row.observed[row.observed <= end]
        strip(ax, shown * scale, y, SKY)
        if isfinite(row.scraped_s):
            width = min(row.high_s, end) - row.low_s
            ax.barh(y, width * scale, 0.5, row.low_s * scale, color=SCRAPED, alpha=0.25)
            ax.plot(row.scraped_s * scale, y, "D", color=SCRAPED, markersize=6)
        ax.plot(row.postgres_s * scale, y, "o", color=POSTGRES, markersize=6)
        if beyond := len(row.observed) - len(shown):
            ax.annotate(f"{beyond:,} beyond →", (end * scale, y - 0.27), ha="right", fontsize=8)
    entries(
        ax,
        ("one value in Postgres", {"color": SKY, "marker": "."}),
        ("p95 in Postgres", {"color": POSTGRES, "marker": "o"}),
        ("p95 by histogram_quantile", {"color": SCRAPED, "marker": "D"}),
        ("its bucket", {"color": SCRAPED, "marker": "s", "markersize": 9, "alpha": 0.25}),
    )
    named_rows(ax, [f"{row.name}\nn = {len(row.observed):,}" for row in rows])
    ax.set(xlabel=f"time ({unit})", xlim=(0, end * scale))
    return legend(ax)


def repeats(
    ax: Axes, rows: Sequence[tuple[str, Sequence[tuple[float, bool]]]], title: str, unit: str = ""
) -> Axes:
    """A figure of several records: each repeat is a point, hollow if it does not stand; a bar is the median.

    Args:
        ax: Where.
        rows: Of each record its name, and of each repeat the value and whether it stands.
        title: What the values are.
        unit: Of the values.
    """
    for y, (_, values) in enumerate(rows):
        for stands, inside in ((True, BLUE), (False, "none")):
            own = [value for value, fine in values if fine is stands and isfinite(value)]
            ax.plot(own, [y] * len(own), "o", color=BLUE, alpha=0.7, markersize=5, markerfacecolor=inside)
        if standing := [value for value, fine in values if fine and isfinite(value)]:
            ax.plot(np.median(standing), y, "|", color=BLACK, markersize=20, markeredgewidth=2)
    entries(
        ax,
        ("one repeat", {"color": BLUE, "marker": "o"}),
        ("one that was disturbed", {"color": BLUE, "marker": "o", "markerfacecolor": "none"}),
        ("median of those that stand", {"color": BLACK, "marker": "|", "markeredgewidth": 2}),
    )
    named_rows(ax, [name for name, _ in rows])
    ax.set_xlabel(f"{title} ({unit})" if unit else title)
    ax.set_xlim(0, 1.05 * max((v for _, values in rows for v, _ in values if isfinite(v)), default=1.0))
    return legend(ax)


def nice(length: float) -> float:
    """1, 2, 5 or 10 times a power of ten, whichever is nearest: an interval that reads well."""
    power = 10.0 ** np.floor(np.log10(length))
    return float(min((1, 2, 5, 10), key=lambda n: abs(n - length / power)) * power)


def raw(ax: Axes, x: Any, y: Any, colour: str, label: str | None = None) -> None:
    """Values as small points, to lie behind what sums them up."""
    ax.plot(x, y, ".", color=colour, alpha=0.4, markersize=3, markeredgewidth=0, label=label)


def strip(ax: Axes, values: pd.Series[float], row: int, colour: str) -> None:
    """Every value as a point on its row, spread a little so that equal ones do not hide each other."""
    raw(ax, values, row + np.random.default_rng(1).uniform(-0.3, 0.3, len(values)), colour)


def named_rows(ax: Axes, names: Sequence[str]) -> None:
    """Rows from top to bottom, each with its name."""
    ax.set_yticks(range(len(names)), names)
    ax.set_ylim(len(names) - 0.5, -0.5)


def entries(ax: Axes, *entries: tuple[str, dict[str, Any]]) -> None:
    """Explain marks in the legend that occur many times, or not at all."""
    for label, look in entries:
        ax.plot([], [], linestyle="none", label=label, **look)


def legend(ax: Axes) -> Axes:
    """The legend below the axes, where it hides nothing."""
    ax.legend(loc="upper center", bbox_to_anchor=(0.5, 0), borderaxespad=4.5, ncols=2)
    return ax


def _scraped(ax: Axes, ledger: Ledger, series: pd.Series[float], label: str) -> None:
    """What was scraped, as points behind the lines; nothing where nothing was, as in a simulation."""
    if series.empty:
        return
    at, values = _since_start(ledger, series)
    ax.plot(at, values, "o", color=SCRAPED, alpha=0.7, markersize=3.5, zorder=1.9, label=label)


def _since_start(ledger: Ledger, series: pd.Series[float]) -> tuple[pd.Series[float], pd.Series[float]]:
    """A series over time as seconds since the start and values; what lies before the start is left out."""
    at = ledger.seconds(series.index.to_series())
    return at[at >= 0], series[at >= 0]


def _over_time(ax: Axes, ledger: Ledger) -> Axes:
    end = history.depth(ledger).index[-1]
    ax.set(xlabel="time since the first commit (s)", xlim=(0, 1.05 * end))
    ax.set_ylim(bottom=0)
    ax.yaxis.set_major_formatter("{x:,g}")
    return legend(ax)
