"""The rules of the lifecycle: which moves there are, and what each outcome leads to."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scheduler import lifecycle
from scheduler.lifecycle import (
    CLAIMABLE,
    DEAD_REASONS,
    MOVES,
    OPEN,
    OUTCOMES,
    QUEUED,
    RETRYING,
    STATUSES,
    SUCCEEDED,
    TERMINAL,
    Verdict,
    after_failure,
    after_loss,
    after_rejection,
    after_unknown_type,
    most_losses,
)

counts = st.integers(0, 2000)


def test_every_status_is_open_or_terminal():
    assert set(STATUSES) == OPEN | TERMINAL
    assert OPEN.isdisjoint(TERMINAL)
    assert CLAIMABLE < OPEN


def test_the_moves_are_those_of_the_diagram():
    assert set(MOVES) == set(STATUSES)
    assert {(a, b) for a in MOVES for b in MOVES[a]} == {
        ("queued", "running"),
        ("queued", "cancelled"),
        ("running", "queued"),
        ("running", "retrying"),
        ("running", "succeeded"),
        ("running", "dead"),
        ("running", "cancelled"),
        ("retrying", "running"),
        ("retrying", "cancelled"),
        ("dead", "queued"),
    }


def test_a_terminal_status_is_left_by_a_redrive_alone():
    assert {status: MOVES[status] for status in TERMINAL if MOVES[status]} == {"dead": {"queued"}}


def test_only_what_may_be_claimed_may_run():
    assert {status for status in STATUSES if "running" in MOVES[status]} == CLAIMABLE


def test_every_task_can_still_end():
    """From each status a terminal one can be reached."""
    ends = set(TERMINAL)
    while more := {s for s in STATUSES if s not in ends and MOVES[s] & ends}:
        ends |= more
    assert ends == set(STATUSES)


@pytest.mark.parametrize("outcome", ["failed", "timed_out"])
@given(failures=counts, max_retries=counts)
def test_a_failure_is_retried_while_there_is_budget(outcome, failures: int, max_retries: int):
    verdict = after_failure(failures, max_retries, outcome)
    if failures < max_retries:
        assert verdict == RETRYING
    else:
        assert verdict == Verdict("dead", outcome)


@pytest.mark.parametrize("max_retries", [0, 1, 3])
def test_a_task_runs_one_time_more_than_it_may_be_retried(max_retries: int):
    runs = 0
    while after_failure(runs, max_retries).status == "retrying":
        runs += 1
    assert runs + 1 == max_retries + 1


def test_a_rejection_leaves_no_budget():
    assert after_rejection() == Verdict("dead", "rejected")


@given(losses=counts, max_losses=counts)
def test_a_loss_alone_kills_beyond_the_budget(losses: int, max_losses: int):
    verdict = after_loss(losses, max_losses, in_company=False)
    assert verdict == (QUEUED if losses < max_losses else Verdict("dead", "lost"))


@given(losses=counts, max_losses=counts)
def test_a_loss_in_company_kills_far_beyond_the_budget_alone(losses: int, max_losses: int):
    verdict = after_loss(losses, max_losses, in_company=True)
    assert verdict == (QUEUED if losses < 10 * (max_losses + 1) else Verdict("dead", "lost"))
    assert most_losses(max_losses) >= 10


@given(refusals=counts, max_refusals=counts)
def test_an_unknown_type_waits_for_a_worker_that_knows_it_and_not_for_ever(refusals: int, max_refusals: int):
    verdict = after_unknown_type(refusals, max_refusals)
    assert verdict == (QUEUED if refusals < max_refusals else Verdict("dead", "unknown_type"))


@given(
    st.one_of(
        st.builds(after_failure, counts, counts, st.sampled_from(["failed", "timed_out"])),
        st.builds(after_loss, counts, counts, in_company=st.booleans()),
        st.builds(after_unknown_type, counts, counts),
        st.just(SUCCEEDED),
        st.just(after_rejection()),
    )
)
def test_every_verdict_is_a_legal_move_and_dead_has_a_reason(verdict: Verdict):
    assert verdict.status in MOVES["running"]
    assert (verdict.reason is not None) == (verdict.status == "dead")
    assert verdict.reason in (None, *DEAD_REASONS)


def test_the_words_are_spelled_once():
    assert len(set(STATUSES)) == len(STATUSES) == 6
    assert len(set(OUTCOMES)) == len(OUTCOMES) == 6
    assert lifecycle.__doc__ is not None
    assert all(status in lifecycle.__doc__ for status in STATUSES)
