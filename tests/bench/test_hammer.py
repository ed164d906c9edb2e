"""The hammer sends as often as it was told to, and counts every answer for what it was."""

from __future__ import annotations

import asyncio
import socket

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


def test_who_waits_too_long_for_an_answer_is_a_fault_and_goes_on(api, monkeypatch):
    monkeypatch.setattr("bench.hammer.TIMEOUT_S", 0.3)
    api.stall(5, 1.0)
    answers = run(hammer(api.url, NOOP, 2, requests=30))
    assert answers.faults >= 2
    assert answers.accepted == 30 - answers.faults > 4


def test_what_is_no_answer_at_all_is_a_fault():
    async def nonsense(reader, writer):
        await reader.read(100)
        writer.write(b"not HTTP\r\n\r\n")
        writer.close()

    async def meet():
        async with await asyncio.start_server(nonsense, "127.0.0.1", 0) as server:
            port = server.sockets[0].getsockname()[1]
            return await hammer(f"127.0.0.1:{port}", NOOP, 2, requests=10)

    assert run(meet()).statuses == {0: 10}


def test_nobody_listening_is_a_fault_for_each_request():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        answers = run(hammer(f"127.0.0.1:{taken.getsockname()[1]}", NOOP, 2, requests=10))
    assert answers.statuses == {0: 10}
    assert len(answers.latencies) == 10


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
