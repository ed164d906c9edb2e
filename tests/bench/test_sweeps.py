"""Sweeps and timelines name their units, begin at 0, and draw what they sum up."""

from __future__ import annotations

from collections.abc import Callable
from math import inf

import pandas as pd
import pytest
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from bench import findings, planner, scenario, sweeps, timelines
from bench.costs import FREE
from bench.measured import ledger_of
from bench.receipts import LoadResult, Receipt
from bench.simulate import simulate
from bench.stats import compared

OKABE_ITO = {"#000000", "#e69f00", "#56b4e9", "#009e73", "#f0e442", "#0072b2", "#d55e00", "#cc79a7"}
BURST = scenario.parse(
    {
        "mix": {"flaky": 20, "fail": 10, "sleep": 20, "sleep_ms": 2000},
        "load": {"kind": "bulk", "tasks": 60},
        "fleet": {"processes": 1, "slots": 3, "settings": {"VIS_TIMEOUT_MS": 1000, "MAX_LOSSES": 1}},
    },
    "x",
    "x",
)
STEADY = scenario.parse(
    {
        "mix": {"sleep": 100, "sleep_ms": 100},
        "load": {"kind": "open", "rate": 20, "seconds": 5},
        "fleet": {"processes": 1},
    },
    "x",
    "x",
)
LEDGER = ledger_of(simulate(BURST, FREE), pd.Timestamp("2030-01-01T12:00:00Z"))
CELLS = pd.DataFrame(
    {
        "workers": [1, 1, 2, 2],
        "slots": [4, 8, 4, 8],
        "per_s": [150.0, 280.0, 270.0, 300.0],
        "slot_bound_per_s": [200.0, 400.0, 400.0, 800.0],
        "cpu_bound_per_s": [500.0, 510.0, 490.0, 500.0],
        "efficiency": [0.75, 0.7, 0.675, 0.375],
        "disturbed": False,
    }
)
STEPS = pd.DataFrame({"rate": [100, 200], "p50_s": [0.002, 0.003], "p95_s": [0.004, 0.2], "disturbed": False})
LOADS = {
    name: LoadResult(2, 0.0, receipts=[Receipt("a", 0, 0.0, 0.0, 0.1), Receipt("b", 1, 0.5, 0.5, 1.5)])
    for name in ("open", "closed")
}
EFFECT = compared([1.1, 1.2, 1.3], [1.0, 1.0, 1.0])
LEVELS = pd.DataFrame({"t_s": [2.0, 3.0], "alert": "QueueSaturated", "level": [0.5, inf]})

DRAWN: dict[str, tuple[Callable[[Axes], Axes], str, str]] = {
    "scaling": (lambda ax: sweeps.scaling(ax, CELLS), "slots in all", "tasks ended (1/s)"),
    "retry waits": (
        lambda ax: sweeps.retry_waits(ax, findings.retry_waits(LEDGER), {1: (0.5, 1.5), 2: (1.0, 2.0)}),
        "failures so far",
        "wait until the next claim (s)",
    ),
    "load curve": (
        lambda ax: sweeps.load_curve(ax, STEPS, 0.05),
        "requests offered (1/s)",
        "latency of the answer (ms)",
    ),
    "shares": (
        lambda ax: sweeps.shares(
            ax, {"weighted": findings.shares(LEDGER)}, {"critical": 8, "high": 4, "default": 2, "low": 1}
        ),
        "priority",
        "share of the claims",
    ),
    "gaps": (
        lambda ax: sweeps.gaps(ax, findings.gaps(LEDGER), 0.5),
        "time unserved while tasks waited (s)",
        "",
    ),
    "ratios": (
        lambda ax: sweeps.ratios(ax, [("drain", EFFECT, EFFECT), ("CPU", EFFECT, None)]),
        "B / A (ratio, logarithmic)",
        "",
    ),
    "predictions": (lambda ax: sweeps.predictions(ax, [("drain", 2.0, [1.9, 2.1])]), "time (s)", ""),
    "capacity": (
        lambda ax: sweeps.capacity(ax, planner.grid(STEADY, [20], [2, 4], FREE, seeds=2), 0.1),
        "slots in all",
        "p95 wait (s, logarithmic)",
    ),
    "tornado": (
        lambda ax: sweeps.tornado(ax, planner.sensitivity(BURST, ["RETRY_BASE_MS"], FREE, seeds=2)[0]),
        "change of the drain (s)",
        "",
    ),
    "leases": (
        lambda ax: timelines.leases(ax, findings.lapses(LEDGER), 1.0, most=5),
        "time since the first commit (s)",
        "lost runs (5 of 24 shown)",
    ),
    "stalls": (
        lambda ax: timelines.stalls(ax, LOADS),
        "time at which a request was to be sent (s)",
        "latency from then on (s)",
    ),
    "forecast": (
        lambda ax: timelines.forecast(ax, LEDGER, [LEDGER, LEDGER]),
        "time since the first commit (s)",
        "open tasks",
    ),
    "alarms": (
        lambda ax: timelines.alarms(ax, LEVELS),
        "time since the first scrape (s)",
        "value / threshold",
    ),
    "live": (
        lambda ax: timelines.live(ax, {"ready": pd.Series([3.0, 1.0], index=[0.0, 1.0])}, "open tasks"),
        "time since the first scrape (s)",
        "open tasks",
    ),
}


@pytest.fixture
def ax() -> Axes:
    return Figure().subplots()


@pytest.mark.parametrize("name", DRAWN)
def test_a_plot_draws_into_its_axes_and_names_units(name, ax):
    draw, x, y = DRAWN[name]
    assert draw(ax) is ax
    ax.figure.canvas.draw()
    assert (ax.get_xlabel(), ax.get_ylabel()) == (x, y)
    assert all(text.get_text() for text in ax.get_legend().get_texts())


@pytest.mark.parametrize("name", DRAWN)
def test_axes_begin_at_zero_unless_they_say_otherwise(name, ax):
    draw, _, y = DRAWN[name]
    draw(ax)
    if name not in {"ratios", "tornado", "retry waits", "shares"}:
        assert ax.get_xlim()[0] == 0
    if y and "logarithmic" not in y and name != "leases":
        assert ax.get_ylim()[0] == 0


@pytest.mark.parametrize("name", DRAWN)
def test_colours_are_those_that_colour_blind_eyes_tell_apart(name, ax):
    DRAWN[name][0](ax)
    used = {to_hex(line.get_color()) for line in ax.lines} | {to_hex(p.get_facecolor()) for p in ax.patches}
    assert used <= OKABE_ITO


def test_every_cell_of_a_grid_says_its_efficiency(ax):
    sweeps.efficiency(ax, CELLS)
    assert [text.get_text() for text in ax.texts] == ["75%", "70%", "68%", "38%"]
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("slots of each worker", "workers (processes)")


def test_a_fault_that_did_not_strike_is_not_drawn(ax):
    struck = [
        {"kind": "worker_killed", "what": "worker-2", "struck_s": 1.0},
        {"kind": "redis_flushed", "what": "", "struck_s": None},
    ]
    timelines.faults(ax, struck, 0.5)
    assert [line.get_xdata()[0] for line in ax.lines] == [1.5]
    assert [text.get_text() for text in ax.texts] == ["worker killed: worker-2"]


def test_a_lease_is_parted_from_the_time_after_it(ax):
    lapses = pd.DataFrame({"claimed_s": [2.0], "held_s": [1.25]})
    timelines.leases(ax, lapses, 1.0)
    assert [(bar.get_x(), bar.get_width()) for bar in ax.patches] == [(2.0, 1.0), (3.0, 0.25)]
