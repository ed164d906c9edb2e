"""What a step costs is told by whoever did it: a sample belongs to its caller, a statement to its file."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench import cost, record
from bench.cli import main
from bench.steps import Spent, counted, statement_of, step_of
from scheduler import store

ROOT = "_run_module (runpy.py:88);main (/x/scheduler/cli.py:3);_worker (/x/scheduler/commands.py:120)"
FEED = f"{ROOT};_feed (/x/scheduler/worker.py:197);take (/x/scheduler/lease.py:83)"
CLAIM = f"{FEED};_claim (/x/scheduler/lease.py:94);claim (/x/scheduler/store.py:220)"


@pytest.mark.parametrize(
    ("stack", "step"),
    [
        (FEED, "lease and claim"),
        (
            f"{FEED};lease (/x/scheduler/shard.py:62);call (/x/scheduler/queue.py:9)",
            "lease and claim: Redis client",
        ),
        (CLAIM, "lease and claim: Postgres client"),
        (f"{CLAIM};execute (/site-packages/psycopg/_cursor_base.py:7)", "lease and claim: Postgres client"),
        (f"{ROOT};_slot (/x/scheduler/slots.py:1);run (/x/scheduler/run.py:2);noop (/y/z.py:1)", "run"),
        (f"{ROOT};_run (/x/scheduler/loop.py:60);step (/x/scheduler/pump.py:3)", "loops"),
        (f"{ROOT};_post (/x/scheduler/api/submissions.py:30);submit (/x/scheduler/enqueue.py:3)", "enqueue"),
        (f"{ROOT};run (/usr/lib/python3.11/asyncio/runners.py:118)", "event loop and sockets"),
    ],
)
def test_a_sample_belongs_to_the_step_that_called(stack, step):
    assert step_of(stack) == step


def test_samples_are_counted_by_step():
    assert counted(f"{FEED} 3\n{CLAIM} 2\n{FEED} 1\n") == {
        "lease and claim": 4,
        "lease and claim: Postgres client": 2,
    }


def test_a_statement_is_known_by_its_text():
    path = Path(store.__file__).with_name("sql")
    names = {file.stem: statement_of(store.statement(file.stem)) for file in path.glob("*.sql")}
    assert {name for name, step in names.items() if step != "everything else"} == {
        "enqueue",
        "claim",
        "settle",
    }
    assert all(step in {name, "everything else"} for name, step in names.items())


def test_what_a_server_did_is_what_was_added():
    before, after = (
        Spent({"claim": 2.0}, {"claim": 50.0}),
        Spent({"claim": 5.0, "settle": 1.0}, {"claim": 80.0}),
    )
    assert after.since(before) == Spent({"claim": 3.0, "settle": 1.0}, {"claim": 30.0})


@pytest.mark.slow
def test_every_step_is_measured_and_told(tmp_path, capsys):
    out = tmp_path / "cost.json"
    assert main(["cost", "--tasks", "20000", "--steps", "--out", str(out)]) == 0
    made = record.read(out)
    assert cost.tables(made) in capsys.readouterr().out
    found = {(step["when"], step["part"], step["step"]): step for step in made["result"]["steps"]}
    off = "are worked off"
    assert found["come in", "Postgres", "enqueue"]["us"] > 0
    assert found[off, "Postgres", "claim"]["calls"] < 0.1
    assert found[off, "Postgres", "settle"]["us"] > 0
    assert found[off, "Redis", "scripts"]["us"] > 0
    parts = [s["us"] for s in made["result"]["steps"] if s["when"] == off and s["part"] == "workers"]
    assert parts[0] == pytest.approx(sum(parts[1:]), rel=0.1)
    assert found[off, "workers", "settle: Postgres client"]["us"] > 0
