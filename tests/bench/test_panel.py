"""The panel is driven as a person drives it, without a browser, and nothing is left of what it started."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from math import isnan, nan
from pathlib import Path

import psutil
import pytest
from fix_process import until
from matplotlib.figure import Figure

pytest.importorskip("ipywidgets", reason="the extra [notebooks] is not installed")

from bench import panel
from bench.panel import Panel
from bench.steered import Look, Steered, Wish
from bench.turn import SETTINGS
from scheduler.errors import SchedulerError

ROOT = Path(__file__).parents[2]


@pytest.fixture
def knobs(postgres_url, redis_url):
    settings = SETTINGS | {"POSTGRES_URL": postgres_url, "REDIS_ADDR": redis_url, "METRICS_SAMPLE_MS": "100"}
    made = Panel(settings)
    yield made
    made.close()


def gone(pids) -> bool:
    return not any(psutil.pid_exists(pid) for pid in pids)


@pytest.mark.slow
def test_a_fleet_is_started_turned_and_watched(knobs):
    knobs.workers.value, knobs.slots.value, knobs.rate.value = 1, 2, 40
    began = time.monotonic()
    knobs.start.click()
    assert time.monotonic() - began < 0.5  # a callback waits for nothing
    assert knobs.start.disabled
    until(lambda: any(look.per_s > 0 and not isnan(look.p95_wait_s) for look in knobs.looks), 30)
    assert (knobs.looks[-1].workers, knobs.looks[-1].slots) == (1, 2)

    # 40 sleepers of 200 ms a second are too many for two slots, and then not for eight
    knobs.flaky.value, knobs.sleep.value = 0, 100
    until(lambda: knobs.looks[-1].ready > 30, 30)
    waited = knobs.looks[-1].p95_wait_s
    knobs.slots.value = 8
    knobs.workers.value = 2
    until(lambda: (knobs.looks[-1].workers, knobs.looks[-1].slots) == (2, 8), 30)
    until(lambda: knobs.looks[-1].ready == 0 and knobs.looks[-1].in_flight > 0, 30)
    until(lambda: knobs.looks[-1].p95_wait_s < waited, 30)
    knobs.workers.value, knobs.rate.value = 1, 0
    until(lambda: knobs.looks[-1].workers == 1 and knobs.looks[-1].in_flight == 0, 30)
    assert knobs.steered.sent > 60
    assert "1 × 8" in knobs.words.value
    assert bytes(knobs.picture.value).startswith(b"\x89PNG")

    knobs.stop.click()
    until(lambda: not knobs.steered.running, 30)
    assert knobs.words.value.startswith("stopped")
    assert (knobs.start.disabled, knobs.stop.disabled) == (False, True)
    assert len(knobs.steered.pids) == 1 + 1 + 2  # the API, and all workers that ever were
    assert gone(knobs.steered.pids)


@pytest.mark.slow
def test_it_can_be_started_again_and_ends_when_its_widget_is_closed(knobs):
    for _ in range(2):
        knobs.start.click()
        until(lambda: knobs.looks, 30)
        knobs.stop.click()
        until(lambda: not knobs.steered.running, 30)
    knobs.start.click()
    until(lambda: knobs.looks, 30)
    knobs.widget.close()
    until(lambda: not knobs.steered.running, 30)
    assert gone(knobs.steered.pids)


def test_a_mix_of_more_than_100_percent_is_refused_in_words():
    knobs = Panel(SETTINGS)
    before = knobs.steered.wish
    knobs.fail.value, knobs.sleep.value = 60, 60
    assert "the percentages add up to 130" in knobs.words.value
    assert knobs.steered.wish.mix.fail == 60
    assert knobs.steered.wish.mix.sleep == before.mix.sleep
    knobs.fail.value = 0
    assert knobs.steered.wish.mix.sleep == 60


def test_what_goes_wrong_is_shown_and_raised():
    knobs = Panel(SETTINGS | {"POSTGRES_URL": "postgresql://127.0.0.1:1/none"})
    knobs.start.click()
    until(lambda: not knobs.steered.running, 30)
    assert knobs.words.value.startswith("failed: ")
    with pytest.raises(SchedulerError):
        knobs.close()


def test_it_ends_by_itself_after_a_while(postgres_url, redis_url):
    steered = Steered(
        SETTINGS | {"POSTGRES_URL": postgres_url, "REDIS_ADDR": redis_url}, Wish(1, 2), longest_s=0.5
    )
    steered.start()
    until(lambda: not steered.running, 30)
    assert steered.state == "stopped"
    assert gone(steered.pids)


LEFT_RUNNING = """
import os, sys, time
from bench.panel import Panel
from bench.turn import SETTINGS
knobs = Panel(SETTINGS | {"POSTGRES_URL": sys.argv[1], "REDIS_ADDR": sys.argv[2]})
knobs.start.click()
while not knobs.looks:
    time.sleep(0.05)
print("there", flush=True)
input()
"""


@pytest.mark.slow
@pytest.mark.parametrize("killed", [False, True])
def test_a_kernel_that_ends_leaves_nothing_running(postgres_url, redis_url, killed):
    kernel = subprocess.Popen(
        [sys.executable, "-c", LEFT_RUNNING, postgres_url, redis_url],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert kernel.stdout.readline() == "there\n"
        started = psutil.Process(kernel.pid).children(recursive=True)
        assert len(started) >= 3
        if killed:
            os.kill(kernel.pid, signal.SIGKILL)
        _, complained = kernel.communicate("\n", timeout=30)
        until(lambda: not any(child.is_running() for child in started), 20)
        if not killed:
            assert (kernel.returncode, complained) == (0, "")
    finally:
        kernel.kill()
        kernel.communicate()


def test_the_pictures_show_what_was_seen():
    looks = [Look(0.5, 10, 2, 4, 0.0, nan, 1, 4), Look(1.0, 30, 0, 4, 8.0, 0.25, 1, 4)]
    figure = Figure()
    for _ in range(2):  # drawing again replaces what was there
        assert panel.drawn(figure, looks) is figure
    depths, rates, waits = figure.axes
    lines = {line.get_label(): line.get_xydata().tolist() for ax in figure.axes for line in ax.lines}
    assert lines["ready"] == [[0.5, 10], [1.0, 30]]
    assert lines["in flight"] == [[0.5, 4], [1.0, 4]]
    assert lines["between two looks"] == [[0.5, 0], [1.0, 8]]
    assert lines["p95 between two looks"][1] == [1.0, 0.25]
    assert [ax.get_ylabel() for ax in (depths, rates, waits)] == [
        "open tasks",
        "tasks ended (1/s)",
        "wait from due to start (s)",
    ]
    words = panel.told("running", 90, looks)
    assert words == "running: 1 × 4; 90 sent; 30 ready, 4 in flight; 8 ended a second; p95 wait 250 ms"
    assert panel.told("stopped", 0, []) == "stopped"
