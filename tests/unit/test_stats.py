"""The workbench's statistics against values worked out by hand."""

from __future__ import annotations

from math import isnan, sqrt

import pytest

from bench.stats import Ratio, paired, percentile, slope, spread


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
