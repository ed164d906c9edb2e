"""A scenario is read strictly: what a file says is what is run, and nonsense is refused in one line."""

from __future__ import annotations

import tomllib
from importlib.resources import files
from itertools import pairwise
from pathlib import Path
from statistics import mean

import pytest

from bench import cli, demo, scenario
from bench.arrivals import times
from bench.faults import NEMESES
from bench.scenario import Bulk, Closed, Harm, Locust, Open, Scenario, Shape
from bench.workload import Mix
from scheduler.errors import StartError

WHOLE = """
seed = 7
repeats = 2
[mix]
flaky = 10
fail = 5
sleep = 5
sleep_ms = 4000
priorities = [2, 1, 1, 0.5]
[load]
kind = "bulk"
tasks = 1000
[fleet]
processes = 3
slots = 4
[fleet.settings]
VIS_TIMEOUT_MS = 2000
PRIORITY_MODE = "strict"
[[faults]]
at_s = 2
kind = "worker_killed"
target = "worker 1"
[[faults]]
at_s = 3.5
kind = "redis_flushed"
"""
PLAIN = {"mix": {"noop": 100}, "load": {"kind": "bulk", "tasks": 10}, "fleet": {"processes": 1}}


def made(**parts: object) -> Scenario:
    return scenario.parse(PLAIN | parts, "x.toml", "x")


def test_a_whole_file_is_read():
    found = scenario.parse(tomllib.loads(WHOLE), "x.toml", "x")
    assert found.name == "x"
    assert found.mix == Mix(flaky=10, fail=5, sleep=5, sleep_ms=4000, priorities=(2, 1, 1, 0.5))
    assert found.load == Bulk(1000)
    assert found.fleet.env == {"WORKER_POOL": "4", "VIS_TIMEOUT_MS": "2000", "PRIORITY_MODE": "strict"}
    assert (found.fleet.config.worker_pool, found.fleet.config.vis_timeout_ms) == (4, 2000)
    assert found.faults == (Harm(2, "worker_killed", "worker 1"), Harm(3.5, "redis_flushed"))
    assert (found.seed, found.repeats) == (7, 2)


@pytest.mark.parametrize(
    ("table", "load", "tasks"),
    [
        ({"kind": "bulk", "tasks": 10, "size": 5}, Bulk(10, size=5), 10),
        ({"kind": "closed", "tasks": 10, "senders": 2}, Closed(10, 2), 10),
        ({"kind": "locust", "tasks": 10, "users": 4, "processes": 2}, Locust(10, 4, 2), 10),
        ({"kind": "open", "rate": 2.5, "seconds": 4}, Open(2.5, 4), 10),
        ({"kind": "shape", "steps": [[2, 3], [1, 0], [1, 4]]}, Shape(((2, 3), (1, 0), (1, 4))), 10),
    ],
)
def test_each_kind_of_load_is_read(table, load, tasks):
    assert made(load=table).load == load
    assert len(made(load=table).deck()) == tasks


@pytest.mark.parametrize(
    ("part", "error"),
    [
        ({"speed": 1}, "x.toml: has no field 'speed'; it has name, mix, load, fleet, faults, seed, repeats"),
        ({"mix": {"flaki": 1}}, "x.toml: mix has no field 'flaki'; it has noop, "),
        ({"mix": {"flaky": "10"}}, "x.toml: mix.flaky is '10'; it must be a number"),
        ({"mix": {"flaky": True}}, "x.toml: mix.flaky is True; it must be a number"),
        ({"mix": {"flaky": float("nan")}}, "x.toml: mix.flaky is nan; it must be a number"),
        ({"mix": {"flaky": 60, "fail": 60}}, "x.toml: mix: the percentages add up to 120"),
        ({"mix": {"priorities": [1, 2]}}, "x.toml: mix.priorities has 2 values; it must have 4"),
        ({"mix": {"priorities": [1, 2, 3, "4"]}}, "x.toml: mix.priorities[3] is '4'; it must be a number"),
        ({"mix": 5}, "x.toml: mix is 5; it must be a table"),
        ({"load": []}, "x.toml: load is []; it must be a table"),
        ({"load": {}}, "x.toml: load.kind is None; it must be one of bulk, open, shape, closed"),
        ({"load": {"kind": "replay"}}, "x.toml: load lacks the field 'trace'"),
        ({"load": {"kind": "bulk"}}, "x.toml: load lacks the field 'tasks'"),
        ({"load": {"kind": "bulk", "tasks": 0}}, "x.toml: load: tasks is 0; it must be from 1 to 10,000,000"),
        ({"load": {"kind": "bulk", "tasks": 9, "rate": 2}}, "x.toml: load has no field 'rate'; it has tasks"),
        (
            {"load": {"kind": "open", "rate": -1, "seconds": 9}},
            "x.toml: load: rate is -1.0; it must be above",
        ),
        (
            {"load": {"kind": "open", "rate": 1, "seconds": 9, "spacing": "odd"}},
            "x.toml: load.spacing is 'odd'; it must be one of even, random",
        ),
        (
            {"load": {"kind": "shape", "steps": [[1, 0]]}},
            "x.toml: load: the number of tasks in all steps is 0",
        ),
        ({"fleet": {"processes": 0}}, "x.toml: fleet: processes is 0; it must be from 1 to 1,000"),
        ({"fleet": {"processes": 1.5}}, "x.toml: fleet.processes is 1.5; it must be a whole number"),
        ({"fleet": {"processes": 1, "slots": 0}}, "x.toml: fleet: WORKER_POOL='0': must be between 1 and"),
        ({"fleet": {"processes": 1, "settings": {"VIS": 1}}}, "x.toml: fleet: settings has VIS, which is no"),
        (
            {"fleet": {"processes": 1, "settings": {"VIS_TIMEOUT_MS": "soon"}}},
            "x.toml: fleet: VIS_TIMEOUT_MS='soon': must be a whole number",
        ),
        (
            {"fleet": {"processes": 1, "settings": {"VIS_TIMEOUT_MS": 0.5}}},
            "x.toml: fleet.settings.VIS_TIMEOUT_MS is 0.5; it must be a text or a whole number",
        ),
        (
            {"fleet": {"processes": 1, "settings": {"POSTGRES_URL": "postgres://x/y"}}},
            "x.toml: fleet: settings has POSTGRES_URL; where things are is not the scenario's to say",
        ),
        (
            {"fleet": {"processes": 1, "settings": {"WORKER_POOL": 3}}},
            "x.toml: fleet: settings has WORKER_PO",
        ),
        (
            {"faults": [{"at_s": 1, "kind": "fire"}]},
            "x.toml: faults[0].kind is 'fire'; it must be one of wor",
        ),
        (
            {"faults": [{"at_s": -1, "kind": "api_killed"}]},
            "x.toml: faults[0]: at_s is -1.0; it must be from",
        ),
        ({"faults": {"at_s": 1}}, "x.toml: faults is {'at_s': 1}; it must be a list"),
        ({"repeats": 0}, "x.toml: repeats is 0; it must be from 1 to 1,000"),
        (
            {"mix": {"sleep": 1, "sleep_ms": 300_000}},
            "x.toml: mix.sleep_ms is 300000 and TASK_TIMEOUT_MS 300000; a sleeper must not time out: raise",
        ),
    ],
)
def test_what_is_wrong_is_said_in_one_line(part, error):
    with pytest.raises(StartError) as refused:
        made(**part)
    assert str(refused.value).startswith(error)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(("text", "error"), [("a = ", "is not TOML"), (None, "cannot be read: No such file")])
