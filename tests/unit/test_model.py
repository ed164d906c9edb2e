"""Ids that rise, and values that add up."""

from __future__ import annotations

import uuid
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import pytest

from scheduler import clock, model
from scheduler.model import PRIORITIES, Depths, new_id


@pytest.fixture(autouse=True)
def _own_sequence(monkeypatch: pytest.MonkeyPatch):
    """Nothing of these tests' clocks remains."""
    monkeypatch.setattr(model, "_last_id", (0, 0))


def milliseconds(id_: str) -> int:
    return int(id_.replace("-", "")[:12], 16)


def test_an_id_is_a_uuid_of_version_7_in_the_one_spelling():
    for _ in range(100):
        id_ = new_id()
        parsed = uuid.UUID(id_)
        assert (parsed.version, parsed.variant, str(parsed)) == (7, uuid.RFC_4122, id_)


def test_an_id_carries_the_time_at_which_it_was_made():
    before = clock.wall_ms()
    assert before <= milliseconds(new_id()) <= clock.wall_ms()


def test_ids_rise_strictly_and_so_do_their_texts():
    ids = [new_id() for _ in range(20_000)]
    assert all(a < b for a, b in pairwise(ids))


def test_ids_rise_beyond_what_one_millisecond_can_count(monkeypatch: pytest.MonkeyPatch):
    """4,096 fit into it; then the next millisecond is used, before its time."""
    monkeypatch.setattr(clock, "wall_ms", lambda: 1_700_000_000_000)
    ids = [new_id() for _ in range(10_000)]
    assert all(a < b for a, b in pairwise(ids))
    assert {milliseconds(id_) - 1_700_000_000_000 for id_ in ids} == {0, 1, 2}


def test_ids_rise_though_the_clock_is_set_back(monkeypatch: pytest.MonkeyPatch):
    instants = iter([5000, 4000, 4500, 5001, 1])
    monkeypatch.setattr(clock, "wall_ms", lambda: next(instants))
    ids = [new_id() for _ in range(5)]
    assert all(a < b for a, b in pairwise(ids))
    assert [milliseconds(id_) for id_ in ids] == [5000, 5000, 5000, 5001, 5001]


def test_no_two_threads_get_the_same_id():
    with ThreadPoolExecutor(8) as threads:
        batches = list(threads.map(lambda _: [new_id() for _ in range(5000)], range(8)))
    assert len({id_ for batch in batches for id_ in batch}) == 40_000
    for batch in batches:
        assert batch == sorted(batch)


def test_what_another_process_makes_at_the_same_moment_differs(monkeypatch: pytest.MonkeyPatch):
    """The same millisecond and counter: 62 random bits tell them apart."""
    monkeypatch.setattr(clock, "wall_ms", lambda: 1_700_000_000_000)
    ids = set()
    for _ in range(1000):
        monkeypatch.setattr(model, "_last_id", (0, 0))
        ids.add(new_id())
    assert len(ids) == 1000
    assert len({id_[:18] for id_ in ids}) == 1


def test_depths_add_up():
    one = Depths((1, 2, 3, 4), (5, 6, 7, 8), (9, 10, 11, 12), 13)
    assert one + Depths() == one
    assert one + one == Depths((2, 4, 6, 8), (10, 12, 14, 16), (18, 20, 22, 24), 26)


def test_the_highest_priority_is_named_first():
    assert PRIORITIES == ("critical", "high", "default", "low")
