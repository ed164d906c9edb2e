"""The Locust scenarios start bare, deal exactly in any number of processes, and end by themselves."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from stub_api import StubApi

from bench.receipts import read_ledger

psutil = pytest.importorskip("psutil", reason="Locust, which brings it, is not installed")

LOCUSTFILES = Path(__file__).resolve().parents[2] / "locustfiles"
MIX = "-pct-flaky 10 -pct-fail 5 -pct-sleep 5 -sleep-ms 50"
EXACT = {"noop": 240, "flaky": 30, "always_fail": 15, "sleeper": 15}


@pytest.fixture
def api():
    with StubApi() as stub:
        yield stub


def _free_port() -> str:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return str(listener.getsockname()[1])


class Finished:
    """A headless run that ended: its exit code, its words, and Locust's statistics by (method, name)."""

    def __init__(self, process: subprocess.CompletedProcess[str], statistics: Path) -> None:
        self.code = process.returncode
        self.out = process.stdout
        self.err = process.stderr
        written = json.loads(statistics.read_text()) if statistics.exists() else []
        self.rows: dict[tuple[str, str], dict[str, Any]] = {
            (row["method"], row["name"]): row for row in written
        }


@pytest.fixture
def locust(api, tmp_path) -> Callable[..., Finished]:
    """Run a scenario headless, by default against the stub: `locust("mix", "-n 300")`. The file is last."""

    def run(scenario: str, options: str, host: str = "") -> Finished:
        port = _free_port()
        statistics = tmp_path / "statistics.json"
        command = [sys.executable, "-m", "locust", "--headless", "--only-summary", "--host", host or api.url]
        command += [
            "--json-file",
            str(statistics.with_suffix("")),
            "--master-bind-port",
            port,
            "--master-port",
            port,
        ]
        command += [*options.split(), "-f", str(LOCUSTFILES / f"{scenario}.py")]
        ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
        return Finished(ended, statistics)

    return run


def _sum(rows: dict[tuple[str, str], dict[str, Any]], method: str, field: str = "num_requests") -> int:
    return sum(row[field] for (kind, _), row in rows.items() if kind == method)


@pytest.mark.parametrize("processes", ["", pytest.param("--processes 2", marks=[pytest.mark.slow])])
def test_the_mix_is_exact_in_any_number_of_processes(api, locust, processes):
    ended = locust("mix", f"{processes} -n 300 -w 6 {MIX} -flaky-attempts 2 --e2e-sample 30")
    assert ended.code == 0, ended.err
    assert api.types == EXACT
    assert api.posts == len(api.keys) == 300
    assert _sum(ended.rows, "POST") == 300
    assert _sum(ended.rows, "POST", "num_failures") == 0
    assert "300 tasks accepted" in ended.out
    assert "Uncaught" not in ended.err
    assert "Traceback" not in ended.err


def test_end_to_end_latency_is_a_row_of_its_own_from_a_bounded_sample(api, locust):
    ended = locust("mix", f"-n 300 -w 6 {MIX} --e2e-sample 30")
    found = re.search(r"sample of (\d+) of them: (\d+) succeeded, (\d+) dead, (\d+) still", ended.out)
    assert found is not None, ended.out
    sampled, succeeded, dead, still_open = map(int, found.groups())
    assert sampled == 30
    assert still_open == 0
    assert succeeded + dead == sampled
    assert _sum(ended.rows, "E2E") == succeeded
    assert {row["min_response_time"] for (kind, _), row in ended.rows.items() if kind == "E2E"} == {50.0}
    assert ("GET", "/v1/tasks") not in ended.rows
    assert api.lookups < 100


def test_an_overloaded_api_is_asked_again_until_the_total_is_exact(api, locust):
    api.overload(20, retry_after="0.1")
    ended = locust("mix", f"-n 300 -w 6 {MIX} --e2e-sample 0")
    assert api.types == EXACT
    assert _sum(ended.rows, "POST", "num_failures") == 20
    assert ended.code == 1  # Locust's own: there were failures


