"""Plots name their units, begin at 0, and draw what they sum up."""

from __future__ import annotations

import re
from math import inf, nan

import numpy as np
import pandas as pd
import pytest
from history import START, History, Run
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from bench import ledger, plots
from bench.agreement import P95
from bench.workload import Expected

OKABE_ITO = {"#000000", "#e69f00", "#56b4e9", "#009e73", "#f0e442", "#0072b2", "#d55e00", "#cc79a7"}
EXPECTED = Expected(tasks=5, succeeded=3, dead_failed=1, dead_lost=1, runs=8, failed=3, retries=2, lost=2)


@pytest.fixture(scope="module")
def burst(servers):
    """Five tasks of all four types and priorities: commits at 0 and 1 s, the last end after 8 s."""
    with servers.database() as url:
        history = History(url)
        history.task("succeeded", Run("succeeded", 0.5, 0.5, 1.0), priority="critical")
        history.task("succeeded", Run("succeeded", 2.0, 2.0, 2.25), priority="critical", created=1)
        runs = Run("failed", 1, 1, 1.5), Run("succeeded", 4, 4, 5)
        history.task("succeeded", *runs, kind="flaky", priority="high", due=3)
        runs = Run("failed", 2, 2, 2.5), Run("failed", 5, 5, 6)
        history.task("dead", *runs, kind="always_fail", reason="failed", max_retries=1, due=4)
        runs = Run("lost", 3, None, 5), Run("lost", 6, None, 8)
        history.task("dead", *runs, kind="sleeper", priority="low", reason="lost")
        yield ledger.read(url, history.ids)


@pytest.fixture(scope="module")
def samples():
    """Scrapes at -1, 1 and 5 s after the first commit."""
    rows = [
        (t, metric, value)
        for t, *values in ((-1, 0, 0, 0, 0), (1, 3, 1, 1, 0), (5, 1, 3, 2, 1))
        for metric, value in zip(
            ("queue_depth", "tasks_succeeded_total", "tasks_retried_total", "tasks_reaped_total"),
            values,
            strict=True,
        )
    ]
    frame = pd.DataFrame(rows, columns=["t_s", "metric", "value"]).assign(labels="")
    return frame.assign(at=START + pd.to_timedelta(frame["t_s"], unit="s"))


P95S = [
    P95("critical", pd.Series([0.1, 0.2, 0.3, 0.4]), 0.4, 0.25, 0.5),
    P95("low", pd.Series([0.2, 0.2]), 0.2, 0.125, 0.25),
]


@pytest.fixture
def ax() -> Axes:
    return Figure().subplots()


def _drawn(name: str, ax: Axes, burst, samples) -> Axes:
    return {
        "drain": lambda: plots.drain(ax, burst, samples),
        "throughput": lambda: plots.throughput(ax, burst, samples),
        "waits": lambda: plots.waits(ax, burst),
        "run_times": lambda: plots.run_times(ax, burst),
        "again": lambda: plots.again(ax, burst, samples, EXPECTED),
        "p95s": lambda: plots.p95s(ax, P95S),
    }[name]()


def _points(ax: Axes, marker: str) -> np.ndarray:
    """All points of the axes that are drawn with `marker` and without a line, one (x, y) a row."""
    lines = [line for line in ax.lines if line.get_marker() == marker and line.get_linestyle() == "None"]
    return np.concatenate([line.get_xydata() for line in lines] or [np.empty((0, 2))])


def _line(ax: Axes, label: str) -> tuple[list[float], list[float]]:
    (line,) = (line for line in ax.lines if str(line.get_label()).startswith(label))
    return list(line.get_xdata()), list(line.get_ydata())


ALL = ["drain", "throughput", "waits", "run_times", "again", "p95s"]


@pytest.mark.parametrize("name", ALL)
def test_a_plot_draws_into_the_axes_it_is_given(name, ax, burst, samples):
    assert _drawn(name, ax, burst, samples) is ax


