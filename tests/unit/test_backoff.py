"""How long a failed task waits: the curves, the cap, and the spread."""

from __future__ import annotations

import random
import re
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scheduler.backoff import JITTERS, STRATEGIES, Backoff
from scheduler.errors import ConfigError

policies = st.builds(
    Backoff,
    strategy=st.sampled_from(STRATEGIES),
    base_ms=st.integers(0, 86_400_000),
    max_ms=st.integers(0, 86_400_000),
    jitter=st.sampled_from(JITTERS),
    jitter_ms=st.integers(0, 86_400_000),
)
failures_ = st.integers(1, 10**9)


@pytest.mark.parametrize(
    ("strategy", "waits"),
    [
        ("exponential", [100, 200, 400, 800, 1600, 2000, 2000]),
        ("linear", [100, 200, 300, 400, 500, 600, 700]),
        ("constant", [100] * 7),
    ],
)
def test_the_wait_follows_its_curve_up_to_the_cap(strategy, waits: list[int]):
    policy = Backoff(strategy, base_ms=100, max_ms=2000, jitter="none")
    assert [policy.ceiling_ms(n) for n in range(1, 8)] == waits
    assert [policy.delay_ms(n, random.Random(1)) for n in range(1, 8)] == waits


def test_by_default_it_is_the_original_one():
    """Exponential with jitter on top: RETRY_BASE_MS 500, RETRY_MAX_MS 30000, RETRY_JITTER_MS 500."""
    assert Backoff() == Backoff("exponential", 500, 30_000, "added", 500)


@pytest.mark.parametrize(
    ("jitter", "low", "high"),
    [("none", 800, 800), ("added", 800, 1100), ("equal", 400, 800), ("full", 0, 800)],
)
def test_the_spread_lies_where_it_should_and_fills_it(jitter, low: int, high: int):
    policy = Backoff(base_ms=100, max_ms=2000, jitter=jitter, jitter_ms=300)
    rng = random.Random(7)
    drawn = [policy.delay_ms(4, rng) for _ in range(4000)]
    assert low <= min(drawn) <= low + (high - low) / 100
    assert high - (high - low) / 100 <= max(drawn) <= high
    assert sum(drawn) / len(drawn) == pytest.approx((low + high) / 2, rel=0.03)


def test_tasks_at_the_cap_do_not_fall_into_step():
    policy = Backoff(base_ms=100, max_ms=1000, jitter="added", jitter_ms=500)
    rng = random.Random(3)
    assert len({policy.delay_ms(20, rng) for _ in range(100)}) > 50


def test_the_same_seed_draws_the_same_waits():
    policy = Backoff(jitter="full")
    first, second = (
        [policy.delay_ms(5, rng) for _ in range(10)] for rng in (random.Random(5), random.Random(5))
    )
    assert first == second


@given(policies, failures_, st.integers())
def test_no_wait_is_negative_or_beyond_cap_and_jitter(policy: Backoff, failures: int, seed: int):
    wait = policy.delay_ms(failures, random.Random(seed))
    assert 0 <= wait <= policy.max_ms + (policy.jitter_ms if policy.jitter == "added" else 0)


@given(policies)
def test_a_wait_before_jitter_never_falls(policy: Backoff):
    waits = [policy.ceiling_ms(n) for n in (*range(1, 80), 10**6, 10**12)]
    assert all(a <= b for a, b in pairwise(waits))


@pytest.mark.parametrize("failures", [-5, 0])
def test_a_count_that_cannot_be_waits_as_the_first(failures: int):
    assert Backoff(jitter="none").ceiling_ms(failures) == 500


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"base_ms": 1e3}, "base_ms is 1000.0; it must be a whole number from 0"),
        ({"max_ms": 60e3}, "max_ms is 60000.0"),
        ({"jitter_ms": -1}, "jitter_ms is -1"),
        ({"base_ms": True}, "base_ms is True"),
        ({"strategy": "expo"}, "strategy is 'expo'; it must be one of"),
        ({"jitter": "some"}, "jitter is 'some'; it must be one of"),
    ],
)
def test_a_policy_that_cannot_be_followed_is_refused_where_it_is_written(fields, told):
    """And not with the first failure of a task, which would take its worker with it."""
    with pytest.raises(ConfigError, match=re.escape(told)):
        Backoff(**fields)