def test_a_steady_rate_shows_a_stall_that_the_answers_hide(api, locust):
    api.stall(at=100, seconds=1.0)
    ended = locust("steady", "-n 400 --task-rate 200 -w 4 --e2e-sample 0")
    assert ended.code == 0, ended.err
    assert len(api.tasks) == 400
    assert _p95(ended.rows["POST", "/v1/tasks"]) < 300
    assert _p95(ended.rows["DUE", "/v1/tasks"]) > 500


def _p95(row: dict[str, Any]) -> float:
    """From the rounded histogram that Locust keeps, in milliseconds."""
    times = sorted((float(time_ms), count) for time_ms, count in row["response_times"].items())
    wanted = 0.95 * sum(count for _, count in times)
    for time_ms, count in times:
        wanted -= count
        if wanted <= 0:
            return time_ms
    raise AssertionError("an empty row")


@pytest.mark.slow
def test_a_spike_is_calm_then_crowded_then_calm_and_ends(api, locust):
    ended = locust("spike", "--calm-s 1 --spike-s 1 --calm-users 1 --spike-users 20 --user-rate 5")
    assert ended.code == 0, ended.err
    assert "updating to 20 users" in ended.err
    assert ended.err.count("updating to 1 users") == 2
    assert _sum(ended.rows, "POST") == len(api.tasks) > 20


def test_each_priority_has_users_and_rows_of_its_own(api, locust):
    ended = locust("priorities", "-n 200 -w 8 --e2e-sample 40")
    assert ended.code == 0, ended.err
    names = {"critical", "high", "default", "low"}
    assert {name for kind, name in ended.rows if kind == "POST"} == {f"/v1/tasks {name}" for name in names}
    assert {name for kind, name in ended.rows if kind == "E2E"} == names
    assert {task["priority"] for task in api.tasks.values()} == names
    assert len(api.tasks) == 200


def test_idempotency_is_checked_by_race_replay_and_conflict(api, locust):
    ended = locust("idempotency", "-n 40 -w 4 --e2e-sample 0")
    assert ended.code == 0, ended.err
    assert len(api.tasks) == 40
    requests = {name: row["num_requests"] for (_, name), row in ended.rows.items()}
    assert requests == {"race": 80, "replay": 40, "conflict": 40}
    assert _sum(ended.rows, "POST", "num_failures") == 0


def test_an_api_that_forgets_keys_fails_the_idempotency_scenario(api, locust):
    api.forget_keys()
    ended = locust("idempotency", "-n 5 -w 1 --e2e-sample 0")
    assert ended.code == 1
    assert ended.rows["CHECK", "race"]["num_failures"] == 5


@pytest.mark.parametrize(
    ("options", "code", "error"),
    [
        ("-pct-flaky 90 -pct-fail 20", 2, "the percentages add up to 110"),
        ("-n 0", 2, "n is 0"),
        ("--priorities 1,2", 2, "--priorities is '1,2'; it must be four numbers"),
        ("--ledger /proc/nowhere", 2, "the ledger /proc/nowhere cannot be written"),
        ("--processes 2 -w 1 -n 10", 1, "2 processes need at least as many users (-w), not 1"),
    ],
)
def test_options_that_cannot_work_are_refused(locust, options, code, error):
    ended = locust("mix", options)
    assert ended.code == code
    assert error in ended.err
    assert "Traceback" not in ended.err


@pytest.mark.parametrize("processes", ["", pytest.param("--processes 2", marks=[pytest.mark.slow])])
def test_a_ledger_has_a_receipt_for_each_accepted_task(api, locust, tmp_path, processes):
    ledger = tmp_path / "ledger.jsonl"
    ledger.write_text("what an earlier run has left\n")
    ended = locust("steady", f"{processes} -n 60 --task-rate 100 -w 4 --e2e-sample 0 -ledger {ledger}")
    assert ended.code == 0, ended.err
    receipts = list(read_ledger(ledger))
    assert {receipt.id for receipt in receipts} == set(api.tasks)
    assert sorted(receipt.place for receipt in receipts) == list(range(60))
    for receipt in receipts:  # in a run at a rate each counts from its own time
        assert receipt.intended == pytest.approx(receipt.place / 100, abs=1e-5)
        assert receipt.intended <= receipt.sent <= receipt.answered


