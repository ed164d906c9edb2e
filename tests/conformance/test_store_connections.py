"""The connections to Postgres: every wait ends, every error has a name, every answer its question."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from time import monotonic
from typing import Any

import psycopg
import pytest
from fix_proxy import Proxy
from fix_store import Database
from waiting import eventually

from scheduler.connections import Connections, translate
from scheduler.errors import InputRefused, StartError, StoreBusy, StoreError, StoreUnavailable
from scheduler.supervisor import free_port

NAME = "scheduler-connections-test"
TIMEOUT_S = 0.4


def connect(url: str, *, size: int = 4, prepare_threshold: int | None = 2) -> Connections:
    return Connections(url, size=size, name=NAME, timeout_s=TIMEOUT_S, prepare_threshold=prepare_threshold)


@pytest.fixture
async def connections(db: Database) -> AsyncIterator[Connections]:
    opened = connect(db.url)
    yield opened
    await opened.close()


def pids(db: Database) -> set[int]:
    """The server's processes that serve these connections."""
    return {
        row["pid"] for row in db.rows("SELECT pid FROM pg_stat_activity WHERE application_name = %s", NAME)
    }


async def open_all(connections: Connections, db: Database, n: int = 4) -> set[int]:
    """Make it open all its connections, by as many statements at once."""
    await asyncio.gather(*(connections.run("SELECT pg_sleep(0.1)") for _ in range(n)))
    assert len(pids(db)) == n
    return pids(db)


@pytest.mark.parametrize(
    ("states", "expected"),
    [
        (
            "08000 08003 08006 40001 40P01 53100 53200 53300 57014 57P01 57P02 57P03 58030 25P03 25006",
            StoreUnavailable,
        ),
        ("55P03", StoreBusy),
        ("22P02 22P05 22003 22008 22021 54000 54001", InputRefused),
        ("23502 23505 23514 42601 42703 42P01 42P07 0A000 XX000", StoreError),
    ],
)
def test_each_state_of_postgres_has_its_error(states: str, expected: type[StoreError]):
    for state in states.split():
        assert type(translate(psycopg.errors.lookup(state)("why"))) is expected, state


def test_errors_without_a_state_are_told_apart():
    assert type(translate(psycopg.OperationalError("server closed the connection"))) is StoreUnavailable
    assert type(translate(psycopg.DataError("cannot dump NUL"))) is InputRefused
    assert type(translate(psycopg.InterfaceError("a defect"))) is StoreError


async def test_an_error_does_not_show_the_row(connections: Connections):
    """Postgres' detail does, and with it the payload."""
    sql = "INSERT INTO tasks (id, type, payload) VALUES (gen_random_uuid(), 'noop', '[\"secret\"]')"
    with pytest.raises(StoreError) as refused:
        await connections.run(sql)
    assert "tasks_payload_is_an_object" in str(refused.value)
    assert "secret" not in str(refused.value)


async def test_an_error_leaves_its_connection_usable(connections: Connections, db: Database):
    await connections.run("SELECT 1")
    before = pids(db)
    for sql, error in (
        ("SELECT 1/0", InputRefused),
        ("SELECT nonsense", StoreError),
        ("SELECT '20000-01-01'::timestamptz", InputRefused),
    ):
        with pytest.raises(error):
            await connections.run(sql)
        assert await connections.run("SELECT 1") == [(1,)]
    assert pids(db) == before


async def test_a_statement_without_rows_answers_none(connections: Connections):
    assert await connections.run("SET work_mem = '4MB'") == []


async def test_every_connection_plans_by_index(connections: Connections, db: Database):
    await open_all(connections, db)
    for setting in ("enable_seqscan", "enable_hashjoin", "enable_mergejoin", "jit"):
        answers = await asyncio.gather(*(connections.run(f"SHOW {setting}") for _ in range(4)))
        assert answers == [[("off",)]] * 4


async def test_the_server_ends_what_nobody_waits_for_any_more(connections: Connections, db: Database):
    """It does not notice that its client has gone; each try would leave one behind that holds its locks."""
    id_, waits = db.put(), "SELECT FROM tasks WHERE id = %(id)s FOR UPDATE"
    active = "SELECT count(*) FROM pg_stat_activity WHERE state = 'active' AND application_name = %s"
    with db.transaction() as other:
        other.rows("SELECT FROM tasks WHERE id = %s FOR UPDATE", id_)
        for statement in (waits, "SELECT sum(n) FROM generate_series(1, 1000000000) AS n"):
            with pytest.raises(StoreUnavailable):
                await connections.run(statement, {"id": id_})
        await eventually(lambda: db.value(active, NAME) == 0, within_s=3)


async def test_more_callers_than_connections_wait_their_turn(connections: Connections, db: Database):
    answers = await asyncio.gather(*(connections.run("SELECT %(n)s::int", {"n": n}) for n in range(50)))
    assert answers == [[(n,)] for n in range(50)]
    assert len(pids(db)) <= 4


