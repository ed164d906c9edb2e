"""A replay sends what a trace tells: so many attempts, the same ends, at its times, the same each time."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench import cli, repeats, scenario, tape, theory, trace
from bench.arrivals import times
from bench.costs import FREE
from bench.job import Job
from bench.scenario import Scenario
from bench.simulate import simulate, summary
from bench.tape import Replay, Tape
from bench.trace import Traced
from bench.twin import Twin
from bench.workload import Expected, expected
from scheduler.errors import StartError

FLEET = {"processes": 2, "slots": 3, "settings": {"VIS_TIMEOUT_MS": "2000", "MAX_LOSSES": "1"}}


def traced(at_ms: float = 0, status: str = "succeeded", *runs: tuple[str, float | None], **more) -> Traced:
    values = {"type": "mail", "priority": "default", "queue": "default", "max_retries": 3}
    values |= {"timeout_ms": None, "delay_ms": 0} | more
    return Traced(at_ms=at_ms, status=status, runs=runs, **values)


def write(path: Path, tasks: Sequence[Traced]) -> Path:
    trace.write(path, "2026-11-24T09:00:00+00:00", "2026-11-24T10:00:00+00:00", "8a1b20e", tasks)
    return path


def planned(path: Path, fleet: object = FLEET, *, seed: int = 1, **more: object) -> Scenario:
    table = {"load": {"kind": "replay", "trace": str(path)} | more, "fleet": fleet, "seed": seed}
    return scenario.parse(table, "x", "x")


HOUR = [
    traced(60_000, "succeeded", ("succeeded", 0.2), priority="critical", queue="mail"),
    traced(60_500, "succeeded", ("failed", 12), ("timed_out", 50), ("succeeded", 30)),
    traced(62_000, "dead", *[("failed", 0.1)] * 4, priority="low"),
    traced(61_000, "succeeded", ("succeeded", 80.4), timeout_ms=90),
    traced(64_000, "dead", ("lost", 2100), ("lost", 2300)),
    traced(64_000, "succeeded", ("succeeded", 5), delay_ms=3000),
]
"""Comes not in its order, and its first task not at the window's begin."""


@pytest.fixture
def hour(tmp_path) -> Path:
    return write(tmp_path / "hour.jsonl", HOUR)


# What becomes of a task


@pytest.mark.parametrize(
    ("task", "kind", "retries", "fails", "sleep_ms", "missed"),
    [
        (traced(0, "succeeded", ("succeeded", 0.4)), "noop", 3, 0, 0, {}),
        (traced(0, "succeeded", ("succeeded", 7.6)), "sleeper", 3, 0, 8, {}),
        (traced(0, "succeeded", ("succeeded", 7.6), type="noop"), "noop", 3, 0, 0, {}),
        (traced(0, "succeeded", ("failed", 0.1), ("succeeded", 0.1)), "flaky", 3, 1, 0, {}),
        (traced(0, "succeeded", ("failed", 9), ("succeeded", 9)), "flaky", 3, 1, 0, {"untimed": 2}),
        (
            traced(0, "succeeded", ("lost", 60), ("timed_out", 10), ("succeeded", 9), max_retries=1),
            *("flaky", 2, 2, 0, {"lost": 1, "timed_out": 1, "untimed": 3}),
        ),
        (traced(0, "dead", ("failed", 0.1), ("failed", 0.1)), "always_fail", 1, 0, 0, {}),
        (traced(0, "dead", ("failed", 0.1)), "always_fail", 0, 0, 0, {}),  # rejected at once
        (traced(0, "dead", ("lost", 900), ("lost", 1000.6)), "sleeper", 3, 0, 2002, {}),
        (traced(0, "dead", ("lost", 0)), "sleeper", 3, 0, 2, {}),
        (
            traced(0, "dead", ("failed", 0), ("lost", 900)),
            *("always_fail", 1, 0, 0, {"lost": 1, "untimed": 1}),
        ),
        (traced(0, "dead"), "always_fail", 0, 0, 0, {"unrecorded": 1}),  # nobody knew its type
        (traced(0, "succeeded"), "noop", 3, 0, 0, {"unrecorded": 1}),
        (traced(0, "cancelled"), "noop", 3, 0, 0, {"cancelled": 1}),
        (traced(0, "cancelled", ("cancelled", 400)), "sleeper", 3, 0, 400, {"cancelled": 1}),
        (traced(0, "queued"), "noop", 3, 0, 0, {"open": 1}),
        (traced(0, "retrying", ("failed", 0)), "flaky", 3, 1, 0, {"open": 1}),
    ],
)
def test_a_task_is_replayed_by_the_nearest_and_what_it_loses_is_counted(
    task, kind, retries, fails, sleep_ms, missed
):
    card = tape.card_of(task)
    mix = card.mix
    assert (card.kind, mix.max_retries, mix.flaky_attempts, mix.sleep_ms) == (kind, retries, fails, sleep_ms)
    assert tape.unkept(task, card) == missed


