"""What reconcile, the API and people read: pages by id, each complete and in order."""

from __future__ import annotations

from dataclasses import replace

import pytest
from fix_store import TOKEN, Database, new_task

from scheduler.model import OpenRow, new_id
from scheduler.store import FIRST_ID, Epoch, Store


async def test_open_rows_come_in_pages_by_id(store: Store, db: Database):
    ids = [
        db.put(status)
        for status in ("queued", "succeeded", "running", "dead", "retrying", "cancelled", "queued")
    ]
    pages, after = [], FIRST_ID
    for _ in range(3):
        page = await store.open_page(after, 2)
        pages.append([row.id for row in page])
        after = page[-1].id if page else after
    assert pages == [[ids[0], ids[2]], [ids[4], ids[6]], []]


async def test_an_open_row_says_where_it_belongs(store: Store, db: Database):
    queued = db.put("queued", due_ms=5000, queue="mail", priority="low")
    running = db.put("running", lease_ms=-5000)
    first, second = await store.open_page(FIRST_ID, 10)
    assert (first.id, first.queue, first.priority, first.status, first.token) == (
        queued,
        "mail",
        "low",
        "queued",
        "",
    )
    assert (second.id, second.status, second.token) == (running, "running", TOKEN)
    assert 1000 < first.due_in_ms <= 5000
    assert -9000 < second.lease_ms <= -5000


async def test_only_rows_that_have_not_moved_on_are_unchanged(store: Store, db: Database):
    for status in ("queued", "running", "running", "retrying"):
        db.put(status)
    rows = await store.open_page(FIRST_ID, 10)
    claimed, renewed, taken_over, _ = rows
    await store.claim([claimed.id], token="t", worker="w", vis_ms=1000)
    db.age(renewed.id, 1000)
    db.change(taken_over.id, lease_token="another", attempts=2)
    unknown = replace(rows[0], id=new_id())
    assert await store.unchanged([*rows, unknown]) == [renewed, rows[3]]
    assert await store.unchanged([]) == []


async def test_rows_that_somebody_has_locked_are_found_without_waiting(store: Store, db: Database):
    """Whoever only reads, or refers to them by a foreign key, keeps nobody from changing them."""
    ids = [db.put("queued") for _ in range(4)]
    assert await store.locked([*ids, new_id(), "no id"]) == set()
    with db.transaction() as operator, db.transaction() as reader:
        operator.rows("SELECT FROM tasks WHERE id = ANY (%s::uuid[]) FOR UPDATE", ids[1:3])
        reader.rows("SELECT FROM tasks WHERE id = %s FOR KEY SHARE", ids[0])
        assert await store.locked([*ids, new_id()]) == set(ids[1:3])
        assert await store.locked(ids[3:]) == set()
    assert await store.locked(ids) == set()


async def test_dead_letters_come_in_pages_with_their_age(store: Store, db: Database):
    ids = [db.put("dead", queue="mail", priority="low") for _ in range(3)]
    db.put("dead", dead_at=None)
    db.age(ids[0], 5000)
    (first, second), (third,) = await store.dead_page(FIRST_ID, 2), await store.dead_page(ids[1], 2)
    assert [first[:3], second[:3], third[:3]] == [(id_, "mail", "low") for id_ in ids]
    assert 5000 <= first[3] < 30_000
    assert 0 <= second[3] < 25_000


@pytest.mark.parametrize("forged", ["", "null", "a,b", "\udcff"])
async def test_what_is_still_dead_is_told_from_what_is_not(store: Store, db: Database, forged: str):
    dead, purged, queued = db.put("dead"), db.put("dead", dead_at=None), db.put()
    assert await store.still_dead([dead, purged, queued, new_id(), forged]) == {dead}


async def test_a_recent_id_lies_between_older_and_newer_ones(store: Store, db: Database):
    old = db.put(id=db.value("SELECT uuid_at(now() - interval '3 s')::text"))
    recent = await store.recent_id(2000)
    assert old < recent < new_id()


async def test_an_epoch_never_goes_back(store: Store):
    await store.enqueue([new_task(queue="mail")])
    assert await store.epochs() == [Epoch("mail", 0, "")]
    await store.set_epoch("mail", 5, "run a")
    await store.set_epoch("mail", 3, "run b")
    assert await store.epochs() == [Epoch("mail", 5, "run b")]


async def test_tasks_are_listed_newest_first_by_every_filter(store: Store, db: Database):
    a = db.put("queued", type="one", queue="mail", priority="low")
    b = db.put("running", type="one")
    c = db.put("dead", type="two", priority="low")
    d = db.put("dead", type="two", dead_at=None)
    e = db.put("succeeded", queue="mail")

    async def listed(**filters: object) -> list[str]:
        return [task.id for task in await store.tasks(**filters)]

    assert await listed() == [e, d, c, b, a]
    assert await listed(limit=2) == [e, d]
    assert await listed(before=d, limit=2) == [c, b]
    assert await listed(status="running") == [b]
    assert await listed(status="dead") == [d, c]
    assert await listed(dead=True) == [c]
    assert await listed(type="one") == [b, a]
    assert await listed(queue="mail") == [e, a]
    assert await listed(priority="low") == [c, a]
    assert await listed(type="one", queue="mail", status="queued") == [a]
    assert await listed(type="'; DROP TABLE tasks; --") == []


async def test_an_unknown_task_has_no_row_and_no_runs(store: Store):
    id_ = new_id()
    assert await store.task(id_) is None
    assert await store.runs(id_) == []
    assert (await store.open_page(FIRST_ID, 10), await store.queues()) == ([], [])


def test_an_open_row_is_a_value():
    row = OpenRow(FIRST_ID, "default", "low", "queued", 0, 0, "")
    assert row == replace(row)
