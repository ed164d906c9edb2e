"""Days of history, retention, keys, leaders, the registry: what housekeeping and the fleet ask for."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta

import pytest
from fix_store import Database, new_task, open_store

from scheduler.model import new_id
from scheduler.store import FIRST_ID, Store, WorkerIdentity

DAY_MS = 86_400_000
RUN = "INSERT INTO task_runs VALUES (%s, 1, 'succeeded', NULL, NULL, now(), NULL, now())"


def today(db: Database) -> date:
    return db.value("SELECT (now() AT TIME ZONE 'UTC')::date")


def day_name(day: date) -> str:
    return f"task_runs_{day:%Y%m%d}"


def days(db: Database) -> set[str]:
    """The partitions of the history that are a day's."""
    rows = db.rows(
        "SELECT inhrelid::regclass::text AS name FROM pg_inherits WHERE inhparent = 'task_runs'::regclass"
    )
    return {row["name"] for row in rows} - {"task_runs_default"}


def id_of(db: Database, day: date, hour: int = 12) -> str:
    return db.value("SELECT uuid_at(%s)::text", datetime(day.year, day.month, day.day, hour, tzinfo=UTC))


@pytest.fixture
def own(any_postgres_url: str) -> Iterator[Database]:
    """A database of the test's own, for tests that make and drop tables, with the days of today."""
    database = Database(any_postgres_url)
    database.rows("SELECT make_run_partitions(7)")  # midnight may have passed since it was migrated
    yield database
    database.close()


async def test_days_are_made_ahead_and_once(own: Database):
    async with open_store(own.url) as store:
        assert await store.make_partitions(7) == 0
        assert await store.make_partitions(9) == 2
        assert await store.make_partitions(9) == 0
    first = today(own) - timedelta(days=1)
    assert days(own) - {day_name(first - timedelta(days=1))} == {
        day_name(first + timedelta(days=i)) for i in range(11)
    }


async def test_days_made_by_many_at_once_are_made_once(own: Database):
    async with open_store(own.url) as store:
        made = await asyncio.gather(*(store.make_partitions(20) for _ in range(4)))
    assert sum(made) == 13


async def test_a_run_lies_in_the_day_of_its_task(own: Database):
    for offset in (-1, 0, 7):
        day = today(own) + timedelta(days=offset)
        for hour in (0, 23):
            id_ = id_of(own, day, hour)
            own.rows(RUN, id_)
            assert own.value(
                "SELECT tableoid::regclass::text FROM task_runs WHERE task_id = %s", id_
            ) == day_name(day)


async def test_a_day_whose_rows_went_to_the_default_is_left_there(own: Database):
    """To make it now would be refused; the next days are made all the same."""
    day = today(own) + timedelta(days=8)
    own.rows(RUN, id_of(own, day))
    async with open_store(own.url) as store:
        assert await store.make_partitions(9) == 1
    assert day_name(day) not in days(own)
    assert day_name(day + timedelta(days=1)) in days(own)


def make_day(db: Database, day: date) -> None:
    db.rows(
        f"CREATE TABLE {day_name(day)} PARTITION OF task_runs"
        f" FOR VALUES FROM ('{id_of(db, day, 0)}') TO ('{id_of(db, day + timedelta(days=1), 0)}')"
    )


async def test_a_day_is_dropped_when_none_of_its_tasks_is_left(own: Database):
    old = today(own) - timedelta(days=30)
    kept, dropped = old, old + timedelta(days=1)
    for day in (kept, dropped):
        make_day(own, day)
        own.rows(RUN, id_of(own, day))
    task = own.put("succeeded", id=id_of(own, kept, 23))
    before = days(own)
    async with open_store(own.url) as store:
        assert await store.drop_old_partitions(keep_ms=7 * DAY_MS) == [day_name(dropped)]
        assert days(own) == before - {day_name(dropped)}
        own.rows("DELETE FROM tasks WHERE id = %s", task)
        assert await store.drop_old_partitions(keep_ms=7 * DAY_MS) == [day_name(kept)]
        assert await store.drop_old_partitions(keep_ms=7 * DAY_MS) == []


async def test_a_day_within_the_retention_is_kept(own: Database):
    day = today(own) - timedelta(days=5)
    make_day(own, day)
    async with open_store(own.url) as store:
        assert await store.drop_old_partitions(keep_ms=7 * DAY_MS) == []
        assert await store.drop_old_partitions(keep_ms=3 * DAY_MS) == [day_name(day)]


