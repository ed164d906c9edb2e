"""Statistics: the one home of every median, percentile, range and ratio that the workbench tells.

Two things are compared by pairs: in each round both are measured, in turns, on the same servers. What the
machine does to one it does to the other, so the ratio within a round is worth more than two medians. `paired`
averages the ratios of the rounds on a logarithmic scale, where twice as fast and half as fast cancel out, and
draws its interval by a bootstrap over rounds; never over tasks, which are not independent within a round.

Pure, and the same arguments give the same answer everywhere.
"""

from __future__ import annotations

import random
import statistics
from collections.abc import Sequence
from math import ceil, exp, fsum, log, nan
from typing import Final, NamedTuple

RESAMPLES: Final = 10_000
CONFIDENCE: Final = 95.0


class Spread(NamedTuple):
    """The middle of some values, and the least and the greatest of them."""

    median: float
    low: float
    high: float


class Ratio(NamedTuple):
    """A ratio, and the interval that holds 95 % of its resamples."""

    value: float
    low: float
    high: float

    @property
    def clear(self) -> bool:
        """False if the two could be equal: the interval holds 1."""
        return not self.low <= 1 <= self.high


def spread(values: Sequence[float]) -> Spread:
    """Median and range.

    Raises:
        ValueError: there are no values.
    """
    if not values:
        raise ValueError("no values have no median")
    return Spread(statistics.median(values), min(values), max(values))


def percentile(values: Sequence[float], percent: float) -> float:
    """The smallest value that at least `percent` of 100 values do not exceed; nan if there are none."""
    ranked = sorted(values)
    return ranked[max(ceil(percent / 100 * len(ranked)), 1) - 1] if ranked else nan


def middle_rate(times: Sequence[float]) -> float:
    """Events a second from the one at 5 % to the one at 95 %: how a run begins and ends does not count.

    Args:
        times: When each was, in seconds.

    Raises:
        ValueError: there are too few, or they were all at once.
    """
    ranked = sorted(times)
    first, last = len(ranked) // 20, len(ranked) * 19 // 20
    seconds = ranked[last] - ranked[first] if first < last < len(ranked) else 0.0
    if seconds <= 0:
        raise ValueError(f"{len(ranked)} events have no rate")
    return (last - first) / seconds


def paired(ours: Sequence[float], theirs: Sequence[float], *, seed: int = 1) -> Ratio:
    """The geometric mean of ours / theirs over the rounds, with its bootstrap interval.

    With up to three rounds the interval is as wide as the ratios themselves: so few cannot say more.

    Raises:
        ValueError: there are no rounds, they do not pair up, or a value is not above 0.
    """
    if not ours or len(ours) != len(theirs):
        raise ValueError(f"{len(ours)} and {len(theirs)} values do not pair up")
    if min(*ours, *theirs) <= 0:
        raise ValueError("a ratio needs values above 0")
    logs = [log(a / b) for a, b in zip(ours, theirs, strict=True)]
    rng = random.Random(seed)
    means = [_mean(rng.choices(logs, k=len(logs))) for _ in range(RESAMPLES)] if len(logs) > 1 else logs
    tail = (100 - CONFIDENCE) / 2
    return Ratio(exp(_mean(logs)), exp(percentile(means, tail)), exp(percentile(means, 100 - tail)))


def _mean(values: Sequence[float]) -> float:
    return fsum(values) / len(values)


def slope(times: Sequence[float], values: Sequence[float]) -> float:
    """What the values gain for each unit of time, by the line of least squares through them.

    Raises:
        ValueError: there are fewer than two, or all are of one moment.
    """
    if len(times) < 2 or len(set(times)) < 2:
        raise ValueError("a line needs values of two moments")
    return statistics.linear_regression(times, values).slope
