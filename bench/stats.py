"""Statistics: the one home of every median, percentile, range and ratio that the workbench tells.

Two things are compared by pairs: in each round both are measured, in turns, on the same servers. What the
machine does to one it does to the other, so the ratio within a round is worth more than two medians. `paired`
averages the ratios of the rounds on a logarithmic scale, where twice as fast and half as fast cancel out, and
draws its interval by a bootstrap over rounds; never over tasks, which are not independent within a round.
A bootstrap of few rounds is too narrow, so its tails are moved out as Student's t asks (Hesterberg's expanded
percentile). `compared` adds what a claim needs: the signed-rank test, and the least change that so many
rounds would have found.

Pure, and the same arguments give the same answer everywhere.
"""

from __future__ import annotations

import random
import statistics
from collections.abc import Sequence
from math import atan, ceil, cos, exp, fsum, log, nan, pi, sin, sqrt
from typing import Final, NamedTuple

RESAMPLES: Final = 10_000
CONFIDENCE: Final = 95.0
SIGNIFICANT: Final = 0.05
POWER: Final = 0.8
"""The chance with which the least detectable change is found."""

_TRIAL_RESAMPLES: Final = 1000
"""Enough where many comparisons are made and each only counts."""

_EXACT: Final = 60
"""Up to so many differences the signed-rank test counts its cases; beyond it takes a normal distribution."""


class Spread(NamedTuple):
    """The middle of some values, and the least and the greatest of them."""

    median: float
    low: float
    high: float


class Interval(NamedTuple):
    """A value, and the two ends between which another one like it would lie 95 times of 100."""

    value: float
    low: float
    high: float


class Ratio(NamedTuple):
    """A ratio, and its interval of 95 %."""

    value: float
    low: float
    high: float

    @property
    def clear(self) -> bool:
        """False if the two could be equal: the interval holds 1."""
        return not self.low <= 1 <= self.high


class Effect(NamedTuple):
    """What the comparison of two things over some rounds came to.

    Attributes:
        ratio: Ours over theirs.
        rounds: How many there were.
        p: Of the two-sided signed-rank test: how often equal things come out so far apart.
        detectable: The change, as a share, that so many rounds find 4 times of 5; nan with one round.
    """

    ratio: Ratio
    rounds: int
    p: float
    detectable: float

    @property
    def clear(self) -> bool:
        """Whether the two differ: the interval says so, and the test."""
        return self.ratio.clear and self.p <= SIGNIFICANT

    @property
    def floor(self) -> float:
        """How far apart they are at the most, as a distance of logarithms.

        Of a thing against itself, what is no farther apart means nothing: the distance that was found; if it
        is `clear`, so that something else than chance is at work, the far end of the interval.
        """
        found = max(abs(log(self.ratio.low)), abs(log(self.ratio.high))) if self.clear else 0.0
        return max(found, abs(log(self.ratio.value)))

    def beyond(self, floor: float) -> bool:
        """Whether it is clear, and farther apart than `floor`."""
        return self.clear and abs(log(self.ratio.value)) > floor


def spread(values: Sequence[float]) -> Spread:
    """Median and range.

    Raises:
        ValueError: there are no values.
    """
    if not values:
        raise ValueError("no values have no median")
    return Spread(statistics.median(values), min(values), max(values))


def coverage(n: int) -> float:
    """How surely the range of n values holds the median of whatever they were drawn from.

    It misses only if all of them are on one side of it, so nothing is assumed of their distribution.

    >>> [round(coverage(n), 3) for n in (1, 2, 5, 6)]
    [0.0, 0.5, 0.938, 0.969]
    """
    return 1 - 2.0 ** (1 - n)


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


def paired(
    ours: Sequence[float], theirs: Sequence[float], *, seed: int = 1, resamples: int = RESAMPLES
) -> Ratio:
    """The geometric mean of ours / theirs over the rounds, with its bootstrap interval.

    With up to three rounds the interval is as wide as the ratios themselves: so few cannot say more.

    Raises:
        ValueError: there are no rounds, they do not pair up, or a value is not above 0.
    """
    return _resampled(_logs(ours, theirs), seed, resamples)


def compared(
    ours: Sequence[float], theirs: Sequence[float], *, seed: int = 1, resamples: int = RESAMPLES
) -> Effect:
    """The same with what a claim needs. Raises as `paired` does."""
    logs = _logs(ours, theirs)
    n = len(logs)
    least = nan
    if n > 1:
        reach = student(1 - (100 - CONFIDENCE) / 200, n - 1) + student(POWER, n - 1)
        least = exp(reach * statistics.stdev(logs) / sqrt(n)) - 1
    return Effect(_resampled(logs, seed, resamples), n, signed_rank(logs), least)