@pytest.mark.parametrize("name", ALL)
def test_a_plot_can_be_rendered_and_explains_itself(name, ax, burst, samples):
    _drawn(name, ax, burst, samples)
    ax.figure.canvas.draw()
    legend = ax.get_legend()
    assert legend is not None
    assert all(text.get_text() for text in legend.get_texts())


@pytest.mark.parametrize(
    ("name", "x", "y"),
    [
        ("drain", "time since the first commit (s)", "open tasks"),
        ("throughput", "time since the first commit (s)", "tasks ended (1/s)"),
        ("waits", "wait from due to start (s)", "share of tasks started"),
        ("run_times", "run time (logarithmic)", ""),
        ("again", "time since the first commit (s)", "runs so far"),
        ("p95s", "time (ms)", ""),
    ],
)
def test_axes_say_what_they_show_and_in_which_unit(name, x, y, ax, burst, samples):
    _drawn(name, ax, burst, samples)
    assert (ax.get_xlabel(), ax.get_ylabel()) == (x, y)


def test_a_logarithmic_axis_has_the_units_at_its_ticks(ax, burst):
    plots.run_times(ax, burst)
    ax.figure.canvas.draw()
    assert ax.get_xscale() == "log"
    shown = [label.get_text() for label in ax.get_xticklabels()]
    assert shown
    assert all(re.fullmatch(r"[\d.]+ (µs|ms|s)", text) for text in shown)


@pytest.mark.parametrize("name", [name for name in ALL if name != "run_times"])
def test_times_begin_at_zero(name, ax, burst, samples):
    _drawn(name, ax, burst, samples)
    assert ax.get_xlim()[0] == 0


@pytest.mark.parametrize("name", ["drain", "throughput", "waits", "again"])
def test_quantities_begin_at_zero(name, ax, burst, samples):
    _drawn(name, ax, burst, samples)
    assert ax.get_ylim()[0] == 0


@pytest.mark.parametrize("name", ALL)
def test_colours_are_those_that_colour_blind_eyes_tell_apart(name, ax, burst, samples):
    _drawn(name, ax, burst, samples)
    used = {to_hex(line.get_color()) for line in ax.lines} | {to_hex(p.get_edgecolor()) for p in ax.patches}
    assert used <= OKABE_ITO


# What is drawn.


def test_a_drain_shows_postgres_and_the_gauges(ax, burst, samples):
    plots.drain(ax, burst, samples)
    times, counts = _line(ax, "in Postgres")
    assert dict(zip(times, counts, strict=True)) == {0: 4, 1: 4, 2.25: 3, 5: 2, 6: 1, 8: 0}
    assert _points(ax, "o").tolist() == [[1, 3], [5, 1]]  # what was scraped before the start is left out
    assert _line(ax, "last task committed")[0] == [1, 1]


def test_a_throughput_shows_every_commit_and_the_mean(ax, burst, samples):
    plots.throughput(ax, burst, samples, every_s=2)
    (steps,) = ax.patches
    heights, edges, _ = steps.get_data()
    assert heights.tolist() == [0.5, 0.5, 0.5, 0.5, 0.5]
    assert edges.tolist() == [0, 2, 4, 6, 8, 10]
    assert sorted(_points(ax, "|")[:, 0]) == [1, 2.25, 5, 6, 8]
    assert _points(ax, "o").tolist() == [[1, 0.5], [5, 0.5]]
    assert _line(ax, "mean 1/s")[1] == [5 / 8, 5 / 8]


def test_waits_draw_every_start_behind_their_distribution(ax, burst):
    plots.waits(ax, burst)
    assert sorted(map(tuple, _points(ax, "."))) == [(0.5, 0.5), (1, 1), (1, 1), (2, 1), (3, 1)]
    assert _line(ax, "critical: p95 975 ms, n = 2") == ([0.5, 1], [0.5, 1])
    assert sorted(_points(ax, "o")[:, 0]) == pytest.approx([0.975, 1, 2, 3])


