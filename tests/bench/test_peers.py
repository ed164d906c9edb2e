"""Peers are measured at their best, judged as promised, and run in environments of their own."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from fix_process import alive, until

from bench.cli import main
from bench.known_peers import Dramatiq, PgQueuer
from bench.peer import APPS
from bench.peers import best_of, judged, overview
from bench.rows import AIM_MISSED, MUST_MISSED, OK
from bench.stats import middle_rate

ROOT = Path(__file__).parents[2]
COMMAND = """
import signal, sys, types
from bench import peer

peer.PLACE.mkdir(parents=True, exist_ok=True)
worker = [sys.executable, "-c", "import time; print('up', flush=True); time.sleep(60)"]
stub = types.SimpleNamespace(
    name="stub", ready="up", commands=lambda setup: [worker], env=lambda setup: {"PATH": "/usr/bin:/bin"}
)
with peer.running(stub, peer.Setup("stub", "a stub", 1)) as fleet:
    peer.send(fleet, signal.SIGSTOP)
    print(fleet[0].pid, flush=True)
    signal.pause()
"""
"""A command that has frozen the workers of a peer and then does nothing more."""

PEER_OF = {"fast": "pgqueuer", "slow": "pgqueuer", "threads": "dramatiq"}


def rounds(ours: float, fast: float, threads: float) -> list[dict[str, float]]:
    """Two rounds, in which the slow setup was faster once."""
    return [
        {
            "ours.rate": ours * pace,
            "ours.cpu_us": 50.0,
            "fast.rate": fast * pace,
            "slow.rate": slow,
            "threads.rate": threads * pace,
            "pgbench.rate": 10_000.0 * pace,
        }
        for pace, slow in ((1.0, 1.01 * fast), (2.0, 1.0))
    ]


def test_the_setup_with_the_best_median_stands_for_a_peer():
    assert best_of(rounds(30_000, 9_000, 6_000), ["slow", "fast"]) == "fast"


@pytest.mark.parametrize(
    ("ours", "verdicts"),
    [(30_000, [OK, OK, OK, OK]), (20_000, [AIM_MISSED, OK, AIM_MISSED, OK]), (9_000, [MUST_MISSED, OK] * 2)],
)
def test_we_are_judged_by_the_pairs_of_each_round(ours, verdicts):
    rows = judged(rounds(ours, 9_000, 6_000), PEER_OF)
    assert [row.verdict for row in rows] == verdicts
    assert rows[0].figure == pytest.approx(ours / 9_000)


def test_a_setup_that_does_a_peer_no_justice_is_seen():
    rows = {row.limit.name: row for row in judged(rounds(30_000, 6_000, 6_000), PEER_OF)}
    assert rows["pgqueuer-itself"].verdict == AIM_MISSED
    assert rows["dramatiq-itself"].verdict == OK


def test_every_arm_is_told_with_what_it_keeps():
    told = {"ours": ("Scheduler", "all"), "pgbench": ("pgbench", "rows"), "fast": ("PgQueuer", "a log")}
    lines = overview(rounds(30_000, 9_000, 6_000), told).splitlines()
    assert lines[2] == "| Scheduler | 45,000 (30,000..60,000) | 3.00× | 50 µs | all |"
    assert lines[4] == "| PgQueuer | 13,500 (9,000..18,000) | 0.90× |  | a log |"


def test_the_middle_rate_leaves_out_how_a_run_begins_and_ends():
    steady = [10 + i / 100 for i in range(100)]
    assert middle_rate(steady) == pytest.approx(100)
    assert middle_rate([0, *steady[1:-1], 99]) == pytest.approx(100)
    with pytest.raises(ValueError, match="no rate"):
        middle_rate([1.0] * 50)
    with pytest.raises(ValueError, match="no rate"):
        middle_rate([])


def test_the_extra_names_what_the_command_installs():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    installed = {*PgQueuer.requirements, *Dramatiq.requirements}
    assert set(project["optional-dependencies"]["peers"]) | {"uvloop>=0.21"} == installed
    assert "uvloop>=0.21" in project["dependencies"]


@pytest.mark.parametrize("path", sorted(APPS.glob("*.py")), ids=lambda path: path.name)
def test_a_program_of_a_peer_needs_nothing_of_ours(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    imported = {a.name for node in ast.walk(tree) if isinstance(node, ast.Import) for a in node.names}
    imported |= {str(node.module) for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert not [name for name in imported if re.match(r"(bench|scheduler)\b", name)]


def test_frozen_workers_of_a_peer_end_with_a_killed_command():
    with subprocess.Popen([sys.executable, "-c", COMMAND], stdout=subprocess.PIPE, text=True) as command:
        assert command.stdout is not None
        worker = int(command.stdout.readline())
        command.kill()
    until(lambda: not alive(worker))


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_peers_are_measured_and_recorded(tmp_path):
    """The first time it installs them, which takes a network."""
    out = tmp_path / "peers.json"
    assert main(["peers", "--quick", "--out", str(out)]) == 0
    result = json.loads(out.read_text(encoding="utf-8"))["result"]
    assert set(result["versions"]) == {"pgqueuer", "dramatiq"}
    [measures] = result["rounds"]
    assert len([name for name, value in measures.items() if name.endswith(".rate") and value > 0]) == 4
    assert all(arm["durability"] for arm in result["arms"].values())
