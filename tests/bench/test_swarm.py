"""What Locust sends comes back like any other load: receipts, exact counts, and statistics in the record."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import psutil
import pytest
from fix_process import until
from stub_api import StubApi

from bench import cli, repeats, swarm
from bench.scenario import Locust
from bench.workload import Mix, deck
from scheduler.errors import StartError

pytestmark = pytest.mark.skipif(find_spec("locust") is None, reason="Locust is not installed")

ROOT = Path(__file__).parents[2]
MIX = Mix(flaky=10, fail=5, sleep=5, sleep_ms=50, priorities=(1, 0, 0, 1))
SCENARIO = """
[mix]
flaky = 10
fail = 5
sleep = 5
sleep_ms = 50
[load]
kind = "locust"
tasks = 200
users = 4
followed = 40
[fleet]
processes = 1
slots = 8
[fleet.settings]
RETRY_BASE_MS = 50
RETRY_MAX_MS = 100
RETRY_JITTER_MS = 20
RETRY_SCAN_INTERVAL_MS = 50
"""


def silent(_: object) -> None:
    """Tell nobody."""


@pytest.fixture
def api():
    with StubApi() as stub:
        yield stub


@pytest.mark.parametrize("processes", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_the_deck_is_sent_and_each_task_has_its_receipt(api, processes):
    dealt, seen = deck(MIX, 200, seed=7), []
    how = Locust(200, users=4, processes=processes, followed=0)
    result = swarm.run(dealt, how, host=api.url, progress=lambda so_far: seen.append(so_far.accepted))
    assert (result.accepted, result.refused, result.unanswered, result.gave_up) == (200, 0, 0, None)
    assert result.statuses == {201: 200}
    assert seen[-1] == 200
    assert sorted(receipt.place for receipt in result.receipts) == list(range(200))
    for receipt in result.receipts:  # each is of the body at its place
        body = dealt[receipt.place]
        assert {name: api.tasks[receipt.id][name] for name in ("type", "priority")} == {
            name: body[name] for name in ("type", "priority")
        }
        assert 0 <= receipt.intended <= receipt.sent <= receipt.answered <= result.seconds + 1
        assert receipt.key.endswith(f"-{receipt.place}")
    assert len(result.latencies) == 200
    [row] = result.statistics
    assert (row["method"], row["name"], row["requests"], row["failures"]) == ("POST", "/v1/tasks", 200, 0)
    assert 0 <= row["min_s"] <= row["p50_s"] <= row["p99_s"]


def test_what_was_overloaded_is_counted_and_sent_again(api):
    api.overload(5, retry_after="0.1")
    result = swarm.run(deck(MIX, 40), Locust(40, users=2, followed=0), host=api.url, progress=silent)
    assert result.statuses == {201: 40, 503: 5}
    assert result.overloaded == 5
    assert result.statistics[0]["failures"] == 5


def test_a_locust_that_cannot_begin_says_why(api, monkeypatch, tmp_path):
    broken = tmp_path / "broken.py"
    broken.write_text("raise SystemExit('it is broken')")
    monkeypatch.setattr(swarm, "_FILE", broken)
    result = swarm.run(deck(MIX, 40), Locust(40), host=api.url, progress=silent)
    assert result.accepted == 0
    assert "Locust ended with exit code 1" in result.gave_up
    monkeypatch.setattr(swarm, "_FILE", tmp_path / "none.py")
    with pytest.raises(StartError, match="run this in a checkout"):
        swarm.run(deck(MIX, 40), Locust(40), host=api.url, progress=silent)


def test_one_that_hangs_is_given_up_and_ended(api, monkeypatch):
    """The stub stalls longer than the driver is patient, once Locust has begun."""

    def begun(result):
        if result.accepted:
            monkeypatch.setattr(swarm, "_PATIENCE_S", 1.5)

    api.stall(at=10, seconds=6)
    before = set(psutil.Process().children(recursive=True))
    result = swarm.run(deck(MIX, 40), Locust(40, users=2, followed=0), host=api.url, progress=begun)
    assert "none for 2 s" in result.gave_up
    assert 0 < result.accepted < 40
    assert set(psutil.Process().children(recursive=True)) <= before


@pytest.mark.parametrize("processes", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_driver_that_is_killed_leaves_no_locust(api, processes):
    script = (
        "import sys; from bench import swarm; from bench.scenario import Locust;"
        "from bench.workload import Mix, deck;"
        f"swarm.run(deck(Mix(), 100_000), Locust(100_000, users=2, processes={processes}),"
        " host=sys.argv[1], progress=lambda _: None)"
    )
    driver = subprocess.Popen([sys.executable, "-c", script, api.url], cwd=ROOT)
    try:
        until(lambda: api.posts > 10, 30)
        started = psutil.Process(driver.pid).children(recursive=True)
        assert len(started) == (1 if processes == 1 else 1 + processes)
        os.kill(driver.pid, signal.SIGKILL)
        driver.wait()
        until(lambda: not any(child.is_running() for child in started), 20)
    finally:
        driver.kill()
        driver.wait()


@pytest.fixture(scope="module")
def live(tmp_path_factory):
    """The record of a run that Locust sent to the real API."""
    folder = tmp_path_factory.mktemp("swarm")
    (folder / "crowd.toml").write_text(SCENARIO)
    path = folder / "record.json"
    assert cli.main(["run", str(folder / "crowd.toml"), "--out", str(path)]) == 0
    return repeats.read(path)


@pytest.mark.slow
def test_a_run_by_locust_is_in_the_record_like_any_other(live):
    [found] = live.runs
    assert found["exact"] is True
    assert (found["counts"]["runs"], found["counts"]["retries"]) == (200 + 40 + 30, 40 + 30)
    assert found["verdict"]["passed"]
    assert found["verdict"]["accepted"] == found["load"]["accepted"] == 200
    assert found["load"]["statuses"] == {"201": 200}
    assert found["load"]["latency_s"]["p50"] > 0
    assert found["predicted"]["drain_s"] > 0  # the simulator takes it, too


@pytest.mark.slow
def test_the_record_has_end_to_end_latencies_of_the_real_api(live):
    rows = {(row["method"], row["name"]): row for row in live.runs[0]["load"]["locust"]}
    assert rows["POST", "/v1/tasks"]["requests"] == 200
    followed = {name: row for (method, name), row in rows.items() if method == "E2E"}
    assert sum(row["requests"] for row in followed.values()) > 20  # of 40, less those that died
    assert followed["noop"]["min_s"] < followed["flaky"]["min_s"]  # which waits for two retries
    if "sleeper" in followed:
        assert followed["sleeper"]["min_s"] >= 0.05


@pytest.mark.slow
def test_a_report_shows_the_statistics(live, capsys):
    page = live.path.with_suffix(".html")
    assert cli.main(["report", str(live.path), "--out", str(page)]) == 0
    text = page.read_text()
    assert "Locust&#x27;s statistics" in text or "Locust's statistics" in text
    assert "E2E noop" in text
