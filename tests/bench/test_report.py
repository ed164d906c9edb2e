"""The snapshot's ten columns, each against a history whose answers are known."""

from __future__ import annotations

import pytest
from history import History, Run

from bench.report import COLUMNS, MEANINGS, Snapshot, markdown, meanings, seconds, snapshot


def _burst(history: History) -> list[str]:
    """21 tasks that first start after 10, 20, ... 210 ms; 10 s from the first commit to the last end."""
    for i in range(1, 17):  # claimed 1 ms before they start, run for 1 ms
        wait = i / 100
        history.task("succeeded", Run("succeeded", wait - 0.001, wait, wait + 0.001))
    for wait in (0.17, 0.18):  # fail once, then succeed; 2 ms each
        runs = Run("failed", wait, wait, wait + 0.002), Run("succeeded", 1 + wait, 1 + wait, 1.002 + wait)
        history.task("succeeded", *runs, kind="flaky", due=1.1)
    runs = Run("failed", 0.19, 0.19, 0.193), Run("failed", 1.5, 1.5, 1.503)  # 3 ms each, one retry
    history.task("dead", *runs, kind="always_fail", reason="failed", max_retries=1, due=1.4)
    rejected = Run("failed", 0.2, 0.2, 0.204)  # 4 ms, and never tried again though three retries were left
    history.task("dead", rejected, reason="rejected")
    runs = (  # claimed ahead and given back after 100 ms, then lost twice after a second each
        Run("released", 0.005, None, 0.105),
        Run("lost", 0.21, None, 1.21),
        Run("lost", 9.0, None, 10.0),
    )
    history.task("dead", *runs, kind="sleeper", reason="lost")
    return list(history.ids)


@pytest.fixture(scope="module")
def burst(servers):
    with servers.database() as url:
        history = History(url)
        ids = _burst(history)
        # What others did at the same time must not show.
        history.task("dead", Run("failed", 50, 50, 90), created=-100, reason="rejected")
        history.task("queued", created=200)
        yield snapshot(url, ids, workers=3, slots=12)


@pytest.mark.parametrize(
    ("column", "name", "expected", "cell"),
    [
        ("Burst", "tasks", 21, "21"),
        ("Workers × Slots", "workers", 3, "3 × 12"),
        # 16 × 2 ms + 4 × 2 ms + 2 × 3 ms + 4 ms + 100 ms + 2 × 1 s of claims, over 10 s
        ("In-flight", "in_flight", 0.215, "~0"),
        ("Drain Time", "drain_s", 10.0, "10 s"),
        ("Throughput", "throughput", 2.1, "2/s"),
        # of 23 runs: 16 took 1 ms, 4 took 2 ms, 2 took 3 ms, 1 took 4 ms; rank 0.95 × 22 = 20.9
        ("p95 Run", "p95_run_s", 0.003, "3 ms"),
        # of 21 first starts, rank 0.95 × 20 = 19
        ("p95 Wait", "p95_wait_s", 0.2, "200 ms"),
        ("Fail %", "fail_percent", 100 * 3 / 21, "14.3%"),
        ("Retries", "retries", 3, "3"),
        ("Reaped", "reaped", 2, "2"),
    ],
)
def test_each_column_is_what_the_history_says(burst, column, name, expected, cell):
    assert getattr(burst, name) == pytest.approx(expected, rel=1e-6)
    assert dict(zip(COLUMNS, burst.cells(), strict=True))[column] == cell


def test_what_has_not_ended_counts_in_the_burst_only(postgres_url):
    history = History(postgres_url)
    history.task("succeeded", Run("succeeded", 0.5, 0.5, 1.0))
    history.task("queued")
    seen = snapshot(postgres_url, history.ids, workers=1, slots=1)
    assert (seen.tasks, seen.ended, seen.drain_s, seen.throughput, seen.in_flight) == (2, 1, 1.0, 1.0, 0.5)


def test_a_burst_without_an_ended_handler_call_has_no_run_time(postgres_url):
    history = History(postgres_url)
    history.task("dead", Run("lost", 0.5, None, 1.5), kind="sleeper", reason="lost")
    seen = snapshot(postgres_url, history.ids, workers=1, slots=1)
    assert seen.p95_run_s is None
    assert dict(zip(COLUMNS, seen.cells(), strict=True))["p95 Run"] == "-"


def test_a_burst_of_which_nothing_has_ended_is_refused(postgres_url):
    history = History(postgres_url)
    history.task("queued")
    with pytest.raises(ValueError, match="of 1 tasks none has ended"):
        snapshot(postgres_url, history.ids, workers=1, slots=1)


def test_the_table_is_aligned_markdown():
    row = Snapshot(10_000, 3, 12, 10_000, 22.2, 36.4, 0.025, 0.8, 200, 1800, 12)
    head, rule, line = markdown([row]).splitlines()
    assert head.split(" | ")[0] == "| Burst"
    assert len({len(each) for each in (head, rule, line)}) == 1
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    assert cells == ["10k", "3 × 12", "~36", "22 s", "450/s", "25 ms", "800 ms", "2.0%", "1,800", "12"]


def test_repeats_are_one_row_of_medians_and_ranges():
    rows = [
        Snapshot(10_000, 3, 12, 10_000, drain, held, run, 0.8, 200, 1800, 12)
        for drain, held, run in ((20.0, 30.0, None), (25.0, 36.4, 0.02), (40.0, 35.0, 0.03))
    ]
    (line,) = markdown([rows]).splitlines()[2:]
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    assert cells[2:6] == [
        "~35 (30 to 36)",
        "25 s (20 s to 40 s)",
        "400/s (250/s to 500/s)",
        "25 ms (20 ms to 30 ms)",
    ]
    assert cells[6:] == ["800 ms", "2.0%", "1,800", "12"]  # no range where there is none


def test_every_column_has_a_meaning():
    assert tuple(MEANINGS) == COLUMNS
    assert len(meanings().splitlines()) == len(COLUMNS)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0000042, "4 µs"),
        (0.0009994, "999 µs"),
        (0.0009996, "1 ms"),
        (0.25, "250 ms"),
        (0.9996, "1.0 s"),
        (12.34, "12.3 s"),
    ],
)
def test_a_duration_is_shown_in_a_unit_that_suits_it(value, text):
    assert seconds(value) == text
