"""Two sources of one burst are laid side by side, count by count and p95 by p95."""

from __future__ import annotations

import pytest
from history import History, Run

from bench import agreement, ledger
from bench.scrape import Page


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
    metrics = {
        "tasks_dequeued_total": 6,
        "tasks_succeeded_total": 2,
        "tasks_failed_total": 2,
        "tasks_retried_total": 1,
        "tasks_reaped_total": 1,
        "tasks_dead_total": 2,
        "task_run_seconds_count": 4,
    }
    gained = Page({(name, frozenset()): float(n) for name, n in metrics.items()})
    seen = agreement.counts(burst, gained)
    assert seen["Postgres"].tolist() == seen["scraped"].tolist() == list(metrics.values())
    assert seen["metric"].tolist() == list(metrics)
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
