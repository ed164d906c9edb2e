"""The statements of every task stay cheap: they find their rows by index, and what can be heap-only is."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterator
from typing import Any

import pytest
from fix_store import TOKEN, WORKER, Database, lease_of, open_store
from waiting import eventually

from scheduler.arrays import words
from scheduler.connections import _PLANNER
from scheduler.model import Settlement
from scheduler.store import FIRST_ID, statement

ROWS = 20_000
FINISHED = 15_000
VIS_MS = 60_000

FILL = f"""
    INSERT INTO tasks (
        id, type, status, attempts, claimed_at, finished_at, worker, lease_token, lease_expires_at, dead_at,
        dead_reason
    )
    SELECT
        (left(uuid_at(now() - (1e6 - n) * interval '1 ms')::text, 24) || lpad(to_hex(n), 12, '0'))::uuid,
        'noop', status, 1, now(),
        CASE WHEN status IN ('succeeded', 'dead') THEN now() END,
        CASE status WHEN 'running' THEN 'w' END,
        CASE status WHEN 'running' THEN '{TOKEN}' END,
        CASE status WHEN 'running' THEN now() + interval '1 h' END,
        CASE status WHEN 'dead' THEN now() END,
        CASE status WHEN 'dead' THEN 'failed' END
    FROM (
        SELECT n, CASE
            WHEN n <= {FINISHED} THEN CASE n % 100 WHEN 0 THEN 'dead' ELSE 'succeeded' END
            ELSE CASE n % 2 WHEN 0 THEN 'running' ELSE 'queued' END
        END AS status
        FROM generate_series(1, {ROWS}) AS n
    ) AS numbered
"""


@pytest.fixture
def full(any_postgres_url: str) -> Iterator[Database]:
    """A table just filled and analysed, and a connection that plans as the store's own do."""
    database = Database(any_postgres_url)
    database.rows(FILL)
    database.rows("ANALYZE")
    for setting in _PLANNER.split(";"):
        database.rows(setting)
    yield database
    database.close()


def plan(db: Database, name: str, params: dict[str, Any], *, generic: bool) -> str:
    """The plan of a statement of the store as JSON, for these values or for any."""
    return plan_of(db, statement(name), params, generic=generic)


def plan_of(db: Database, text: str, params: dict[str, Any], *, generic: bool) -> str:
    """The plan of a statement with bind parameters as JSON, for these values or for any."""
    numbers: dict[str, int] = {}
    text = text.replace("%%", "%")
    text = re.sub(r"%\((\w+)\)s", lambda m: f"${numbers.setdefault(m[1], len(numbers) + 1)}", text)
    db.rows(f"SET plan_cache_mode = force_{'generic' if generic else 'custom'}_plan")
    connection = db._connection
    connection.execute(f"PREPARE planned AS {text}".encode())
    values = ", ".join("NULL" if params[n] is None else f"'{params[n]}'" for n in numbers)
    (row,) = db.rows(f"EXPLAIN (FORMAT JSON) EXECUTE planned ({values})")
    db.rows("DEALLOCATE planned")
    return json.dumps(row["QUERY PLAN"])


def params(db: Database, n: int) -> dict[str, dict[str, Any]]:
    """Arguments of the statements that run for every task, for `n` tasks spread over the open ones."""
    every = (ROWS - FINISHED) // n
    rows = db.rows("SELECT id::text FROM tasks WHERE finished_at IS NULL ORDER BY id")[::every][:n]
    ids, ones = words(row["id"] for row in rows), words([1] * n)
    outcomes = {
        "ids": ids,
        "attempts": ones,
        "tokens": words([TOKEN] * n),
        "outcomes": words(["succeeded"] * n),
        "statuses": words(["succeeded"] * n),
        "reasons": words([None] * n),
        "delays": words([0] * n),
        "errors": words([None] * n),
        "waits": words([0] * n),
        "runs": words([0] * n),
        "refused": words(["f"] * n),
        "worker": "w",
    }
    return {
        "claim": {"ids": ids, "token": "t", "worker": "w", "vis_ms": 1000, "most": 10_000},
        "reclaim": {"ids": ids, "token": "t", "most": 10_000},
        "look": {"ids": ids},
        "settle": outcomes,
        "ended": {"ids": ids, "attempts": ones},
        "note_late": {"ids": ids, "attempts": ones, "outcomes": words(["failed"] * n)},
        "renew": {"ids": ids, "attempts": ones, "vis_ms": 1000},
        "reap": {"ids": ids, "max_losses": 3},
    }