async def test_two_that_drop_at_once_do_not_fail(own: Database):
    for offset in range(20, 30):
        make_day(own, today(own) - timedelta(days=offset))
    async with open_store(own.url) as store:
        await asyncio.gather(*(store.drop_old_partitions(keep_ms=7 * DAY_MS) for _ in range(4)))
        assert await store.drop_old_partitions(keep_ms=7 * DAY_MS) == []


def put_key(db: Database, key: str, task_id: str, *, expires_ms: int) -> None:
    db.rows(
        "INSERT INTO idempotency_keys VALUES ('default', %s, 'f', %s, now() + %s * interval '1 ms')",
        key,
        task_id,
        expires_ms,
    )


@pytest.mark.parametrize(
    ("status", "expires_ms", "forgotten"),
    [
        ("succeeded", -1000, True),
        ("cancelled", -1000, True),
        ("dead", -1000, True),
        ("succeeded", 60_000, False),
        ("queued", -1000, False),
        ("running", -1000, False),
        ("retrying", -1000, False),
    ],
)
async def test_a_key_is_forgotten_after_its_time_and_never_before_its_task_has_ended(
    store: Store, db: Database, status: str, expires_ms: int, forgotten: bool
):
    put_key(db, "a", db.put(status), expires_ms=expires_ms)
    assert await store.expire_keys(page=10) == forgotten
    assert db.count("idempotency_keys") == (not forgotten)


async def test_a_key_whose_task_was_pruned_is_forgotten(store: Store, db: Database):
    put_key(db, "a", new_id(), expires_ms=-1000)
    assert await store.expire_keys(page=10) == 1


async def test_a_forgotten_key_may_be_used_again(store: Store, db: Database):
    first, second = (new_task(idempotency_key="a", fingerprint="f") for _ in range(2))
    await store.enqueue([first])
    db.rows("UPDATE idempotency_keys SET expires_at = now() - interval '1 s'")
    assert [a.result for a in await store.enqueue([second])] == ["existing"], "its task has not ended"
    await store.cancel(first.id)
    assert await store.expire_keys(page=10) == 1
    assert [a.result for a in await store.enqueue([second])] == ["created"]


async def test_keys_are_forgotten_in_pages_and_open_tasks_do_not_stop_them(store: Store, db: Database):
    for n in range(3):
        put_key(db, f"open {n}", db.put("queued"), expires_ms=-9000)
    for n in range(5):
        put_key(db, f"ended {n}", db.put("succeeded"), expires_ms=-1000)
    assert [await store.expire_keys(page=2) for _ in range(4)] == [2, 2, 1, 0]
    assert db.count("idempotency_keys") == 3


def put_old(
    db: Database, status: str, *, days_old: int = 10, finished_days: int | None = None, **columns
) -> str:
    """A task made `days_old` days ago that, if it has ended, ended as long ago unless said otherwise."""
    now = db.value("SELECT now()")
    id_ = db.value("SELECT uuid_at(now() - %s * interval '1 day')::text", days_old)
    id_ = id_[:-12] + new_id()[-12:]
    if status in {"succeeded", "dead", "cancelled"}:
        ended = days_old if finished_days is None else finished_days
        columns = {"finished_at": now - timedelta(days=ended)} | columns
    return db.put(status, id=id_, **columns)


async def prune(store: Store, *, page: int = 100) -> int:
    after: str | None = FIRST_ID
    total = 0
    while after is not None:
        after, pruned = await store.prune_tasks(after, keep_ms=7 * DAY_MS, page=page)
        total += pruned
    return total


@pytest.mark.parametrize("status", ["succeeded", "cancelled", "dead"])
async def test_what_ended_before_the_retention_is_pruned(store: Store, db: Database, status: str):
    columns = {"dead_at": None} if status == "dead" else {}
    old, young = put_old(db, status, **columns), put_old(db, status, days_old=6, **columns)
    assert await prune(store) == 1
    assert await store.task(old) is None
    assert await store.task(young) is not None


@pytest.mark.parametrize("status", ["queued", "running", "retrying"])
async def test_what_has_not_ended_is_never_pruned(store: Store, db: Database, status: str):
    put_old(db, status, days_old=400)
    assert await prune(store) == 0


async def test_a_dead_letter_is_never_pruned(store: Store, db: Database):
    put_old(db, "dead", days_old=400)
    assert await prune(store) == 0


