"""Sampling: the fleet's metrics over time, scraped in the background while something else happens."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import datetime
from itertools import pairwise
from types import TracebackType
from typing import Any, Final, Self

import pandas as pd

from bench import scrape

EVERY_S: Final = 0.25

GAUGES: Final = ("queue_depth", "retry_set_depth", "processing_inflight", "dlq_depth")
COUNTERS: Final = (
    "tasks_enqueued_total",
    "tasks_dequeued_total",
    "tasks_succeeded_total",
    "tasks_failed_total",
    "tasks_retried_total",
    "tasks_reaped_total",
    "tasks_dead_total",
)
_NONE: Final = "-"
_LABEL: Final = re.compile(r'(\w+)="([^"]*)"')
UP: Final = "up"
"""A sample of our own: how many endpoints answered. Where it dips, sums over the endpoints dip, too."""


class Sampler:
    """Scrapes endpoints at fixed times in a thread of its own, from entering the context until leaving it.

    The first sample is there when the block begins, the last one is taken when it has ended.

        with Sampler(system.endpoints, now=system.now) as sampler:
            ...
        sampler.frame()

    A time that passes during a slow scrape is left out, not made up for: see `longest_gap_s`.

    Args:
        urls: Metrics endpoints.
        now: Asked once for the time that goes with the first sample; Postgres' clock fits the history.
        names: Samples to ask for, by their full names.
        every_s: Seconds from one scrape to the next.
    """

    def __init__(
        self,
        urls: Sequence[str],
        *,
        now: Callable[[], datetime],
        names: Collection[str] = GAUGES + COUNTERS,
        every_s: float = EVERY_S,
    ) -> None:
        self._urls = list(urls)
        self._now = now
        self._names = tuple(names)
        self._every_s = every_s
        self._pages: list[tuple[float, scrape.Page]] = []
        self._stopping = threading.Event()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="sampler")

    def __enter__(self) -> Self:
        self._began_at, self._began = self._now(), time.monotonic()
        self._scrape()
        self._done: Future[None] = self._thread.submit(self._scrape_on_time)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stopping.set()
        self._thread.shutdown()
        if error is None:
            self._done.result()

    @property
    def longest_gap_s(self) -> float:
        """The longest time between two samples, in seconds; 0 if there are fewer than two."""
        times = [t for t, _ in self._pages]
        return max((b - a for a, b in pairwise(times)), default=0.0)

    def frame(self) -> pd.DataFrame:
        """The samples, one a row, in the order of their times.

        Columns:
            t_s (float): seconds from the beginning to the sample.
            at (datetime, UTC): the same instant by the clock `now`.
            metric (category): the sample's name; `up` is the number of endpoints that answered.
            labels (category): as Prometheus writes them, sorted by name: `priority="high",type="noop"`.
            value (float): counters summed over the endpoints, of a gauge the largest.
        """
        rows = [
            (t, name, ",".join(f'{k}="{v}"' for k, v in sorted(labels)), value)
            for t, page in self._pages
            for (name, labels), value in [*page.samples.items(), ((UP, frozenset()), float(page.answered))]
        ]
        frame = pd.DataFrame(rows, columns=["t_s", "metric", "labels", "value"])
        at = pd.Timestamp(self._began_at) + pd.to_timedelta(frame["t_s"], unit="s")
        frame.insert(1, "at", pd.to_datetime(at, utc=True).dt.as_unit("us"))
        return frame.astype({"t_s": float, "metric": "category", "labels": "category", "value": float})

    def _scrape_on_time(self) -> None:
        due = 0.0
        while True:
            while due <= self._clock():
                due += self._every_s
            last = self._stopping.wait(due - self._clock())  # asked before the scrape: the end is sampled
            self._scrape()
            if last:
                return

    def _scrape(self) -> None:
        began = self._clock()
        page = scrape.page(self._urls, self._names)
        self._pages.append(((began + self._clock()) / 2, page))

    def _clock(self) -> float:
        """Seconds since the beginning."""
        return time.monotonic() - self._began


def labels_of(text: str) -> scrape.Labels:
    """The labels that a frame of samples writes as Prometheus does."""
    return frozenset(_LABEL.findall(text))


def content(samples: pd.DataFrame) -> dict[str, Any]:
    """A frame of samples as JSON has it: a text of values for each metric and its labels, one a sample."""
    times = sorted(samples["t_s"].unique())
    series: dict[str, dict[str, str]] = {}
    for (metric, labels), rows in samples.groupby(["metric", "labels"], observed=True):
        values = dict(zip(rows["t_s"], rows["value"], strict=True))
        words = (f"{values[t]:.10g}" if t in values else _NONE for t in times)
        series.setdefault(str(metric), {})[str(labels)] = " ".join(words)
    first = (samples["at"] - pd.to_timedelta(samples["t_s"], unit="s")).min()
    return {
        "at": first.round("us").as_unit("us").isoformat() if len(samples) else None,
        "t_s": " ".join(f"{t:.3f}" for t in times),
        "series": series,
    }


def frame_of(content: Mapping[str, Any] | None) -> pd.DataFrame:
    """The frame that `content` was made of; an empty one of None."""
    told = content or {"at": None, "t_s": "", "series": {}}
    times = [float(word) for word in told["t_s"].split()]
    rows = [
        (t, metric, labels, float(word))
        for metric, by_labels in told["series"].items()
        for labels, words in by_labels.items()
        for t, word in zip(times, words.split(), strict=True)
        if word != _NONE
    ]
    frame = pd.DataFrame(rows, columns=["t_s", "metric", "labels", "value"])
    at = pd.Timestamp(told["at"] or "1970-01-01T00:00:00+00:00")
    frame.insert(1, "at", (at + pd.to_timedelta(frame["t_s"].astype(float), unit="s")).dt.as_unit("us"))
    frame = frame.astype({"t_s": float, "metric": "category", "labels": "category", "value": float})
    return frame.sort_values("t_s", kind="stable", ignore_index=True)


def total(samples: pd.DataFrame, *metrics: str) -> pd.Series[float]:
    """The sum of `metrics` over all their labels at each sample: values by the time `at`."""
    chosen = samples[samples["metric"].isin(metrics)]
    summed: pd.Series[float] = chosen.groupby("at")["value"].sum()
    return summed


def rate(samples: pd.DataFrame, *metrics: str) -> pd.Series[float]:
    """What the counters gained a second between each sample and the one before it, by its time `at`."""
    counted = total(samples, *metrics)
    seconds = counted.index.to_series().diff().dt.total_seconds()
    gained: pd.Series[float] = counted.diff() / seconds
    return gained.dropna()
