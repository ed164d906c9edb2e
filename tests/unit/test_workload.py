"""The deck has exact proportions, its seed decides its order, and the closed form counts to the unit."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.workload import PRIORITIES, TYPES, Expected, Mix, TaskType, apportion, deck, expected, fate
from scheduler.lifecycle import after_failure, after_loss
from scheduler.model import PRIORITIES as PRODUCT_PRIORITIES

DEMO = Mix(noop=80, flaky=10, fail=5, sleep=5, sleep_ms=80_000, flaky_attempts=2)


def test_the_demo_mix_is_dealt_to_the_unit():
    dealt = deck(DEMO, 10_000)
    assert dealt.counts == {"noop": 8000, "flaky": 1000, "always_fail": 500, "sleeper": 500}
    assert Counter(body["type"] for body in dealt) == dealt.counts
    assert Counter(body["priority"] for body in dealt) == dict.fromkeys(PRIORITIES, 2500)


def test_a_body_is_what_the_api_takes():
    kinds = {body["type"]: body for body in deck(DEMO, 100)}
    assert {kind: body["payload"] for kind, body in kinds.items()} == {
        "noop": {},
        "flaky": {"fail_times": 2},
        "always_fail": {},
        "sleeper": {"sleep_ms": 80_000},
    }
    assert all(body["max_retries"] == 3 for body in kinds.values())


def test_noops_take_what_the_others_leave():
    assert deck(Mix(flaky=15, fail=5), 2000).counts["noop"] == 1600
    assert deck(Mix(noop=10, flaky=15, fail=5), 2000).counts["noop"] == 1600


def test_priorities_follow_their_shares():
    dealt = deck(Mix(priorities=(8, 4, 2, 1)), 1500)
    assert Counter(body["priority"] for body in dealt) == {
        "critical": 800,
        "high": 400,
        "default": 200,
        "low": 100,
    }


@given(
    shares=st.lists(st.fractions(0, 1000), min_size=1, max_size=6).filter(any),
    n=st.integers(0, 10_000),
)
def test_the_largest_remainder_splits_n_without_rest_and_within_one(shares: list[Fraction], n: int):
    counts = apportion(shares, n)
    assert sum(counts) == n
    for share, count in zip(shares, counts, strict=True):
        assert abs(count - share * n / sum(shares)) < 1


def test_percentages_are_the_decimals_that_were_written():
    assert deck(Mix(noop=33.3, flaky=33.3, fail=33.4), 1000).counts == {
        "noop": 333,
        "flaky": 333,
        "always_fail": 334,
        "sleeper": 0,
    }


def test_the_seed_decides_the_order_and_nothing_else():
    assert list(deck(DEMO, 500, seed=7)) == list(deck(DEMO, 500, seed=7))
    assert list(deck(DEMO, 500, seed=7)) != list(deck(DEMO, 500, seed=8))
    assert deck(DEMO, 500, seed=7).counts == deck(DEMO, 500, seed=8).counts


def test_a_deck_is_the_same_on_every_machine():
    text = json.dumps(list(deck(DEMO, 1000, seed=1)), sort_keys=True)
    digest = hashlib.sha256(text.encode()).hexdigest()
    assert digest == "b06abda3ca4283874f991fe1b0ced4c2d8be7e634394000fc1cb9aa930b25b1a"


def test_a_deck_is_a_sequence_of_bodies():
    dealt = deck(DEMO, 20)
    assert dealt[3:6] == [dealt[3], dealt[4], dealt[5]]
    assert dealt[-1] == dealt[19]
    assert dealt.type_of(4) == dealt[4]["type"]
    with pytest.raises(IndexError):
        dealt[20]


@pytest.mark.parametrize(
    ("wrong", "text"),
    [
        ({"flaky": 60, "fail": 50}, "the percentages add up to 110 "),
        ({"flaky": -1}, "flaky is -1 percent"),
        ({"noop": 101}, "noop is 101 percent"),
        ({"sleep_ms": -1}, "sleep_ms is -1"),
        ({"priorities": (0, 0, 0, 0)}, "priorities are"),
    ],
)
def test_an_impossible_mix_is_refused_in_one_line(wrong: dict, text: str):
    with pytest.raises(ValueError, match=text) as caught:
        Mix(**wrong)
    assert "\n" not in str(caught.value)


def test_an_empty_deck_is_refused():
    with pytest.raises(ValueError, match="n is 0"):
        deck(DEMO, 0)


def test_the_priorities_are_the_products():
    assert PRIORITIES == PRODUCT_PRIORITIES


def test_the_demo_mix_in_closed_form():
    assert expected(deck(DEMO, 10_000), max_losses=3, lease_ms=60_000) == Expected(
        tasks=10_000,
        succeeded=9000,
        dead_failed=500,
        dead_lost=500,
        runs=8000 + 3 * 1000 + 4 * 500 + 4 * 500,
        failed=2 * 1000 + 4 * 500,
        retries=2 * 1000 + 3 * 500,
        lost=4 * 500,
    )


def test_a_sleeper_within_its_lease_succeeds():
    assert fate(DEMO, "sleeper", lease_ms=80_000) == Expected(tasks=1, succeeded=1, runs=1)


def test_flaky_tasks_beyond_their_retries_are_dead():
    stubborn = Mix(flaky=100, flaky_attempts=4, max_retries=3)
    assert fate(stubborn, "flaky") == Expected(tasks=1, dead_failed=1, runs=4, failed=4, retries=3)


def test_only_the_bodies_that_were_accepted_are_expected():
    dealt = deck(DEMO, 100)
    flaky = [index for index in range(100) if dealt.type_of(index) == "flaky"]
    assert expected(dealt, indexes=flaky[:3]) == fate(DEMO, "flaky") * 3
    assert expected(dealt, indexes=range(100)) == expected(dealt)


def _walked(mix: Mix, kind: TaskType, max_losses: int, lease_ms: int) -> Expected:
    """One task through the product's own rules, run by run."""
    runs = failed = retries = lost = 0
    while True:
        runs += 1
        if kind == "sleeper" and mix.sleep_ms > lease_ms:
            verdict = after_loss(lost, max_losses, in_company=False)
            lost += 1
        elif kind == "always_fail" or (kind == "flaky" and failed < mix.flaky_attempts):
            verdict = after_failure(failed, mix.max_retries)
            failed += 1
            retries += verdict.status == "retrying"
        else:
            return Expected(1, 1, 0, 0, runs, failed, retries, lost)
        if verdict.status == "dead":
            by_loss = verdict.reason == "lost"
            return Expected(1, 0, not by_loss, by_loss, runs, failed, retries, lost)


@given(
    kind=st.sampled_from(TYPES),
    flaky_attempts=st.integers(0, 6),
    max_retries=st.integers(0, 6),
    max_losses=st.integers(0, 4),
    sleep_ms=st.integers(0, 3),
)
def test_the_closed_form_agrees_with_the_lifecycle(
    kind: TaskType, flaky_attempts: int, max_retries: int, max_losses: int, sleep_ms: int
):
    mix = Mix(flaky_attempts=flaky_attempts, max_retries=max_retries, sleep_ms=sleep_ms)
    found = fate(mix, kind, max_losses=max_losses, lease_ms=1)
    assert found == _walked(mix, kind, max_losses, lease_ms=1)
    assert found.dead + found.succeeded == found.tasks == 1
