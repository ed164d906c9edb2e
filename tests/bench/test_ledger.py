"""The ledger's frames say what the history says, and its series are what can be reckoned by hand."""

from __future__ import annotations

import pandas as pd
import pytest
from history import START, History, Run, at

from bench import ledger
from bench.ledger import accumulated, depth, ecdf, read, throughput

INSTANT = "datetime64[us, UTC]"


@pytest.fixture(scope="module")
def database(servers):
    with servers.database() as url:
        yield url


@pytest.fixture
def history(database):
    return History(database)


def _read(database, history) -> ledger.Ledger:
    return read(database, history.ids)


def _row(frame: pd.DataFrame, id_: str, attempt: int = 1) -> pd.Series:
    rows = frame[frame["task_id"] == id_]
    if "attempt" in rows:
        rows = rows[rows["attempt"] == attempt]
    (found,) = (row for _, row in rows.iterrows())
    return found


# Frames.


def test_a_task_is_a_row_with_documented_types(database, history):
    id_ = history.task(
        "dead",
        Run("failed", 1, 1, 2),
        Run("lost", 3, None, 5),
        kind="flaky",
        priority="high",
        reason="lost",
        max_retries=7,
    )
    tasks = _read(database, history).tasks
    assert {name: str(dtype) for name, dtype in tasks.dtypes.items()} == {
        "task_id": "string",
        "type": "category",
        "priority": "category",
        "status": "category",
        "attempts": "int64",
        "failures": "int64",
        "losses": "int64",
        "max_retries": "int64",
        "dead_reason": "category",
        "created_at": INSTANT,
        "due_at": INSTANT,
        "finished_at": INSTANT,
    }
    row = _row(tasks, id_)
    assert row[["type", "priority", "status", "dead_reason"]].tolist() == ["flaky", "high", "dead", "lost"]
    assert row[["attempts", "failures", "losses", "max_retries"]].tolist() == [2, 1, 1, 7]
    assert row[["created_at", "due_at", "finished_at"]].tolist() == [START, START, at(5)]


def test_an_attempt_is_a_row_with_documented_types(database, history):
    id_ = history.task("succeeded", Run("succeeded", 1, 1.25, 3, "host:7:b"), priority="low", created=0.5)
    runs = _read(database, history).executions
    assert {name: str(dtype) for name, dtype in runs.dtypes.items()} == {
        "task_id": "string",
        "type": "category",
        "priority": "category",
        "attempt": "int64",
        "outcome": "category",
        "worker": "category",
        "enqueued_at": INSTANT,
        "due_at": INSTANT,
        "claimed_at": INSTANT,
        "started_at": INSTANT,
        "finished_at": INSTANT,
        "again": "bool",
        "wait_s": "float64",
        "run_s": "float64",
    }
    row = _row(runs, id_)
    assert row[["type", "priority", "outcome", "worker"]].tolist() == ["noop", "low", "succeeded", "host:7:b"]
    assert row[["enqueued_at", "due_at", "claimed_at"]].tolist() == [at(0.5), at(0.5), at(1)]
    assert row[["started_at", "finished_at"]].tolist() == [at(1.25), at(3)]
    assert row[["wait_s", "run_s", "again"]].tolist() == [0.75, 1.75, False]


def test_categories_keep_their_order_and_admit_unknown_words(database, history):
    history.task("queued", priority="low")
    history.task("queued", kind="resize_image")
    tasks = _read(database, history).tasks
    assert list(tasks["priority"].cat.categories) == ["critical", "high", "default", "low"]
    assert list(tasks["type"].cat.categories) == ["noop", "flaky", "always_fail", "sleeper", "resize_image"]


def test_only_the_tasks_that_were_asked_for_are_there(database, history):
    wanted = history.task("succeeded", Run("succeeded", 1, 1, 2))
    history.task("succeeded", Run("succeeded", 1, 1, 2))
    seen = read(database, [wanted, "00000000-0000-7000-8000-00000000ffff"])
    assert seen.tasks["task_id"].tolist() == [wanted]
    assert seen.executions["task_id"].tolist() == [wanted]


def test_a_burst_without_rows_has_frames_of_the_same_types(database, history):
    empty = read(database, [])
    history.task("succeeded", Run("succeeded", 1, 1, 2))
    full = _read(database, history)
    assert (len(empty.tasks), len(empty.executions)) == (0, 0)
    for name in ("created_at", "due_at", "finished_at", "task_id", "type", "priority", "status"):
        assert empty.tasks[name].dtype == full.tasks[name].dtype
    for name in ("claimed_at", "started_at", "finished_at", "wait_s", "run_s"):
        assert empty.executions[name].dtype == full.executions[name].dtype


# Waits: from when on had the task been ready for this attempt?


def test_a_delayed_task_waits_from_its_due_time(database, history):
    id_ = history.task("succeeded", Run("succeeded", 11, 11.5, 12), due=10)
    assert _row(_read(database, history).executions, id_)["wait_s"] == 1.5


