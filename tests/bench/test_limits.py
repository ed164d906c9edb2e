"""`bench limits`: a must that is missed is an exit code, and the quick run brings numbers for every row."""

from __future__ import annotations

import json
import subprocess
import sys
from array import array
from collections import Counter
from collections.abc import Mapping
from contextlib import contextmanager
from statistics import median

import pytest

from bench import crowd, limits, record, startup
from bench.aims import AIMS
from bench.burst import Stalled
from bench.company import DISTURBED, Company, told
from bench.footprint import growth
from bench.hammer import Answers
from bench.limits import TOPICS, chosen, measure, verdict
from bench.occupancy import busy_share
from bench.rounds import FULL, QUICK, SETTINGS, arms_of, measured
from bench.rows import MUST_MISSED, OK, Limit, Row, table
from bench.system import system
from scheduler.errors import ConfigError

FAST = Limit("fast", "t", "fast enough", "/s", "a.rate", must=10)
SLOW = Limit("slow", "t", "not too slow", "ms", "a.ms", must=5, at_most=True)
QUICK_S = 90.0
"""It is to take a minute, and a busy machine takes longer."""
SAID = Limit("said", "t", "only said", "ms", "a.ms")


# --- the verdict ---


def test_every_must_that_is_reached_is_exit_code_0():
    rows = [Row(FAST, (10.0,)), Row(SLOW, (5.0,)), Row(SAID, (9e9,))]
    assert verdict(rows) == 0


@pytest.mark.parametrize("missed", [Row(FAST, (9.9,)), Row(SLOW, (5.1,)), Row.missing(FAST)])
def test_a_must_that_is_missed_is_exit_code_1(missed):
    assert verdict([Row(FAST, (10.0,)), missed, Row(SLOW, (5.0,))]) == 1


def test_an_aim_that_is_missed_is_no_failure():
    limit = Limit("aimed", "t", "aimed higher", "/s", "a.rate", must=10, aim=20)
    assert verdict([Row(limit, (15.0,))]) == 0


def planted(monkeypatch, tmp_path, measures: Mapping[str, float]) -> int:
    """The command's exit code where every round of the one topic finds these measures."""

    @contextmanager
    def arms(me, size):
        yield {"a": lambda: measures}

    @contextmanager
    def no_system(own, *, say):
        yield None

    monkeypatch.setattr(limits, "system", no_system)
    monkeypatch.setattr(limits, "AIMS", {"t": (FAST, SLOW)})
    monkeypatch.setattr(limits, "TOPICS", {"t": arms})
    from bench import cli

    return cli.main(["limits", "--rounds", "2", "--out", str(tmp_path / "limits.json")])


def test_the_command_ends_with_the_verdict(monkeypatch, tmp_path, capsys):
    assert planted(monkeypatch, tmp_path, {"rate": 11.0, "ms": 4.0}) == 0
    assert planted(monkeypatch, tmp_path, {"rate": 11.0, "ms": 6.0}) == 1
    assert MUST_MISSED in capsys.readouterr().out


def test_the_record_makes_the_same_table(monkeypatch, tmp_path, capsys):
    planted(monkeypatch, tmp_path, {"rate": 11.0, "ms": 6.0})
    made = record.read(tmp_path / "limits.json")
    assert table(made) in capsys.readouterr().out
    assert [(row["values"], row["verdict"]) for row in made["result"]["rows"]] == [
        ([11.0, 11.0], OK),
        ([6.0, 6.0], MUST_MISSED),
    ]
    assert made["result"]["rounds"] == {"t": [{"a.rate": 11.0, "a.ms": 6.0}] * 2}
    assert told(made).startswith("`bench limits --rounds 2 --seed 1`, ")


# --- which rows, and in which order ---


def test_every_topic_has_rows_and_every_row_a_name_of_its_own():
    assert AIMS.keys() == TOPICS.keys()
    names = [limit.name for rows in AIMS.values() for limit in rows]
    assert len(names) == len(set(names))
    assert not set(names) & AIMS.keys() - {"startup"}


def test_only_takes_rows_and_topics():
    assert [limit.name for limit in chosen(["drain"])["rates"]] == ["drain"]
    assert chosen(["startup", "burst"]).keys() == {"startup", "latency"}
    assert chosen(["startup"])["startup"] == AIMS["startup"]
    assert chosen(None) == AIMS


def test_only_refuses_what_there_is_not():
    with pytest.raises(ConfigError, match="--only nonsense is no row and no topic; there are startup"):
        chosen(["nonsense"])


def test_the_quick_run_leaves_out_what_takes_long_unless_it_is_asked_for():
    quick = {limit.name for rows in chosen(None, QUICK.skips).values() for limit in rows}
    assert "payloads" not in quick
    assert "payloads" in {limit.name for limit in chosen(["payloads"], QUICK.skips)["footprint"]}
    assert not FULL.skips


def test_rounds_draw_their_order_from_the_seed():
    def run(seed: int) -> list[str]:
        order: list[str] = []
        arms = {name: lambda name=name: order.append(name) or {"n": 1.0} for name in "abcd"}
        found = measured(arms, 3, seed, title="t", wanted={"a", "b", "c"})
        plain = [{key: n for key, n in each.items() if not key.endswith(DISTURBED)} for each in found]
        assert all(each == {"a.n": 1.0, "b.n": 1.0, "c.n": 1.0} for each in plain)
        return order

    assert run(1) == run(1)
    assert [sorted(run(1)[i : i + 3]) for i in (0, 3, 6)] == [["a", "b", "c"]] * 3
    assert len({tuple(run(seed)[:3]) for seed in range(20)}) == 6