def test_the_bodies_come_in_their_order_and_at_their_times():
    played = Tape(HOUR)
    assert list(played.coming) == [0, 0.5, 1, 2, 4, 4]
    assert played[0] == {"type": "noop", "priority": "critical", "payload": {}, "max_retries": 3}
    assert played[1]["payload"] == {"fail_times": 2}
    assert [body["type"] for body in played[2:4]] == ["sleeper", "always_fail"]
    assert played[2]["payload"] == {"sleep_ms": 80}
    assert played[2]["timeout_ms"] == 60_080  # a timeout that was almost needed does not strike
    assert (played[3]["priority"], played[3]["max_retries"]) == ("low", 3)
    assert (played[5]["delay_ms"], played[5]["payload"]) == (3000, {"sleep_ms": 5})
    assert played.counts == {"noop": 1, "flaky": 1, "always_fail": 1, "sleeper": 3}


def test_a_speed_divides_gaps_and_delays_and_nothing_else():
    played = Tape(HOUR, speed=10)
    assert list(played.coming) == pytest.approx([0, 0.05, 0.1, 0.2, 0.4, 0.4])
    assert played[5]["delay_ms"] == 300
    assert [body["payload"] for body in played] == [body["payload"] for body in Tape(HOUR)]


# As a scenario


def test_a_replay_is_a_scenario(hour):
    found = planned(hour, speed=10)
    assert found.load == Replay(str(hour), 10, 6, trace.digest(hour))
    assert found.heading.endswith("6 tasks on 2 × 3, once, seed 1")
    assert list(times(found.load, 1)) == list(found.deck().coming)
    again = scenario.parse(found.content(), "x", "x")
    assert (again, again.hash) == (found, found.hash)
    assert planned(hour, speed=1).hash != found.hash


def test_a_trace_is_looked_for_beside_its_scenario(tmp_path, monkeypatch):
    write(tmp_path / "hour.jsonl", HOUR)
    (tmp_path / "again.toml").write_text(
        '[load]\nkind = "replay"\ntrace = "hour.jsonl"\n[fleet]\nprocesses = 1\n'
    )
    monkeypatch.chdir("/")
    assert len(scenario.read(tmp_path / "again.toml").deck()) == 6


def test_another_trace_is_another_scenario(hour, tmp_path):
    other = write(tmp_path / "other.jsonl", HOUR[1:])
    before = planned(hour)
    assert before.hash != planned(other).hash
    elsewhere = tmp_path / "elsewhere.jsonl"
    elsewhere.write_bytes(hour.read_bytes())
    assert before.hash == planned(elsewhere).hash
    other.replace(hour)
    with pytest.raises(StartError, match="is not the trace that was planned with"):
        before.deck()
    hour.unlink()
    assert before.heading  # a record can still be read
    with pytest.raises(StartError, match="cannot be read"):
        before.deck()


