"""The store on each Postgres in turn, and the test's own look into the same database.

id_ = db.put("running", lease_ms=-1)          # a row in any state,
await store.reap([id_], max_losses=3)         # one statement,
assert db.task(id_)["status"] == "queued"     # and what the database says, by SQL of the test's own
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from datetime import timedelta
from typing import Any

import psycopg
import pytest
from fix_servers import SYSTEM, WHEEL, Servers
from psycopg.rows import dict_row
from waiting import eventually

from scheduler import config
from scheduler.lifecycle import TERMINAL
from scheduler.model import Lease, NewTask, new_id
from scheduler.store import Store, WorkerIdentity

VIS_MS = 60_000
TOKEN = "token:1"
WORKER = "host:1:abc"


def new_task(type_: str = "noop", **fields: Any) -> NewTask:
    """A task on its way in, with a new id."""
    return NewTask(new_id(), type_, **fields)


def lease_of(id_: str, attempt: int = 1, token: str = TOKEN, **fields: Any) -> Lease:
    """A lease as a worker would hold it after it claimed a row of `Database.put`."""
    values: dict[str, Any] = {
        "queue": "default",
        "type": "noop",
        "priority": "default",
        "payload": {},
        "max_retries": 3,
        "failures": 0,
        "losses": 0,
        "refusals": 0,
        "timeout_ms": None,
        "backoff": None,
        "suspect": False,
        "waited_s": 0.0,
    }
    return Lease(id_, attempt, token, **(values | fields))


@asynccontextmanager
async def open_store(url: str, **variables: str) -> AsyncIterator[Store]:
    """A store on one database, with a few connections."""
    settings, _ = config.load({"POSTGRES_URL": url} | variables)
    store = await Store.open(settings, name="test", max_conns=4)
    try:
        yield store
    finally:
        await store.close()


class Database:
    """A connection of the test's own. It shares no statement with the code under test."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._connection = psycopg.connect(url, autocommit=True, row_factory=dict_row)

    def close(self) -> None:
        self._connection.close()

    def rows(self, sql: str, *params: Any) -> list[dict[str, Any]]:
        """Run a statement; its rows, [] if it has none."""
        cursor = self._connection.execute(sql, params or None)
        return cursor.fetchall() if cursor.description else []

    def row(self, sql: str, *params: Any) -> dict[str, Any]:
        """The one row of a statement."""
        (row,) = self.rows(sql, *params)
        return row

    def value(self, sql: str, *params: Any) -> Any:
        """The one value of a statement."""
        (value,) = self.row(sql, *params).values()
        return value

    def task(self, id_: str) -> dict[str, Any]:
        """The row of a task, and as `due_in_ms`, `lease_ms` what its instants are from now."""
        return self.row(
            "SELECT *, extract(epoch FROM due_at - now()) * 1000 AS due_in_ms,"
            " extract(epoch FROM lease_expires_at - now()) * 1000 AS lease_ms FROM tasks WHERE id = %s",
            id_,
        )

    def runs(self, id_: str) -> list[dict[str, Any]]:
        """The history of a task, oldest attempt first."""
        return self.rows("SELECT * FROM task_runs WHERE task_id = %s ORDER BY attempt", id_)

    def outcomes(self, id_: str) -> list[str]:
        """How the attempts of a task ended, oldest first."""
        return [run["outcome"] for run in self.runs(id_)]

    def count(self, table: str) -> int:
        return self.value(f"SELECT count(*) FROM {table}")

    def put(
        self, status: str = "queued", *, due_ms: int = -1000, lease_ms: int = VIS_MS, **columns: Any
    ) -> str:
        """Insert a task in a status, with whatever that status must have; its id.

        `due_ms` is from now until it is due, `lease_ms` until the lease of a running one ends; any column may
        be given in place of what the status brings.
        """
        now = self.value("SELECT now()")
        values: dict[str, Any] = {
            "id": new_id(),
            "type": "noop",
            "status": status,
            "due_at": now + timedelta(milliseconds=due_ms),
        }
        if status in {"running", "retrying", "succeeded", "dead"}:
            values |= {"attempts": 1, "claimed_at": now - timedelta(seconds=1)}
        if status == "running":
            lease_end = now + timedelta(milliseconds=lease_ms)
            values |= {"worker": WORKER, "lease_token": TOKEN, "lease_expires_at": lease_end}
        if status in {"retrying", "dead"}:
            values["failures"] = 1
        if status in TERMINAL:
            values["finished_at"] = now
        if status == "dead":
            values |= {"dead_at": now, "dead_reason": "failed"}
        values |= columns
        names, marks = ", ".join(values), ", ".join(["%s"] * len(values))
        self.rows(f"INSERT INTO tasks ({names}) VALUES ({marks})", *values.values())
        return values["id"]

    def change(self, id_: str, **columns: Any) -> None:
        """Set columns of a task."""
        names = ", ".join(f"{name} = %s" for name in columns)
        self.rows(f"UPDATE tasks SET {names} WHERE id = %s", *columns.values(), id_)

    def age(self, id_: str, ms: int) -> None:
        """Let time pass for a task: every instant of its row moves back."""
        self.rows(
            "UPDATE tasks SET (created_at, due_at, claimed_at, lease_expires_at, finished_at, dead_at) ="
            " (created_at - t.by, due_at - t.by, claimed_at - t.by, lease_expires_at - t.by,"
            " finished_at - t.by, dead_at - t.by)"
            " FROM (SELECT %s * interval '1 ms' AS by) AS t WHERE id = %s",
            ms,
            id_,
        )

    def worker(self, id_: str = WORKER, *, alive_ms: int = 60_000) -> None:
        """Put a worker into the registry; `alive_ms` from now its silence counts as death."""
        self.rows(
            "INSERT INTO workers (id, host, pid, queues, types, slots, alive_until)"
            " VALUES (%s, 'host', 1, '{default}', '{noop}', 1, now() + %s * interval '1 ms')"
            " ON CONFLICT (id) DO UPDATE SET alive_until = excluded.alive_until",
            id_,
            alive_ms,
        )

    @contextmanager
    def transaction(self, *, commit: bool = True) -> Iterator[Database]:
        """Another connection, in a transaction that ends with the block: to hold locks meanwhile."""
        other = Database(self.url)
        try:
            with other._connection.transaction(force_rollback=not commit):
                yield other
        finally:
            other.close()

    async def blocked(self, sessions: int = 1) -> None:
        """Wait until so many other sessions wait for a lock."""
        waiting = (
            "SELECT count(*) FROM pg_stat_activity"
            " WHERE datname = current_database() AND wait_event_type = 'Lock'"
        )
        await eventually(lambda: self.value(waiting) >= sessions)

    def clear(self) -> None:
        """Empty every table but the record of migrations."""
        for table in ("tasks", "task_runs", "idempotency_keys", "workers", "leaders", "queues"):
            self.rows(f"DELETE FROM {table}")


@pytest.fixture(scope="session", params=[WHEEL, SYSTEM])
def shared_db(request: pytest.FixtureRequest, servers: Servers) -> Iterator[Database]:
    """One database for all tests of the store on a server: to make one costs more than most of them."""
    with servers.database(request.param) as url:
        database = Database(url)
        yield database
        database.close()


@pytest.fixture
def db(shared_db: Database) -> Database:
    """The test's own look into the database of `store`, which is empty."""
    shared_db.clear()
    return shared_db


@pytest.fixture
async def store(db: Database) -> AsyncIterator[Store]:
    """A store on each Postgres in turn."""
    async with open_store(db.url) as opened:
        yield opened


@pytest.fixture
def identity() -> WorkerIdentity:
    """A worker as it signs into the registry."""
    return WorkerIdentity(WORKER, "host", 1, ("default", "mail"), ("noop",), 12)
