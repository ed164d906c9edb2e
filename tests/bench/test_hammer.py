"""The hammer sends as often as it was told to, and counts every answer for what it was."""

from __future__ import annotations

import pytest
from stub_api import StubApi

from bench.delivery import BULK, TASKS
from bench.hammer import Request, hammer
from bench.load import run
from bench.parking import QUEUE, noops

NOOP = Request(TASKS, b'{"type": "noop"}')


@pytest.fixture
def api():
    with StubApi() as stub:
        yield stub


def test_it_sends_exactly_as_many_requests_as_it_was_told_to(api):
    answers = run(hammer(api.url, NOOP, 7, requests=100))
    assert answers.statuses == {201: 100}
    assert answers.accepted == len(api.tasks) == 100
    assert len(answers.latencies) == 100
    assert max(answers.latencies) <= answers.seconds


def test_it_sends_as_many_as_fit_into_the_time(api):
    answers = run(hammer(api.url, NOOP, 4, seconds=0.3))
    assert answers.accepted == len(api.tasks) > 4
    assert 0.3 <= answers.seconds < 5


def test_a_503_is_no_fault_and_is_not_tried_again(api):
    api.overload(10)
    answers = run(hammer(api.url, NOOP, 2, requests=30))
    assert (answers.accepted, answers.busy, answers.faults) == (20, 10, 0)


def test_a_broken_connection_is_a_fault_and_does_not_end_the_load(api):
    api.break_connections(3)
    answers = run(hammer(api.url, NOOP, 2, requests=30))
    assert (answers.accepted, answers.busy, answers.faults) == (27, 0, 3)


def test_what_is_not_the_api_accepts_nothing(api):
    api.pose_as_another_server()
    answers = run(hammer(api.url, NOOP, 2, requests=10))
    assert (answers.accepted, answers.faults, answers.statuses) == (0, 0, {404: 10})


@pytest.mark.parametrize(("batch", "path"), [(1, TASKS), (1000, BULK)])
def test_what_is_parked_is_accepted_whole(api, batch, path):
    request = noops(batch)
    assert request.path == path
    assert run(hammer(api.url, request, 1, requests=2)).accepted == 2
    assert len(api.tasks) == 2 * batch
    assert {task["queue"] for task in api.tasks.values()} == {QUEUE}
