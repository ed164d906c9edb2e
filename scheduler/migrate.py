"""Bring a database's schema up to date, once, whoever else tries at the same moment.

A migration is a file `migrations/NNN_name.sql` that `psql -f` runs just as well: it carries its own
transaction and its own line in `schema_migrations`. The runner adds the lock, the order and the checksum.
A file without BEGIN is sent statement by statement, as psql does it: CREATE INDEX CONCURRENTLY wants that.
`docs/operations.md` says how to write one.

Whoever waits for a table makes everyone wait who comes after, so a transaction gives up after a second and is
tried again after a pause.

The lock is polled with pg_try_advisory_lock: a session that waits inside pg_advisory_lock holds a snapshot,
and CREATE INDEX CONCURRENTLY in another session then waits for it, which is a deadlock.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import psycopg

from scheduler.config import mask_url
from scheduler.connections import translate
from scheduler.errors import StartError, StoreError

_LOCK: Final = 0x5C4ED01E
_POLL_S: Final = 0.1
_LOCK_WAIT_S: Final = 120.0
_TABLE_WAIT: Final = "1s"
_TABLE_PAUSE_S: Final = 3.0
OLDEST: Final = 150000

Connection = psycopg.AsyncConnection[tuple[Any, ...]]


@dataclass(frozen=True, slots=True)
class Migration:
    """One file: its number, its name and its text."""

    version: int
    name: str
    text: str

    @property
    def checksum(self) -> str:
        """SHA-256 of the text."""
        return hashlib.sha256(self.text.encode()).hexdigest()

    @property
    def file(self) -> str:
        """Where it is, for people."""
        return f"migrations/{self.version:03d}_{self.name}.sql"

    @property
    def whole(self) -> bool:
        """Whether the file is one transaction: it says BEGIN."""
        return re.search(r"^BEGIN\b", self.text, re.MULTILINE | re.IGNORECASE) is not None

    @property
    def statements(self) -> list[str]:
        """The statements, each up to a semicolon at the end of a line."""
        return [part for part in re.split(r"(?<=;)[ \t]*\n", self.text) if part.strip()]


@dataclass(frozen=True, slots=True)
class State:
    """One line of `scheduler migrate status`: `applied`, `pending`, `changed` or `unknown`."""

    version: int
    name: str
    state: str
    applied_at: str


def directory() -> Path:
    """Where the migrations lie: beside the package when installed, at the project's root in a checkout."""
    inside = Path(__file__).parent / "migrations"
    return inside if inside.is_dir() else Path(__file__).parent.parent / "migrations"


def migrations() -> list[Migration]:
    """All migrations in order.

    Raises:
        StartError: a file is misnamed, or a number is missing or used twice.
    """
    found = []
    for path in sorted(directory().glob("*.sql")):
        match = re.fullmatch(r"(\d{3})_([a-z0-9_]+)\.sql", path.name)
        if not match:
            raise StartError(f"migrations/{path.name} is not named like 001_name.sql")
        found.append(Migration(int(match[1]), match[2], path.read_text(encoding="utf-8")))
    if not found or [m.version for m in found] != list(range(1, len(found) + 1)):
        raise StartError(f"the migrations in {directory()} are not numbered 001, 002, ... without gaps")
    return found


def latest() -> int:
    """The schema version that this build needs."""
    return migrations()[-1].version


async def apply(url: str, *, until: int | None = None) -> list[str]:
    """Apply what is pending, up to and including version `until`; return the names of what was applied.

    Raises:
        StartError: the server is away or too old, or an applied file was changed since.
        StoreError: a migration failed; those before it stay. One with a transaction was rolled back whole.
    """
    wanted = [m for m in migrations() if until is None or m.version <= until]
    connection = await _connect(url)
    try:
        await _lock(connection)
        recorded = await _recorded(connection)
        applied = []
        for migration in wanted:
            if migration.version in recorded:
                await _verify(connection, migration, recorded[migration.version][1])
            else:
                await _run(connection, migration)
                applied.append(f"{migration.version:03d}_{migration.name}")
        return applied
    except psycopg.Error as error:
        raise translate(error) from None
    finally:
        await connection.close()


async def status(url: str) -> list[State]:
    """Every migration that this build or this database knows, and how the two agree."""
    connection = await _connect(url)
    try:
        recorded = await _recorded(connection)
    except psycopg.Error as error:
        raise translate(error) from None
    finally:
        await connection.close()
    states = []
    for migration in migrations():
        row = recorded.pop(migration.version, None)
        if row is None:
            states.append(State(migration.version, migration.name, "pending", ""))
        else:
            same = row[1] in (None, migration.checksum)
            states.append(State(migration.version, migration.name, "applied" if same else "changed", row[2]))
    states += [State(version, row[0], "unknown", row[2]) for version, row in sorted(recorded.items())]
    return states