def test_run_times_draw_every_run_and_every_loss(ax, burst):
    plots.run_times(ax, burst)
    runs = _points(ax, ".")
    rows = {row: sorted(runs[np.abs(runs[:, 1] - row) < 0.5][:, 0].tolist()) for row in range(4)}
    assert rows == {0: [0.25, 0.5], 1: [0.5, 1], 2: [0.5, 1], 3: [2, 2]}
    assert [label.get_text() for label in ax.get_yticklabels()] == [
        "noop\n2 ran, 0 lost",
        "flaky\n2 ran, 0 lost",
        "always_fail\n2 ran, 0 lost",
        "sleeper\n0 ran, 2 lost",
    ]
    assert _points(ax, "|").tolist() == [[0.375, 0], [0.75, 1], [0.75, 2]]
    assert _points(ax, "D").tolist() == [[pytest.approx(0.4875), 0], [0.975, 1], [0.975, 2]]


def test_what_was_done_again_stands_beside_what_the_deck_says(ax, burst, samples):
    plots.again(ax, burst, samples, EXPECTED)
    assert _line(ax, "retries in Postgres: 2") == ([0, 1.5, 2.5], [0, 1, 2])
    assert _line(ax, "reaped in Postgres: 2") == ([0, 5, 8], [0, 1, 2])
    assert _line(ax, "retries by the deck: 2")[1] == [2, 2]
    assert _line(ax, "retries, scraped") == ([1, 5], [1, 2])
    assert _line(ax, "reaped, scraped") == ([1, 5], [0, 1])


def test_each_p95_stands_beside_its_bucket_over_the_values(ax):
    plots.p95s(ax, P95S[1:])
    bar = ax.patches[0]
    assert (bar.get_x(), bar.get_x() + bar.get_width()) == (125, 250)
    assert _points(ax, ".")[:, 0].tolist() == [200, 200]
    assert _points(ax, "o").tolist() == [[200, 0]]
    assert _points(ax, "D").tolist() == [[200, 0]]
    assert ax.get_xlim() == (0, 1.15 * 250)


def test_values_beyond_the_axes_are_counted(ax):
    long = P95("critical", pd.Series([0.1] * 99 + [9.0]), 0.4, 0.25, 0.5)
    plots.p95s(ax, [long])
    assert [text.get_text() for text in ax.texts] == ["1 beyond →"]
    assert len(_points(ax, ".")) == 99


def test_long_times_are_shown_in_seconds(ax):
    plots.p95s(ax, [P95("critical", pd.Series([3.0, 4.0]), 3.5, 2.8, 4.0)])
    assert ax.get_xlabel() == "time (s)"


@pytest.mark.parametrize("name", ["waits", "run_times", "p95s"])
def test_values_lie_behind_their_summary(name, ax, burst, samples):
    _drawn(name, ax, burst, samples)
    order = [line.get_marker() for line in ax.lines if len(line.get_xdata())]
    raw, summary = {"waits": (".", "o"), "run_times": (".", "D"), "p95s": (".", "o")}[name]
    assert order.index(raw) < order.index(summary)
    assert min(line.get_zorder() for line in ax.lines) == max(line.get_zorder() for line in ax.lines)


@pytest.mark.parametrize(
    ("length", "interval"), [(0.0031, 0.002), (0.04, 0.05), (0.9, 1), (2.3, 2), (7.4, 5), (7.6, 10), (38, 50)]
)
def test_an_interval_reads_well(length, interval):
    assert plots.nice(length) == pytest.approx(interval)


def test_a_bucket_without_an_end_goes_on_to_the_edge(ax):
    plots.p95s(ax, [P95("critical", pd.Series([4.0, 4.0]), 2.0, 2.0, inf)])
    bar = ax.patches[0]
    assert (bar.get_x(), bar.get_x() + bar.get_width()) == (2, ax.get_xlim()[1])


def test_where_nothing_was_scraped_there_is_no_bucket(ax):
    plots.p95s(ax, [P95("critical", pd.Series([4.0, 4.0]), nan, nan, nan)])
    assert not ax.patches
    assert _points(ax, "o").tolist() == [[4, 0]]
