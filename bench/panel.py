"""Panel: knobs and pictures for a notebook: a fleet that is started, turned and watched by hand.

    knobs = Panel(SETTINGS)
    knobs.widget                # sliders, two buttons, and what happens
    knobs.close()               # or the button, or `knobs.widget.close()`, or the end of the kernel

No callback waits for anything: it changes what is wished, and `steered.py` sees to it. Pictures are drawn in
one of its threads, never by two at a time.
"""

from __future__ import annotations

import io
import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from html import escape
from math import isnan
from typing import Any, Final

import pandas as pd
from ipywidgets import (  # type: ignore[import-untyped] # it ships no types
    HTML,
    Button,
    HBox,
    Image,
    IntSlider,
    VBox,
)
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bench import timelines
from bench.report import seconds
from bench.steered import LONGEST_S, Look, Steered, Wish
from bench.workload import Mix

_DRAW_S: Final = 1.0


class Panel:
    """The widgets, and the system behind them.

    Args:
        settings: What the system's parts are started with.
        sleep_ms: How long a sleeper sleeps.
        longest_s: After so long the system ends by itself.

    Attributes:
        widget: What a cell shows.
        workers, slots, rate, flaky, fail, sleep: The sliders; the last three are percent of the tasks.
        start, stop: The buttons.
        words, picture: What happens.
        steered: The system.
    """

    def __init__(
        self, settings: Mapping[str, str], *, sleep_ms: int = 200, longest_s: float = LONGEST_S
    ) -> None:
        self._sleep_ms = sleep_ms
        self._drawing = threading.Lock()
        self._drawn = 0.0
        self.workers = _slider("workers", 2, 1, 6)
        self.slots = _slider("slots each", 12, 1, 48)
        self.rate = _slider("tasks/s", 50, 0, 1000, 10)
        self.flaky = _slider("% flaky", 10, 0, 100, 5)
        self.fail = _slider("% failing", 0, 0, 100, 5)
        self.sleep = _slider("% sleepers", 20, 0, 100, 5)
        self.start = Button(description="Start", icon="play", button_style="success")
        self.stop = Button(description="Stop", icon="stop", disabled=True)
        self.words = HTML()
        self.picture = Image(format="png", layout={"max_width": "100%"})
        self.figure = Figure(figsize=(12, 3.2))
        self.steered = Steered(settings, self._wished(), told=self._show, longest_s=longest_s)
        knobs = (self.workers, self.slots, self.rate), (self.flaky, self.fail, self.sleep)
        self.widget = VBox(
            [HBox([*map(VBox, knobs), VBox([self.start, self.stop])]), self.words, self.picture]
        )
        for knob in (*knobs[0], *knobs[1]):
            knob.observe(self._turned, "value")
        self.start.on_click(lambda _: self.steered.start())
        self.stop.on_click(lambda _: self.steered.stop())
        self.widget.observe(lambda _: self.steered.stop(), "comm")  # the widget was closed
        self._show()

    @property
    def looks(self) -> deque[Look]:
        """What was seen, the newest last."""
        return self.steered.looks

    def close(self) -> None:
        """Stop the system and wait for its end; raises what went wrong."""
        self.steered.close()

    def _wished(self) -> Wish:
        """What the sliders say. Raises ValueError if the percentages add up to more than 100."""
        mix = Mix(
            flaky=self.flaky.value,
            fail=self.fail.value,
            sleep=self.sleep.value,
            sleep_ms=self._sleep_ms,
            flaky_attempts=1,
        )
        return Wish(self.workers.value, self.slots.value, self.rate.value, mix)

    def _turned(self, _: object) -> None:
        try:
            self.steered.wish = self._wished()
        except ValueError as error:
            self.words.value = f"<b>{escape(str(error))}</b>"

    def _show(self) -> None:
        """Called after each look, and when the state has changed."""
        with self._drawing:
            self.start.disabled = self.steered.running
            self.stop.disabled = not self.steered.running
            looks = list(self.looks)
            self.words.value = escape(told(self.steered.state, self.steered.sent, looks))
            if looks and time.monotonic() - self._drawn > _DRAW_S:
                self.picture.value = _png(drawn(self.figure, looks))
                self._drawn = time.monotonic()


def told(state: str, sent: int, looks: Sequence[Look]) -> str:
    """The newest look in a line."""
    if not looks:
        return state
    last = looks[-1]
    wait = "-" if isnan(last.p95_wait_s) else seconds(last.p95_wait_s)
    return (
        f"{state}: {last.workers} × {last.slots}; {sent:,} sent; {last.ready:,} ready, {last.in_flight:,} in"
        f" flight; {last.per_s:,.0f} ended a second; p95 wait {wait}"
    )


def drawn(figure: Figure, looks: Sequence[Look]) -> Figure:
    """The figure drawn anew: where open tasks are, how many end a second, and how long they have waited."""
    figure.clear()
    depths, rates, waits = figure.subplots(1, 3)
    seen = pd.DataFrame(list(looks)).set_index("t_s")
    open_tasks = {"ready": seen["ready"], "in the retry set": seen["waiting"], "in flight": seen["in_flight"]}
    plots: tuple[tuple[Axes, Mapping[str, Any], str], ...] = (
        (depths, open_tasks, "open tasks"),
        (rates, {"between two looks": seen["per_s"]}, "tasks ended (1/s)"),
        (waits, {"p95 between two looks": seen["p95_wait_s"]}, "wait from due to start (s)"),
    )
    for ax, totals, unit in plots:
        timelines.live(ax, totals, unit)
    return figure


def _png(figure: Figure) -> bytes:
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=80)
    return picture.getvalue()


def _slider(name: str, value: int, low: int, high: int, step: int = 1) -> IntSlider:
    return IntSlider(value, low, high, step, description=name, continuous_update=False)
