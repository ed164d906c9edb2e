"""Rows of the table of limits: what they are judged by, how they read, and that a record keeps them."""

from __future__ import annotations

import json
from math import isnan, nan

import pytest

from bench.rows import AIM_MISSED, MUST_MISSED, OK, Limit, Row, markdown

RATE = Limit("rate", "t", "tasks a second", "/s", "a.rate", must=100, aim=200)
TIME = Limit("time", "t", "time to answer", "ms", "a.p95", must=5, aim=2, at_most=True)
RATIO = Limit("ratio", "t", "ours against theirs", "/s", "a.rate", "b.rate", must=10, aim=14)
PLAIN = Limit("plain", "t", "for information", "bytes", "a.bytes")


@pytest.mark.parametrize(
    ("limit", "values", "verdict"),
    [
        (RATE, (200.0, 300.0, 250.0), OK),
        (RATE, (100.0, 100.0, 300.0), AIM_MISSED),
        (RATE, (99.0, 99.9, 300.0), MUST_MISSED),
        (TIME, (2.0, 1.0, 9.0), OK),
        (TIME, (5.0, 4.0, 9.0), AIM_MISSED),
        (TIME, (5.1, 1.0, 9.0), MUST_MISSED),
        (PLAIN, (1.0,), ""),
    ],
)
def test_a_row_is_judged_by_its_median(limit, values, verdict):
    assert Row(limit, values).verdict == verdict


@pytest.mark.parametrize(
    ("values", "others", "verdict"),
    [
        ((300.0, 150.0), (20.0, 10.0), OK),  # 15 and 15
        ((300.0, 80.0), (20.0, 10.0), AIM_MISSED),  # 15 and 8: about 11
        ((300.0, 50.0), (20.0, 10.0), MUST_MISSED),  # 15 and 5: less than 9
    ],
)
def test_a_row_with_denominators_is_judged_by_its_paired_ratio(values, others, verdict):
    assert Row(RATIO, values, others).verdict == verdict


def test_medians_may_hide_what_pairs_show():
    """Two rounds were ten times faster than the third for both; ours were 12, 12 and 12 times theirs."""
    row = Row(RATIO, (120.0, 1200.0, 1200.0), (10.0, 100.0, 100.0))
    assert row.figure == pytest.approx(12)
    assert row.verdict == AIM_MISSED


def test_a_row_takes_its_measures_from_every_round():
    row = Row.of(RATIO, [{"a.rate": 20.0, "b.rate": 1.0, "c.rate": 9.0}, {"a.rate": 30.0, "b.rate": 2.0}])
    assert (row.values, row.others) == ((20.0, 30.0), (1.0, 2.0))


@pytest.mark.parametrize("limit", [RATE, TIME, RATIO])
def test_what_was_not_measured_keeps_no_bound(limit):
    row = Row.missing(limit)
    assert row.verdict == MUST_MISSED
    assert "not measured" in row.cells()
    assert isnan(Row.read(row.data()).figure)


def test_nothing_divides_by_zero():
    row = Row(RATIO, (20.0,), (0.0,))
    assert isnan(row.figure)
    assert row.verdict == MUST_MISSED


@pytest.mark.parametrize(
    "row", [Row(RATE, (150.0, 120.0)), Row(TIME, (nan,)), Row(RATIO, (20.0, 40.0), (2.0, 2.0))]
)
def test_a_record_keeps_a_row(row):
    kept = Row.read(json.loads(json.dumps(row.data(), allow_nan=False)))
    assert kept.cells() == row.cells()
    assert kept.limit == row.limit


def test_the_table_shows_what_was_measured_against_what_and_what_it_must_be():
    lines = markdown([Row(RATIO, (200.0, 240.0), (10.0, 10.0)), Row(TIME, (6.0,))]).splitlines()
    assert len({len(line) for line in lines}) == 1
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert rows[0] == ["What", "Measured", "Against", "Ratio", "Must", "Aim", ""]
    assert rows[2][0] == "ours against theirs"
    assert rows[2][3:] == ["21.91× (20.00..24.00)", "≥ 10×", "≥ 14×", OK]
    assert rows[3] == ["time to answer", "6.00 ms", "", "", "≤ 5 ms", "≤ 2 ms", MUST_MISSED]


def test_a_ratio_that_could_be_one_is_marked():
    assert Row(RATIO, (9.0, 11.0), (10.0, 10.0)).cells()[3].endswith("~")
    assert not Row(RATIO, (12.0, 11.0), (10.0, 10.0)).cells()[3].endswith("~")