def test_a_replay_is_told_in_its_receipt(api, locust, tmp_path):
    """The first answers break off after the task was accepted, so the body is sent again."""
    api.break_connections(3)
    ended = locust("mix", f"-n 10 -w 1 --e2e-sample 0 --ledger {tmp_path / 'ledger.jsonl'}")
    assert "10 tasks accepted" in ended.out
    assert "Traceback" not in ended.err
    receipts = list(read_ledger(tmp_path / "ledger.jsonl"))
    assert len(api.tasks) == len({receipt.id for receipt in receipts}) == 10
    assert [receipt.replay for receipt in receipts] == [True] + [False] * 9


@pytest.mark.slow
def test_the_real_api_lets_one_of_two_racing_requests_win(site, locust, tmp_path):
    here = site()
    ledger = tmp_path / "ledger.jsonl"
    ended = locust("idempotency", f"-n 50 -w 8 --e2e-sample 20 --ledger {ledger}", here.system.host)
    assert ended.code == 0, ended.err
    requests = {name: row["num_requests"] for (kind, name), row in ended.rows.items() if kind == "POST"}
    assert requests == {"race": 100, "replay": 50, "conflict": 50}
    assert _sum(ended.rows, "POST", "num_failures") == 0
    assert here.value("SELECT count(*) FROM tasks") == 50
    assert _sum(ended.rows, "E2E") >= 17  # every third one is followed
    here.drained()
    here.prove([receipt.id for receipt in read_ledger(ledger)])


@pytest.mark.slow
def test_a_process_that_dies_with_its_slice_ends_the_run_with_an_error(api, tmp_path):
    port = _free_port()
    command = [sys.executable, "-m", "locust", "--headless", "--host", api.url, "--processes", "2", "-w", "2"]
    command += ["--master-bind-port", port, "--master-port", port, "-n", "9000", "--task-rate", "50"]
    command += ["-f", str(LOCUSTFILES / "mix.py")]
    master = subprocess.Popen(
        command, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    _eventually(lambda: api.posts > 10)
    psutil.Process(master.pid).children()[0].kill()
    _, error = master.communicate(timeout=30)
    assert master.returncode == 1
    assert "A worker died with its slice of the deck" in error


@pytest.mark.slow
def test_a_bare_start_serves_its_web_ui_on_loopback_and_runs_from_there(api, tmp_path):
    port = _free_port()  # in place of 8089, which another Locust on this machine may hold
    command = [sys.executable, "-m", "locust", "-f", str(LOCUSTFILES / "mix.py")]
    process = subprocess.Popen(
        command,
        cwd=tmp_path,
        env={**os.environ, "LOCUST_WEB_PORT": port},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        url = f"http://127.0.0.1:{port}"
        page = _eventually(lambda: _fetch(url))
        assert "http://127.0.0.1:8080" in page  # the host is preset
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.2", int(port)), timeout=5)
        form = {"user_count": 4, "spawn_rate": 100, "host": api.url, "total": 50, "e2e_sample": 5}
        form |= {"ledger": str(tmp_path / "chosen"), "totals": str(tmp_path / "by others")}
        _fetch(f"{url}/swarm", urllib.parse.urlencode(form).encode())
        _eventually(lambda: json.loads(_fetch(f"{url}/stats/requests"))["state"] == "stopped")
        assert len(api.tasks) == 50
        assert not list(tmp_path.iterdir())  # a page cannot name a file to write to
    finally:
        process.terminate()
        out, _ = process.communicate(timeout=15)
    assert process.returncode == 0, out
    assert "50 tasks accepted" in out


def _fetch(url: str, form: bytes | None = None) -> str:
    with urllib.request.urlopen(url, form, timeout=5) as response:
        return response.read().decode()


def _eventually(attempt: Callable[[], Any], within_s: float = 20.0) -> Any:
    """The first true value of `attempt`; a refused connection counts as not yet."""
    end = time.monotonic() + within_s
    while time.monotonic() < end:
        try:
            if value := attempt():
                return value
        except (urllib.error.URLError, ConnectionError):
            pass
        time.sleep(0.05)
    raise AssertionError(f"not within {within_s} s")