async def test_an_old_task_that_ended_lately_is_kept(store: Store, db: Database):
    put_old(db, "succeeded", days_old=400, finished_days=6)
    assert await prune(store) == 0


async def test_a_task_that_a_key_still_answers_with_is_kept(store: Store, db: Database):
    id_ = put_old(db, "succeeded", idempotency_key="a")
    put_key(db, "a", id_, expires_ms=60_000)
    assert await prune(store) == 0
    db.rows("DELETE FROM idempotency_keys")
    put_key(db, "a", new_id(), expires_ms=60_000)  # the key is another task's by now
    assert await prune(store) == 1


async def test_pruning_goes_on_from_page_to_page(store: Store, db: Database):
    for n in range(7):
        put_old(db, "succeeded" if n % 2 else "queued")
    assert await prune(store, page=2) == 3
    assert db.count("tasks") == 4


async def test_one_leads_until_its_time_is_over(store: Store, db: Database):
    assert await store.lead("work", "a", ttl_ms=60_000)
    assert await store.lead("work", "a", ttl_ms=60_000), "who leads may go on"
    assert not await store.lead("work", "b", ttl_ms=60_000)
    assert await store.lead("other work", "b", ttl_ms=60_000)
    db.rows("UPDATE leaders SET expires_at = now() - interval '1 ms' WHERE name = 'work'")
    assert await store.lead("work", "b", ttl_ms=60_000)
    assert not await store.lead("work", "a", ttl_ms=60_000)


async def test_a_worker_that_leaves_lets_another_lead(store: Store):
    await store.lead("work", "a", ttl_ms=60_000)
    await store.leave("b")
    assert not await store.lead("work", "b", ttl_ms=60_000)
    await store.leave("a")
    assert await store.lead("work", "b", ttl_ms=60_000)


async def test_of_many_that_want_to_lead_one_does(store: Store):
    answers = await asyncio.gather(*(store.lead("work", f"w{n}", ttl_ms=60_000) for n in range(8)))
    assert sum(answers) == 1


async def test_a_worker_signs_in_beats_and_leaves(store: Store, db: Database, identity: WorkerIdentity):
    await store.beat(identity, running=0, polled_ms=None, alive_ms=5000)
    (seen,) = await store.workers()
    assert (seen.id, seen.host, seen.pid, seen.slots, seen.running) == (identity.id, "host", 1, 12, 0)
    assert (seen.queues, seen.types, seen.alive) == (["default", "mail"], ["noop"], True)
    assert await store.last_poll_s() is None
    await store.beat(identity, running=3, polled_ms=1500, alive_ms=-1)
    (later,) = await store.workers()
    assert (later.running, later.alive, later.started_at) == (3, False, seen.started_at)
    assert later.seen_at > seen.seen_at
    assert 1.5 <= await store.last_poll_s() < 30
    await store.leave(identity.id)
    assert await store.workers() == []


async def test_workers_that_are_silent_for_long_are_forgotten(store: Store, db: Database):
    db.worker("new", alive_ms=-1000)
    db.worker("old", alive_ms=-10_000)
    await store.prune_workers(keep_ms=5000)
    assert [w.id for w in await store.workers()] == ["new"]


async def test_history_that_no_day_has_taken_goes_with_its_task(own: Database):
    """Days that were not made in time, and ids of clocks that are days off, end in the default partition."""
    day = today(own) + timedelta(days=30)
    gone, young, kept = (id_of(own, day, hour) for hour in (1, 2, 3))
    for id_ in (gone, young, kept):
        own.rows(RUN, id_)
    own.rows("UPDATE task_runs SET finished_at = now() - interval '8 days' WHERE task_id <> %s", young)
    own.put("dead", id=kept)
    async with open_store(own.url) as store:
        assert await store.prune_runs(keep_ms=7 * DAY_MS, page=10) == 1
        assert await store.prune_runs(keep_ms=7 * DAY_MS, page=10) == 0
    left = own.rows("SELECT task_id::text AS id FROM task_runs_default ORDER BY task_id")
    assert [row["id"] for row in left] == [young, kept]


async def test_history_that_no_day_has_taken_is_deleted_in_pages(own: Database):
    for hour in range(5):
        own.rows(RUN, id_of(own, today(own) + timedelta(days=30), hour))
    own.rows("UPDATE task_runs SET finished_at = now() - interval '8 days'")
    async with open_store(own.url) as store:
        assert [await store.prune_runs(keep_ms=7 * DAY_MS, page=2) for _ in range(4)] == [2, 2, 1, 0]
