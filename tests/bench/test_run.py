"""A run brings back a record of the schema that a simulation's has, and says what speaks against it."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from math import isnan
from pathlib import Path

import pytest

from bench import cli, record, repeats, run, sampling, scenario, turn
from bench.costs import FREE, Costs
from bench.history import History
from bench.outlook import Outlook
from bench.progress import told
from bench.simulate import simulate, summary
from bench.turn import Arm, blocks
from bench.validity import Conduct, flags, valid

TINY = """
repeats = 5
[mix]
flaky = 10
fail = 5
sleep = 5
sleep_ms = 20
[load]
kind = "bulk"
tasks = 300
[fleet]
processes = 1
slots = 8
[fleet.settings]
RETRY_BASE_MS = 50
RETRY_MAX_MS = 100
RETRY_JITTER_MS = 20
RETRY_SCAN_INTERVAL_MS = 50
"""
HARMED = """
[mix]
sleep = 100
sleep_ms = 100
[load]
kind = "open"
rate = 60
seconds = 4
[fleet]
processes = 2
slots = 3
[fleet.settings]
VIS_TIMEOUT_MS = 1500
REAPER_SCAN_INTERVAL_MS = 200
RECONCILE_INTERVAL_MS = 300
[[faults]]
at_s = 1
kind = "worker_killed"
target = "worker 2"
[[faults]]
at_s = 2
kind = "redis_flushed"
"""


def planned(**parts: object) -> scenario.Scenario:
    table = {"mix": {}, "load": {"kind": "bulk", "tasks": 40}, "fleet": {"processes": 1}} | parts
    return scenario.parse(table, "x", "x")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("scenarios") / "tiny.toml"
    path.write_text(TINY)
    return path


@pytest.fixture(scope="module")
def live(tiny):
    """The record of one real repeat."""
    path = tiny.with_name("live.json")
    assert cli.main(["run", str(tiny), "--repeats", "1", "--out", str(path)]) == 0
    return repeats.read(path)


@pytest.fixture(scope="module")
def simulated(tiny):
    path = tiny.with_name("simulated.json")
    assert cli.main(["simulate", str(tiny), "--out", str(path)]) == 0
    return repeats.read(path)


# A real run


def test_the_counts_of_a_run_are_the_decks_to_the_unit(live):
    [found] = live.runs
    assert found["exact"] is True
    assert found["counts"] == found["expected"]
    # 300 tasks: 30 fail twice and succeed, 15 fail four times
    assert (found["counts"]["runs"], found["counts"]["retries"]) == (300 + 60 + 45, 60 + 45)
    assert found["verdict"]["passed"]
    assert found["verdict"]["accepted"] == found["load"]["accepted"] == 300
    assert found["sources"]["agree"], found["sources"]
    assert found["sources"]["accepted"] == {"client": 300, "Postgres": 300, "scraped": 300}


def test_a_record_tells_what_a_task_costs(live):
    cost = live.runs[0]["cost"]
    assert 0 < cost["postgres.statements"] < 5
    assert 0 < cost["redis.commands"] < 50
    assert cost["postgres.wal_bytes"] > 100
    assert cost["cpu_us.all"] == pytest.approx(
        sum(cost[f"cpu_us.{part}"] for part in ("workers", "api", "postgres", "redis"))
    )


def test_a_record_tells_what_it_was_made_on(live):
    about = live.result["environment"]
    assert about["postgres"]["settings"]["shared_preload_libraries"] == "pg_stat_statements"
    assert about["redis"]["settings"]["appendonly"] == "yes"
    assert about["packages"]["psycopg"]
    assert "tmp" not in json.dumps(about)
    assert min(live.runs[0]["scores"].values()) > 0
    assert live.planned.repeats == 1
    assert live.made["command"].startswith("bench run ")


def test_the_instants_of_a_run_are_in_order(live):
    timeline = live.runs[0]["timeline"]
    names = ("load_began_s", "first_start_s", "last_end_s", "drained_s")
    assert sorted(names, key=timeline.__getitem__) == list(names)
    # A start is told too late by the way of its claim, and may so come after the end of a task of no length.
    assert timeline["first_start_s"] <= timeline["last_start_s"] <= timeline["drained_s"]
    assert timeline["load_began_s"] < 0 <= timeline["last_commit_s"] <= timeline["load_ended_s"]


def test_the_raw_runs_of_a_record_give_its_figures_again(live):
    found = live.runs[0]
    again = summary(live.planned, History.of(found["history"])).content()
    assert again["counts"] == found["counts"]
    assert again["drain_s"] == pytest.approx(found["drain_s"], abs=1e-5)
    assert again["wait"]["p95_s"] == pytest.approx(found["wait"]["p95_s"], abs=1e-5)


def test_the_scraped_series_of_a_record_are_a_frame_again(live):
    frame = sampling.frame_of(live.runs[0]["samples"])
    assert sampling.content(frame) == live.runs[0]["samples"]
    ended = sampling.total(frame, "tasks_succeeded_total", "tasks_dead_total")
    assert ended.iloc[-1] - ended.iloc[0] == 300


def test_a_run_was_foreseen(live):
    assert live.runs[0]["predicted"]["drain_s"] > 0


def test_a_run_and_a_simulation_leave_the_same_record(live, simulated):
    assert live.result.keys() == simulated.result.keys()
    assert live.result["hash"] != simulated.result["hash"]  # one was repeated once, the other five times
    ours, theirs = live.runs[0], simulated.runs[0]
    assert ours.keys() == theirs.keys()
    assert ours["history"].keys() == theirs["history"].keys()
    assert theirs["counts"] == ours["counts"]
    assert len(simulated.runs) == 5


@pytest.mark.slow
def test_faults_strike_on_schedule_and_the_audit_passes(tmp_path):
    path, out = tmp_path / "harmed.toml", tmp_path / "harmed.json"
    path.write_text(HARMED)
    assert cli.main(["run", str(path), "--out", str(out)]) == 0
    [found] = repeats.read(out).runs
    killed, flushed = found["timeline"]["faults"]
    assert (killed["what"], flushed["what"]) == ("worker-2", "FLUSHALL")
    assert 1 <= killed["struck_s"] < 2 <= flushed["struck_s"] < 3
    assert found["exact"] is None
    assert found["cost"] == {}
    assert found["counts"]["succeeded"] == found["verdict"]["statuses"]["succeeded"] > 0
    assert found["sources"] is None  # a worker that is killed takes its metrics with it
    assert sum(found["verdict"]["statuses"].values()) == found["counts"]["tasks"] == 240


# Blocks


@pytest.fixture
def taken(monkeypatch):
    """The turns that were taken, each by its title and block; nothing runs but the twin."""
    found = []

    def take(arm: Arm, block: int, _priced: Costs) -> tuple[repeats.Run, dict[str, object]]:
        found.append((arm.title, block))
        history = simulate(arm.planned, FREE, block)
        live = {"control": arm.control, "verdict": {"passed": True}}
        return repeats.content(arm.planned, block, history, summary(arm.planned, history), live=live), {}

    monkeypatch.setattr(turn, "take", take)
    return found


def test_every_arm_has_a_turn_in_every_block_in_an_order_that_is_drawn(taken):
    first = Arm(planned(seed=7))
    arms = [first, replace(first, control=True), Arm(planned(seed=7), build="abc")]
    turns = list(blocks(arms, 10, FREE, seed=7))
    assert [block for _, block in taken] == [block for block in range(10) for _ in arms]
    orders = [tuple(title for title, _ in taken[i : i + 3]) for i in range(0, 30, 3)]
    assert all(sorted(order) == ["x", "x on abc", "x, control"] for order in orders)
    assert len(set(orders)) > 3
    assert {each.run["seed"] - each.run["block"] for each in turns} == {7}
    taken.clear()
    list(blocks(arms, 10, FREE, seed=7))
    assert [tuple(title for title, _ in taken[i : i + 3]) for i in range(0, 30, 3)] == orders


def test_scenarios_of_one_command_are_kept_apart_and_know_of_each_other(taken, tiny, tmp_path, capsys):
    out = [tmp_path / "a.json", tmp_path / "b.json"]
    words = ["run", str(tiny), "retries", "--control", "--repeats", "2"]
    assert cli.main([*words, "--out", str(out[0]), "--out", str(out[1])]) == 0
    a, b = map(repeats.read, out)
    assert (a.planned.name, b.planned.name) == ("tiny", "retries")
    assert (len(a.runs), len(a.controls), len(b.runs), len(b.controls)) == (2, 2, 2, 0)
    assert a.result["session"] == b.result["session"] is not None
    assert "as theory says, to the unit" in capsys.readouterr().out


def test_a_count_that_is_not_the_decks_fails_the_run(taken, tiny):
    made = turn.records([Arm(scenario.read(tiny))], 1, FREE, ["bench run"])
    assert run.verdict(made) == 0
    made[0]["result"]["runs"][0]["exact"] = False
    assert run.verdict(made) == 1
    made[0]["result"]["runs"][0] |= {"exact": True, "verdict": {"passed": False}}
    assert run.verdict(made) == 1


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (["noops", "retries", "--out", "a"], "--out is given 1 times for 2 scenarios"),
        (["noops", "--repeats", "0"], "--repeats: repeats is 0; it must be from 1 to 1,000"),
        (["nothing"], "nothing cannot be read"),
    ],
)
def test_what_cannot_be_run_is_said_in_one_line(words, error, capsys):
    assert cli.main(["run", *words]) == 2
    assert capsys.readouterr().err.startswith(f"bench: {error}")


def test_records_of_one_command_have_names_of_their_own():
    made = {"made": "2026-11-24T10:15:00Z"}
    assert record.default_path("noops", made) == Path("results/noops-20261124T101500.json")
    assert record.default_path("noops", made, 1) == Path("results/noops-20261124T101500-2.json")


@pytest.mark.parametrize("text", ["", "[]", '{"result": {"runs": []}}', '{"result": {"rows": [1]}}'])
def test_what_is_no_record_of_runs_is_said_in_one_line(tmp_path, text):
    path = tmp_path / "x.json"
    path.write_text(text)
    with pytest.raises(repeats.StartError, match="is no record of runs: name one that `bench run`"):
        repeats.read(path)


# What speaks against a run


@pytest.mark.parametrize(
    ("seen", "name", "spoils"),
    [
        (Conduct(busy_percent=11), "neighbours", "times"),
        (Conduct(steal_percent=2.1), "steal", "times"),
        (Conduct(step_s=-0.2), "clock", "times"),
        (Conduct(gap_s=1.5), "scrape gap", "nothing"),
        (Conduct(ended=1), "worker ended", "all"),
        (Conduct(offences=["lost"]), "audit", "all"),
        (Conduct(skipped=1), "skipped", "all"),
        (Conduct(lag_s=0.02), "generator late", "times"),
        (Conduct(span=0.06), "slow arrival", "nothing"),
        (Conduct(missed=["api_killed"]), "faults missed", "all"),
    ],
)
def test_a_run_that_was_disturbed_is_stamped(seen, name, spoils):
    [flag] = flags(seen)
    assert (flag.name, flag.spoils) == (name, spoils)
    assert valid([flag]) is (spoils == "nothing")


def test_nothing_speaks_against_a_quiet_run():
    assert flags(Conduct(busy_percent=9.9, steal_percent=1.9, step_s=0.09, gap_s=0.9, lag_s=0.009)) == []


def test_what_was_disturbed_is_in_no_median():
    drain, commands = (next(m for m in each if m.key == key) for each, key in DRAWN)
    against = [{"name": "neighbours", "why": "", "spoils": "times"}]
    runs = [
        {"drain_s": 1.0, "cost": {"redis.commands": 4}, "flags": []},
        {"drain_s": 9.0, "cost": {"redis.commands": 6}, "flags": against},
        {"drain_s": 9.0, "cost": {"redis.commands": 8}, "flags": [against[0] | {"spoils": "all"}]},
    ]
    assert repeats.standing(drain, runs) == [1.0]
    assert repeats.standing(commands, runs) == [4, 6]


DRAWN = ((repeats.TIMES, "drain_s"), (repeats.COSTS, "cost/redis.commands"))


# How long it will still take


def test_the_outlook_is_corrected_by_the_runs_own_pace():
    seconds = planned(
        mix={"sleep": 100, "sleep_ms": 1000},
        load={"kind": "bulk", "tasks": 40},
        fleet={"processes": 1, "slots": 4},
    )
    outlook = Outlook(seconds, FREE)
    assert outlook.prediction["drain_s"] == pytest.approx(10, rel=0.01)
    assert outlook.left_after("ended", 20, 5.0) == pytest.approx(5, rel=0.02)
    assert outlook.left_after("ended", 20, 10.0) == pytest.approx(10, rel=0.02)
    assert outlook.left_after("ended", 0, 0.1) == pytest.approx(10, rel=0.02)
    assert outlook.left_after("ended", 40, 11.0) == 0
    assert isnan(outlook.left_after("forgotten", 1, 1.0))


def test_of_a_very_large_run_and_of_faults_nothing_is_foreseen():
    large = Outlook(planned(load={"kind": "bulk", "tasks": 1_000_000}), FREE)
    assert large.prediction is None
    assert isnan(large.left_s("ended", 10))
    harmed = planned(faults=[{"at_s": 1, "kind": "redis_flushed"}])
    assert Outlook(harmed, FREE).prediction == Outlook(replace(harmed, faults=()), FREE).prediction


def test_progress_says_how_much_time_is_left(capsys, monkeypatch):
    clock = iter(range(0, 100, 6))
    with told("noops", lambda what, n: 12.0 if what == "ended" else float("nan")) as tell:
        monkeypatch.setattr(time, "monotonic", lambda: 1e9 + next(clock))
        tell("accepted", 10, 20)
        tell("ended", 10, 20)
        tell("ended", 20, 20)
    assert capsys.readouterr().out.splitlines() == [
        "noops: accepted 10 of 20",
        "noops: ended 10 of 20, about 12 s left",
        "noops: ended 20 of 20",
    ]


@pytest.mark.parametrize(
    ("kind", "target", "error"),
    [
        ("worker_killed", "worker 2", "it must be one of worker 1"),
        ("api_killed", "api 2", "it must be one of api 1"),
        ("links_reset", "redis", "it must be one of postgres wire, redis wire"),
        ("redis_flushed", "worker 1", "it must be left out"),
    ],
)
def test_a_fault_without_its_target_is_refused_before_anything_runs(kind, target, error):
    with pytest.raises(repeats.StartError, match=error):
        planned(faults=[{"at_s": 1, "kind": kind, "target": target}])


def test_scenarios_that_differ_in_repeats_are_refused_before_anything_runs(tmp_path, capsys):
    names = []
    for name, repeat in (("few", 2), ("many", 3)):
        names.append(str(tmp_path / f"{name}.toml"))
        Path(names[-1]).write_text(TINY.replace("repeats = 5", f"repeats = {repeat}"))
    assert cli.main(["run", *names]) == 2
    assert "these differ in repeats (few 2, many 3): give --repeats" in capsys.readouterr().err
