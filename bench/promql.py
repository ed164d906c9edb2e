"""PromQL: `rate` over scraped samples, as Prometheus works it out, without one.

A counter's samples within the window give what it gained, where a fall is a new start from 0. They seldom lie
at the window's ends, so the gain is extended to an end that is as near as the samples are to each other; to
one that is farther away by half of their distance. Nor is a counter extended to before it was 0.

    with Sampler([url], now=now, names=("tasks_succeeded_total",)) as sampler:  # one for each endpoint
        ...
    promql.rates([sampler.frame()], ["tasks_succeeded_total"], end, 10.0).total("tasks_succeeded_total")
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime
from itertools import pairwise
from math import isnan, nan
from typing import Final

import pandas as pd

from bench.sampling import labels_of
from bench.scrape import Labels, Page

Points = Sequence[tuple[float, float]]
"""When, in seconds, and what a counter was then; in the order of time."""

_NEAR: Final = 1.1
"""The gain is extended to an end of the window that is no farther than so many distances of samples."""


def rate(points: Points, end: float, seconds: float) -> float:
    """`rate(counter[seconds])` at `end`; nan where fewer than two samples lie in the window."""
    inside = [(t, value) for t, value in points if end - seconds <= t <= end]
    if len(inside) < 2:
        return nan
    (first, was), (last, _) = inside[0], inside[-1]
    gained = sum(value - before if value >= before else value for (_, before), (_, value) in pairwise(inside))
    covered = last - first
    apart = covered / (len(inside) - 1)
    before = first - (end - seconds)
    if gained > 0:
        before = min(before, covered * was / gained)
    whole = covered + sum(gap if gap < _NEAR * apart else apart / 2 for gap in (before, end - last))
    return gained * whole / covered / seconds


def rates(scraped: Iterable[pd.DataFrame], names: Sequence[str], end: datetime, seconds: float) -> Page:
    """The rates of counters at `end`, as a page: series of several endpoints that are labelled alike add up.

    A quantile of such a page is `histogram_quantile(q, sum by (le) (rate(..._bucket[seconds])))`.

    Args:
        scraped: The samples of each endpoint, from a sampler of its own, so that a restart is seen.
        names: Samples, by their full names.
        end: Where the window ends.
        seconds: How long it is.
    """
    found: dict[tuple[str, Labels], float] = {}
    for samples in scraped:
        for key, points in _series(samples[samples["metric"].isin(names)]):
            value = rate(points, end.timestamp(), seconds)
            if not isnan(value):
                found[key] = found.get(key, 0.0) + value
    return Page(found)


def _series(samples: pd.DataFrame) -> Iterator[tuple[tuple[str, Labels], Points]]:
    for (metric, labels), rows in samples.groupby(["metric", "labels"], observed=True):
        times = (at.timestamp() for at in rows["at"])
        yield (str(metric), labels_of(str(labels))), list(zip(times, rows["value"], strict=True))
