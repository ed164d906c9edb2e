"""Findings tell each thing that happened once, and nothing that did not."""

from __future__ import annotations

from array import array
from math import nan

import pandas as pd
import pytest

from bench import findings
from bench.history import History
from bench.ledger import Ledger
from bench.measured import ledger_of

START = pd.Timestamp("2030-01-01T12:00:00Z")
CRITICAL, HIGH, DEFAULT, LOW = range(4)


def _ledger(priorities: list[int], *runs: tuple, enqueued: float = 0.0) -> Ledger:
    """A history in frames. A run is task, attempt, outcome, claimed, started, finished."""
    n = len(priorities)
    told = History(bytes(n), bytes(priorities), array("d", [enqueued] * n))
    for task, attempt, outcome, claimed, started, finished in runs:
        told.add(task, attempt, outcome, 0, enqueued, claimed, started, finished)
    for task in range(n):
        last = max((run for run in runs if run[0] == task), key=lambda run: run[1])
        told.end(task, "succeeded" if last[2] == "succeeded" else "dead", last[5])
    return ledger_of(told, START)


@pytest.fixture
def retried() -> Ledger:
    """A task with two retries; one that was lost, given back, and done; one that was done at once."""
    return _ledger(
        [HIGH, LOW, LOW],
        (0, 1, "failed", 1.0, 1.0, 1.5),
        (0, 2, "failed", 2.5, 2.5, 3.0),
        (0, 3, "failed", 5.0, 5.0, 5.5),
        (1, 1, "lost", 1.0, nan, 3.25),
        (1, 2, "released", 3.5, nan, 3.5),
        (1, 3, "succeeded", 4.0, 4.0, 4.5),
        (2, 1, "succeeded", 1.0, 1.0, 1.0),
    )


def test_each_retry_waited_from_its_failure_to_the_next_claim(retried):
    waits = findings.retry_waits(retried)
    assert waits.to_dict("list") == {"failures": [1, 2], "wait_s": [1.0, 2.0], "at_s": [2.5, 5.0]}


def test_the_last_failure_has_no_wait_and_a_lost_run_is_no_failure(retried):
    assert len(findings.retry_waits(retried)) == 2


def test_a_retry_that_was_given_back_waited_until_the_next_claim():
    ledger = _ledger(
        [HIGH],
        (0, 1, "failed", 0.0, 0.0, 1.0),
        (0, 2, "released", 2.0, nan, 2.0),
        (0, 3, "succeeded", 4.0, 4.0, 4.0),
    )
    assert findings.retry_waits(ledger)["wait_s"].tolist() == [3.0]


def test_each_lost_run_was_held_from_its_claim_until_it_was_found(retried):
    lapses = findings.lapses(retried)
    assert lapses[["claimed_s", "found_s", "held_s"]].to_numpy().tolist() == [[1.0, 3.25, 2.25]]
    assert lapses["task_id"].tolist() == ["1"]


def test_a_task_that_lost_a_run_is_told_with_its_end(retried):
    assert findings.again(retried).to_numpy().tolist() == [["1", "succeeded", 1]]


def test_shares_count_claims_while_no_list_was_empty():
    """The batch at 3 s empties the critical list, so what it took tells nothing any more."""
    claims = [(CRITICAL, 1.0), (CRITICAL, 1.0), (LOW, 1.0), (CRITICAL, 2.0), (CRITICAL, 3.0), (LOW, 4.0)]
    runs = [(task, 1, "succeeded", at, at, at) for task, (_, at) in enumerate(claims)]
    found = findings.shares(_ledger([priority for priority, _ in claims], *runs))
    assert found["claims"].to_dict() == {"critical": 3, "low": 1}
    assert found["share"].to_dict() == {"critical": 0.75, "low": 0.25}


def test_gaps_go_from_claim_to_claim_of_a_list():
    claims = [(CRITICAL, 1.0), (LOW, 1.5), (CRITICAL, 1.25), (LOW, 4.0), (LOW, 4.0)]
    runs = [(task, 1, "succeeded", at, at, at) for task, (_, at) in enumerate(claims)]
    found = findings.gaps(_ledger([priority for priority, _ in claims], *runs))
    assert found.astype({"priority": "str"}).to_numpy().tolist() == [
        ["critical", 1.0, 1.0],
        ["critical", 1.25, 0.25],
        ["low", 1.5, 1.5],
        ["low", 4.0, 2.5],
    ]
