"""The schema is made once, whole, and the same whoever makes it; and it says the same words as the code."""

from __future__ import annotations

import asyncio
import re
import shutil
import subprocess

import psycopg
import pytest
from fix_servers import SYSTEM, missing
from waiting import eventually

from scheduler import lifecycle, migrate
from scheduler.errors import StartError, StoreError
from scheduler.model import PRIORITIES

WAITING = (
    "SELECT 1 FROM pg_stat_activity WHERE application_name = 'scheduler migrate' AND wait_event_type = 'Lock'"
)
VALID = "SELECT indisvalid FROM pg_index WHERE indexrelid = 'tasks_once'::regclass"
NAMES = [f"{m.version:03d}_{m.name}" for m in migrate.migrations()]
NEXT = len(NAMES) + 1
"""The version that a new migration would have."""


def rows(url: str, sql: str) -> list[tuple]:
    with psycopg.connect(url, autocommit=True) as connection:
        return connection.execute(sql).fetchall()


@pytest.fixture
def files(tmp_path, monkeypatch):
    """A copy of the migrations that a test may change."""
    copy = tmp_path / "migrations"
    shutil.copytree(migrate.directory(), copy)
    monkeypatch.setattr(migrate, "directory", lambda: copy)
    return copy


def program(name: str) -> str:
    return shutil.which(name) or missing(name)


def psql(url: str, file: object) -> None:
    command = [program("psql"), url, "-v", "ON_ERROR_STOP=1", "-q", "-X", "-f", str(file)]
    subprocess.run(command, check=True, capture_output=True)


def schema(url: str) -> str:
    """The whole schema as pg_dump writes it, without its comments and the key of its own session."""
    dumped = subprocess.run(
        [program("pg_dump"), "-s", url], check=True, capture_output=True, text=True
    ).stdout
    return re.sub(r"^(--.*|\\(un)?restrict .*|)\n", "", dumped, flags=re.MULTILINE)


# --- once ---


async def test_four_at_once_apply_each_file_once(make_empty_database):
    url = make_empty_database()
    applied = await asyncio.gather(*(migrate.apply(url) for _ in range(4)))
    assert sorted(name for names in applied for name in names) == NAMES
    assert rows(url, "SELECT version, name FROM schema_migrations ORDER BY version") == [
        (m.version, m.name) for m in migrate.migrations()
    ]
    assert await migrate.apply(url) == []


async def test_a_later_migration_is_applied_to_a_database_in_use(postgres_url, files):
    (files / f"{NEXT:03}_more.sql").write_text("BEGIN; CREATE TABLE more (); COMMIT;")
    assert [s.state for s in await migrate.status(postgres_url)] == ["applied"] * len(NAMES) + ["pending"]
    assert await migrate.apply(postgres_url) == [f"{NEXT:03}_more"]
    assert [s.state for s in await migrate.status(postgres_url)] == ["applied"] * NEXT


async def test_a_migration_may_build_an_index_while_others_wait_for_their_turn(make_empty_database, files):
    """Concurrently, it waits for every older snapshot: none of those who wait for the lock may hold one."""
    (files / f"{NEXT:03}_index.sql").write_text("CREATE INDEX CONCURRENTLY tasks_type ON tasks (type);")
    url = make_empty_database()
    applied = await asyncio.wait_for(asyncio.gather(*(migrate.apply(url) for _ in range(4))), 30)
    assert sorted(name for names in applied for name in names) == [*NAMES, f"{NEXT:03}_index"]


# --- beside a running system ---


async def test_a_migration_that_has_to_wait_for_a_table_makes_nobody_else_wait(
    postgres_url, files, monkeypatch
):
    """Who waits for a table goes before all who come later: so it gives up, and tries again."""
    monkeypatch.setattr(migrate, "_TABLE_WAIT", "100ms")
    monkeypatch.setattr(migrate, "_TABLE_PAUSE_S", 0.05)
    (files / f"{NEXT:03}_more.sql").write_text("BEGIN;\nALTER TABLE tasks ADD COLUMN more text;\nCOMMIT;\n")
    with psycopg.connect(postgres_url) as reader:
        reader.execute("SELECT FROM tasks")
        migrating = asyncio.create_task(migrate.apply(postgres_url))
        with psycopg.connect(postgres_url, options="-c statement_timeout=5s", autocommit=True) as other:
            for _ in range(3):
                await eventually(lambda: rows(postgres_url, WAITING))
                other.execute("SELECT FROM tasks")
        assert not migrating.done()
    assert await migrating == [f"{NEXT:03}_more"]


