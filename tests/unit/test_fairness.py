"""The fair choice: shares, the bound on waiting, and what is remembered."""

from __future__ import annotations

import random
from itertools import accumulate

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scheduler.fairness import Policy, State, choose

WEIGHTED = Policy(max_wait_ms=0)
STRICT = Policy(mode="strict", max_wait_ms=0)
FULL = (10_000, 10_000, 10_000, 10_000)
NOW = 1_700_000_000_000

depths_ = st.lists(st.integers(0, 6), min_size=4, max_size=4)
policies = st.builds(
    Policy,
    mode=st.sampled_from(["weighted", "strict"]),
    weights=st.tuples(*[st.integers(1, 20)] * 4),
    max_wait_ms=st.sampled_from([0, 100]),
)
states = st.builds(
    State,
    credit=st.tuples(*[st.integers(-20, 20)] * 4),
    served_ms=st.tuples(*[st.just(0) | st.integers(NOW - 300, NOW + 50)] * 4),
)


def test_eight_four_two_one_is_interleaved_smoothly() -> None:
    picks, state = choose(15, FULL, State(), WEIGHTED, NOW)
    assert picks == [0, 1, 0, 2, 0, 1, 0, 3, 0, 1, 0, 2, 0, 1, 0]
    assert state.credit == (0, 0, 0, 0)


@pytest.mark.parametrize("weights", [(8, 4, 2, 1), (1, 1, 1, 1), (1, 2, 4, 8), (100, 1, 1, 1)])
def test_shares_hold_in_any_window_of_a_thousand_picks(weights: tuple[int, ...]) -> None:
    rng = random.Random(1)
    policy, state, picks = Policy(weights=weights, max_wait_ms=30_000), State(), []
    now_ms = NOW
    while len(picks) < 5000:
        batch, state = choose(rng.randint(1, 100), FULL, state, policy, now_ms)
        picks += batch
        now_ms += rng.randint(1, 50)
    for i, weight in enumerate(weights):
        served = [0, *accumulate(pick == i for pick in picks)]
        shares = [(served[at + 1000] - served[at]) / 1000 for at in range(len(picks) - 1000)]
        assert max(abs(share - weight / sum(weights)) for share in shares) <= 0.05


@given(depths_, states, policies, st.integers(0, 30))
def test_nothing_waits_while_there_is_room(depths: list[int], state: State, policy: Policy, n: int) -> None:
    picks, _ = choose(n, depths, state, policy, NOW)
    assert len(picks) == min(n, sum(depths))
    assert all(picks.count(i) <= depth for i, depth in enumerate(depths))


@given(depths_, states, policies, st.integers(0, 30))
def test_a_batch_is_what_single_picks_would_be(
    depths: list[int], state: State, policy: Policy, n: int
) -> None:
    batch, after = choose(n, depths, state, policy, NOW)
    singles: list[int] = []
    for _ in range(n):
        picks, state = choose(1, depths, state, policy, NOW)
        for pick in picks:
            depths[pick] -= 1
        singles += picks
    assert (batch, after) == (singles, state)


@given(depths_, states, st.integers(1, 30))
def test_strict_never_picks_lower_while_higher_waits(depths: list[int], state: State, n: int) -> None:
    picks, _ = choose(n, depths, state, STRICT, NOW)
    assert picks == [i for i, depth in enumerate(depths) for _ in range(depth)][:n]


@given(st.lists(depths_, max_size=30), policies)
def test_an_empty_list_has_no_credit_and_no_wait(all_depths: list[list[int]], policy: Policy) -> None:
    state = State()
    for step, depths in enumerate(all_depths):
        picks, state = choose(3, depths, state, policy, NOW + 40 * step)
        for i, depth in enumerate(depths):
            if picks and depth == picks.count(i):
                assert (state.credit[i], state.served_ms[i]) == (0, 0)


def test_a_list_that_was_empty_earns_no_more_than_its_share() -> None:
    """A thousand picks without it leave the lowest list nothing to claim when it comes back."""
    _, state = choose(1000, (9000, 9000, 9000, 0), State(), WEIGHTED, NOW)
    picks, _ = choose(150, FULL, state, WEIGHTED, NOW)
    assert picks.count(3) == 10


@pytest.mark.parametrize("mode", ["weighted", "strict"])
@pytest.mark.parametrize("seed", range(5))
def test_no_list_goes_unserved_beyond_the_bound(mode: str, seed: int) -> None:
    """Critical alone could use every pick, and the picks are few."""
    rng = random.Random(seed)
    policy, state = Policy(mode=mode, weights=(1000, 1, 1, 1), max_wait_ms=1000), State()
    now_ms, longest_pause = NOW, 100
    served = [NOW] * 4
    for _ in range(3000):
        now_ms += rng.randint(1, longest_pause)
        picks, state = choose(1, FULL, state, policy, now_ms)
        for pick in picks:
            # Late by one pause, and by one more for each of the others that may be overdue as well.
            assert now_ms - served[pick] <= 1000 + 4 * longest_pause
            served[pick] = now_ms
    assert now_ms - min(served) <= 1000 + 4 * longest_pause


def test_overdue_lists_come_first_the_longest_wait_before_the_others() -> None:
    policy = Policy(mode="strict", max_wait_ms=100)
    state = State(served_ms=(NOW, NOW - 101, NOW - 300, NOW - 100))
    picks, after = choose(4, FULL, state, policy, NOW)
    assert picks == [2, 1, 0, 0]
    assert after.served_ms == (NOW, NOW, NOW, NOW - 100)


def test_an_overdue_pick_costs_no_credit() -> None:
    """Were it charged, a list served by the bound alone would fall into debt without end."""
    policy = Policy(max_wait_ms=100)
    before = State((1, 2, 3, -6), (NOW, NOW, NOW, NOW - 200))
    picks, after = choose(1, FULL, before, policy, NOW)
    assert (picks, after.credit) == ([3], before.credit)


def test_the_wait_of_a_list_starts_when_it_is_seen_again() -> None:
    """After a quiet night nothing is overdue just because nothing was there."""
    policy = Policy(max_wait_ms=1000)
    _, state = choose(5, (1, 1, 1, 1), State(), policy, NOW)
    assert state == State()
    picks, state = choose(1, (5, 5, 5, 5), state, policy, NOW + 36_000_000)
    assert picks == [0]
    assert state.served_ms == (NOW + 36_000_000,) * 4


def test_an_idle_choice_changes_nothing() -> None:
    before = State((1, 2, 3, 4), (5, 6, 7, 8))
    assert choose(10, (0, 0, 0, 0), before, WEIGHTED, NOW) == ([], before)
    assert choose(0, FULL, before, WEIGHTED, NOW) == ([], before)


def test_a_clock_that_was_set_back_delays_the_bound_by_no_more_than_itself() -> None:
    policy = Policy(mode="strict", max_wait_ms=1000)
    _, state = choose(1, FULL, State(served_ms=(NOW,) * 4), policy, NOW - 3_600_000)
    assert state.served_ms == (NOW - 3_600_000,) * 4
    picks, _ = choose(3, FULL, state, policy, NOW - 3_600_000 + 1001)
    assert picks == [0, 1, 2]
