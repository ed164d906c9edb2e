"""The clients' list says what was promised, what is doubtful, and what no request deserved."""

from __future__ import annotations

import io
import json
import random
from collections import Counter

import pytest

from bench.http import NoAnswer, Origin, Response
from bench.traffic import Book, draw, surely_not_arrived

ORIGIN = Origin("http", "127.0.0.1", 8080)
LOST = NoAnswer("the connection broke", sent=True)
REFUSED_CONNECTION = NoAnswer("cannot connect", sent=False)


def answer(status: int, id_: str = "a") -> Response:
    return Response(status, {}, json.dumps({"id": id_}).encode())


@pytest.fixture
def log():
    return io.StringIO()


@pytest.fixture
def told(log):
    """A list, and a way to enter answers into it."""
    book = Book(log)

    def tell(key, *answers):
        for each in answers:
            book.enter(key, each, book.write(0.0, ORIGIN, "/v1/tasks", key, each))
        return book

    return tell


def test_every_acceptance_without_a_key_is_a_task(told):
    assert told(None, answer(201, "a"), answer(201, "b"), answer(201, "b")).accepted == ["a", "b", "b"]


def test_a_key_is_one_task_however_often_it_is_answered(told):
    book = told("k", LOST, answer(503), answer(201, "a"), answer(200, "a"))
    assert book.accepted == ["a"]
    assert book.keys == {"k": {"a"}}
    assert book.doubtful == 0


def test_two_ids_for_a_key_are_both_kept(told):
    book = told("k", answer(201, "a"), answer(201, "b"))
    assert book.keys == {"k": {"a", "b"}}
    assert book.accepted == ["a", "b"]


def test_a_key_that_is_never_accepted_is_kept_too(told):
    assert told("k", LOST).keys == {"k": set()}


@pytest.mark.parametrize(
    ("said", "doubtful"),
    [
        (LOST, True),
        (answer(503), True),
        (answer(500), True),
        (REFUSED_CONNECTION, False),
        (answer(429), False),
    ],
)
def test_what_may_have_arrived_without_a_key_is_doubtful(told, said, doubtful):
    assert told(None, said).doubtful == doubtful
    assert surely_not_arrived(said) is not doubtful


def test_an_answer_that_no_request_deserves_is_kept(told):
    book = told("k", answer(201), answer(503), answer(422), answer(404))
    assert [text[:3] for text in book.refused] == ["422", "404"]


def test_every_request_is_written_down(told, log):
    book = told("k", LOST, answer(201, "a"))
    lines = [json.loads(line) for line in log.getvalue().splitlines()]
    assert [(line["key"], line["status"], line["id"]) for line in lines] == [("k", 0, None), ("k", 201, "a")]
    assert book.statuses == {0: 1, 201: 1}


def test_the_mix_has_everything_and_belongs_to_its_dice():
    def deal() -> list[dict]:
        rng = random.Random(1)
        return [draw(rng, 2000) for _ in range(500)]

    dealt = deal()
    assert dealt == deal()
    types = Counter(body["type"] for body in dealt)
    assert set(types) == {"noop", "work", "flaky", "always_fail", "sleeper"}
    assert any(body["payload"].get("sleep_ms", 0) > 2000 for body in dealt)
    assert any("delay_ms" in body for body in dealt)
    assert {body["priority"] for body in dealt} == {"critical", "high", "default", "low"}