async def _connect(url: str) -> Connection:
    try:
        connection = await psycopg.AsyncConnection.connect(
            url, autocommit=True, connect_timeout=10, application_name="scheduler migrate"
        )
        # The role may have one, for the short statements of the other processes.
        await connection.execute("SET statement_timeout = 0")
    except psycopg.Error as error:
        raise StartError(unreachable(url, error)) from None
    if connection.info.server_version < OLDEST:
        version = connection.info.server_version // 10000
        await connection.close()
        raise StartError(f"Postgres {version} is too old; Scheduler needs 15 or newer")
    return connection


def unreachable(url: str, error: Exception) -> str:
    """One line for a server that does not let us in: which one, why, and what to do."""
    reason = " ".join(str(error).split())
    shown = mask_url(url)
    if "password authentication failed" in reason or "no password supplied" in reason:
        return f"Postgres at {shown} refused the user or the password; correct POSTGRES_URL"
    if re.search(r'database "[^"]*" does not exist', reason):
        return f"Postgres at {shown} has no such database; create it or correct POSTGRES_URL"
    if "permission denied" in reason:
        return f"Postgres at {shown} allows us too little ({reason[:200]}); grant it or correct POSTGRES_URL"
    return f"Postgres at {shown} cannot be reached ({reason[:200]}); start it or correct POSTGRES_URL"


async def _lock(connection: Connection) -> None:
    deadline = asyncio.get_running_loop().time() + _LOCK_WAIT_S
    while True:
        cursor = await connection.execute("SELECT pg_try_advisory_lock(%s)", (_LOCK,))
        row = await cursor.fetchone()
        if row and row[0]:
            return
        if asyncio.get_running_loop().time() > deadline:
            raise StartError(
                f"another migration has held the lock for {_LOCK_WAIT_S:.0f} s; look what it does"
            )
        await asyncio.sleep(_POLL_S)


async def _recorded(connection: Connection) -> dict[int, tuple[str, str | None, str]]:
    """What the database says was applied: version → (name, checksum, when)."""
    cursor = await connection.execute("SELECT to_regclass('schema_migrations') IS NOT NULL")
    row = await cursor.fetchone()
    if not row or not row[0]:
        return {}
    cursor = await connection.execute(
        "SELECT version, name, checksum, to_char(applied_at, 'YYYY-MM-DD HH24:MI:SSOF')"
        " FROM schema_migrations"
    )
    return {version: (name, checksum, when) for version, name, checksum, when in await cursor.fetchall()}


async def _run(connection: Connection, migration: Migration) -> None:
    try:
        if migration.whole:
            await _run_whole(connection, migration)
        else:
            for statement in migration.statements:
                await connection.execute(statement.encode())
    except psycopg.Error as error:
        reason = " ".join(str(error).split())[:500]
        after = "and was rolled back" if migration.whole else "half-way; run it again when this is put right"
        raise StoreError(f"{migration.file} failed {after}: {reason}") from None
    await _verify(connection, migration, None)


async def _run_whole(connection: Connection, migration: Migration) -> None:
    """Run a transaction, again and again while others hold a table that it needs."""
    deadline = asyncio.get_running_loop().time() + _LOCK_WAIT_S
    await connection.execute(f"SET lock_timeout = '{_TABLE_WAIT}'".encode())
    while True:
        try:
            # Without parameters the text goes as it is, with all its statements: as psql would send it.
            await connection.execute(migration.text.encode())
            break
        except psycopg.errors.LockNotAvailable:
            await connection.rollback()
            if asyncio.get_running_loop().time() > deadline:
                raise
            await asyncio.sleep(_TABLE_PAUSE_S)
    await connection.execute("SET lock_timeout = 0")


async def _verify(connection: Connection, migration: Migration, checksum: str | None) -> None:
    if checksum is None:
        await connection.execute(
            "INSERT INTO schema_migrations (version, name, checksum) VALUES (%s, %s, %s)"
            " ON CONFLICT (version) DO UPDATE SET checksum = excluded.checksum",
            (migration.version, migration.name, migration.checksum),
        )
    elif checksum != migration.checksum:
        raise StartError(
            f"{migration.file} was changed after it had been applied;"
            " restore it and put the change into a new file"
        )
