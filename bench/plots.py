"""Plots: each function draws one picture of a burst into the axes that it is given, and returns them.

Axes name their units and begin at 0 unless they say that they are logarithmic. Whatever is summed up is drawn
over the values that it sums up. Colours are those of Okabe and Ito, which colour-blind eyes tell apart.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from bench import ledger as history
from bench import sampling
from bench.agreement import P95
from bench.ledger import Ledger
from bench.report import seconds
from bench.workload import Expected

BLACK, ORANGE, SKY, GREEN = "#000000", "#e69f00", "#56b4e9", "#009e73"
YELLOW, BLUE, VERMILION, PURPLE = "#f0e442", "#0072b2", "#d55e00", "#cc79a7"

POSTGRES: Final = BLUE
SCRAPED: Final = VERMILION
PRIORITY: Final = {
    "critical": (VERMILION, "-"),
    "high": (ORANGE, "--"),
    "default": (BLUE, "-."),
    "low": (GREEN, ":"),
}

STYLE: Final[dict[str, Any]] = {
    "figure.dpi": 90,
    "figure.figsize": (6.4, 3.6),
    "figure.constrained_layout.use": True,
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.prop_cycle": mpl.cycler(color=[BLUE, VERMILION, GREEN, ORANGE, SKY, PURPLE, BLACK]),
    "grid.color": "#e6e6e6",
    "grid.linewidth": 0.8,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "lines.linewidth": 1.6,
    "svg.hashsalt": "scheduler",  # the same plot is the same file
}

_OPEN: Final = ("queue_depth", "retry_set_depth", "processing_inflight")
_ENDED: Final = ("tasks_succeeded_total", "tasks_dead_total")
_RAW: Final[dict[str, Any]] = {"linestyle": "none", "marker": ".", "markersize": 4, "markeredgewidth": 0}


def use_style() -> None:
    """Make STYLE the style of all plots that follow."""
    mpl.rcParams.update(STYLE)


def drain(ax: Axes, ledger: Ledger, samples: pd.DataFrame) -> Axes:
    """Open tasks over time: from Postgres, and what the gauges said at each scrape."""
    depth = history.depth(ledger)
    ax.step(depth.index, depth, where="post", color=POSTGRES, label="Postgres: committed and not ended")
    gauges = sampling.total(samples, *_OPEN)
    ax.plot(
        *_since_start(ledger, gauges),
        color=SCRAPED,
        **_RAW | {"markersize": 7},
        label="scraped: ready + retry set + in flight",
    )
    ax.set_ylabel("open tasks")
    return _over_time(ax, depth.index[-1])


def throughput(ax: Axes, ledger: Ledger, samples: pd.DataFrame, *, every_s: float | None = None) -> Axes:
    """Tasks that ended a second: by interval (about 25 unless `every_s` is given), and their mean."""
    end = history.depth(ledger).index[-1]
    every_s = every_s or nice(end / 25)
    fine = history.throughput(ledger, every_s / 5)
    ax.plot(fine.index + every_s / 10, fine, color=SKY, **_RAW, label=f"Postgres, by {seconds(every_s / 5)}")
    coarse = history.throughput(ledger, every_s)
    edges = np.append(coarse.index, coarse.index[-1] + every_s)
    ax.stairs(coarse, edges, color=POSTGRES, linewidth=1.6, label=f"Postgres, by {seconds(every_s)}")
    scraped = sampling.rate(samples, *_ENDED)
    ax.plot(
        *_since_start(ledger, scraped),
        color=SCRAPED,
        **_RAW | {"markersize": 7},
        label="scraped counters, between two scrapes",
    )
    mean = ledger.tasks["finished_at"].notna().sum() / end
    ax.axhline(mean, color=BLACK, linestyle="--", linewidth=1, label=f"mean {mean:,.0f}/s")
    ax.set_ylabel("tasks ended (1/s)")
    return _over_time(ax, end)


def waits(ax: Axes, ledger: Ledger) -> Axes:
    """The distribution of waits by priority: the share of first attempts that started within each time."""
    for priority, runs in ledger.first_attempts.groupby("priority", observed=True):
        colour, dashes = PRIORITY.get(str(priority), (BLACK, "-"))
        share = history.ecdf(runs["wait_s"])
        ax.plot(share.index, share, color=colour, alpha=0.3, **_RAW)
        p95 = runs["wait_s"].quantile(0.95)
        label = f"{priority}: p95 {seconds(p95)}, n = {len(runs):,}"
        ax.step(share.index, share, where="post", color=colour, linestyle=dashes, label=label)
        ax.plot([p95], [0.95], "o", color=colour, markersize=5, clip_on=False)
    ax.axhline(0.95, color=BLACK, linewidth=0.8, linestyle="--")
    ax.set(xlabel="wait from due to start (s)", ylabel="share of first attempts")
    ax.set_xlim(left=0)
    ax.set_ylim(0, 1.02)
    ax.legend(loc="best")
    return ax


def run_times(ax: Axes, ledger: Ledger) -> Axes:
    """How long runs took by type: every run, their median and p95; and how long lost runs were held."""
    runs = ledger.executions
    names = list(runs["type"].cat.remove_unused_categories().cat.categories)
    spread = np.random.default_rng(1).uniform(-0.3, 0.3, len(runs))
    for row, name in enumerate(names):
        own = runs["type"] == name
        ran, lost = own & runs["run_s"].notna(), own & (runs["outcome"] == "lost")
        ax.plot(runs["run_s"][ran], row + spread[ran], color=SKY, alpha=0.4, **_RAW)
        held = (runs["finished_at"] - runs["claimed_at"]).dt.totalseconds()[lost]
        ax.plot(
            held,
            row + spread[lost],
            color=VERMILION,
            alpha=0.5,
            **_RAW | {"marker": "x", "markeredgewidth": 0.6},
        )
        if ran.any():
            marks = runs["run_s"][ran].quantile([0.5, 0.95])
            ax.plot([marks[0.5]], [row], "|", color=BLACK, markersize=18, markeredgewidth=2)
            ax.plot([marks[0.95]], [row], "D", color=BLACK, markersize=5)
    ax.plot([], [], color=SKY, **_RAW | {"markersize": 8}, label="one run")
    ax.plot([], [], color=VERMILION, linestyle="none", marker="x", label="one lost run: claim to reaping")
    ax.plot([], [], "|", color=BLACK, markersize=10, markeredgewidth=2, label="median of the runs")
    ax.plot([], [], "D", color=BLACK, markersize=5, label="p95 of the runs")
    ax.set_yticks(range(len(names)), [f"{name}\nn = {(runs['type'] == name).sum():,}" for name in names])
    ax.set(xscale="log", xlabel="run time (s, logarithmic)", ylim=(len(names) - 0.5, -0.5))
    ax.legend(loc="best")
    return ax


def again(ax: Axes, ledger: Ledger, samples: pd.DataFrame, expected: Expected | None = None) -> Axes:
    """What was done again over time, counted up: retries after failures, and runs that the reaper found lost."""
    kinds = (
        ("retries", ledger.retried, "tasks_retried_total", BLUE, expected and expected.retries),
        ("reaped", ledger.reaped, "tasks_reaped_total", VERMILION, expected and expected.lost),
    )
    for name, runs, metric, colour, due in kinds:
        count = history.accumulated(ledger, runs["finished_at"])
        ax.plot(count.index, count, color=colour, alpha=0.4, **_RAW)
        ax.step(count.index, count, where="post", color=colour, label=f"{name}: {len(runs):,} in Postgres")
        scraped = sampling.total(samples, metric)
        ax.plot(*_since_start(ledger, scraped - scraped.iloc[0]), "+", color=colour, label=f"{name}: scraped")
        if due is not None:
            ax.axhline(due, color=colour, linewidth=0.8, linestyle="--", label=f"{name}: {due:,} by the deck")
    ax.set_ylabel("runs since the start")
    return _over_time(ax, history.depth(ledger).index[-1])


def p95(ax: Axes, rows: Sequence[P95]) -> Axes:
    """Each p95 by Postgres and by the scraped histogram, the latter with its bucket, over the values."""
    furthest = max(max(row.high_s, row.postgres_s) for row in rows)
    scale, unit = (1, "s") if furthest >= 1 else (1e3, "ms")
    edge = 1.15 * furthest
    spread = np.random.default_rng(1)
    for y, row in enumerate(rows):
        seen = row.values[row.values <= edge]
        ax.plot(seen * scale, y + spread.uniform(-0.3, 0.3, len(seen)), color=SKY, alpha=0.4, **_RAW)
        ax.barh(y, (row.high_s - row.low_s) * scale, 0.5, row.low_s * scale, color=VERMILION, alpha=0.25)
        ax.plot([row.scraped_s * scale], [y], "D", color=VERMILION, markersize=6)
        ax.plot([row.postgres_s * scale], [y], "o", color=BLUE, markersize=6)
        if beyond := len(row.values) - len(seen):
            ax.annotate(f"{beyond:,} beyond →", (edge * scale, y), ha="right", va="center", fontsize=8)
    ax.plot([], [], color=SKY, **_RAW | {"markersize": 8}, label="one value in Postgres")
    ax.plot([], [], "o", color=BLUE, label="p95 of Postgres")
    ax.plot([], [], "D", color=VERMILION, label="p95 by histogram_quantile")
    ax.barh(0, 0, color=VERMILION, alpha=0.25, label="its bucket")
    ax.set_yticks(range(len(rows)), [f"{row.name}\nn = {len(row.values):,}" for row in rows])
    ax.set(xlim=(0, edge * scale), ylim=(len(rows) - 0.5, -0.5), xlabel=f"time ({unit})")
    ax.legend(loc="best")
    return ax


def nice(length: float) -> float:
    """1, 2, 5 or 10 times a power of ten, whichever is nearest: an interval that reads well."""
    power = 10.0 ** np.floor(np.log10(length))
    return float(min((1, 2, 5, 10), key=lambda n: abs(n - length / power)) * power)


def _since_start(ledger: Ledger, series: pd.Series[float]) -> tuple[pd.Series[float], pd.Series[float]]:
    """A series over time as x (seconds since the start) and y; what lies before the start is left out."""
    at = ledger.seconds(series.index.to_series())
    return at[at >= 0], series[at >= 0]


def _over_time(ax: Axes, end_s: float) -> Axes:
    ax.set(xlabel="time since the first commit (s)", xlim=(0, 1.05 * end_s))
    ax.set_ylim(bottom=0)
    ax.legend(loc="best")
    return ax
