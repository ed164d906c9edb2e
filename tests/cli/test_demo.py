"""`scheduler demo`, which `make demo` runs: a table, an audit that decides the end, and nothing left."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest
from fix_process import alive, environment, until
from fix_servers import missing

from bench import demo
from bench.audit import Verdict, audit
from bench.vitals import below
from scheduler.cli import parser
from scheduler.model import new_id
from scheduler.supervisor import HOST

COLUMNS = [
    "Burst",
    "Workers × Slots",
    "In-flight",
    "Drain Time",
    "Throughput",
    "p95 Run",
    "p95 Wait",
    "Fail %",
    "Retries",
    "Reaped",
]
"""Those of the original README."""

ROOT = Path(__file__).parents[2]
USUAL_PORTS = (5432, 6379, 8080, 2112, 2113, 2114)


@pytest.fixture
def taken() -> Iterator[None]:
    """Somebody else has every port that the demo would like to have."""
    with ExitStack() as stack:
        for port in USUAL_PORTS:
            with suppress(OSError):  # it is taken already
                stack.enter_context(socket.create_server((HOST, port)))
        yield


def table(lines: Sequence[str]) -> list[list[str]]:
    """The cells of the Markdown table, without the line under its head."""
    rows = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines if line.startswith("|")]
    assert all(set(cell) == {"-"} for cell in rows.pop(1))
    return rows


def check(out: Sequence[str], tasks: int, workers: int) -> None:
    """What a demo of so many tasks has to print; what is no matter of time, to the unit."""
    head, noops, mix = table(out)
    assert head == COLUMNS
    fleet = f"{workers} × 12"
    assert (noops[:2], noops[7:]) == ([str(tasks), fleet], ["0.0%", "0", "0"])
    # 5 % always_fail with 3 retries and 5 % sleepers that are lost twice die; 10 % flaky fail twice.
    failing, flaky = tasks // 20, tasks // 10
    assert (mix[:2], mix[7:]) == (
        [str(tasks), fleet],
        ["10.0%", str(3 * failing + 2 * flaky), str(2 * failing)],
    )
    for row in (noops, mix):
        assert all(re.fullmatch(r"~?[\d,.]+( (µs|ms|s)|/s)?", cell) for cell in row[2:7]), row
    for name in COLUMNS:
        assert any(re.match(rf"  {re.escape(name)}  +\w", line) for line in out), name
    assert "The first row is noops; the second 80 % noop, 10 % flaky, 5 % always_fail, 5 % sleepers" in out
    dead = tasks // 10
    assert re.fullmatch(
        rf"noops: audit passed: {tasks} accepted, {tasks} succeeded; \d+ checks\n"
        rf"demo mix: audit passed: {tasks} accepted, {dead} dead, {tasks - dead} succeeded; \d+ checks\n"
        r"\nEverything is stopped; \d+ s in all\.",
        "\n".join(out[-4:]),
    )


def test_the_demo_finds_other_ports_shows_its_table_passes_its_audit_and_leaves_nothing(start, taken):
    demo = start("demo", "--tasks", "400", "--workers", "2")
    ports = {int(demo.says(rf"port {port} is taken; .+ listens on (\d+)")[1]) for port in USUAL_PORTS}
    assert len(ports | set(USUAL_PORTS)) == 2 * len(USUAL_PORTS)
    where = demo.says(
        r"API at \S+:(\d+), its metrics at \S+:(\d+)/metrics, the workers' on ports (\d+), (\d+)"
    )
    assert set(map(int, where.groups())) < ports
    started = below(demo.pid)
    assert len(started) > 5  # two servers with their watchers, the API, two workers
    assert demo.ends() == 0
    check(demo.out, 400, 2)
    assert demo.err == []
    until(lambda: not any(map(alive, started)), within_s=5)


@pytest.mark.slow
def test_a_demo_whose_audit_fails_fails(monkeypatch, capsys):
    """The audit is told of one more id than the API ever gave out."""
    never_sent = new_id()

    def suspicious(postgres_url: str, redis_url: str, ids: Sequence[str], **how: object) -> Verdict:
        return audit(postgres_url, redis_url, [*ids, never_sent], **how)

    monkeypatch.setattr(demo, "audit", suspicious)
    args = parser(with_load=False).parse_args(["demo", "--tasks", "20", "--workers", "1"])
    assert demo.main(args) == 1
    out = capsys.readouterr().out.splitlines()
    assert len([line for line in out if "AUDIT FAILED: 21 accepted" in line]) == 2
    assert any(never_sent in line for line in out)


NOBODY = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups")


def python_of_others() -> str:
    """A Python that other users can run and that can make virtual environments."""
    able = "import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))"
    for path in ("/usr/bin/python3.13", "/usr/bin/python3.12", "/usr/bin/python3.11", "/usr/bin/python3"):
        if (
            Path(path).exists()
            and subprocess.run([*NOBODY, path, "-c", able], capture_output=True, check=False).returncode == 0
        ):
            return path
    return missing("a Python that ordinary users can run, with venv,")


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_an_ordinary_user_makes_the_demo_from_a_fresh_clone(server_dir):
    """The two steps of `make demo`, the second one smaller."""
    for program in ("setpriv", "git", "make"):
        if not shutil.which(program):
            missing(program)
    python, home = python_of_others(), server_dir / "home"
    cloned = subprocess.run(["git", "clone", "-q", "--no-hardlinks", ROOT, home], check=False)
    if cloned.returncode:
        pytest.skip("this is no checkout of git")
    for path in (home, *home.rglob("*")):
        os.chown(path, 65534, 65534, follow_symlinks=False)

    def run(*words: str) -> list[str]:
        command = [*NOBODY, *words]
        env = environment(HOME=str(home))
        done = subprocess.run(command, cwd=home, env=env, capture_output=True, text=True, check=False)
        assert done.returncode == 0, (done.stdout, done.stderr)
        return done.stdout.splitlines()

    run("make", f"PYTHON={python}", ".venv/.ready")
    check(run(".venv/bin/scheduler", "demo", "--tasks", "400", "--workers", "2"), 400, 2)


def test_a_demo_that_is_told_to_end_leaves_nothing(start, here):
    """A job that is cancelled gets SIGTERM, and not the Ctrl-C of a person."""
    running = start("demo", "--tasks", "5000", "--workers", "1", **here)
    until(lambda: len(below(running.pid)) >= 2)  # the API and the worker
    started = below(running.pid)
    running.signal(signal.SIGTERM)
    assert running.ends() == 130
    until(lambda: not any(map(alive, started)), within_s=10)
    assert "Traceback" not in "\n".join(running.err)
