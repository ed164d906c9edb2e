"""What is said of a ladder of rates, and that a standstill ends."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest

from bench import offered


def _steps(*rows: tuple[float, float, float]) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=["rate", "accepted_per_s", "p95_s"]).assign(disturbed=False)


@pytest.mark.parametrize(
    ("rows", "best"),
    [
        ([(100, 100, 0.01), (200, 200, 0.04), (400, 400, 0.06)], 200),
        ([(100, 100, 0.01), (200, 180, 0.04)], 100),  # it did not keep up
        ([(100, 100, 0.01), (100, 100, 0.06), (200, 200, 0.01)], 0),  # one of two repeats was late
        ([(100, 100, 0.01), (200, 200, 0.06), (400, 400, 0.01)], 100),  # luck at a higher rate does not count
    ],
)
def test_a_rate_is_sustained_if_every_step_up_to_it_was(rows, best):
    assert offered.sustainable(_steps(*rows), 0.05) == best


def test_what_was_disturbed_neither_ends_the_ladder_nor_makes_it_longer():
    rows = [(100, 100, 0.01), (100, 100, 0.06), (200, 200, 0.01), (400, 400, 0.01)]
    steps = _steps(*rows).assign(disturbed=[False, True, False, True])
    assert offered.sustainable(steps, 0.05) == 200


def _becomes(holds: Callable[[], bool], within_s: float = 10.0) -> bool:
    until = time.monotonic() + within_s
    while not holds() and time.monotonic() < until:
        time.sleep(0.01)
    return holds()


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="a process's state is read in /proc")
def test_the_api_stands_still_and_goes_on_when_the_block_ends():
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]) as process:
        child = SimpleNamespace(pid=process.pid, args=["api"])
        worker = SimpleNamespace(pid=1, args=["worker"])
        me = SimpleNamespace(stack=SimpleNamespace(children=[child, worker]))

        def state() -> str:
            return Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[0]

        try:
            with offered.standstill(me, at_s=0.0, for_s=60.0):
                assert _becomes(lambda: state() == "T")
            assert _becomes(lambda: state() != "T")
        finally:
            process.send_signal(signal.SIGKILL)
