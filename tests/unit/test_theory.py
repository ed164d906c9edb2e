"""The closed forms against values worked out by hand."""

from __future__ import annotations

import doctest
import json
from math import exp

import pytest

from bench import agenda, cli, scenario, theory
from bench.scenario import Scenario
from bench.theory import Floor, Queue, forecast, undecided
from bench.workload import Expected

MIX = {"flaky": 10, "fail": 5, "sleep": 5, "sleep_ms": 4000}
LEASES = {"VIS_TIMEOUT_MS": 2000, "MAX_LOSSES": 1, "RETRY_BASE_MS": 200, "RETRY_MAX_MS": 500}


def made(mix: object, load: object, settings: object = LEASES, **fleet: object) -> Scenario:
    fleet = {"processes": 2, "slots": 5, "settings": settings} | fleet
    return scenario.parse({"mix": mix, "load": load, "fleet": fleet}, "x", "x")


def bulk(tasks: int) -> object:
    return {"kind": "bulk", "tasks": tasks}


@pytest.mark.parametrize("module", [theory, agenda])
def test_the_examples_in_the_docstrings_hold(module):
    tried = doctest.testmod(module)
    assert tried.failed == 0
    assert tried.attempted > 0


def test_counts_are_told_by_type_and_in_all():
    found = forecast(made(MIX, bulk(2000)))
    # 100 sleepers are lost twice, 100 fail four times, 200 fail twice and succeed.
    assert found.parts["noop"].counts == Expected(1600, 1600, 0, 0, 1600, 0, 0, 0)
    assert found.parts["flaky"].counts == Expected(200, 200, 0, 0, 600, 400, 400, 0)
    assert found.parts["always_fail"].counts == Expected(100, 0, 100, 0, 400, 400, 300, 0)
    assert found.parts["sleeper"].counts == Expected(100, 0, 0, 100, 200, 0, 0, 200)
    assert found.counts == Expected(2000, 1800, 100, 100, 2800, 800, 700, 200)


def test_a_lost_run_has_its_slot_for_its_lease_and_another_for_its_sleep():
    lost = forecast(made(MIX, bulk(2000)))
    assert lost.slot_s == 100 * 2 * 2.0
    assert lost.floor.slots_s == 400 / 10
    slept = forecast(made(MIX | {"sleep_ms": 500}, bulk(2000)))
    assert slept.slot_s == 100 * 0.5
    assert slept.floor == Floor(slots_s=5.0, waits_s=0.2 + 0.4 + 0.5, arrivals_s=0.0)
    assert slept.floor.binding == "slots"


def test_the_waits_of_one_task_are_a_floor():
    found = forecast(made({"flaky": 100}, bulk(3)))
    assert found.floor == Floor(0.0, pytest.approx(0.2 + 0.4), 0.0)
    assert (found.floor.drain_s, found.floor.binding) == (pytest.approx(0.6), "waits")
    full = forecast(made({"fail": 100}, bulk(3), LEASES | {"RETRY_JITTER": "full"}))
    assert full.floor.waits_s == 0
    equal = forecast(made({"fail": 100}, bulk(3), LEASES | {"RETRY_JITTER": "equal"}))
    assert equal.floor.waits_s == pytest.approx((0.2 + 0.4 + 0.5) / 2)
    losses = forecast(made({"sleep": 100, "sleep_ms": 4000}, bulk(1)))
    assert losses.floor.waits_s == 4.0


def test_what_comes_late_ends_late():
    found = forecast(made({"sleep": 50, "sleep_ms": 100}, {"kind": "open", "rate": 10, "seconds": 10}))
    assert found.floor.arrivals_s == pytest.approx(9.9)
    assert found.floor.binding == "arrivals"
    assert found.offered == pytest.approx(50 * 0.1 / 10 / 9.9)


def test_noops_have_no_floor():
    found = forecast(made({}, bulk(10)))
    assert (found.floor.drain_s, found.floor.binding, found.offered) == (0.0, "nothing", None)


@pytest.mark.parametrize(("sleep_ms", "open_"), [(700, False), (1500, True), (2000, True), (2001, False)])
def test_a_sleeper_close_to_its_lease_is_undecided(sleep_ms, open_):
    # A lease of 2 s is renewed in the buffer when it is 1 s old, by a heartbeat that beats every 0.25 s.
    assert undecided(made({"sleep": 1, "sleep_ms": sleep_ms}, bulk(100))) is open_
    assert not undecided(made({"sleep_ms": sleep_ms}, bulk(100)))


def test_one_server_waits_as_the_textbook_says():
    queue = Queue(rate=0.5, service_rate=1.0, servers=1)
    assert queue.p_wait == pytest.approx(0.5)
    assert queue.mean_wait_s == pytest.approx(1.0)  # ρ / (μ - λ)
    assert queue.wait_s(50) == 0.0
    assert queue.wait_s(75) == pytest.approx(1.386294)  # ln(0.5 / 0.25) / 0.5
    assert queue.p_longer(2.0) == pytest.approx(0.5 * exp(-1))


def test_many_servers_wait_as_erlang_says():
    # a = 2, c = 3: B = (2³/6) / (1 + 2 + 2 + 4/3) = 4/19, C = B / (1 - ρ(1 - B)) = 4/9
    three = Queue(rate=2.0, service_rate=1.0, servers=3)
    assert three.p_wait == pytest.approx(4 / 9)
    assert three.mean_wait_s == pytest.approx(4 / 9)
    # a = 8, c = 10: 0.4092 in the tables of Erlang's C
    assert Queue(rate=16.0, service_rate=2.0, servers=10).p_wait == pytest.approx(0.4092, abs=5e-5)


def test_a_queue_that_never_catches_up_has_no_waits():
    with pytest.raises(ValueError, match=r"2 servers that do 3/s each never catch up"):
        Queue(rate=6.0, service_rate=3.0, servers=2)


def test_the_plan_is_printed_before_anything_runs(capsys):
    assert cli.main(["plan", "demo"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].endswith("2,000 tasks on 3 × 12, 3 times, seed 1")
    rows = {line.split()[0]: line.split()[1:] for line in lines if line}
    assert rows["sleeper"] == ["100", "0", "100", "200", "0", "0", "200", "400"]
    assert rows["all"] == ["2,000", "1,800", "200", "2,800", "800", "700", "200", "400"]
    assert lines[-1] == "floor of the drain: 11.1 s, by slots"


def test_the_plan_as_json_has_the_same(capsys):
    assert cli.main(["plan", "demo", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["counts"]["runs"] == 2800
    assert found["by_type"]["sleeper"]["counts"]["lost"] == 200
    assert found["floor"]["drain_s"] == pytest.approx(400 / 36)
    assert found["exact"] is True


def test_the_plan_says_when_more_comes_than_can_be_done(tmp_path, capsys):
    path = tmp_path / "s.toml"
    path.write_text(
        '[mix]\nsleep = 100\nsleep_ms = 1000\n[load]\nkind = "open"\nrate = 5\nseconds = 4\n'
        "[fleet]\nprocesses = 1\nslots = 2\n"
        '[[faults]]\nat_s = 1\nkind = "worker_killed"\n'
    )
    assert cli.main(["plan", str(path)]) == 0
    *_, offered, faults = capsys.readouterr().out.splitlines()
    assert offered == "load offered: 263% of the slots on average; the backlog grows while the load lasts"
    assert faults == "there are faults: what a worker loses runs again, so counts may differ"
