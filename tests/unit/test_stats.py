"""The workbench's statistics against values worked out by hand, and against scipy."""

from __future__ import annotations

import random
from itertools import product
from math import exp, isnan, log, sqrt

import numpy as np
import pytest
from scipy import stats as scipy

from bench.stats import (
    Ratio,
    compared,
    detection,
    paired,
    percentile,
    signed_rank,
    slope,
    spread,
    student,
)


def test_a_spread_is_the_middle_and_both_ends():
    assert spread([3.0, 1.0, 2.0]) == (2.0, 1.0, 3.0)
    assert spread([4.0, 1.0, 2.0, 8.0]) == (3.0, 1.0, 8.0)
    assert spread([7.0]) == (7.0, 7.0, 7.0)


def test_no_values_have_no_spread():
    with pytest.raises(ValueError, match="no values"):
        spread([])


@pytest.mark.parametrize(
    ("percent", "value"), [(0, 1.0), (10, 1.0), (50, 5.0), (51, 6.0), (95, 10.0), (100, 10.0)]
)
def test_a_percentile_is_one_of_the_values(percent, value):
    assert percentile([10.0, 9.0, 8.0, 7.0, 6.0, 5.0, 4.0, 3.0, 2.0, 1.0], percent) == value


def test_a_percentile_of_nothing_is_not_a_number():
    assert isnan(percentile([], 95))


def test_twice_and_half_cancel_out():
    ratio = paired([2.0, 1.0], [1.0, 2.0])
    assert ratio.value == pytest.approx(1.0)
    assert not ratio.clear


def test_a_paired_ratio_is_the_geometric_mean_of_its_rounds():
    assert paired([2.0, 80.0], [1.0, 10.0]).value == pytest.approx(sqrt(2 * 8))


def test_a_drift_of_the_machine_hurts_two_medians_and_no_pair():
    """The machine gets three times faster, and ours is twice theirs in every round."""
    ratio = paired([200.0, 400.0, 600.0], [100.0, 200.0, 300.0])
    assert ratio == pytest.approx((2.0, 2.0, 2.0))
    assert ratio.clear


def test_one_round_has_no_interval_but_itself():
    assert paired([3.0], [2.0]) == pytest.approx((1.5, 1.5, 1.5))


def test_the_interval_of_two_rounds_is_both_of_them():
    """Both resamples of one and the same round have a chance of 1 in 4, far above 2.5 %."""
    assert paired([2.0, 3.0], [1.0, 1.0]) == pytest.approx((sqrt(6), 2.0, 3.0))


def test_the_interval_of_three_rounds_is_their_range():
    """The least round is drawn three times in 1 of 27 resamples: 3.7 %."""
    assert paired([2.0, 3.0, 4.0], [1.0, 1.0, 1.0]) == pytest.approx((24 ** (1 / 3), 2.0, 4.0))


def test_many_rounds_narrow_the_interval():
    ours = [2.0 + 0.1 * (i % 5) for i in range(20)]
    ratio = paired(ours, [1.0] * 20)
    assert 2.1 < ratio.low < ratio.value < ratio.high < 2.3


def test_the_same_values_give_the_same_interval():
    values = [2.0, 2.5, 3.0, 2.2, 2.9]
    assert paired(values, [1.0] * 5) == paired(values, [1.0] * 5)


def test_the_interval_says_whether_there_is_a_difference():
    assert Ratio(1.2, 1.1, 1.3).clear
    assert Ratio(0.8, 0.7, 0.9).clear
    assert not Ratio(1.05, 0.9, 1.2).clear


@pytest.mark.parametrize(
    ("ours", "theirs", "why"),
    [([], [], "pair up"), ([1.0], [1.0, 2.0], "pair up"), ([1.0, 0.0], [1.0, 1.0], "above 0")],
)
def test_what_cannot_be_paired_is_refused(ours, theirs, why):
    with pytest.raises(ValueError, match=why):
        paired(ours, theirs)


def test_a_slope_is_that_of_the_line_of_least_squares():
    assert slope([0, 1, 2, 3], [5.0, 7.0, 9.0, 11.0]) == pytest.approx(2.0)
    assert slope([0, 10, 20], [1.0, 4.0, 1.0]) == pytest.approx(0.0)


@pytest.mark.parametrize(("times", "values"), [([], []), ([1.0], [1.0]), ([1.0, 1.0], [1.0, 2.0])])
def test_one_moment_has_no_slope(times, values):
    with pytest.raises(ValueError, match="a line needs values of two moments"):
        slope(times, values)


