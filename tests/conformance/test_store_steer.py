"""cancel, redrive and purge: what people may do to a task, each as one guarded statement."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from urllib.parse import quote, urlencode

import pytest
from fix_store import TOKEN, WORKER, Database, open_store

from scheduler.model import new_id
from scheduler.store import Filter, Store

ALL = Filter()


@pytest.mark.parametrize("status", ["queued", "retrying", "running"])
async def test_an_open_task_is_cancelled(store: Store, db: Database, status: str):
    id_ = db.put(status)
    before = db.task(id_)
    task, cancelled = await store.cancel(id_)
    assert cancelled
    assert task == await store.task(id_)
    row = db.task(id_)
    assert (row["status"], row["attempts"]) == ("cancelled", before["attempts"])
    assert row["finished_at"] is not None
    assert [row[name] for name in ("worker", "lease_token", "lease_expires_at", "dead_at")] == [None] * 4


async def test_a_cancelled_attempt_leaves_a_run(store: Store, db: Database):
    id_ = db.put("running", attempts=3)
    await store.cancel(id_)
    (run,) = db.runs(id_)
    assert (run["attempt"], run["outcome"], run["worker"], run["lease_token"]) == (
        3,
        "cancelled",
        WORKER,
        TOKEN,
    )
    assert run["started_at"] is None


@pytest.mark.parametrize("status", ["queued", "retrying"])
async def test_a_task_that_did_not_run_leaves_no_run(store: Store, db: Database, status: str):
    id_ = db.put(status)
    await store.cancel(id_)
    assert db.runs(id_) == []


@pytest.mark.parametrize("status", ["succeeded", "dead", "cancelled"])
async def test_a_task_that_has_ended_cannot_be_cancelled(store: Store, db: Database, status: str):
    id_ = db.put(status)
    before = db.row("SELECT *, xmin FROM tasks")
    task, cancelled = await store.cancel(id_)
    assert (task.status, cancelled) == (status, False)
    assert db.row("SELECT *, xmin FROM tasks") == before


async def test_an_unknown_task_cannot_be_cancelled(store: Store):
    assert await store.cancel(new_id()) == (None, False)


async def test_cancelling_twice_cancels_once(store: Store, db: Database):
    id_ = db.put("running")
    answers = await asyncio.gather(store.cancel(id_), store.cancel(id_))
    assert sorted(cancelled for _, cancelled in answers) == [False, True]
    assert len(db.runs(id_)) == 1


async def test_a_cancel_that_had_to_wait_ends_the_attempt_that_began_meanwhile(store: Store, db: Database):
    id_ = db.put("queued")
    with db.transaction() as other:
        other.rows(
            "UPDATE tasks SET status = 'running', attempts = 1, worker = 'other', lease_token = 'other',"
            " claimed_at = now(), lease_expires_at = now() + interval '9 s' WHERE id = %s",
            id_,
        )
        waiting = asyncio.create_task(store.cancel(id_))
        await db.blocked()
    _, cancelled = await waiting
    assert cancelled
    (run,) = db.runs(id_)
    assert (run["attempt"], run["outcome"], run["worker"]) == (1, "cancelled", "other")


async def test_a_redriven_task_begins_a_new_life(store: Store, db: Database):
    id_ = db.put(
        "dead",
        attempts=12,
        failures=4,
        losses=3,
        refusals=5,
        suspect=True,
        redrives=1,
        queue="mail",
        priority="low",
    )
    assert await store.redrive(ALL, page=10) == [(id_, "mail", "low")]
    row = db.task(id_)
    assert (row["status"], row["attempts"], row["redrives"]) == ("queued", 12, 2)
    assert [row[name] for name in ("failures", "losses", "refusals", "suspect")] == [0, 0, 0, False]
    assert [row[name] for name in ("finished_at", "dead_at", "dead_reason")] == [None] * 3
    assert row["redriven_at"] == row["due_at"]
    assert -5000 < row["due_in_ms"] <= 0
    (lease,), _ = await store.claim([id_], token="t", worker="w", vis_ms=1000)
    assert (lease.attempt, lease.failures, lease.losses) == (13, 0, 0)


async def test_a_purged_task_stays_dead_as_history(store: Store, db: Database):
    id_ = db.put("dead", queue="mail", priority="low")
    before = db.task(id_)
    assert await store.purge(ALL, page=10) == [(id_, "mail", "low")]
    row = db.task(id_)
    assert (row["status"], row["dead_at"], row["dead_reason"]) == ("dead", None, "failed")
    assert row["finished_at"] == before["finished_at"]
    assert await store.purge(ALL, page=10) == await store.redrive(ALL, page=10) == []


@pytest.mark.parametrize("what", ["redrive", "purge"])
@pytest.mark.parametrize("status", ["queued", "running", "retrying", "succeeded", "cancelled"])
async def test_what_is_no_dead_letter_is_left_alone(store: Store, db: Database, what: str, status: str):
    id_ = db.put(status)
    before = db.row("SELECT *, xmin FROM tasks")
    assert await getattr(store, what)(Filter(ids=[id_]), page=10) == []
    assert db.row("SELECT *, xmin FROM tasks") == before


@pytest.mark.parametrize("what", ["redrive", "purge"])
@pytest.mark.parametrize(
    ("which", "expected"),
    [
        (Filter(), "abcd"),
        (Filter(type="one"), "ac"),
        (Filter(queue="mail"), "ab"),
        (Filter(priority="low"), "ad"),
        (Filter(reason="lost"), "bd"),
        (Filter(type="one", queue="mail"), "a"),
        (Filter(type="one", reason="lost"), ""),
        (Filter(type="'; DROP TABLE tasks; --"), ""),
        (Filter(ids=[]), ""),
    ],
)
async def test_every_filter_must_fit(store: Store, db: Database, what: str, which: Filter, expected: str):
    ids = {
        "a": db.put("dead", type="one", queue="mail", priority="low"),
        "b": db.put("dead", type="two", queue="mail", dead_reason="lost"),
        "c": db.put("dead", type="one"),
        "d": db.put("dead", type="two", priority="low", dead_reason="lost"),
    }
    done = await getattr(store, what)(which, page=10)
    assert sorted(id_ for id_, _, _ in done) == [ids[name] for name in expected]


async def test_named_ids_must_fit_the_other_filters_as_well(store: Store, db: Database):
    one, two, other = db.put("dead", type="one"), db.put("dead", type="two"), db.put("dead", type="one")
    which = Filter(ids=[one, two, new_id()], type="one")
    assert [id_ for id_, _, _ in await store.redrive(which, page=10)] == [one]
    assert [db.task(id_)["status"] for id_ in (one, two, other)] == ["queued", "dead", "dead"]


async def test_dead_letters_come_in_pages_oldest_first(store: Store, db: Database):
    ids = [db.put("dead") for _ in range(5)]
    pages = [[id_ for id_, _, _ in await store.redrive(ALL, page=2)] for _ in range(4)]
    assert pages == [ids[:2], ids[2:4], ids[4:], []]


@pytest.mark.parametrize("what", ["redrive", "purge"])
async def test_a_page_ends_however_postgres_joins(db: Database, what: str):
    """A nested loop runs its inner side again and again."""
    for _ in range(5):
        db.put("dead")
    off = " ".join(f"-c enable_{how}=off" for how in ("hashjoin", "mergejoin", "hashagg", "sort", "material"))
    options = urlencode({"options": off}, quote_via=quote)
    async with open_store(db.url + ("&" if "?" in db.url else "?") + options) as store:
        pages = [len(await getattr(store, what)(ALL, page=2)) for _ in range(4)]
    assert pages == [2, 2, 1, 0]


async def test_of_two_redrives_at_once_each_task_falls_to_one(store: Store, db: Database):
    ids = [db.put("dead") for _ in range(40)]
    async with open_store(db.url) as other:
        answers = await asyncio.gather(*(s.redrive(ALL, page=100) for s in (store, other)))
        answers += [await store.redrive(ALL, page=100)]
    assert sorted(id_ for answer in answers for id_, _, _ in answer) == ids
    assert db.value("SELECT max(redrives) FROM tasks") == 1


async def test_a_task_that_dies_again_keeps_its_whole_history(store: Store, db: Database):
    db.worker()
    id_ = db.put()
    for life in (1, 2):
        await store.claim([id_], token=f"t{life}", worker=WORKER, vis_ms=1000)
        db.age(id_, 2000)
        await store.reap([id_], max_losses=0)
        assert db.task(id_)["status"] == "dead"
        await store.redrive(ALL, page=1)
    assert [(run["attempt"], run["outcome"]) for run in db.runs(id_)] == [(1, "lost"), (2, "lost")]
    assert db.task(id_)["redrives"] == 2


async def test_a_redrive_is_due_now_even_if_the_task_was_delayed(store: Store, db: Database):
    id_ = db.put("dead", due_ms=3_600_000)
    await store.redrive(ALL, page=1)
    assert db.value("SELECT due_at - now() FROM tasks WHERE id = %s", id_) <= timedelta(0)
