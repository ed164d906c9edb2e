"""Costs are found again in what was measured with them; what is measured has the shape of a simulation."""

from __future__ import annotations

import json
from math import isnan
from pathlib import Path

import pandas as pd
import pytest

from bench import calibrate, cli, costs, record, repeats, scenario
from bench.costs import Costs
from bench.history import History
from bench.ledger import Ledger
from bench.measured import history_of, prices
from bench.measured import ledger_of as ledger
from bench.scenario import Scenario
from bench.simulate import simulate, summary
from scheduler.lifecycle import OUTCOMES

TRUTH = Costs(
    worker_us=80,
    postgres_us=70,
    redis_us=20,
    bulk_us=60,
    lease_ms=9,
    settle_ms=4,
    call_us=8,
    inflation=1.5,
    failure_us=30,
)
NOOPS = scenario.parse(
    {"mix": {}, "load": {"kind": "bulk", "tasks": 2500, "size": 250}, "fleet": {"processes": 3}}, "x", "noops"
)
MIXED = scenario.parse(
    {
        "repeats": 2,
        "mix": {"flaky": 10, "fail": 5, "sleep": 10, "sleep_ms": 1200},
        "load": {"kind": "bulk", "tasks": 900, "size": 100},
        "fleet": {"processes": 2, "slots": 6, "settings": {"VIS_TIMEOUT_MS": 400, "MAX_LOSSES": 1}},
    },
    "x",
    "mixed",
)
FAILING = scenario.parse(
    {
        "mix": {"fail": 100},
        "load": {"kind": "bulk", "tasks": 600, "size": 100},
        "fleet": {"processes": 2, "settings": {"RETRY_BASE_MS": 10, "RETRY_MAX_MS": 10}},
    },
    "x",
    "failing",
)
SLEEPY = scenario.parse(
    {
        "repeats": 2,
        "mix": {"flaky": 10, "sleep": 30, "sleep_ms": 60},
        "load": {"kind": "bulk", "tasks": 1000, "size": 100},
        "fleet": {"processes": 2, "slots": 6},
    },
    "x",
    "sleepy",
)


def ledger_of(history: History) -> Ledger:
    """The history as Postgres would tell it."""
    return ledger(history, pd.Timestamp("2026-01-02", tz="UTC"))


def measured(planned: Scenario, path: Path) -> Path:
    """A record as a run would leave it, if the truth were the twin with the costs TRUTH."""
    runs = []
    for repeat in range(planned.repeats):
        history = history_of(ledger_of(simulate(planned, TRUTH, repeat)))
        failed = sum(OUTCOMES[each] == "failed" for each in history.outcome)
        cpu = {
            "workers": (len(history) * TRUTH.worker_us + failed * TRUTH.failure_us) / 1e6,
            "postgres": len(history) * TRUTH.postgres_us / 1e6,
            "redis": len(history) * TRUTH.redis_us / 1e6,
        }
        live = {"prices": prices(history, cpu)}
        runs.append(repeats.content(planned, repeat, history, summary(planned, history), live=live))
    made = record.make(["bench run"], repeats.result("measured", planned, runs))
    made["machine"]["cores"] = 2
    record.write(path, made)
    return path


def test_what_is_measured_has_the_figures_of_what_is_simulated():
    simulated = simulate(MIXED, TRUTH)
    read = history_of(ledger_of(simulated))
    first = min(simulated.enqueued)
    assert (read.types, read.priorities, read.statuses) == (
        simulated.types,
        simulated.priorities,
        simulated.statuses,
    )
    assert list(read.ended) == pytest.approx([at - first for at in simulated.ended], abs=2e-6)
    assert sorted(zip(read.task, read.attempt, read.outcome, read.worker, strict=True)) == sorted(
        zip(simulated.task, simulated.attempt, simulated.outcome, simulated.worker, strict=True)
    )
    assert sum(map(isnan, read.started)) == sum(map(isnan, simulated.started)) > 0
    ours, theirs = summary(MIXED, read).content(), summary(MIXED, simulated).content()
    assert (ours.pop("counts"), ours.pop("runs")) == (theirs.pop("counts"), theirs.pop("runs"))
    flat = [pd.json_normalize(each).iloc[0].to_dict() for each in (ours, theirs)]
    assert flat[0] == pytest.approx(flat[1], rel=1e-4, abs=1e-5)


def test_a_type_of_somebody_else_is_refused():
    ledger = ledger_of(simulate(NOOPS, TRUTH))
    ledger.tasks["type"] = "mail.send"
    with pytest.raises(ValueError, match=r"mail\.send: no mix has such types"):
        history_of(ledger)