async def test_a_migration_may_take_longer_than_a_statement_of_its_role_may(postgres_url, files):
    (files / f"{NEXT:03}_slow.sql").write_text("BEGIN;\nSELECT pg_sleep(0.3);\nCOMMIT;\n")
    name = rows(postgres_url, "SELECT current_database()")[0][0]
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        connection.execute(f'ALTER DATABASE "{name}" SET statement_timeout = 100')
    assert await migrate.apply(postgres_url) == [f"{NEXT:03}_slow"]


async def test_a_table_that_never_comes_free_ends_the_migration(postgres_url, files, monkeypatch):
    monkeypatch.setattr(migrate, "_TABLE_WAIT", "10ms")
    monkeypatch.setattr(migrate, "_LOCK_WAIT_S", 0.0)
    (files / f"{NEXT:03}_more.sql").write_text("BEGIN;\nALTER TABLE tasks ADD COLUMN more text;\nCOMMIT;\n")
    with psycopg.connect(postgres_url) as reader:
        reader.execute("SELECT FROM tasks")
        with pytest.raises(
            StoreError, match=rf"^migrations/0+{NEXT}_more.sql failed and was rolled back: .*lock"
        ):
            await migrate.apply(postgres_url)


@pytest.mark.parametrize("by", ["runner", "psql"])
async def test_an_index_that_was_half_built_is_built_anew(make_empty_database, files, by):
    """A file without BEGIN is sent statement by statement, so it may say what to clear away first."""
    (files / f"{NEXT:03}_index.sql").write_text(
        "-- Half of it may be there.\n"
        "DROP INDEX CONCURRENTLY IF EXISTS tasks_once;\n"
        "CREATE UNIQUE INDEX CONCURRENTLY tasks_once\n    ON tasks (type);\n"
        f"INSERT INTO schema_migrations (version, name) VALUES ({NEXT}, 'index') ON CONFLICT DO NOTHING;\n"
    )
    url = make_empty_database(SYSTEM)
    await migrate.apply(url, until=3)
    twins = (
        "INSERT INTO tasks (id, type) SELECT gen_random_uuid(), 'a' FROM generate_series(1, 2) RETURNING 1"
    )
    rows(url, twins)
    with pytest.raises(
        StoreError, match=rf"^migrations/0+{NEXT}_index.sql failed half-way; run it again .*unique"
    ):
        await migrate.apply(url)
    assert rows(url, VALID) == [(False,)]
    rows(url, "DELETE FROM tasks RETURNING 1")
    if by == "psql":
        psql(url, files / f"{NEXT:03}_index.sql")
    assert await migrate.apply(url) == ([f"{NEXT:03}_index"] if by == "runner" else [])
    assert rows(url, VALID) == [(True,)]
    assert [s.state for s in await migrate.status(url)] == ["applied"] * NEXT


# --- whole ---


async def test_a_file_that_fails_is_rolled_back_whole_and_those_before_it_stay(make_empty_database, files):
    (files / f"{NEXT:03}_broken.sql").write_text(
        f"BEGIN;\nCREATE TABLE half ();\nINSERT INTO schema_migrations VALUES ({NEXT}, 'broken');\n"
        "SELECT 1/0;\nCOMMIT;\n"
    )
    (files / f"{NEXT + 1:03}_after.sql").write_text("BEGIN; CREATE TABLE after (); COMMIT;")
    url = make_empty_database()
    with pytest.raises(
        StoreError, match=rf"^migrations/0+{NEXT}_broken.sql failed and was rolled back: .*zero"
    ):
        await migrate.apply(url)
    assert rows(url, "SELECT to_regclass('half'), to_regclass('after')") == [(None, None)]
    assert [s.state for s in await migrate.status(url)] == ["applied"] * len(NAMES) + ["pending"] * 2
    (files / f"{NEXT:03}_broken.sql").write_text("BEGIN; CREATE TABLE half (); COMMIT;")
    assert await migrate.apply(url) == [f"{NEXT:03}_broken", f"{NEXT + 1:03}_after"]