def test_a_file_that_is_none_is_said_in_one_line(tmp_path, capsys, text, error):
    path = tmp_path / "s.toml"
    if text is not None:
        path.write_text(text)
    assert cli.main(["plan", str(path)]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"bench: {path} {error}")
    assert err.count("\n") == 1


def test_the_hash_is_of_what_is_asked_for():
    assert made().hash == scenario.parse(PLAIN, "y.toml", "y").hash
    assert made().hash == made(seed=1, fleet={"slots": 12, "processes": 1}).hash
    assert made().hash == made(mix={"noop": 100.0}).hash
    others = [
        made(seed=2),
        made(repeats=2),
        made(mix={"noop": 100, "flaky_attempts": 1}),
        made(load={"kind": "bulk", "tasks": 11}),
        made(load={"kind": "closed", "tasks": 10, "senders": 1}),
        made(fleet={"processes": 2}),
        made(fleet={"processes": 1, "settings": {"MAX_LOSSES": 3}}),
        made(faults=[{"at_s": 1, "kind": "worker_killed"}]),
    ]
    assert len({made().hash, *(other.hash for other in others)}) == 1 + len(others)


def test_the_hash_stays_what_it_was():
    # Records carry it: what changes it makes every earlier record one of another scenario.
    assert made().hash == "3f8c320025f4"


def test_the_faults_are_those_that_there_are():
    assert set(NEMESES) == set(scenario.FaultKind.__args__)


def test_the_scenarios_that_come_along_are_read_and_small():
    names = scenario.names()
    assert {"demo", "noops", "steady", "storm", "scaling"} <= set(names)
    read = [scenario.read(Path(name)) for name in names]
    assert [found.name for found in read] == names
    assert {type(found.load) for found in read} >= {Bulk, Open, Shape}
    folder = files("bench") / "scenarios"
    assert all(len((folder / f"{name}.toml").read_bytes()) < 100_000 for name in names)


def test_the_scenario_demo_is_what_the_demo_runs():
    found = scenario.read(Path("demo"))
    apart = {"LOG_LEVEL": "warning"}
    assert found.fleet.env | apart == demo.SETTINGS
    assert (found.mix, found.load) == (demo.DEMO, Bulk(2000))


def test_a_file_of_the_same_name_comes_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("demo").write_text(WHOLE)
    assert scenario.read(Path("demo")).seed == 7


def test_even_times_are_as_far_apart_as_the_rate_says():
    assert list(times(Open(4, 2), 1)) == [0, 0.25, 0.5, 0.75, 1, 1.25, 1.5, 1.75]


def test_random_times_are_the_seeds_and_keep_the_rate():
    load = Open(100, 100, "random")
    drawn = times(load, 1)
    assert len(drawn) == 10_000
    assert drawn == times(load, 1) != times(load, 2)
    gaps = [b - a for a, b in pairwise(drawn)]
    assert min(gaps) >= 0
    assert mean(gaps) == pytest.approx(0.01, rel=0.03)
    assert mean(gap > 0.01 for gap in gaps) == pytest.approx(0.368, abs=0.02)  # exponential: 1/e


def test_a_shape_has_each_step_at_its_rate():
    drawn = list(times(Shape(((2, 3), (5, 0), (0.5, 8))), 1))
    assert drawn == pytest.approx([0, 1 / 3, 2 / 3, 1, 4 / 3, 5 / 3, 7, 7.125, 7.25, 7.375])


def test_a_shape_with_broken_steps_has_every_task():
    load = Shape(((1, 0.3), (1, 0.3), (1, 0.5)))
    assert len(times(load, 1)) == load.tasks == 1
    load = Shape(((1, 1.4), (1, 1.2)))  # 2.6 tasks are 3
    assert list(times(load, 1)) == pytest.approx([0, 1 / 1.4, 1.5])
