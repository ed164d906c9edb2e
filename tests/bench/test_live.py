"""A live picture is drawn while work goes on, and brings back what the work came to."""

from __future__ import annotations

import threading
from datetime import UTC, datetime
from types import SimpleNamespace

import pandas as pd
import pytest
from matplotlib.figure import Figure

from bench import live

RUNNING = SimpleNamespace(endpoints=[], now=lambda: datetime(2030, 1, 1, tzinfo=UTC))


def test_it_is_drawn_while_the_work_goes_on_and_once_more_after_it():
    drawn, go_on = [], threading.Event()

    def redraw(samples: pd.DataFrame) -> None:
        drawn.append(len(samples))
        go_on.set()

    def work() -> str:
        assert go_on.wait(10)
        return "done"

    assert live.alongside(work, RUNNING, redraw, every_s=0.01) == "done"
    assert len(drawn) >= 2


def test_what_the_work_raises_is_raised():
    def work() -> None:
        raise ZeroDivisionError("it went wrong")

    with pytest.raises(ZeroDivisionError, match="it went wrong"):
        live.alongside(work, RUNNING, lambda _: None, every_s=0.01)


def test_a_picture_shows_where_tasks_are_and_how_many_end():
    start = pd.Timestamp("2030-01-01T12:00:00Z")
    rows = [
        (t, metric, value)
        for t, *values in ((0.0, 5, 1, 0), (2.0, 3, 1, 4))
        for metric, value in zip(
            ("queue_depth", "processing_inflight", "tasks_succeeded_total"), values, strict=True
        )
    ]
    samples = pd.DataFrame(rows, columns=["t_s", "metric", "value"])
    samples = samples.assign(at=start + pd.to_timedelta(samples["t_s"], unit="s"))
    figure = Figure()
    axes = figure.subplots(1, 2)
    for _ in range(2):  # drawing again replaces what was there
        assert live.drawn(figure, axes, samples) is figure
    lines = {line.get_label(): line.get_xydata().tolist() for line in (*axes[0].lines, *axes[1].lines)}
    assert lines["ready"] == [[0, 5], [2, 3]]
    assert lines["in flight"] == [[0, 1], [2, 1]]
    assert lines["between scrapes"] == [[2, 2]]
    assert axes[0].get_ylabel() == "open tasks"
    assert axes[1].get_ylabel() == "tasks ended (1/s)"