def test_a_run_tells_its_costs():
    found = prices(simulate(MIXED, TRUTH), {"workers": 1.0, "postgres": 0.5, "redis": 0.25, "api": 9.0})
    runs = len(simulate(MIXED, TRUTH))
    assert found["worker_us"] == 1e6 / runs
    assert (found["postgres_us"], found["redis_us"]) == (0.5e6 / runs, 0.25e6 / runs)
    assert found["call_us"] == pytest.approx(TRUTH.call_us, rel=0.01)
    assert found["bulk_us"] == pytest.approx(TRUTH.bulk_us, rel=0.01)
    assert "wake_ms" not in found
    steady = scenario.parse(
        {"mix": {}, "load": {"kind": "open", "rate": 50, "seconds": 4}, "fleet": {"processes": 1}}, "x", "x"
    )
    told = prices(simulate(steady, TRUTH), {})
    assert told["wake_ms"] == pytest.approx(TRUTH.wake_ms, rel=0.01)
    assert told["lease_ms"] == pytest.approx(TRUTH.lease_ms, rel=0.02)
    assert "bulk_us" not in told


def test_a_calibrated_twin_comes_out_as_the_runs_did(tmp_path, capsys):
    paths = [measured(NOOPS, tmp_path / "noops.json"), measured(SLEEPY, tmp_path / "sleepy.json")]
    out = tmp_path / "costs.json"
    assert cli.main(["calibrate", *map(str, paths), "--out", str(out)]) == 0
    assert capsys.readouterr().out.count("sleepy, seed") == 2
    fitted = costs.read(out)
    assert fitted.worker_us == pytest.approx(TRUTH.worker_us)
    # It makes up for what else is read a little long: a claim takes in what its batch costs the loop.
    assert fitted.inflation == pytest.approx(TRUTH.inflation, rel=0.2)
    for row in json.loads(out.read_text())["result"]["errors"]:
        assert row["predicted_drain_s"] == pytest.approx(row["drain_s"], rel=0.05)


def test_what_a_failure_costs_is_told_by_runs_that_fail(tmp_path):
    paths = [measured(NOOPS, tmp_path / "noops.json"), measured(FAILING, tmp_path / "failing.json")]
    runs = [run for path in paths for run in calibrate.read(path)]
    for run in runs:
        if run.failed:  # one insert, four runs
            run.prices["postgres_us"] /= 2
    fitted = calibrate.fit(runs)
    assert fitted.worker_us == pytest.approx(TRUTH.worker_us)
    assert fitted.failure_us == pytest.approx(TRUTH.failure_us)
    assert fitted.postgres_us == pytest.approx(TRUTH.postgres_us)


def test_without_them_it_keeps_its_default(tmp_path):
    fitted = calibrate.fit(calibrate.read(measured(NOOPS, tmp_path / "noops.json")))
    assert fitted.failure_us == Costs().failure_us


def test_what_it_was_not_fitted_to_is_predicted(tmp_path, capsys):
    fitted_to, other = measured(NOOPS, tmp_path / "noops.json"), measured(SLEEPY, tmp_path / "sleepy.json")
    words = ["calibrate", str(fitted_to), "--check", str(other)]
    assert cli.main([*words, "--within", "8"]) == 0
    assert "Not fitted to:" in capsys.readouterr().out
    assert cli.main([*words, "--within", "0"]) == 1


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"result": {"source": "simulated", "runs": []}}'])
def test_what_is_no_record_of_runs_is_said_in_one_line(tmp_path, capsys, text):
    path = tmp_path / "record.json"
    path.write_text(text)
    assert cli.main(["calibrate", str(path)]) == 2
    assert capsys.readouterr().err.startswith(f"bench: {path} is no record of runs: name one that ")


def test_what_was_disturbed_is_not_fitted_to(tmp_path):
    path = measured(SLEEPY, tmp_path / "sleepy.json")
    made = record.read(path)
    made["result"]["runs"][0]["valid"] = False
    record.write(path, made)
    assert [run.repeat for run in calibrate.read(path)] == [1]
    made["result"]["runs"][1]["valid"] = False
    record.write(path, made)
    with pytest.raises(calibrate.StartError, match="holds disturbed runs only"):
        calibrate.read(path)


def test_the_twin_is_never_taken_for_a_run(tmp_path):
    path = tmp_path / "sim.json"
    assert cli.main(["simulate", "retries", "--out", str(path)]) == 0
    with pytest.raises(calibrate.StartError, match="is no record of measured runs"):
        calibrate.read(path)
