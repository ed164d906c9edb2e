"""What cannot fail came to what it must, or the benchmark says so."""

from __future__ import annotations

from types import SimpleNamespace

import psycopg
import pytest
from history import History, Run

from bench.burst import Miscounted, ran_once

ONCE = (Run("succeeded", 0.1, 0.1, 0.2),)


@pytest.fixture
def database(servers):
    with servers.database() as url:
        history = History(url)

        def query(sql, params):
            with psycopg.connect(url) as connection:
                return connection.execute(sql, params).fetchall()

        yield history, SimpleNamespace(query=query)


def test_tasks_that_ran_once_and_succeeded_are_as_they_must_be(database):
    history, system = database
    history.task("succeeded", *ONCE)
    history.task("succeeded", Run("released", 0.1, None, 0.2), Run("succeeded", 0.5, 0.5, 1.5))
    ran_once(system, history.ids)


@pytest.mark.parametrize(
    ("status", "runs", "told"),
    [
        ("succeeded", (Run("failed", 1, 1, 2), Run("succeeded", 4, 4, 7)), "2 .* in 2 runs, and 1 runs"),
        ("succeeded", (Run("lost", 1, None, 2), Run("succeeded", 4, 4, 7)), "2 .* in 2 runs, and 1 runs"),
        ("dead", (Run("timed_out", 1, 1, 3),), "1 have succeeded, in 1 runs, and 1 runs went wrong"),
    ],
)
def test_a_retry_a_loss_and_a_dead_letter_are_told(database, status, runs, told):
    history, system = database
    history.task("succeeded", *ONCE)
    history.task(status, *runs, reason="failed" if status == "dead" else None)
    with pytest.raises(Miscounted, match=f"of 2 tasks {told}"):
        ran_once(system, history.ids)


def test_a_task_that_is_not_there_is_told(database):
    history, system = database
    history.task("succeeded", *ONCE)
    with pytest.raises(Miscounted, match="of 2 tasks 1 have succeeded, in 1 runs, and 0 runs went wrong"):
        ran_once(system, [*history.ids, "00000000-0000-7000-8000-000000000000"])