@pytest.mark.parametrize(
    ("parts", "error"),
    [
        ({"load": {"kind": "replay"}}, "x: load lacks the field 'trace'"),
        ({"load": {"kind": "replay", "trace": "none"}}, "the trace none cannot be read: No such file"),
        ({"load": {"kind": "replay", "trace": "none", "speed": 0}}, "x: load: speed is 0; it must be above"),
        ({"load": {"kind": "replay", "trace": "HOUR"}, "mix": {"flaky": 5}}, "x: a replay takes its tasks"),
        ({"load": {"kind": "replay", "trace": "EMPTY"}}, "the trace EMPTY has no tasks: capture a window"),
    ],
)
def test_what_cannot_be_replayed_is_said_in_one_line(hour, tmp_path, parts, error):
    where = {"HOUR": str(hour), "EMPTY": str(write(tmp_path / "empty.jsonl", []))}
    asked = parts["load"].get("trace")
    parts["load"] |= {"trace": where[asked]} if asked in where else {}
    with pytest.raises(StartError) as refused:
        scenario.parse({"fleet": FLEET} | parts, "x", "x")
    text = str(refused.value).replace(where["EMPTY"], "EMPTY")
    assert text.startswith(error)
    assert "\n" not in text


def test_the_counts_of_a_replay_are_known_beforehand(hour):
    found = theory.forecast(planned(hour))
    # noop 1, flaky 3, always_fail 4, a sleeper that is lost twice, and two sleepers
    assert found.counts == Expected(6, 4, 1, 1, runs=12, failed=6, retries=5, lost=2)
    assert found.floor.arrivals_s == 7
    assert found.slot_s == pytest.approx(2 * 2 + 0.08 + 0.005)
    assert expected(planned(hour).deck(), indexes=[0, 1]) == Expected(2, 2, runs=4, failed=2, retries=2)
    assert not theory.undecided(planned(hour))
    assert theory.undecided(planned(hour, FLEET | {"settings": {"VIS_TIMEOUT_MS": "5000"}}))


