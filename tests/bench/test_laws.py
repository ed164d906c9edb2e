"""The laws hold for a true row, say what a row must mean, and find each kind of row that cannot be."""

from __future__ import annotations

from dataclasses import replace

import pytest

from bench import laws
from bench.laws import SEED, Inside, Law, Row, Rules, judge, seed_deck
from bench.report import Snapshot
from bench.workload import Expected

RULES = Rules(max_retries=3, max_losses=1, lease_s=2.0)
# 1,000 tasks within 10 s on 20 slots, all there after 1 s; 20 are dead by failures, 10 by two losses each.
TRUE = Row(1000, 2, 10, 12.0, 10.0, 100.0, 0.05, 8.7, 3.0, 100, 20)
HISTORY = Inside(arrival_s=1.0, p95_start_s=9.5, held_s=120.0, ran_s=90.0)
DUE = Expected(
    tasks=1000, succeeded=970, dead_failed=20, dead_lost=10, runs=1140, failed=120, retries=100, lost=20
)


def found(row: Row = TRUE, inside: Inside | None = HISTORY, due: Expected | None = DUE) -> dict[str, Law]:
    return {law.name: law for law in judge(row, RULES, inside=inside, due=due)}


def test_a_true_row_obeys_every_law():
    assert {name: law.holds for name, law in found().items()} == dict.fromkeys(
        ["flow", "in flight", "slots", "wait", "dead", "leases", "deck", "work"], True
    )
    assert laws.broken(list(found().values())) == []


@pytest.mark.parametrize(
    ("row", "inside", "broken"),
    [
        ({"per_s": 101.0}, {}, {"flow", "in flight"}),
        ({"in_flight": 14.0}, {}, {"in flight"}),
        ({}, {"held_s": 121.0}, {"in flight"}),
        ({}, {"ran_s": 201.0}, {"slots"}),
        ({"p95_wait_s": 8.4}, {}, {"wait"}),
        ({"p95_wait_s": 9.6}, {}, {"wait"}),
        ({"retries": 59}, {}, {"dead", "deck"}),  # 59 / 3 + 20 / 2 is less than 30
        ({"fail_percent": 3.1}, {}, {"deck"}),
        ({"reaped": 21}, {}, {"deck"}),
        ({"reaped": 101}, {}, {"leases", "deck"}),  # 202 slot-seconds do not fit into 200
    ],
)
def test_each_law_finds_a_row_that_cannot_be(row, inside, broken):
    judged = found(replace(TRUE, **row), replace(HISTORY, **inside))
    assert set(laws.broken(list(judged.values()))) == broken


def test_no_lease_is_over_before_the_drain_is():
    short = replace(TRUE, drain_s=1.5, per_s=1000 / 1.5, reaped=1)
    assert found(short, None, None)["leases"].holds is False
    assert found(replace(short, reaped=0), None, None)["leases"].holds is True


def test_more_lost_runs_than_there_was_time_for_are_found():
    judged = found(due=replace(DUE, lost=101))
    assert judged["work"].holds is False
    assert judged["work"].must == "101 lost runs × 2.0 s / 20 slots = 10.1 s at least"


def test_without_a_history_a_law_tells_what_must_have_been():
    judged = found(inside=None, due=None)
    assert judged.keys() == {"flow", "in flight", "wait", "dead", "leases"}
    assert judged["wait"].holds is True  # 8.7 s of 9.5: nearly all were there at the beginning
    assert judged["in flight"].holds is None
    # 12 = 100 × (95 % × 50 ms + 5 % × x)
    assert judged["in flight"].then.endswith("or the slowest 5 % took 1.4 s each")
    few = found(replace(TRUE, in_flight=5.0), None, None)["in flight"]
    assert (few.holds, few.then) == (True, "")
    none = replace(TRUE, p95_run_s=None)
    assert "in flight" not in found(none, None, None)


# The original README's row.


@pytest.fixture(scope="module")
def original() -> dict[str, Law]:
    return {law.name: law for law in judge(SEED, due=seed_deck())}


def test_the_original_rate_and_drain_go_together(original):
    assert original["flow"].holds is True
    assert original["flow"].must == "450/s × 22.0 s = 9,900"


def test_the_original_in_flight_is_no_mean(original):
    law = original["in flight"]
    assert (law.holds, law.told) == (None, "36 of 36 slots")
    assert "= 11 at the most" in law.must
    assert law.then == "either it is the number of slots and no mean, or the slowest 5 % took 1.1 s each"


def test_the_original_tasks_came_during_the_drain(original):
    law = original["wait"]
    assert law.holds is None
    assert law.must.startswith("0.95 × 22.0 s = 20.9 s")
    assert law.then == "the tasks came over 20.1 s at least: the drain is how long the loader sent"


def test_the_original_share_of_failures_is_of_attempts(original):
    law = original["dead"]
    assert law.holds is False
    assert law.must == "180 / 3 + 12 / 4 = 63 at the most"
    assert law.told == "2.0 % = 200 tasks"
    assert law.then == "it is a share of attempts: 180 retried, 20 not"


def test_the_original_leases_were_not_the_default(original):
    law = original["leases"]
    assert law.holds is False
    assert law.then == "leases were shorter than 22.0 s"
    assert {each.name: each for each in judge(SEED, Rules(lease_s=20))}["leases"].holds is True


def test_the_original_mix_was_another_one(original):
    assert original["deck"].must == "3,500 retries, 1,000 dead, 2,000 reaped"
    assert original["deck"].holds is False
    assert original["work"].must == "2,000 lost runs × 60.0 s / 36 slots = 3333.3 s at least"
    assert original["work"].holds is False


def test_a_measured_row_is_taken_as_it_is():
    told = Snapshot(1000, 2, 10, 1000, 10.0, 12.0, 0.05, 8.7, 30, 100, 20)
    assert laws.row_of(told) == TRUE


def test_the_table_shows_every_law_with_its_verdict(original):
    head, rule, *rows = laws.markdown(list(original.values())).splitlines()
    assert head == "| Law | Must be | The row says | Holds | So |"
    assert rule.count("---") == 5
    assert len(rows) == len(original)
    assert {row.count("|") for row in rows} == {6}
    assert sum("| NO |" in row for row in rows) == 4
    assert sum("| only if |" in row for row in rows) == 2
