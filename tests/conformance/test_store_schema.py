"""The schema refuses impossible rows, and every statement file fits it."""

from __future__ import annotations

import re
from importlib import resources
from typing import Any

import psycopg
import pytest
from fix_store import Database

from scheduler import lifecycle
from scheduler.model import PRIORITIES, new_id
from scheduler.store import statement

FILES = sorted(
    path.name.removesuffix(".sql") for path in resources.files("scheduler").joinpath("sql").iterdir()
)

IMPOSSIBLE: dict[str, tuple[str, dict[str, Any]]] = {
    "an unknown priority": ("queued", {"priority": "urgent"}),
    "a payload that is a list": ("queued", {"payload": "[]"}),
    "a payload that is null": ("queued", {"payload": "null"}),
    "no time to run": ("queued", {"timeout_ms": 0}),
    "fewer than no retries": ("queued", {"max_retries": -1}),
    "fewer than no failures": ("retrying", {"failures": -1}),
    "more ends than attempts": ("retrying", {"failures": 1, "losses": 1}),
    "more refusals than attempts": ("queued", {"refusals": 1}),
    "terminal and not finished": ("succeeded", {"finished_at": None}),
    "queued and finished": ("queued", {"finished_at": "now"}),
    "running and finished": ("running", {"finished_at": "now"}),
    "running without a worker": ("running", {"worker": None}),
    "running without a token": ("running", {"lease_token": None}),
    "running without an end": ("running", {"lease_expires_at": None}),
    "queued with a worker": ("queued", {"worker": "w"}),
    "queued with a token": ("queued", {"lease_token": "t"}),
    "retrying with a lease": ("retrying", {"lease_expires_at": "now"}),
    "succeeded with a lease": ("succeeded", {"lease_expires_at": "now"}),
    "running and never claimed": ("running", {"attempts": 0}),
    "running since never": ("running", {"claimed_at": None}),
    "succeeded and never claimed": ("succeeded", {"attempts": 0}),
    "retrying and never claimed": ("retrying", {"attempts": 0, "failures": 0}),
    "dead without a reason": ("dead", {"dead_reason": None}),
    "dead for no known reason": ("dead", {"dead_reason": "tired"}),
    "queued with a reason to be dead": ("queued", {"dead_reason": "lost"}),
    "succeeded and a dead letter": ("succeeded", {"dead_at": "now"}),
    "queued and a dead letter": ("queued", {"dead_at": "now"}),
}


@pytest.mark.parametrize("what", IMPOSSIBLE)
def test_an_impossible_row_is_refused(db: Database, what: str):
    status, columns = IMPOSSIBLE[what]
    db.put(status)  # the possible one beside it
    with pytest.raises(psycopg.errors.CheckViolation):
        db.put(status, **columns)


def test_an_unknown_status_is_refused(db: Database):
    with pytest.raises(psycopg.errors.CheckViolation):
        db.put("paused")


@pytest.mark.parametrize("status", lifecycle.STATUSES)
def test_every_status_of_the_lifecycle_is_possible(db: Database, status: str):
    db.put(status)


@pytest.mark.parametrize("reason", lifecycle.DEAD_REASONS)
def test_every_reason_of_the_lifecycle_is_possible(db: Database, reason: str):
    db.put("dead", dead_reason=reason)


@pytest.mark.parametrize("priority", PRIORITIES)
def test_every_priority_is_possible(db: Database, priority: str):
    db.put(priority=priority)


@pytest.mark.parametrize("outcome", lifecycle.OUTCOMES)
def test_an_attempt_ends_once_and_with_a_known_outcome(db: Database, outcome: str):
    insert = "INSERT INTO task_runs VALUES (%s, %s, %s, NULL, NULL, now(), NULL, now())"
    id_ = new_id()
    db.rows(insert, id_, 1, outcome)
    with pytest.raises(psycopg.errors.UniqueViolation):
        db.rows(insert, id_, 1, outcome)
    with pytest.raises(psycopg.errors.CheckViolation):
        db.rows(insert, id_, 2, f"{outcome}?")
    with pytest.raises(psycopg.errors.CheckViolation):
        db.rows(insert, id_, 0, outcome)


def test_a_run_needs_no_day_of_its_own(db: Database):
    """An id from a clock that is years off must not keep its task from being settled."""
    ids = ["00000000-0000-7000-8000-000000000000", "ffffffff-ffff-7fff-bfff-ffffffffffff", new_id()]
    for id_ in ids:
        db.rows("INSERT INTO task_runs VALUES (%s, 1, 'lost', NULL, NULL, now(), NULL, now())", id_)
    places = [
        db.value("SELECT tableoid::regclass::text FROM task_runs WHERE task_id = %s", id_) for id_ in ids
    ]
    assert places[:2] == ["task_runs_default"] * 2
    today = db.value("SELECT to_char(now() AT TIME ZONE 'UTC', 'YYYYMMDD')")
    assert places[2] == f"task_runs_{today}"


def test_the_migration_makes_the_days_to_come(db: Database):
    """A week of them; six, if midnight has passed since."""
    made = db.rows(
        "SELECT to_regclass('task_runs_' || to_char((now() AT TIME ZONE 'UTC')::date + i, 'YYYYMMDD'))"
        " IS NOT NULL AS there FROM generate_series(0, 6) AS i"
    )
    assert [row["there"] for row in made] == [True] * 7


def test_the_smallest_id_of_an_instant_is_below_all_others(db: Database):
    before = db.value("SELECT uuid_at(now() - interval '1 s')::text")
    id_ = new_id()
    assert before < id_ < db.value("SELECT uuid_at(now() + interval '1 s')::text")
    assert db.value("SELECT uuid_at('1970-01-01Z')::text") == "00000000-0000-7000-8000-000000000000"


@pytest.mark.parametrize("name", FILES)
def test_a_statement_opens_with_its_contract(name: str):
    text = resources.files("scheduler").joinpath("sql", f"{name}.sql").read_text(encoding="utf-8")
    header = "".join(line for line in text.splitlines(keepends=True) if line.startswith("--"))
    assert text.startswith(header), "comments stand before the statement"
    assert re.match(r"-- [A-Z]", header), "it says what it does"
    parameters = set(re.findall(r":'(\w+)'", text))
    explained = re.search(r"\bin(:|,| {3})", header) or all(name in header for name in parameters)
    assert explained, "what goes in"
    assert ";" not in text.removeprefix(header), "one statement, and autocommit"


@pytest.mark.parametrize("name", FILES)
def test_a_statement_fits_the_schema(db: Database, name: str):
    numbers: dict[str, int] = {}
    text = statement(name).replace("%%", "%")
    text = re.sub(r"%\((\w+)\)s", lambda m: f"${numbers.setdefault(m[1], len(numbers) + 1)}", text)
    answer = db._connection.pgconn.prepare(b"", text.encode())
    assert answer.status == psycopg.pq.ExecStatus.COMMAND_OK, answer.error_message.decode()


def test_every_statement_has_a_user():
    """Each file is named in store.py, and nothing else is."""
    code = resources.files("scheduler").joinpath("store.py").read_text(encoding="utf-8")
    named = set(re.findall(r'_run\(\s*"(\w+)"', code)) | set(re.findall(r'_dead_letters\("(\w+)"', code))
    assert named == set(FILES)