def test_the_plan_of_a_replay_says_what_is_not_kept(hour, tmp_path, capsys):
    path = tmp_path / "x.toml"
    path.write_text(
        f'[load]\nkind = "replay"\ntrace = "{hour}"\nspeed = 10\n[fleet]\nprocesses = 1\n'
        "[fleet.settings]\nVIS_TIMEOUT_MS = 60000\n"
    )
    assert cli.main(["plan", str(path)]) == 0
    printed = capsys.readouterr().out.splitlines()
    notes = [line.partition("not as in the trace: ")[2] for line in printed if "not as in" in line]
    *counted, fitting = notes
    assert counted == [
        "runs that fail and had timed out: 1",
        "runs that end at once and took a while, as there is another attempt beside them: 3",
        "queues that are one: 2",
        "gaps and delays are divided by 10; run times and retry waits are not",
    ]
    assert fitting.startswith(
        "tasks that died of losses will succeed, as their sleep of 4,600 ms fits the lease"
    )
    assert cli.main(["plan", str(path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["notes"] == notes


def test_a_run_longer_than_the_lease_is_warned_of(tmp_path):
    found = planned(write(tmp_path / "x.jsonl", [traced(0, "succeeded", ("succeeded", 3000))]))
    [note] = tape.notes(found.load, 2000)
    assert note.startswith("a run of 3,000 ms kept its lease and will lose it")
    assert theory.forecast(found).counts.lost == 2


def test_other_loads_have_nothing_to_lose():
    assert tape.told(scenario.Bulk(10), 60_000) == []


# In virtual time


def test_two_simulations_of_one_seed_write_the_same_log(hour, tmp_path, capsys):
    path = tmp_path / "x.toml"

    def log(name: str, seed: int) -> bytes:
        path.write_text(
            f'seed = {seed}\n[load]\nkind = "replay"\ntrace = "{hour}"\nspeed = 10\n[fleet]\nprocesses = 2\n'
        )
        runs = tmp_path / name
        words = ["--runs", str(runs), "--out", str(tmp_path / f"{name}.json")]
        assert cli.main(["simulate", str(path), *words]) == 0
        return runs.read_bytes()

    first, second = log("a", 1), log("b", 1)
    assert first == second != log("c", 2)  # another seed draws other waits between retries
    assert "counts: as theory says, to the unit" in capsys.readouterr().out
    histories = [repeats.read(tmp_path / f"{name}.json").runs[0]["history"] for name in "ab"]
    assert histories[0] == histories[1]
    assert repeats.read(tmp_path / "a.json").planned.load == Replay(str(hour), 10, 6, trace.digest(hour))


def test_a_task_with_a_delay_waits_for_its_time(hour):
    history = simulate(planned(hour), FREE)
    row = list(history.task).index(5)
    assert history.enqueued[5] == 4
    assert history.due[row] == 7
    assert 7 <= history.started[row] < 7 + 0.6  # a scan of the pump later at most
    assert history.finished[row] - history.started[row] == pytest.approx(0.005)


def test_the_times_of_runs_are_those_of_the_trace():
    tasks = [traced(10 * i, "succeeded", ("succeeded", 20 + i)) for i in range(50)]
    played = Tape(tasks)
    ones = [0] * len(tasks)
    work = Job(
        *played.columns,
        coming=played.coming,
        duration=[card.mix.sleep_ms / 1000 for card in played.cards].__getitem__,
        fails=ones,
        renewed=[True] * len(tasks),
        max_retries=3,
        cards=played.numbers,
    )
    history = Twin(work, 2, scenario.parse(PLAIN, "x", "x").fleet.config, FREE, 1).run()
    took = {task: history.finished[row] - history.started[row] for row, task in enumerate(history.task)}
    assert [took[i] for i in range(50)] == pytest.approx([(20 + i) / 1000 for i in range(50)])


PLAIN = {"mix": {}, "load": {"kind": "bulk", "tasks": 1}, "fleet": {"processes": 1}}

RUNS = st.tuples(st.sampled_from(["failed", "timed_out", "lost"]), st.floats(0, 300))


@st.composite
def histories(draw: st.DrawFn) -> Traced:
    """Any task that has ended, as a trace tells it; run times stay clear of the lease."""
    status = draw(st.sampled_from(["succeeded", "dead", "cancelled"]))
    runs = draw(st.lists(RUNS, max_size=4))
    if status == "succeeded":
        runs.append(("succeeded", draw(st.floats(0, 300))))
    return traced(
        draw(st.floats(0, 5000)),
        status,
        *runs,
        priority=draw(st.sampled_from(["critical", "high", "default", "low"])),
        max_retries=draw(st.integers(0, 4)),
        delay_ms=draw(st.sampled_from([0, 0, 700])),
    )


@settings(max_examples=50, deadline=None)
@given(tasks=st.lists(histories(), min_size=1, max_size=40), speed=st.sampled_from([1, 10]))
def test_whatever_a_trace_tells_comes_out_as_theory_says(tmp_path_factory, tasks, speed):
    path = write(tmp_path_factory.mktemp("traces") / "x.jsonl", tasks)
    found = planned(path, speed=speed)
    history, known = simulate(found, FREE), theory.forecast(found)
    counted = summary(found, history)
    assert counted.counts == known.counts
    assert counted.drain_s > known.floor.drain_s - 1e-6
    # The attempts are those of the trace, but for losses: how many a task dies of is the fleet's to say.
    ordered = sorted(tasks, key=lambda task: task.at_ms)
    kept = [
        i
        for i, task in enumerate(ordered)
        if task.runs and task.status != "cancelled" and tape.card_of(task).kind != "sleeper"
    ]
    assert expected(found.deck(), indexes=kept).runs == sum(len(ordered[i].runs) for i in kept)
