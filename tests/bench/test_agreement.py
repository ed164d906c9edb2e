"""Two sources of one burst are laid side by side, count by count and p95 by p95."""

from __future__ import annotations

import pytest
from history import History, Run

from bench import agreement, ledger, repeats
from bench.sampling import frame_of
from bench.scrape import Page

ALIKE = {
    "tasks_dequeued_total": 6,
    "tasks_succeeded_total": 2,
    "tasks_failed_total": 2,
    "tasks_retried_total": 1,
    "tasks_reaped_total": 1,
    "tasks_dead_total": 2,
    "task_run_seconds_count": 4,
}
"""What the counters of the burst below gained, if they say what Postgres says."""


@pytest.fixture(scope="module")
def burst(servers):
    with servers.database() as url:
        history = History(url)
        history.task("succeeded", Run("released", 0.1, None, 0.2), Run("succeeded", 0.5, 0.5, 1.5))
        history.task("succeeded", Run("failed", 1, 1, 2), Run("succeeded", 4, 4, 7), kind="flaky", due=3)
        history.task("dead", Run("timed_out", 1, 1, 3), reason="timed_out", max_retries=0)
        history.task("dead", Run("lost", 3, None, 5), kind="sleeper", priority="low", reason="lost")
        yield ledger.read(url, history.ids)


def _histogram(name: str, label: str, value: str, counts: dict[str, int]) -> Page:
    return Page({(f"{name}_bucket", frozenset({(label, value), ("le", le)})): n for le, n in counts.items()})


def test_every_count_of_postgres_stands_beside_its_counter(burst):
    gained = Page({(name, frozenset()): float(n) for name, n in ALIKE.items()})
    seen = agreement.counts(burst, gained)
    assert seen["Postgres"].tolist() == seen["scraped"].tolist() == list(ALIKE.values())
    assert seen["metric"].tolist() == list(ALIKE)
    assert seen.index.tolist() == [
        "claims",
        "successes",
        "failed runs",
        "retries",
        "lost runs",
        "dead letters",
        "runs with a run time",
    ]


def test_a_run_time_is_compared_by_type(burst):
    gained = _histogram("task_run_seconds", "type", "flaky", {"1": 1, "2": 1, "4": 2, "+Inf": 2})
    noop, flaky = agreement.run_times(burst, gained)
    assert (noop.name, flaky.name) == ("noop", "flaky")
    assert sorted(flaky.observed) == [1, 3]
    assert flaky.postgres_s == pytest.approx(2.9)
    assert (flaky.low_s, flaky.high_s) == (2, 4)
    assert flaky.scraped_s == pytest.approx(3.8)


def test_a_wait_is_compared_by_priority(burst):
    gained = _histogram("enqueue_to_start_seconds", "priority", "low", {"2": 0, "4": 1, "+Inf": 1})
    default, low = agreement.waits(burst, gained)
    assert (default.name, low.name) == ("default", "low")
    assert sorted(default.observed) == [0.5, 1, 1]
    assert (low.postgres_s, low.scraped_s) == (3, pytest.approx(3.9))


def samples(*enqueued: int):
    """What was scraped of the API meanwhile."""
    words = " ".join(map(str, enqueued))
    times = " ".join(str(i) for i in range(len(enqueued)))
    series = {"tasks_enqueued_total": {'priority="default"': words}}
    return frame_of({"at": None, "t_s": times, "series": series})


def gained(**changes: int) -> Page:
    counts = {(name, frozenset()): float(n) for name, n in (ALIKE | changes).items()}
    runs = _histogram("task_run_seconds", "type", "flaky", {"1": 1, "2": 1, "4": 2, "+Inf": 2})
    return Page(counts | dict(runs.samples))


def test_three_sides_of_a_run_are_kept_and_told(burst):
    found = agreement.content(burst, gained(), samples(300, 302, 304), 4)
    assert found["accepted"] == {"client": 4, "Postgres": 4, "scraped": 4}
    assert found["counts"]["retries"] == {"Postgres": 1, "scraped": 1}
    assert found["agree"]
    assert found["p95_wait"] == []  # a task was started twice, and the metric has all starts
    [flaky] = found["p95_run"]
    assert (flaky["of"], flaky["bucket_s"], flaky["inside"]) == ("flaky", [2, 4], True)
    run = {"block": 0, "sources": found}
    [line] = repeats.agreed([run, {"block": 1, "sources": None}])
    assert line.startswith("client, Postgres and metrics: the same counts in 1 of 1 runs; 1 of 1 p95 of ")


@pytest.mark.parametrize(
    ("changes", "enqueued", "accepted", "told"),
    [
        ({"tasks_reaped_total": 2}, 304, 4, "block 0: APART: lost runs 1 by Postgres, 2 by scraped"),
        ({}, 303, 4, "block 0: APART: accepted 4 by client, 4 by Postgres, 3 by scraped"),
        ({}, 304, 5, "block 0: APART: accepted 5 by client, 4 by Postgres, 4 by scraped"),
    ],
)
def test_a_side_that_counts_otherwise_is_told(burst, changes, enqueued, accepted, told):
    found = agreement.content(burst, gained(**changes), samples(300, enqueued), accepted)
    assert not found["agree"]
    assert repeats.agreed([{"block": 0, "sources": found}])[0] == told
