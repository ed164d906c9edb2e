"""What is captured is the window, as it went, and nothing that a client has said."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest
from fix_store import Database

from bench import capture, cli, repeats, tape, trace
from bench.capture import tasks
from bench.trace import Traced
from bench.workload import Mix, deck, expected

BEGIN = datetime(2026, 11, 24, 9, tzinfo=UTC)
END = BEGIN + timedelta(minutes=10)
SECRETS = ("hunter2", "order-4711", "card 1234 was refused", "host:1:abc", "token:9", "acme", "00-cafe-01")


@pytest.fixture
def db(postgres_url: str) -> Iterator[Database]:
    database = Database(postgres_url)
    yield database
    database.close()


def at(seconds: float) -> datetime:
    return BEGIN + timedelta(seconds=seconds)


def id_at(instant: datetime) -> str:
    """A UUIDv7 as an API makes one at that time."""
    ms = f"{round(instant.timestamp() * 1000):012x}"
    return str(uuid.UUID(f"{ms}7{uuid.uuid4().hex[13:16]}8{uuid.uuid4().hex[17:]}"))


def put(db: Database, status: str, seconds: float, *runs: tuple[Any, ...], **columns: Any) -> str:
    """A task that was committed so long after BEGIN; its runs (outcome, begin, end) count from then on."""
    came = at(seconds)
    instants = {"created_at": came, "due_at": came, "attempts": len(runs), "claimed_at": came}
    id_ = db.put(status, **{"id": id_at(came)} | instants | columns)
    for attempt, (outcome, begin, end) in enumerate(runs, 1):
        started = (
            None if outcome in {"lost", "cancelled"} or begin is None else came + timedelta(seconds=begin)
        )
        db.rows(
            "INSERT INTO task_runs (task_id, attempt, outcome, worker, lease_token, claimed_at, started_at,"
            " finished_at, error) VALUES (%s, %s, %s, 'host:1:abc', 'token:9', %s, %s, %s, %s)",
            *(id_, attempt, outcome, came + timedelta(seconds=begin or 0), started),
            *(came + timedelta(seconds=end), "card 1234 was refused"),
        )
    return id_


def captured(db: Database, **options: Any) -> list[Traced]:
    with psycopg.connect(db.url, autocommit=True) as connection:
        return list(tasks(connection, BEGIN, END, **options))


def test_a_task_is_captured_as_it_went(db):
    put(
        db,
        *("succeeded", 1.5, ("failed", 0.1, 0.1075), ("released", 0.5, 0.5), ("succeeded", 1, 1.25)),
        type="mail",
        priority="high",
        queue="bulk",
        max_retries=7,
        timeout_ms=900,
        failures=1,
    )
    assert captured(db) == [
        Traced(1500, "mail", "high", "bulk", 7, 900, 0, "succeeded", (("failed", 7.5), ("succeeded", 250)))
    ]


def test_a_lost_or_cancelled_run_has_its_slot_from_its_claim_on(db):
    put(db, "dead", 1, ("lost", 0.5, 2.75), losses=1, failures=0, dead_reason="lost")
    put(db, "cancelled", 2, ("cancelled", 1, 1.5))
    put(db, "dead", 3, ("failed", None, 1))
    assert [task.runs for task in captured(db)] == [
        (("lost", 2250),),
        (("cancelled", 500),),
        (("failed", None),),
    ]


def test_a_task_that_has_not_run_is_captured_too(db):
    put(db, "queued", 1)
    assert [(task.status, task.runs) for task in captured(db)] == [("queued", ())]


@pytest.mark.parametrize(
    ("status", "columns", "delay_ms"),
    [
        ("queued", {}, 2500),
        ("succeeded", {}, 2500),
        ("dead", {"failures": 1}, 2500),
        ("dead", {"failures": 2, "attempts": 2}, 0),  # it was due again meanwhile, and the first time is gone
        ("succeeded", {"failures": 1, "attempts": 2}, 0),
        ("succeeded", {"losses": 1, "attempts": 2}, 0),
        ("succeeded", {"redrives": 1}, 0),
    ],
)
def test_a_delay_is_captured_where_it_is_still_known(db, status, columns, delay_ms):
    put(db, status, 1, due_at=at(3.5), **{"attempts": 1} | columns)
    assert [task.delay_ms for task in captured(db)] == [delay_ms]


def test_a_commit_at_the_begin_is_inside_and_one_at_the_end_outside(db):
    for seconds in (-0.001, 0, 599.999, 600):
        put(db, "queued", seconds)
    assert [task.at_ms for task in captured(db)] == [0, 599_999]


def test_the_commit_decides_whatever_the_clock_of_the_api_said(db):
    put(db, "queued", 10, id=id_at(at(-1800)))
    put(db, "queued", 20, id=id_at(at(2400)))
    put(db, "queued", -20, id=id_at(at(30)))
    assert sorted(task.at_ms for task in captured(db)) == [10_000, 20_000]


def test_pages_lose_nothing_and_double_nothing(db, monkeypatch):
    monkeypatch.setattr(capture, "PAGE", 7)
    for i in range(50):
        put(db, "succeeded", i // 5, ("succeeded", 0, i / 1000))
    found = captured(db)
    assert sorted(task.runs[0][1] for task in found) == list(range(50))
    assert [task.at_ms for task in found] == sorted(task.at_ms for task in found)


def test_other_names_hide_queues_and_types_but_not_our_own(db):
    put(db, "queued", 1, type="acme.invoice", queue="acme")
    put(db, "queued", 2, type="noop", queue="acme")
    first, second = captured(db, hide=True)
    assert first.queue == second.queue == trace.anonymous("queue", "acme")
    assert (first.type, second.type) == (trace.anonymous("type", "acme.invoice"), "noop")


# The command


@pytest.fixture
def command(db, tmp_path, monkeypatch):
    """Run `bench capture`; its exit code, and where the trace is."""
    monkeypatch.setenv("POSTGRES_URL", db.url)
    out = tmp_path / "trace.jsonl"

    def run(*words: str) -> tuple[int, Path]:
        return cli.main(["capture", *(words or WINDOW), "--out", str(out)]), out

    return run


WINDOW = ("--from", "2026-11-24T10:00:00+01:00", "--to", "2026-11-24T09:10:00Z")


def test_nothing_that_a_client_has_said_is_in_the_file(db, command, capsys):
    secret = {"password": "hunter2", "nested": {"order-4711": ["card 1234 was refused"]}}
    put(
        db,
        *("dead", 1, ("failed", 0, 1), ("failed", 2, 3)),
        payload=json.dumps(secret),
        idempotency_key="order-4711",
        last_error="card 1234 was refused",
        trace_context="00-cafe-01",
        tenant="acme",
        backoff=json.dumps({"note": "hunter2"}),
        failures=2,
    )
    id_ = put(db, "running", 2, worker="host:1:abc", lease_token="token:9", attempts=1)
    code, path = command()
    assert code == 0
    text = path.read_text() + capsys.readouterr().out
    assert len(text.splitlines()) > 3
    assert not [each for each in (*SECRETS, id_) if each in text]


def test_the_header_and_the_summary_say_what_is_in_it(db, command, capsys):
    put(db, "succeeded", 1, ("failed", 0, 0.01), ("succeeded", 1, 1.04), type="mail", queue="bulk")
    put(db, "succeeded", 2, ("succeeded", 0, 0))
    put(db, "retrying", 3, ("timed_out", 0, 0.9), type="mail")
    code, path = command()
    assert code == 0
    header = trace.header(path)
    assert (header.tasks, header.runs) == (3, 4)
    assert (header.begin, header.end) == ("2026-11-24T10:00:00+01:00", "2026-11-24T09:10:00+00:00")
    assert [task.at_ms for task in trace.read(path)] == [1000, 2000, 3000]
    lines = capsys.readouterr().out.splitlines()
    assert lines[:5] == [
        f"{path}: 3 tasks and 4 runs from 2026-11-24T10:00:00+01:00 to 2026-11-24T09:10:00+00:00",
        "types: mail 2, noop 1",
        "queues: default 2, bulk 1",
        "runs: succeeded 2, failed 1, timed_out 1",
        "replayed as: flaky 2, noop 1",
    ]
    # One has not ended, one run timed out, and three took a while in tasks of several attempts.
    assert [line.rpartition(": ")[2] for line in lines[5:]] == ["1", "1", "3"]
    assert all(line.startswith("not kept in a replay: ") for line in lines[5:])


def test_the_last_seconds_are_by_the_clock_of_postgres(db, command):
    now = db.value("SELECT now()")
    for ago in (5, 100):
        came = now - timedelta(seconds=ago)
        db.put("queued", created_at=came, id=id_at(came))
    code, path = command("--last", "60")
    assert code == 0
    [task] = trace.read(path)
    assert 54_000 < task.at_ms < 56_000
    begin, end = (datetime.fromisoformat(each) for each in (trace.header(path).begin, trace.header(path).end))
    assert end - begin == timedelta(seconds=60)


def test_a_window_without_a_task_is_an_answer(command, capsys):
    code, path = command()
    assert code == 1
    assert list(trace.read(path)) == []
    assert "0 tasks and 0 runs" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (["--to", "2026-11-24T09:10:00Z"], "name the window: --from T --to T, or --last SECONDS"),
        (["--last", "9", *WINDOW], "name the window"),
        ([*WINDOW[:2], "--to", "2026-11-24T09:00:00Z"], "--from is not before --to"),
        (["--last", "1e300"], "the last 1e+300 s begin before time does"),
        (["--last", "1e12"], "the last 1e+12 s begin before time does"),
        (["--from", "2026-11-24T09:00:00", "--to", "now"], "is no instant with its zone"),
        (["--last", "-1"], "'-1' is not a number of seconds above 0"),
    ],
)
def test_what_is_no_window_is_said_in_one_line(command, capsys, words, error):
    try:
        code, _ = command(*words)
    except SystemExit as refused:  # the parser's own way
        code = refused.code
    assert code == 2
    err = capsys.readouterr().err
    assert error in err
    assert "Traceback" not in err


def test_a_postgres_that_is_away_is_said_in_one_line(command, capsys, monkeypatch):
    monkeypatch.setenv("POSTGRES_URL", "postgres://app:hunter2@127.0.0.1:1/app")
    code, path = command()
    assert (code, path.exists()) == (2, False)
    err = capsys.readouterr().err
    assert err.startswith("bench: Postgres cannot be asked (")
    assert err.count("\n") == 1
    assert "hunter2" not in err


# From one system to another


REPLAY = """
[load]
kind = "replay"
trace = "trace.jsonl"
speed = 10
[fleet]
processes = 2
slots = 4
[fleet.settings]
VIS_TIMEOUT_MS = 2000
MAX_LOSSES = 1
REAPER_SCAN_INTERVAL_MS = 200
RETRY_BASE_MS = 50
RETRY_MAX_MS = 100
RETRY_JITTER_MS = 20
RETRY_SCAN_INTERVAL_MS = 50
"""
SOURCE = {
    "WORKER_POOL": 4,
    "VIS_TIMEOUT_MS": 1500,
    "MAX_LOSSES": 1,
    "REAPER_SCAN_INTERVAL_MS": 200,
    "RETRY_BASE_MS": 50,
    "RETRY_MAX_MS": 100,
    "RETRY_JITTER_MS": 20,
    "RETRY_SCAN_INTERVAL_MS": 50,
}


@pytest.mark.slow
def test_what_a_system_did_is_simulated_and_done_again_to_the_unit(site, tmp_path, monkeypatch, capsys):
    mix = Mix(flaky=20, fail=10, sleep=5, sleep_ms=3000)
    here = site(workers=1, **SOURCE)
    # Four sleepers of 3 s outlive their lease twice each, and end as dead letters.
    dealt = deck(mix, 80)
    slow = {"type": "sleeper", "payload": {"sleep_ms": 40}, "max_retries": 3}
    here.send([*dealt, *[slow] * 20])
    here.drained()
    known = expected(dealt, max_losses=1, lease_ms=1500)
    monkeypatch.setenv("POSTGRES_URL", here.system.postgres_url)
    path = tmp_path / "trace.jsonl"
    assert cli.main(["capture", "--last", "600", "--out", str(path)]) == 0
    assert trace.header(path).tasks == 100
    assert trace.header(path).runs == known.runs + 20
    (tmp_path / "again.toml").write_text(REPLAY)
    again, out = str(tmp_path / "again.toml"), [tmp_path / "simulated.json", tmp_path / "live.json"]
    assert cli.main(["simulate", again, "--out", str(out[0])]) == 0
    assert cli.main(["run", again, "--out", str(out[1])]) == 0
    capsys.readouterr()
    for record in map(repeats.read, out):
        [run] = record.runs
        assert run["exact"] is True
        counts = run["counts"]
        assert counts["dead_lost"] == known.dead_lost == 4
        assert counts["dead_failed"] == known.dead_failed == 8
        assert (counts["tasks"], counts["succeeded"]) == (100, known.succeeded + 20)
        assert (counts["runs"], counts["failed"]) == (known.runs + 20, known.failed)
        assert (counts["retries"], counts["lost"]) == (known.retries, known.lost)
    [live] = repeats.read(out[1]).runs
    assert live["verdict"]["passed"]
    assert (live["load"]["asked"], live["load"]["accepted"], live["load"]["skipped"]) == (100, 100, 0)
    assert tape.notes(repeats.read(out[1]).planned.load, 2000)