@pytest.mark.parametrize("generic", [False, True], ids=["these values", "any values"])
def test_the_statements_of_every_task_find_their_rows_by_index(full: Database, generic: bool):
    for n in (1, 100, 500):
        for name, values in params(full, n).items():
            shown = plan(full, name, values, generic=generic)
            # The registry of workers has a handful of rows, and their scan is what they are for.
            scanned = re.findall(r'"Node Type": "Seq Scan"[^{}]*?"Relation Name": "(\w+)"', shown)
            assert set(scanned) <= {"workers"}, f"{name} of {n}: {shown}"
            assert "tasks_pkey" in shown or "_pkey" in shown, f"{name} of {n}: {shown}"
            assert "Hash Join" not in shown, f"{name} of {n} would lock its rows in any order: {shown}"
            assert "Merge Join" not in shown, f"{name} of {n}: {shown}"


@pytest.mark.parametrize("generic", [False, True], ids=["these values", "any values"])
@pytest.mark.parametrize("seen", ["queued", "running", "succeeded"])
def test_statistics_that_know_one_status_only_mislead_nobody(any_postgres_url: str, seen: str, generic: bool):
    """A burst fills the table, autovacuum analyses it, and only then do the workers begin."""
    one = re.sub(r"SELECT n, CASE.*END AS status", f"SELECT n, '{seen}' AS status", FILL, flags=re.DOTALL)
    with contextlib.closing(Database(any_postgres_url)) as db:
        for text in (one, "ANALYZE", "TRUNCATE tasks", FILL, *_PLANNER.split(";")):
            db.rows(text)
        for n in (100, 500):
            for name, values in params(db, n).items():
                shown = plan(db, name, values, generic=generic)
                scans = re.findall(r'"Node Type": "Index Scan"[^{}]*?"Relation Name": "tasks"[^{}]*', shown)
                assert all('"Index Cond": "(id =' in scan for scan in scans), f"{name} of {n}: {shown}"


@pytest.mark.parametrize("generic", [False, True], ids=["these values", "any values"])
def test_reconcile_reads_open_rows_and_dead_letters_by_their_own_indexes(full: Database, generic: bool):
    for name, index in (("open_page", "tasks_open"), ("dead_page", "tasks_dead")):
        shown = plan(full, name, {"after": FIRST_ID, "page": 1000}, generic=generic)
        assert index in shown, f"{name}: {shown}"
        assert '"Sort"' not in shown, f"{name} must read its page and no more: {shown}"


@pytest.mark.parametrize("generic", [False, True], ids=["these values", "any values"])
@pytest.mark.parametrize(("status", "index"), [("queued", "tasks_open"), ("dead", "tasks_died")])
async def test_a_page_of_open_or_dead_tasks_passes_no_others(
    full: Database, monkeypatch, status: Any, index: str, generic: bool
):
    """Also of dead tasks whose dead letter was purged, which the index of dead letters has not."""
    full.rows("UPDATE tasks SET dead_at = NULL WHERE status = 'dead'")
    async with open_store(full.url) as store:
        statements = []
        run = store._connections.run

        async def noted(text, params=None):
            statements.append((text, params))
            return await run(text, params)

        monkeypatch.setattr(store._connections, "run", noted)
        page = await store.tasks(status=status, limit=50)
    assert [task.status for task in page] == [status] * 50
    [(text, params)] = statements
    shown = plan_of(full, text, params, generic=generic)
    assert f'"Index Name": "{index}"' in shown, shown
    assert '"Sort"' not in shown, shown


async def test_claims_renewals_and_retries_are_heap_only(any_postgres_url: str):
    """No index and no predicate names a column that they change. See the fill factor in 001_init.sql."""
    db = Database(any_postgres_url)
    ids = [db.put() for _ in range(200)]

    def updates() -> dict[str, int]:
        stats = (
            "SELECT n_tup_upd AS all, n_tup_hot_upd AS hot FROM pg_stat_user_tables WHERE relname = 'tasks'"
        )
        return db.row(stats)

    async with open_store(any_postgres_url) as store:
        for round_ in range(1, 4):
            leases, _ = await store.claim(ids, token=f"t{round_}", worker=WORKER, vis_ms=VIS_MS)
            assert len(await store.renew(leases, vis_ms=VIS_MS)) == len(ids)
            retries = [Settlement(lease, "failed", "retrying") for lease in leases]
            assert len(await store.settle(retries, worker=WORKER)) == len(ids)
        assert await store.renew([lease_of(ids[0])], vis_ms=VIS_MS) == set()
    expected = 3 * 3 * len(ids)
    found = await eventually(lambda: (u := updates())["all"] >= expected and u)
    db.close()
    # The first version of a row may find its page full; from then on there is room.
    assert found["hot"] >= 0.9 * expected, found
