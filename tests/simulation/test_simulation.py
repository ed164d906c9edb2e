"""The whole system in virtual time: seeds of everything that may go wrong, and what must hold in the end."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from time import perf_counter

import pytest
from simulation.pace import PROCESSORS, REFERENCE_S, Pace
from simulation.plan import ALL, plan
from simulation.run import Report, all_broken, broken, simulate

FEW = 300
MANY = 10_000
LONGEST_S = 120
TESTS = Path(__file__).parents[1]


def check(reports: list[Report]) -> None:
    assert not reports, "\n\n".join(map(str, reports[:5]))


def test_a_few_hundred_seeds_break_nothing():
    check(broken(range(FEW)))


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_ten_thousand_seeds_break_nothing_and_take_two_minutes_at_most(tell):
    """Two minutes where two processors of the reference machine have nothing else to do: see pace.py."""
    began = perf_counter()
    reports, pace = all_broken(range(MANY))
    tell(f"{MANY:,} simulated seeds", f"{perf_counter() - began:.0f} s here; {pace}")
    check(reports)
    assert pace.undisturbed_s <= LONGEST_S


def test_a_pace_is_that_of_the_reference_machine_if_this_one_is_slower():
    slow = Pace(60.0, 2 * REFERENCE_S) + Pace(40.0, 4 * REFERENCE_S)
    assert slow.slowness == pytest.approx(3)
    assert slow.undisturbed_s == pytest.approx(100 / 3 / PROCESSORS)
    assert Pace(100.0, REFERENCE_S / 2).undisturbed_s == 50


def test_the_same_seed_makes_the_same_log():
    logs = [simulate(seed, verbose=True).log for seed in (17, 17, 18)]
    assert logs[0] == logs[1] != logs[2]
    assert len(logs[0]) > 100


@pytest.mark.parametrize("hash_seed", ["1", "2"])
def test_a_replay_in_another_process_makes_the_same_log(hash_seed: str):
    env = os.environ | {"PYTHONPATH": f"{TESTS}", "PYTHONHASHSEED": hash_seed}
    replay = subprocess.run(
        [sys.executable, "-m", "simulation", "17"],
        env=env,
        cwd=TESTS.parent,
        capture_output=True,
        text=True,
        check=True,
    )
    assert "\n".join(simulate(17, verbose=True).log) in replay.stdout


def test_a_log_is_not_needed_for_the_same_end():
    assert simulate(21).seconds == simulate(21, verbose=True).seconds


def test_the_seeds_bring_every_kind_of_trouble():
    plans = [plan(seed) for seed in range(FEW)]
    assert {kind for plan in plans for kind in plan.kinds} == set(ALL)
    assert sum(plan.calm for plan in plans) > FEW / 10
