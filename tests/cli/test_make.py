"""The Makefile: its targets are there and listed, and what is set before `make` reaches the processes."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from fix_process import environment
from fix_servers import missing

from scheduler.cli import parser
from scheduler.config import Settings, load

ROOT = Path(__file__).parents[2]
MAKEFILE = (ROOT / "Makefile").read_text()
TARGETS = re.search(r"^\.PHONY: (.*)$", MAKEFILE, re.MULTILINE)[1].split()
SEED = {"dev", "migrate", "api", "worker"}
"""The targets of the original README."""


def make(*args: str, **variables: str) -> str:
    """What `make` printed."""
    program = shutil.which("make") or missing("make")
    command = [program, "--no-print-directory", *args]
    done = subprocess.run(
        command, cwd=ROOT, env=environment(**variables), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_target_is_listed_with_what_it_does():
    listed = dict(re.fullmatch(r"  make (\w+) +(\S.*)", line).groups() for line in make("help").splitlines())
    assert listed.keys() == set(TARGETS)
    assert listed.keys() >= SEED | {"demo", "up", "test", "prove", "lint", "load", "clean"}
    assert make() == make("help")
    assert parser(with_load=False).parse_args(["up"]).workers == 3
    assert "three workers" in listed["up"]


@pytest.mark.parametrize("target", TARGETS)
def test_every_target_can_be_planned(target):
    assert make("-n", target).strip()


@pytest.fixture
def programs(tmp_path) -> Path:
    """A directory with a `scheduler` that only tells its words and its environment."""
    script = tmp_path / "scheduler"
    script.write_text('#!/bin/sh\necho "words=$*"\nexec env\n')
    script.chmod(0o755)
    return tmp_path


def told(target: str, programs: Path, *args: str, **variables: str) -> tuple[str, Settings]:
    """What the process of a target is told: its words, and its settings."""
    out = make("-o", ".venv/.ready", target, f"BIN={programs}", *args, **variables)
    env = dict(line.partition("=")[::2] for line in out.splitlines())
    return env["words"], load(env)[0]


def test_what_is_set_before_make_reaches_the_worker(programs):
    words, settings = told("worker", programs, WORKER_POOL="24", RETRY_BATCH_SIZE="250")
    assert (words, settings.worker_pool, settings.retry_batch_size) == ("worker", 24, 250)
    assert settings.metrics_addr == ("0.0.0.0", 2113)
    _, settings = told("worker", programs, METRICS_ADDR=":9000")
    assert settings.metrics_addr == ("0.0.0.0", 9000)


def test_each_target_runs_its_command(programs):
    for target in ("api", "up", "demo", "migrate"):
        words, settings = told(target, programs, VIS_TIMEOUT_MS="1234")
        assert (words, settings.vis_timeout_ms, settings.metrics_addr[1]) == (target, 1234, 2112)
    words, _ = told("load", programs, "ARGS=-n 5 -w 2")
    assert words == "load -n 5 -w 2"
