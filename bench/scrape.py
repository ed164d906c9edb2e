"""Read metrics endpoints: one page as numbers, without a Prometheus."""

from __future__ import annotations

import urllib.request
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from math import inf, isnan, nan
from urllib.parse import urlencode

from prometheus_client.parser import text_string_to_metric_families

_TIMEOUT_S = 2.0

Labels = frozenset[tuple[str, str]]
Buckets = list[tuple[float, float]]
"""(upper bound, observations up to it), ordered by bound."""


@dataclass(frozen=True, slots=True)
class Page:
    """The samples of one or more endpoints at one moment; counters and histograms of several are summed.

    Gauges describe the whole system in every process, so the largest stands for all. `gauges` are their
    names; `answered` is how many endpoints gave their samples.
    """

    samples: Mapping[tuple[str, Labels], float]
    gauges: frozenset[str] = frozenset()
    answered: int = 0

    def total(self, name: str, **labels: str) -> float:
        """The sum of all samples of `name` that carry these labels (others may be there, too)."""
        wanted = set(labels.items())
        return sum(v for (n, have), v in self.samples.items() if n == name and wanted <= have)

    def since(self, earlier: Page) -> Page:
        """What counters and histograms gained since `earlier`. Gauges have no gain and are left out."""
        gained = {
            key: value - earlier.samples.get(key, 0.0)
            for key, value in self.samples.items()
            if key[0] not in self.gauges
        }
        return Page(gained, answered=self.answered)

    def buckets(self, name: str, **labels: str) -> Buckets:
        """The buckets of histogram `name`, summed over all series that carry these labels."""
        wanted = set(labels.items())
        counts: dict[float, float] = {}
        for (n, have), value in self.samples.items():
            if n == f"{name}_bucket" and wanted <= have:
                bound = float(dict(have)["le"])
                counts[bound] = counts.get(bound, 0.0) + value
        return sorted(counts.items())

    def quantile(self, name: str, q: float, **labels: str) -> float:
        """`histogram_quantile` of histogram `name`: see `quantile`."""
        return quantile(self.buckets(name, **labels), q)

    def bracket(self, name: str, q: float, **labels: str) -> tuple[float, float]:
        """The bounds of the bucket that holds the q-quantile: it lies there, and no more is known of it."""
        return bracket(self.buckets(name, **labels), q)


def quantile(buckets: Buckets, q: float) -> float:
    """The q-quantile of cumulative buckets, linear within its bucket, as Prometheus' `histogram_quantile`.

    nan where there are no observations or no bucket for all of them. A bucket without a lower or an upper
    bound has nothing to interpolate: its other bound stands.
    """
    low, high = bracket(buckets, q)
    if low == -inf:
        return high
    if high == inf or isnan(low):
        return low
    counts = dict(buckets)
    below = counts.get(low, 0.0)
    inside = counts[high] - below
    return low + (high - low) * (q * buckets[-1][1] - below) / inside if inside else nan


def bracket(buckets: Buckets, q: float) -> tuple[float, float]:
    """The bounds of the bucket that holds the q-quantile; nan, nan where `quantile` has no answer.

    Raises:
        ValueError: q is not from 0 to 1.
    """
    if not 0 <= q <= 1:
        raise ValueError(f"q is {q}; a quantile is from 0 to 1")
    if len(buckets) < 2 or buckets[-1][0] != inf or buckets[-1][1] <= 0:
        return nan, nan
    rank = q * buckets[-1][1]
    low = 0.0 if buckets[0][0] > 0 else -inf
    for bound, count in buckets[:-1]:
        if count >= rank:
            return low, bound
        low = bound
    return low, inf


def page(urls: Iterable[str], names: Collection[str] = ()) -> Page:
    """Scrape endpoints one after the other. One that does not answer is left out: it may just have died.

    Args:
        urls: The endpoints.
        names: Samples to ask for, by their full names; all if there are none. Few are cheap on both sides.
    """
    samples: dict[tuple[str, Labels], float] = {}
    gauges: set[str] = set()
    answered = 0
    query = f"?{urlencode([('name[]', name) for name in names])}" if names else ""
    for url in urls:
        try:
            with urllib.request.urlopen(url + query, timeout=_TIMEOUT_S) as answer:  # noqa: S310 - our own endpoints
                text = answer.read().decode()
        except OSError:
            continue
        answered += 1
        for family in text_string_to_metric_families(text):
            if family.type == "gauge":
                gauges.add(family.name)
            for sample in family.samples:
                key = (sample.name, frozenset(sample.labels.items()))
                value = sample.value
                if key in samples:
                    value = max(samples[key], value) if family.type == "gauge" else samples[key] + value
                samples[key] = value
    return Page(samples, frozenset(gauges), answered)