async def test_an_applied_file_that_was_changed_is_refused(postgres_url, files):
    with (files / "002_idempotency.sql").open("a") as file:
        file.write("-- changed\n")
    (files / f"{NEXT:03}_more.sql").write_text("BEGIN; CREATE TABLE more (); COMMIT;")
    assert [s.state for s in await migrate.status(postgres_url)] == [
        "applied",
        "changed",
        *["applied"] * (len(NAMES) - 2),
        "pending",
    ]
    with pytest.raises(StartError, match=r"^migrations/002_idempotency.sql was changed .* new file$"):
        await migrate.apply(postgres_url)
    assert rows(postgres_url, "SELECT to_regclass('more')") == [(None,)]


async def test_a_schema_newer_than_this_build_is_shown_and_left_alone(postgres_url):
    rows(postgres_url, f"INSERT INTO schema_migrations VALUES ({NEXT}, 'future', 'x') RETURNING 1")
    assert [(s.version, s.state) for s in await migrate.status(postgres_url)][-1] == (NEXT, "unknown")
    assert await migrate.apply(postgres_url) == []


@pytest.mark.parametrize(
    "name", [f"{NEXT}_more.sql", f"{NEXT + 1:03}_gap.sql", f"{NEXT - 1:03}_twice.sql", f"{NEXT:03}_Upper.sql"]
)
def test_a_misnamed_file_is_refused(files, name):
    (files / name).touch()
    with pytest.raises(StartError, match=r"named like 001_name.sql|numbered 001, 002, ... without gaps"):
        migrate.migrations()


# --- the same ---


async def test_psql_makes_the_same_schema_and_status_knows_it(make_empty_database):
    ours, by_hand = make_empty_database(SYSTEM), make_empty_database(SYSTEM)
    await migrate.apply(ours)
    for file in sorted(migrate.directory().glob("*.sql")):
        psql(by_hand, file)
    assert "CREATE TABLE public.tasks" in schema(ours)
    assert schema(by_hand) == schema(ours)
    assert [s.state for s in await migrate.status(by_hand)] == ["applied"] * len(NAMES)
    assert rows(by_hand, "SELECT count(checksum) FROM schema_migrations") == [(0,)]
    assert await migrate.apply(by_hand) == []
    assert rows(by_hand, "SELECT count(checksum) FROM schema_migrations") == [(len(NAMES),)]


# --- the same words ---


def allowed(url: str, constraint: str, column: str) -> set[str]:
    """The words that a CHECK lists for a column."""
    [(text,)] = rows(
        url,
        f"SELECT pg_get_constraintdef(oid) FROM pg_constraint WHERE conname = '{constraint}'"
        f" AND conrelid IN ('tasks'::regclass, 'task_runs'::regclass)",
    )
    lists = re.findall(rf"\(*{column} = ANY \(+ARRAY\[(.*?)\]", text)
    assert len(lists) == 1, text
    return set(re.findall(r"'(\w+)'", lists[0]))


@pytest.mark.parametrize(
    ("constraint", "column", "words"),
    [
        ("tasks_priority", "priority", PRIORITIES),
        ("tasks_status", "status", lifecycle.STATUSES),
        ("tasks_finished_when_terminal", "status", lifecycle.TERMINAL),
        ("tasks_dead_for_a_reason", "dead_reason", lifecycle.DEAD_REASONS),
        ("task_runs_outcome", "outcome", lifecycle.OUTCOMES),
    ],
)
def test_the_checks_list_the_words_of_the_code(postgres_url, constraint, column, words):
    assert allowed(postgres_url, constraint, column) == set(words)


def test_the_command_line_offers_the_words_of_the_code():
    from scheduler import cli

    assert cli._PRIORITIES == PRIORITIES
    assert cli._REASONS == lifecycle.DEAD_REASONS
