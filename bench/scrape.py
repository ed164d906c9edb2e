"""Read a metrics endpoint: one page as numbers, without a Prometheus."""

from __future__ import annotations

import urllib.request
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import inf

from prometheus_client.parser import text_string_to_metric_families

_TIMEOUT_S = 2.0

Labels = frozenset[tuple[str, str]]


@dataclass(frozen=True, slots=True)
class Page:
    """The samples of one or more endpoints at one moment; counters of several are summed."""

    samples: Mapping[tuple[str, Labels], float]

    def total(self, name: str, **labels: str) -> float:
        """The sum of all samples of `name` that carry these labels (others may be there, too)."""
        wanted = set(labels.items())
        return sum(v for (n, have), v in self.samples.items() if n == name and wanted <= have)

    def quantile(self, name: str, q: float, **labels: str) -> float:
        """`histogram_quantile`: the q-quantile of histogram `name`, linear within its bucket; nan if empty.

        See the Prometheus documentation, Functions, histogram_quantile.
        """
        wanted = set(labels.items())
        buckets: dict[float, float] = {}
        for (n, have), value in self.samples.items():
            if n == f"{name}_bucket" and wanted <= have:
                bound = float(dict(have)["le"])
                buckets[bound] = buckets.get(bound, 0.0) + value
        return quantile(sorted(buckets.items()), q)


def quantile(buckets: list[tuple[float, float]], q: float) -> float:
    """The q-quantile of cumulative buckets (upper bound, count), ordered by bound."""
    if not buckets or buckets[-1][1] <= 0:
        return float("nan")
    rank = q * buckets[-1][1]
    lower, below = 0.0, 0.0
    for bound, count in buckets:
        if count >= rank:
            if bound == inf:
                return lower
            return lower + (bound - lower) * (rank - below) / (count - below) if count > below else bound
        lower, below = bound, count
    return lower


def page(urls: Iterable[str]) -> Page:
    """Scrape endpoints one after the other. One that does not answer is left out: it may just have died."""
    samples: dict[tuple[str, Labels], float] = {}
    for url in urls:
        try:
            with urllib.request.urlopen(url, timeout=_TIMEOUT_S) as answer:  # noqa: S310 - our own endpoints
                text = answer.read().decode()
        except OSError:
            continue
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                key = (sample.name, frozenset(sample.labels.items()))
                gauge = family.type == "gauge"
                # Gauges describe the whole system in every process: one of them is enough.
                samples[key] = (
                    max(samples.get(key, 0.0), sample.value)
                    if gauge
                    else (samples.get(key, 0.0) + sample.value)
                )
    return Page(samples)
