"""The meter counts what was done between two readings, and nothing that the reader did."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from bench.cli import main
from bench.cost import changes
from bench.meter import Tally
from bench.vitals import cpu_s

BURN = "import time\nwhile time.process_time() < 0.3: pass"
PARENT = f"import subprocess as s, sys\ns.run([sys.executable, '-c', {BURN!r}])\nprint(flush=True)\ninput()"


def test_a_tally_is_divided_by_the_tasks():
    before = Tally({"evalsha": 10}, 5, 4, 1000, {"worker": 1.0, "redis": 0.5})
    after = Tally({"evalsha": 40, "ping": 10}, 105, 24, 2000, {"worker": 1.1, "redis": 0.5})
    assert after.since(before).per(10) == pytest.approx(
        {
            "redis.evalsha": 3,
            "redis.ping": 1,
            "redis.commands": 4,
            "postgres.statements": 10,
            "postgres.commits": 2,
            "postgres.wal_bytes": 100,
            "cpu_us.worker": 10_000,
            "cpu_us.redis": 0,
            "cpu_us.all": 10_000,
        }
    )


def test_the_cpu_of_children_counts_also_after_their_end():
    command = [sys.executable, "-c", PARENT]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        parent.stdout.readline()
        used = cpu_s([parent.pid])
        parent.communicate(b"\n")
    assert 0.3 <= used < 2
    assert cpu_s([parent.pid]) == 0


@pytest.mark.parametrize(
    ("found", "told"),
    [
        ({"statements": 1.019, "cpu.all": 60}, []),
        ({"statements": 1.021, "cpu.all": 60}, ["statements: 1.021 a task, and it was 1.000"]),
        ({"statements": 0.979, "cpu.all": 60}, ["statements: 0.979 a task, and it was 1.000"]),
        ({"statements": 1.0, "ping": 1.0}, ["ping: 1.000 a task, and it was 0.000"]),
        ({"statements": 1.0, "ping": 0.0004}, []),
        ({"statements": 1.0, "ping": 0.001}, ["ping: 0.001 a task, and it was 0.000"]),
        ({"statements": 1.0, "cpu.all": 69.9}, []),
        ({"statements": 1.0, "cpu.all": 70.1}, ["cpu.all: 70.100 a task, and it was 50.000"]),
        ({"statements": 1.0, "cpu.all": 1.0}, []),
        ({}, ["statements: 0.000 a task, and it was 1.000"]),
    ],
)
def test_a_change_is_told_where_it_is_more_than_a_wobble(found, told):
    assert changes(found, {"statements": 1.0, "cpu.all": 50.0}) == told


@pytest.mark.parametrize(("calls", "told"), [(96, 0), (97, 0), (95, 0), (98, 1), (94, 1), (126, 1)])
def test_two_percent_of_the_calls_of_batches_are_a_change(calls, told):
    """Three thousand tasks in batches of a hundred, each asked for with three statements."""
    assert len(changes({"statements": calls / 3000}, {"statements": 96 / 3000})) == told


@pytest.mark.slow
def test_the_cost_of_a_drain_is_counted_and_recorded(tmp_path):
    out = tmp_path / "cost.json"
    assert main(["cost", "--tasks", "5000", "--out", str(out)]) == 0
    costs = json.loads(out.read_text(encoding="utf-8"))["result"]["per_task"]
    # Batches carry the tasks: a claim and a settle, a lease and an acknowledgement for many of them.
    assert 0 < costs["postgres.statements"] < 0.5
    assert 0 < costs["redis.evalsha"] < 0.5
    assert costs["postgres.wal_bytes"] > 100
    assert costs["cpu_us.all"] > costs["cpu_us.workers"] > 0