def test_a_retried_task_waited_from_its_commit_and_then_from_its_last_due_time(database, history):
    runs = Run("failed", 1, 2, 3), Run("failed", 5, 5, 6), Run("succeeded", 9, 9, 10)
    id_ = history.task("succeeded", *runs, due=8.5)
    seen = _read(database, history).executions
    assert _row(seen, id_, 1)["wait_s"] == 2
    assert pd.isna(_row(seen, id_, 2)["due_at"])  # overwritten by the next failure
    assert pd.isna(_row(seen, id_, 2)["wait_s"])
    assert _row(seen, id_, 3)["wait_s"] == 0.5


def test_after_a_loss_the_wait_begins_when_the_task_was_reaped(database, history):
    id_ = history.task("succeeded", Run("lost", 1, None, 4), Run("succeeded", 5, 6, 7))
    seen = _read(database, history).executions
    assert _row(seen, id_, 1)["wait_s"] == 1  # its claim: whether and when it was started is not known
    assert _row(seen, id_, 2)["wait_s"] == 2
    assert pd.isna(_row(seen, id_, 1)["run_s"])


def test_a_loss_before_a_retry_is_known_to_be_followed_at_once(database, history):
    runs = Run("lost", 1, None, 4), Run("failed", 5, 6, 7), Run("succeeded", 9, 9, 10)
    id_ = history.task("succeeded", *runs, due=8)
    seen = _read(database, history).executions
    assert _row(seen, id_, 2)["wait_s"] == 2
    assert _row(seen, id_, 3)["wait_s"] == 1


def test_what_was_given_back_without_a_start_has_waited_all_along(database, history):
    id_ = history.task("succeeded", Run("released", 1, None, 3), Run("succeeded", 5, 6, 7))
    seen = _read(database, history)
    assert pd.isna(_row(seen.executions, id_, 1)["wait_s"])
    assert _row(seen.executions, id_, 2)["wait_s"] == 6
    assert seen.first_starts[["task_id", "attempt"]].to_numpy().tolist() == [[id_, 2]]


def test_the_first_start_of_each_task_counts_once(database, history):
    retried = history.task("succeeded", Run("failed", 1, 1, 2), Run("succeeded", 3, 3, 4), due=3)
    lost = history.task("dead", Run("lost", 1, None, 2), Run("lost", 3, None, 4), reason="lost")
    history.task("queued")
    first = _read(database, history).first_starts
    assert first[["task_id", "attempt"]].to_numpy().tolist() == [[retried, 1], [lost, 1]]


# What was done again.


def test_retries_are_failures_after_which_the_task_was_tried_again(database, history):
    flaky = history.task("succeeded", Run("failed", 1, 1, 2), Run("succeeded", 3, 3, 4))
    slow = history.task("succeeded", Run("timed_out", 1, 1, 2), Run("succeeded", 3, 3, 4))
    history.task("dead", Run("failed", 1, 1, 2), reason="rejected")
    history.task("succeeded", Run("lost", 1, None, 2), Run("succeeded", 3, 3, 4))
    seen = _read(database, history)
    assert set(seen.retried["task_id"]) == {flaky, slow}
    assert seen.retried["attempt"].tolist() == [1, 1]


def test_reaped_runs_are_the_lost_ones(database, history):
    id_ = history.task("dead", Run("lost", 1, None, 2), Run("lost", 3, None, 4), reason="lost")
    history.task("dead", Run("failed", 1, 1, 2), reason="rejected")
    assert _read(database, history).reaped["task_id"].tolist() == [id_, id_]


# Series.


@pytest.fixture
def burst(database, history):
    """Four tasks: commits at 0, 0, 1 and 2 s; ends at 1, 2.5 and 3.2 s, and one that has none."""
    history.task("succeeded", Run("succeeded", 0.5, 0.5, 1))
    history.task("succeeded", Run("succeeded", 0.5, 0.5, 2.5))
    history.task("succeeded", Run("succeeded", 2, 2, 3.2), created=1)
    history.task("queued", created=2)
    return _read(database, history)


def test_the_start_is_the_first_commit(burst):
    assert burst.start == START
    assert burst.arrival_s == 2.0


def test_depth_rises_with_commits_and_falls_with_ends(burst):
    # At 1 s one comes and one goes.
    assert depth(burst).to_dict() == {0.0: 2, 1.0: 2, 2.0: 3, 2.5: 2, 3.2: 1}


def test_throughput_counts_ends_by_interval(burst):
    assert throughput(burst, 0.5).to_dict() == {
        0.0: 0,
        0.5: 0,
        1.0: 2,
        1.5: 0,
        2.0: 0,
        2.5: 2,
        3.0: 2,
    }
    assert (throughput(burst, 0.5) * 0.5).sum() == 3


def test_throughput_of_a_burst_that_has_no_end_yet_is_empty(database, history):
    history.task("queued")
    assert throughput(_read(database, history), 1).empty


def test_an_empirical_distribution_rises_to_one():
    seen = ecdf(pd.Series([3.0, 1.0, float("nan"), 3.0, 2.0]))
    assert seen.to_dict() == {1.0: 0.25, 2.0: 0.5, 3.0: 1.0}
    assert ecdf(pd.Series([], dtype=float)).empty


def test_instants_are_counted_up_from_the_start(burst):
    instants = pd.Series([at(2), at(1), None, at(2)], dtype=INSTANT)
    assert accumulated(burst, instants).to_dict() == {0.0: 0, 1.0: 1, 2.0: 3}
