"""What chaos plans is fixed by the seed, and what it found is kept, told, and not run twice."""

from __future__ import annotations

import argparse
import json
from typing import Any

import pytest

from bench import chaos
from bench.cli import parser
from bench.faults import ALWAYS, NEMESES, plan
from bench.record import read
from scheduler.errors import ConfigError

# --- the plan ---


def test_a_plan_belongs_to_its_seed():
    assert plan(7, 25) == plan(7, 25)
    assert plan(7, 25) != plan(8, 25)


@pytest.mark.parametrize("seconds", [10, 25, 60])
def test_a_plan_fills_its_time_in_order_and_ends_before_it(seconds):
    faults = plan(1, seconds)
    times = [fault.at_s for fault in faults]
    assert times == sorted(times)
    assert times[0] > 1
    assert times[-1] < seconds
    assert len(faults) >= seconds / 2 - 2


def test_no_plan_is_without_the_faults_that_every_guard_needs():
    for seed in range(20):
        kinds = [fault.kind for fault in plan(seed, 25)]
        for kind in ALWAYS:
            assert kinds.count(kind) >= ALWAYS.count(kind)


def test_every_kind_of_fault_occurs_within_a_few_seeds():
    assert {fault.kind for seed in range(7, 10) for fault in plan(seed, 25)} == set(NEMESES)


# --- the record ---


def record(seed: int, *, offenders: int = 0, landed: int = 2) -> dict[str, Any]:
    """A run of two faults, as it is kept."""
    faults = [
        {"kind": kind, "at_s": at, "struck_s": at, "landed": n < landed, "what": what}
        for n, (kind, at, what) in enumerate([("redis_flushed", 2.5, "FLUSHALL"), ("worker_killed", 4.0, "")])
    ]
    check = {"name": "lost", "meaning": "gone", "offenders": offenders, "examples": ["a", "b"][:offenders]}
    return {
        "seed": seed,
        "seconds": 25.0,
        "build": None,
        "passed": not offenders,
        "counts": landed == 2,
        "planned": 2,
        "landed": landed,
        "quiet_s": 3.5,
        "runs": {"lost": 4, "succeeded": 1200},
        "late": 1,
        "verdict": {"accepted": 1234, "statuses": {"succeeded": 1200, "dead": 34}, "checks": [check]},
        "faults": faults,
    }


def test_a_run_that_passed_is_told_in_one_line():
    assert chaos.line(record(3)) == (
        "seed 3: passed; 2 of 2 faults landed, 1,234 accepted, 34 dead, 1,200 succeeded, 4 runs lost, 1 late;"
        " quiet after 3.5 s"
    )


def test_offences_and_faults_that_did_not_land_are_told():
    first, *rest = chaos.line(record(3, offenders=2, landed=1)).splitlines()
    assert first.startswith("seed 3: FAILED, does not count; 1 of 2 faults landed")
    assert rest == ["  lost: 2 (gone) a b", "  not landed: worker_killed at 4.0 s"]


def test_a_run_that_does_not_count_is_not_told_as_passed():
    assert chaos.line(record(3, landed=1)).startswith("seed 3: does not count; 1 of 2 faults landed")


def test_only_what_counts_has_passed():
    told = chaos.summary([record(3), record(4, landed=1), record(5, offenders=1, landed=1)])
    assert (told["runs"], told["counted"], told["passed"]) == (3, 1, 1)
    assert (told["failed_seeds"], told["uncounted_seeds"]) == ([5], [4, 5])


def test_a_series_is_summed_up():
    told = chaos.summary([record(3) | {"commit": "abc1234"}, record(4, offenders=1, landed=1)])
    assert told == {
        "runs": 2,
        "passed": 1,
        "counted": 1,
        "seconds_each": 25.0,
        "faults": {
            "redis_flushed": {"planned": 2, "landed": 2},
            "worker_killed": {"planned": 2, "landed": 1},
        },
        "accepted": 2468,
        "tasks": {"dead": 68, "succeeded": 2400},
        "attempts": {"lost": 8, "succeeded": 2400},
        "late_answers": 2,
        "checks": ["lost"],
        "longest_quiet_s": 3.5,
        "failed_seeds": [4],
        "uncounted_seeds": [4],
        "seeds": [
            {
                "seed": 3,
                "commit": "abc1234",
                "planned": 2,
                "landed_share": 1.0,
                "accepted": 1234,
                "passed": True,
                "counts": True,
                "seconds": 28.5,
            },
            {
                "seed": 4,
                "commit": "unknown",
                "planned": 2,
                "landed_share": 0.5,
                "accepted": 1234,
                "passed": False,
                "counts": False,
                "seconds": 28.5,
            },
        ],
    }


# --- the command ---


