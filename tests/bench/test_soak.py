"""The soak: what is flat and what grows, and that it finds a handler that leaks."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from bench.cli import main
from bench.leaks import MIB, judge
from bench.record import read
from bench.vitals import below, callers, vitals
from scheduler.errors import StartError

TESTS = Path(__file__).parents[1]
TIMES = [float(t) for t in range(0, 1800, 5)]

# --- the rule ---


def verdict(name: str, values: list[float]) -> bool:
    [trend] = judge(TIMES, [{name: value} for value in values])
    return trend.flat


@pytest.mark.parametrize(
    ("per_hour", "flat"),
    [
        pytest.param(0.0, True, id="none"),
        pytest.param(3.0, True, id="a percent in ten minutes"),
        pytest.param(-50.0, True, id="it shrinks"),
        pytest.param(20.0, False, id="six percent in ten minutes"),
    ],
)
def test_memory_may_rise_by_two_percent_in_ten_minutes(per_hour, flat):
    noise = [MIB * (i % 7) / 10 for i in range(len(TIMES))]
    values = [50 * MIB + per_hour * MIB * t / 3600 + n for t, n in zip(TIMES, noise, strict=True)]
    assert verdict("API memory", values) is flat


def test_much_memory_may_not_rise_by_more_than_5_mib():
    assert verdict("API memory", [2000 * MIB + 4 * MIB * t / 1080 for t in TIMES])
    assert not verdict("API memory", [2000 * MIB + 6 * MIB * t / 1080 for t in TIMES])


def test_a_descriptor_a_minute_is_a_leak():
    assert not verdict("worker 1 descriptors", [34 + t // 60 for t in TIMES])
    assert verdict("worker 1 descriptors", [34 + (t // 60) % 4 for t in TIMES])


def test_what_grows_in_the_first_part_alone_is_warm_up():
    assert verdict("API memory", [min(50 + t / 10, 100) * MIB for t in TIMES])


def test_a_series_that_comes_late_began_at_nothing():
    samples = [{"a threads": 3.0} | ({"b connections": 50.0} if t > 1500 else {}) for t in TIMES]
    assert {trend.name: trend.flat for trend in judge(TIMES, samples)} == {
        "a threads": True,
        "b connections": False,
    }


# --- what processes hold ---


def test_connections_that_others_have_opened_are_told_apart():
    """Descriptors of the API would grow with them, and they are the load's."""
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        before = callers(os.getpid())
        for n in range(1, 3):
            stack.enter_context(socket.create_connection(listener.getsockname()))
            stack.enter_context(listener.accept()[0])
            assert callers(os.getpid()) == before + n
    assert callers(os.getpid()) == before


def test_the_vitals_of_a_process_are_its_own():
    before = vitals(os.getpid())
    with Path(os.devnull).open() as _:
        assert vitals(os.getpid()).descriptors == before.descriptors + 1
    assert before.rss > MIB
    assert before.threads >= 1


def test_a_process_that_has_ended_is_named():
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    assert child.pid in below(os.getpid())
    child.communicate()
    with pytest.raises(StartError, match=f"process {child.pid} cannot be looked at"):
        vitals(child.pid)


# --- the command ---


@pytest.mark.parametrize("words", [["--minutes", "0.1"], ["--every", "0"], ["--rate", "0"]])
def test_a_soak_must_have_time_and_a_rate(words, capsys):
    assert main(["soak", *words]) == 2
    assert "a soak needs a rate above 0 and time for four samples" in capsys.readouterr().err


SHORT = ["soak", "--minutes", "0.4", "--every", "0.5", "--rate", "100"]


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_a_short_soak_is_flat(tmp_path, capsys):
    out = tmp_path / "soak.json"
    assert main([*SHORT, "--out", str(out)]) == 0, capsys.readouterr().out
    result = read(out)["result"]
    assert result["holds"]
    assert result["audit"]["accepted"] == sum(result["sent"].values()) >= 2_000
    assert {trend["name"] for trend in result["trends"]} >= {
        "API memory",
        "worker 1 descriptors",
        "worker 2 threads",
        "Postgres connections of scheduler-worker",
        "Redis clients of scheduler-api",
    }


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_a_handler_that_leaks_is_found(monkeypatch, tmp_path):
    monkeypatch.chdir(TESTS)
    out = tmp_path / "soak.json"
    assert main([*SHORT, "--app", "leaky", "--out", str(out)]) == 1
    grown = {trend["name"] for trend in read(out)["result"]["trends"] if not trend["flat"]}
    assert grown == {f"worker {i} {what}" for i in (1, 2) for what in ("memory", "descriptors")}