async def test_whoever_waits_for_a_free_connection_waits_no_longer_than_for_an_answer(db: Database):
    connections = connect(db.url, size=1)
    free = connections._places
    await free.acquire()  # and whoever has it does not come back
    before = monotonic()
    with pytest.raises(StoreUnavailable, match="came free"):
        await connections.run("SELECT 1")
    assert monotonic() - before < TIMEOUT_S + 1
    free.release()
    for n in range(3):
        assert await connections.run("SELECT %(n)s::int", {"n": n}) == [(n,)]
    await connections.close()


@pytest.mark.parametrize("threshold", [None, 0, 2])
async def test_statements_are_prepared_as_often_as_asked(db: Database, threshold: int | None):
    connections = connect(db.url, size=1, prepare_threshold=threshold)
    for n in range(4):
        assert await connections.run("SELECT %(n)s::int", {"n": n}) == [(n,)]
    ((prepared,),) = await connections.run(
        "SELECT count(*) FROM pg_prepared_statements WHERE statement LIKE 'SELECT $1::int'"
    )
    assert prepared == (threshold is not None)
    await connections.close()


async def test_closing_closes_what_is_idle_now_and_the_rest_when_it_comes_back(
    connections: Connections, db: Database
):
    await open_all(connections, db)
    busy = asyncio.create_task(connections.run("SELECT pg_sleep(0.2)"))
    active = "SELECT count(*) FROM pg_stat_activity WHERE state = 'active' AND application_name = %s"
    await eventually(lambda: db.value(active, NAME))
    await connections.close()
    await eventually(lambda: len(pids(db)) == 1)
    await busy
    await eventually(lambda: not pids(db))


async def test_a_caller_that_gives_up_leaves_no_answer_for_the_next(connections: Connections):
    for n in range(20):
        waiting = asyncio.create_task(connections.run("SELECT pg_sleep(0.02), 'stale'"))
        await asyncio.sleep(0.001 * n)  # the moment is what the test varies
        waiting.cancel()
        await asyncio.wait({waiting})
        assert await connections.run("SELECT %(n)s::int", {"n": n}) == [(n,)]


async def test_connections_that_the_server_closed_are_not_used_again(connections: Connections, db: Database):
    """After a restart of Postgres no call may fail for each connection that there was."""
    await open_all(connections, db)
    db.rows("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = %s", NAME)
    await eventually(lambda: not pids(db))
    for n in range(4):
        assert await connections.run("SELECT %(n)s::int", {"n": n}) == [(n,)]


async def test_a_connection_cut_in_the_middle_is_an_outage(connections: Connections, db: Database):
    waiting = asyncio.create_task(connections.run("SELECT pg_sleep(5)"))
    (pid,) = await eventually(lambda: pids(db))
    await eventually(
        lambda: db.value("SELECT query LIKE '%%pg_sleep%%' FROM pg_stat_activity WHERE pid = %s", pid)
    )
    db.rows("SELECT pg_terminate_backend(%s)", pid)
    with pytest.raises(StoreUnavailable):
        await waiting
    assert await connections.run("SELECT 1") == [(1,)]


async def test_a_server_that_is_away_is_an_outage_at_once():
    connections = connect(f"postgres://app:hunter2@127.0.0.1:{free_port()}/app")
    before = monotonic()
    with pytest.raises(StoreUnavailable) as away:
        await connections.run("SELECT 1")
    assert monotonic() - before < 2
    assert "hunter2" not in str(away.value)
    await connections.close()


async def test_a_server_that_falls_silent_is_an_outage_in_time(db: Database, proxy: Callable[[str], Proxy]):
    """A dead link gives no error: the statement, a cancel and a new connection would all wait for ever."""
    link = proxy(db.url)
    connections = connect(link.url)
    assert await connections.run("SELECT 1") == [(1,)]
    for ways in (("down",), ("up",), ("up", "down")):
        link.swallow(*ways)
        for _ in range(2):  # the connection there was, and a new one
            before = monotonic()
            with pytest.raises(StoreUnavailable):
                await connections.run("SELECT 1")
            assert monotonic() - before < TIMEOUT_S + 1.5
        link.heal()
        assert await connections.run("SELECT 2") == [(2,)]
    await connections.close()


async def test_a_statement_beyond_its_time_is_an_outage_and_blocks_nobody(connections: Connections):
    before = monotonic()
    with pytest.raises(StoreUnavailable):
        await connections.run("SELECT pg_sleep(30)")
    assert monotonic() - before < TIMEOUT_S + 1
    assert await connections.run("SELECT 1") == [(1,)]


def test_an_address_that_cannot_be_read_stops_the_start():
    with pytest.raises(StartError) as wrong:
        connect("postgres://app:hunter2@127.0.0.1:1/app?nonsense=1")
    assert "POSTGRES_URL" in str(wrong.value)
    assert "hunter2" not in str(wrong.value)


async def test_a_cut_link_fails_every_waiting_caller_and_no_later_one(
    db: Database, proxy: Callable[[str], Proxy]
):
    link = proxy(db.url)
    connections = connect(link.url)
    waiting = [asyncio.create_task(connections.run("SELECT pg_sleep(0.3)")) for _ in range(4)]
    await eventually(lambda: link.links == 4)
    link.reset()
    outcomes: list[Any] = await asyncio.gather(*waiting, return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [StoreUnavailable] * 4
    assert await connections.run("SELECT 1") == [(1,)]
    await connections.close()