@pytest.fixture
def command(monkeypatch, tmp_path):
    """Run `bench chaos` at a commit, with runs that are made up; (exit code, the seeds that were run)."""
    out = tmp_path / "results" / "chaos.jsonl"
    fates: dict[int, dict[str, Any]] = {}
    ran: list[int] = []
    now = ["abc1234"]

    def run(seed: int, seconds: float, *, build: str | None, out: Any) -> dict[str, Any]:
        ran.append(seed)
        made = record(seed, **fates.get(seed, {})) | {"seconds": seconds, "build": build}
        made["commit"] = now[0]
        out.parent.mkdir(exist_ok=True)
        with out.open("a") as file:
            file.write(json.dumps(made) + "\n")
        return made

    monkeypatch.setattr(chaos, "run_and_keep", run)
    monkeypatch.setattr(chaos.record, "commit", lambda: now[0])

    def call(
        *words: str, fate: dict[int, dict[str, Any]] | None = None, commit: str = "abc1234"
    ) -> tuple[int, list[int]]:
        now[0] = commit
        fates.clear()
        fates.update(fate or {})
        ran.clear()
        return chaos.main(parser("chaos").parse_args(["chaos", *words, "--results", str(out)])), list(ran)

    return call


def test_the_exit_code_is_the_verdict(command):
    assert command() == (0, [1])
    assert command("--seed", "4") == (0, [4])
    assert command("--seed", "4", fate={4: {"offenders": 1}}) == (1, [4])


def test_a_series_goes_on_where_it_was_interrupted(command):
    assert command("--seeds", "1-3") == (0, [1, 2, 3])
    assert command("--seeds", "2-5") == (0, [4, 5])
    assert command("--seeds", "2-5") == (0, [])


def test_a_finished_seed_that_failed_stays_failed(command):
    assert command("--seeds", "1-2", fate={2: {"offenders": 1}}) == (1, [1, 2])
    assert command("--seeds", "1-3") == (1, [3])


def test_a_record_holds_what_was_run_now_and_before(command, tmp_path):
    assert command("--seeds", "1-2") == (0, [1, 2])
    path = tmp_path / "docs" / "chaos.json"
    assert command("--seeds", "1-3", "--out", str(path)) == (0, [3])
    kept = read(path)
    assert [run["seed"] for run in kept["result"]["seeds"]] == [1, 2, 3]
    assert kept["command"] == "bench chaos --seeds 1-3 --seconds 25"
    assert kept["machine"]["cores"] >= 1


def test_what_did_not_count_or_was_another_run_is_run_again(command):
    assert command("--seeds", "1-2", fate={2: {"landed": 1}}) == (1, [1, 2])
    assert command("--seeds", "1-2") == (0, [2])
    assert command("--seeds", "1-2", "--seconds", "30") == (0, [1, 2])
    assert command("--seeds", "1-2", "--build", "fence-off") == (0, [1, 2])


def test_what_another_commit_has_found_is_run_again(command, tmp_path):
    path = tmp_path / "chaos.json"
    assert command("--seeds", "1-2") == (0, [1, 2])
    assert command("--seeds", "1-3", "--out", str(path), commit="def5678") == (0, [1, 2, 3])
    kept = read(path)
    assert {kept["commit"], *(run["commit"] for run in kept["result"]["seeds"])} == {"def5678"}
    assert command("--seeds", "1-2") == (0, [])


def test_a_seed_that_does_not_count_is_no_success(command):
    assert command("--seed", "4", fate={4: {"landed": 1}}) == (1, [4])


def test_a_run_is_kept_with_the_commit_that_it_began_with(monkeypatch, tmp_path):
    commits = ["abc1234"]

    def run(seed: int, *_: object, **__: object) -> dict[str, Any]:
        commits.append("def5678")
        return record(seed)

    monkeypatch.setattr(chaos, "run", run)
    monkeypatch.setattr(chaos.record, "commit", lambda: commits[-1])
    found = chaos.run_and_keep(1, 25.0, build=None, out=tmp_path / "chaos.jsonl")
    assert found["commit"] == "abc1234"
    assert list(chaos.read(tmp_path / "chaos.jsonl")) == [found]


def test_a_line_that_is_no_record_is_named(tmp_path):
    path = tmp_path / "chaos.jsonl"
    path.write_text(json.dumps(record(1)) + "\n{}\n")
    with pytest.raises(ConfigError, match=r"chaos\.jsonl, line 2"):
        list(chaos.read(path))


def test_a_run_must_have_room_for_its_faults():
    args = argparse.Namespace(seed=1, seeds=None, seconds=5.0, build=None, results=None, out=None)
    with pytest.raises(ConfigError, match="too short"):
        chaos.main(args)


@pytest.mark.parametrize("text", ["3", "4-2", "a-b", "-1-2"])
def test_a_range_of_seeds_is_from_a_to_b(text, capsys):
    with pytest.raises(SystemExit):
        parser("chaos").parse_args(["chaos", f"--seeds={text}"])
    assert "is not like 1-40" in capsys.readouterr().err