def test_a_topic_that_breaks_off_leaves_the_others_their_turn(monkeypatch, capsys):
    @contextmanager
    def broken(me, size):
        raise Stalled("nothing has ended for 60 s")
        yield

    @contextmanager
    def sound(me, size):
        yield {"a": lambda: {"rate": 20.0}}

    @contextmanager
    def no_system(own, *, say):
        yield None

    monkeypatch.setattr(limits, "system", no_system)
    monkeypatch.setattr(limits, "TOPICS", {"one": broken, "two": sound})
    rows, rounds = measure({"one": (FAST,), "two": (FAST,)}, QUICK, seed=1)
    assert rounds == {"one": [], "two": [{"a.rate": 20.0}]}
    assert [row.verdict for row in rows] == [MUST_MISSED, OK]
    assert "one: nothing has ended for 60 s" in capsys.readouterr().err


# --- what the rows are worked out from ---


def test_slots_count_only_while_something_waits():
    """Two slots: one runs for 4 s, the other one idles from 1 to 3 while the third task waits."""
    runs = [(0.0, 0.0, 4.0), (0.0, 0.0, 1.0), (0.5, 3.0, 9.0)]
    assert busy_share(runs, 2) == pytest.approx((2 * 0.5 + 1 * 2.0) / (2 * 2.5))


def test_slots_are_all_busy_where_the_next_task_starts_at_once():
    runs = [(0.0, 0.0, 1.0), (0.0, 1.0, 2.0), (0.0, 2.0, 9.0)]
    assert busy_share(runs, 1) == pytest.approx(1.0)


def test_nothing_that_waits_is_no_share():
    assert busy_share([(0.0, 0.0, 5.0), (6.0, 6.0, 7.0)], 4) == 0.0


def test_growth_is_from_the_second_fifth_to_the_last():
    warm = [10.0, 40.0]  # the first fifth does not count
    assert growth([*warm, 50.0, 50.0, 51.0, 52.0, 53.0, 54.0, 57.0, 57.0]) == 7.0
    assert growth([50.0, 90.0]) == 0.0


def test_what_a_crowd_was_told():
    answers = Answers(Counter({201: 6, 503: 3, 500: 1}), array("d", [0.001 * i for i in range(1, 11)]), 2.0)
    assert crowd.told(answers) == pytest.approx(
        {"rate": 3.0, "p50": 5.0, "p95": 10.0, "p99": 10.0, "busy_percent": 30.0, "faults": 1.0}
    )


@pytest.mark.parametrize(("busy", "steal", "disturbed"), [(10, 2, False), (10.1, 0, True), (0, 2.1, True)])
def test_other_work_disturbs(busy, steal, disturbed):
    company = Company()
    company.busy_percent, company.steal_percent = busy, steal
    assert company.disturbed is disturbed


def test_a_measurement_that_was_disturbed_is_named(monkeypatch):
    """A neighbour who comes for a minute is little of a whole run."""
    monkeypatch.setattr(Company, "disturbed", property(lambda _: True))
    rounds = measured({"a": lambda: {"n": 1.0}}, 2, 1, title="t")
    assert all(f"a.{DISTURBED}" in each for each in rounds)
    made = {
        "result": {"disturbed": False, "seconds": 1, "busy_percent": 0, "steal_percent": 0, "rounds": rounds}
    }
    monkeypatch.setattr("bench.record.told", lambda _: "it")
    assert told(made).endswith(" Disturbed were single measurements of a (2×).")
    made["result"]["rounds"] = [{"a.n": 1.0}]
    assert told(made).endswith(" No single measurement was disturbed.")


def test_our_own_work_is_no_company():
    with Company() as company:
        subprocess.run([sys.executable, "-c", "sum(range(10**7))"], check=True)
    assert 0 <= company.busy_percent <= 100
    assert 0 <= company.steal_percent <= 100


# --- the whole command, small ---


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_nobody_waits_long_for_a_start():
    """Bounds that a machine with other work keeps, too; `bench limits` has those that matter."""
    with system(SETTINGS, say=print) as me, startup.arms(me, FULL) as arms:
        rounds = measured(arms, 3, seed=1, title="startup")
    bounds = {"help.s": 1.5, "worker.s": 5.0, "stack.s": 8.0}
    found = {name: median(each[name] for each in rounds) for name in bounds}
    assert not {name: seconds for name, seconds in found.items() if seconds > bounds[name]}


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_quick_run_has_numbers_for_every_row(tmp_path):
    out = tmp_path / "limits.json"
    command = [sys.executable, "-m", "bench", "limits", "--quick", "--out", out]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode in {0, 1}, done.stderr
    result = json.loads(out.read_text())["result"]
    rows = result["rows"]
    assert result["quick"]
    assert result["seconds"] < QUICK_S
    assert [row["name"] for row in rows] == [
        limit.name for limits in AIMS.values() for limit in limits if not QUICK.skips & arms_of([limit])
    ]
    for row in rows:
        assert row["figure"] is not None, row
        assert len(row["values"]) == 1
        assert len(row["others"]) == bool(row["against"])
    assert done.returncode == any(row["verdict"] == MUST_MISSED for row in rows)