def detection(
    ours: Sequence[float],
    theirs: Sequence[float],
    *,
    change: float,
    rounds: int,
    trials: int = 200,
    seed: int = 1,
) -> tuple[float, float]:
    """How often a comparison errs and finds, by resampling rounds in which equal things were measured twice.

    A trial draws rounds for the comparison and others for the floor, each turned around or not, so that
    nothing differs but by chance. Then it plants the change in one side.

    Args:
        ours: One measurement of each round.
        theirs: The other one.
        change: What is planted, as a share: 0.1 is 10 % more.
        rounds: Of a comparison.
        trials: How many comparisons.
        seed: Draws them.

    Returns:
        The share of trials that tell equal things apart, and the share that finds the change.
    """
    rng = random.Random(seed)
    pairs = list(zip(ours, theirs, strict=True))
    flagged = found = 0

    def drawn(factor: float = 1.0) -> Effect:
        chosen = [rng.sample(pair, 2) for pair in rng.choices(pairs, k=rounds)]
        first, second = [a * factor for a, _ in chosen], [b for _, b in chosen]
        return compared(first, second, seed=rng.getrandbits(32), resamples=_TRIAL_RESAMPLES)

    for _ in range(trials):
        floor = drawn().floor
        flagged += drawn().beyond(floor)
        found += drawn(1 + change).beyond(floor)
    return flagged / trials, found / trials


def _logs(ours: Sequence[float], theirs: Sequence[float]) -> list[float]:
    if not ours or len(ours) != len(theirs):
        raise ValueError(f"{len(ours)} and {len(theirs)} values do not pair up")
    if min(*ours, *theirs) <= 0:
        raise ValueError("a ratio needs values above 0")
    return [log(a / b) for a, b in zip(ours, theirs, strict=True)]


def _resampled(logs: Sequence[float], seed: int, resamples: int) -> Ratio:
    n, rng = len(logs), random.Random(seed)
    if n == 1:
        return Ratio(*[exp(logs[0])] * 3)
    means = sorted(fsum(rng.choices(logs, k=n)) / n for _ in range(resamples))
    reach = sqrt(n / (n - 1)) * student(1 - (100 - CONFIDENCE) / 200, n - 1)
    tail = 100 * statistics.NormalDist().cdf(-reach)
    # Summed up, the values may differ from a mean of their own in the last digit; an end is never inside.
    value = fsum(logs) / n
    low, high = min(percentile(means, tail), value), max(percentile(means, 100 - tail), value)
    return Ratio(exp(value), exp(low), exp(high))


def student(share: float, freedom: int) -> float:
    """The value that `share` (at least a half) of Student's t with so many degrees of freedom do not exceed.

    >>> round(student(0.975, 11), 3), round(student(0.8, 4), 3)
    (2.201, 0.941)
    """
    low, high = 0.0, 1.0
    while _student_below(high, freedom) < share:
        high *= 2
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _student_below(middle, freedom) < share else (low, middle)
    return high


def _student_below(t: float, freedom: int) -> float:
    """The distribution function of Student's t for t of at least 0, as a finite series (A&S 26.7.3-4)."""
    angle = atan(t / sqrt(freedom))
    square = cos(angle) ** 2
    odd = freedom % 2
    term = total = cos(angle) if odd else 1.0
    for k in range(2 + odd, freedom - 1, 2):
        term *= square * (k - 1) / k
        total += term
    rest = sin(angle) * total
    if not odd:
        return 0.5 + rest / 2
    return 0.5 + (angle + (rest if freedom > 1 else 0.0)) / pi


def signed_rank(differences: Sequence[float]) -> float:
    """The p of Wilcoxon's signed-rank test, two-sided; differences of 0 say nothing and are left out.

    Up to 60 differences it is exact, with ties, too; above it is the normal approximation. Without a
    difference it is 1.
    """
    sizes = sorted(abs(d) for d in differences if d)
    twice = {size: sizes.index(size) * 2 + sizes.count(size) + 1 for size in set(sizes)}  # mean rank × 2
    ranks = [twice[size] for size in sizes]
    above = sum(twice[d] for d in differences if d > 0)
    if not ranks:
        return 1.0
    if len(ranks) > _EXACT:
        off = abs(above - sum(ranks) / 2) / sqrt(sum(rank * rank for rank in ranks) / 4)
        return 2 * statistics.NormalDist().cdf(-off)
    ways = [1] + [0] * sum(ranks)
    for rank in ranks:
        for total in range(len(ways) - 1, rank - 1, -1):
            ways[total] += ways[total - rank]
    least = min(sum(ways[: above + 1]), sum(ways[above:]))
    return float(min(1.0, 2 * least / 2 ** len(ranks)))


def slope(times: Sequence[float], values: Sequence[float]) -> float:
    """What the values gain for each unit of time, by the line of least squares through them.

    Raises:
        ValueError: there are fewer than two, or all are of one moment.
    """
    if len(times) < 2 or len(set(times)) < 2:
        raise ValueError("a line needs values of two moments")
    return statistics.linear_regression(times, values).slope


def another(values: Sequence[float]) -> Interval:
    """The mean, and where one more value is to be expected, if they are spread as Student's t takes it.

    >>> another([1.0, 1.0, 1.0])
    Interval(value=1.0, low=1.0, high=1.0)

    Raises:
        ValueError: there are fewer than two.
    """
    if len(values) < 2:
        raise ValueError("one value does not tell where another would be")
    n, mean = len(values), statistics.fmean(values)
    reach = student(1 - (100 - CONFIDENCE) / 200, n - 1) * statistics.stdev(values) * sqrt(1 + 1 / n)
    return Interval(mean, mean - reach, mean + reach)