# Against scipy, and on planted effects


def drawn(n: int, *, middle: float = 0.0, width: float = 1.0, seed: int = 1) -> list[float]:
    rng = random.Random(seed)
    return [rng.gauss(middle, width) for _ in range(n)]


@pytest.mark.parametrize("freedom", [1, 2, 3, 4, 5, 11, 12, 30, 59])
@pytest.mark.parametrize("share", [0.5, 0.8, 0.975, 0.999])
def test_students_t_is_that_of_scipy(freedom, share):
    assert student(share, freedom) == pytest.approx(scipy.t.ppf(share, freedom), rel=1e-9, abs=1e-9)


@pytest.mark.parametrize("n", [1, 2, 6, 12, 40])
def test_the_signed_rank_test_is_that_of_scipy(n):
    values = drawn(n, middle=0.3)
    assert signed_rank(values) == pytest.approx(scipy.wilcoxon(values, method="exact").pvalue, rel=1e-12)


def test_of_many_differences_the_normal_approximation_is_that_of_scipy():
    values = drawn(100, middle=0.2)
    theirs = scipy.wilcoxon(values, method="approx", correction=False).pvalue
    assert signed_rank(values) == pytest.approx(theirs, rel=1e-9)


def test_the_signed_rank_test_is_exact_with_ties_too():
    """By hand: all 2^7 ways to sign the same sizes."""
    values = [-2.0, -1.0, 1.0, 2.0, 3.0, 3.0, 3.0, 0.0]
    ranks = scipy.rankdata([abs(v) for v in values if v])
    sums = [sum(r for r, up in zip(ranks, ups, strict=True) if up) for ups in product((0, 1), repeat=7)]
    own = sum(r for r, v in zip(ranks, (v for v in values if v), strict=True) if v > 0)
    tails = sum(s <= own for s in sums), sum(s >= own for s in sums)
    assert signed_rank(values) == min(1.0, 2 * min(tails) / len(sums))
    assert signed_rank([0.0, 0.0]) == 1.0


def test_the_interval_of_many_rounds_is_the_bootstrap_of_scipy():
    logs = drawn(60, middle=0.1, width=0.2)
    ratio = paired([exp(v) for v in logs], [1.0] * 60)
    theirs = scipy.bootstrap(
        (logs,), np.mean, method="percentile", n_resamples=10_000, random_state=1
    ).confidence_interval
    width = theirs.high - theirs.low
    assert log(ratio.value) == pytest.approx(np.mean(logs))
    assert log(ratio.low) == pytest.approx(theirs.low, abs=0.05 * width)
    assert log(ratio.high) == pytest.approx(theirs.high, abs=0.05 * width)


def test_the_interval_of_few_rounds_is_as_wide_as_students():
    logs = drawn(12, width=0.1, seed=3)
    ratio = paired([exp(v) for v in logs], [1.0] * 12)
    theirs = scipy.t.interval(0.95, 11, np.mean(logs), scipy.sem(logs))
    assert log(ratio.high / ratio.low) == pytest.approx(theirs[1] - theirs[0], rel=0.12)


def test_the_least_detectable_change_is_found_four_times_of_five():
    n, width = 12, 0.1
    reach = exp(scipy.t.ppf(0.975, 11) * width / sqrt(n) + scipy.t.ppf(0.8, 11) * width / sqrt(n)) - 1
    logs = drawn(n, width=width)
    logs = [(v - np.mean(logs)) * width / np.std(logs, ddof=1) for v in logs]
    assert compared([exp(v) for v in logs], [1.0] * n).detectable == pytest.approx(reach)
    found = 0
    for seed in range(100):
        other = [exp(v) for v in drawn(n, middle=log(1 + reach), width=width, seed=seed)]
        found += compared(other, [1.0] * n, resamples=400).clear
    assert 70 <= found <= 90


def test_one_round_claims_nothing():
    effect = compared([2.0], [1.0])
    assert effect.ratio == pytest.approx((2.0, 2.0, 2.0))
    assert isnan(effect.detectable)
    assert not effect.clear


def test_resampled_blocks_leave_equal_things_alone_and_find_what_was_planted():
    """Sixty blocks whose sides differ by 5 %, as CPU does, and by chance alone."""
    ours, theirs = ([exp(v) for v in drawn(60, width=0.035, seed=seed)] for seed in (1, 2))
    flagged, found = detection(ours, theirs, change=0.1, rounds=12, trials=100)
    assert flagged <= 0.05
    assert found >= 0.9
