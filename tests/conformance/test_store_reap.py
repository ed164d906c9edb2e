"""reap: a lease that has run out is a loss; every other id is told its place and left alone."""

from __future__ import annotations

import asyncio

import pytest
from fix_store import TOKEN, WORKER, Database, lease_of, open_store

from scheduler.lifecycle import most_losses
from scheduler.model import Reaped, new_id
from scheduler.store import Store

MAX_LOSSES = 3


async def reap(store: Store, *ids: str) -> list[Reaped]:
    return await store.reap(ids, max_losses=MAX_LOSSES)


async def test_a_lapsed_lease_is_lost_and_its_task_queued(store: Store, db: Database):
    db.worker()
    id_ = db.put("running", lease_ms=-5, attempts=4, failures=2, priority="low", type="t")
    claimed_at = db.task(id_)["claimed_at"]
    assert await reap(store, id_) == [Reaped(id_, "tail", "low", "t", lost=True, died=False)]
    row, (run,) = db.task(id_), db.runs(id_)
    assert (row["status"], row["attempts"], row["failures"], row["losses"]) == ("queued", 4, 2, 1)
    assert [row[name] for name in ("worker", "lease_token", "lease_expires_at", "finished_at")] == [None] * 4
    assert (run["attempt"], run["outcome"], run["worker"], run["lease_token"]) == (4, "lost", WORKER, TOKEN)
    assert (run["claimed_at"], run["started_at"]) == (claimed_at, None)
    assert run["error"] == row["last_error"]


@pytest.mark.parametrize("lease_ms", [1000, 60_000])
async def test_a_lease_that_runs_is_not_reaped(store: Store, db: Database, lease_ms: int):
    id_ = db.put("running", lease_ms=lease_ms)
    before = db.row("SELECT *, xmin FROM tasks")
    (reaped,) = await reap(store, id_)
    assert (reaped.where, reaped.token, reaped.lost) == ("held", TOKEN, False)
    assert 0 < reaped.delay_ms <= lease_ms
    assert db.row("SELECT *, xmin FROM tasks") == before
    assert db.runs(id_) == []


async def test_a_lease_renewed_since_it_was_read_is_not_reaped(store: Store, db: Database):
    """The reaper waits for the renewal's row lock and then sees what it did. The trace of guard 2."""
    renewed, lapsed = db.put("running", lease_ms=-5), db.put("running", lease_ms=-5)
    with db.transaction() as other:
        other.rows("UPDATE tasks SET lease_expires_at = now() + interval '60 s' WHERE id = %s", renewed)
        waiting = asyncio.create_task(reap(store, renewed, lapsed))
        await db.blocked()
    first, second = await waiting
    assert (first.where, first.lost, second.where, second.lost) == ("held", False, "tail", True)
    assert (db.task(renewed)["status"], db.runs(renewed)) == ("running", [])


async def test_a_lease_taken_over_since_it_was_read_is_not_reaped(store: Store, db: Database):
    """The entry is old, the row runs under another attempt: its lease decides, not the entry's."""
    id_ = db.put("running", attempts=2, lease_token="next", lease_ms=5000)
    (reaped,) = await reap(store, id_)
    assert (reaped.where, reaped.token, db.task(id_)["attempts"]) == ("held", "next", 2)


@pytest.mark.parametrize(
    ("status", "columns", "where"),
    [
        ("queued", {}, "tail"),
        ("queued", {"due_ms": 5000}, "retry"),
        ("retrying", {}, "retry"),
        ("retrying", {"due_ms": 5000}, "retry"),
        ("succeeded", {}, "gone"),
        ("cancelled", {}, "gone"),
        ("dead", {}, "dead"),
        ("dead", {"dead_at": None}, "gone"),
    ],
    ids=["queued", "delayed", "retrying and due", "retrying", "succeeded", "cancelled", "dead", "purged"],
)
async def test_what_is_settled_already_is_only_told_its_place(
    store: Store, db: Database, status: str, columns: dict, where: str
):
    id_ = db.put(status, priority="critical", **columns)
    before = db.row("SELECT *, xmin FROM tasks")
    (reaped,) = await reap(store, id_)
    assert (reaped.id, reaped.where, reaped.priority, reaped.lost) == (id_, where, "critical", False)
    due_ms = columns.get("due_ms", 0)
    assert due_ms - 4000 < reaped.delay_ms <= due_ms
    assert db.row("SELECT *, xmin FROM tasks") == before
    assert db.runs(id_) == []


@pytest.mark.parametrize("id_", ["01920000-0000-7000-8000-000000000000", "no id", "null", "\udcff", "a,b"])
async def test_what_no_row_has_is_gone_and_stops_nobody(store: Store, db: Database, id_: str):
    lapsed = db.put("running", lease_ms=-5)
    gone, lost = await reap(store, id_, lapsed)
    assert (gone.id, gone.where, gone.lost) == (id_, "gone", False)
    assert (lost.where, lost.lost) == ("tail", True)


@pytest.mark.parametrize(
    ("losses", "dies"), [(MAX_LOSSES - 1, False), (MAX_LOSSES, True), (MAX_LOSSES + 5, True)]
)
async def test_losses_beyond_the_budget_kill(store: Store, db: Database, losses: int, dies: bool):
    db.worker()
    id_ = db.put("running", lease_ms=-5, attempts=9, losses=losses, failures=0)
    (reaped,) = await reap(store, id_)
    assert (reaped.where, reaped.died) == (("dead", True) if dies else ("tail", False))
    row = db.task(id_)
    assert row["losses"] == losses + 1
    assert (row["status"], row["dead_reason"]) == (("dead", "lost") if dies else ("queued", None))
    assert (row["finished_at"] is None) == (row["dead_at"] is None) == (not dies)


async def test_failures_do_not_count_against_the_budget_of_losses(store: Store, db: Database):
    db.worker()
    id_ = db.put("running", lease_ms=-5, attempts=10, failures=9, max_retries=9)
    (reaped,) = await reap(store, id_)
    assert (reaped.where, db.task(id_)["failures"], db.task(id_)["losses"]) == ("tail", 9, 1)


@pytest.mark.parametrize(
    ("alive", "suspect", "dies"),
    [
        ("lives", False, True),
        ("lives", True, True),
        ("dead", True, False),
        ("dead", False, False),
        ("gone", True, False),
        ("gone", False, False),
    ],
)
async def test_only_a_loss_in_company_is_forgiven(
    store: Store, db: Database, alive: str, suspect: bool, dies: bool
):
    """The budget is spent. Where the worker died with all that it held, the task may be innocent.

    Also a suspect: it ran in a process of its own, whose death the worker would have told, or waited for one.
    """
    if alive != "gone":
        db.worker(alive_ms=60_000 if alive == "lives" else -1)
    id_ = db.put("running", lease_ms=-5, attempts=9, losses=MAX_LOSSES, suspect=suspect)
    (reaped,) = await reap(store, id_)
    assert reaped.died == dies
    row = db.task(id_)
    assert row["status"] == ("dead" if dies else "queued")
    assert row["suspect"] == (suspect or alive != "lives")


async def test_what_takes_every_worker_with_it_ends_some_day(store: Store, db: Database):
    """And what was in its company each time, with it."""
    most = most_losses(MAX_LOSSES)
    ids = [db.put("running", lease_ms=-5, attempts=99, losses=n, suspect=True) for n in (most - 1, most)]
    assert [r.died for r in await reap(store, *ids)] == [False, True]
    assert [db.task(id_)["dead_reason"] for id_ in ids] == [None, "lost"]


async def test_the_error_says_how_it_was_lost(store: Store, db: Database):
    errors = []
    for alive_ms in (60_000, -1):
        db.worker(alive_ms=alive_ms)
        id_ = db.put("running", lease_ms=-5)
        await reap(store, id_)
        errors.append(db.runs(id_)[0]["error"])
    assert errors == ["the lease ended while the worker lived", "the worker died"]


async def test_of_two_reapers_at_once_one_counts_the_loss(store: Store, db: Database):
    ids = [db.put("running", lease_ms=-5) for _ in range(30)]
    async with open_store(db.url) as other:
        answers = await asyncio.gather(reap(store, *ids), reap(other, *reversed(ids)))
    assert sum(r.lost for answer in answers for r in answer) == len(ids)
    assert all(r.where == "tail" for answer in answers for r in answer)
    assert db.value("SELECT max(losses) FROM tasks") == 1
    assert db.count("task_runs") == len(ids)


async def test_a_renewal_after_the_reaper_comes_too_late(store: Store, db: Database):
    id_ = db.put("running", lease_ms=-5)
    await reap(store, id_)
    assert await store.renew([lease_of(id_)], vis_ms=60_000) == set()
    assert db.task(id_)["status"] == "queued"


async def test_the_answers_are_in_the_order_that_was_asked(store: Store, db: Database):
    ids = [db.put("running", lease_ms=-5), new_id(), db.put("succeeded"), db.put("running", lease_ms=-5)]
    assert [r.id for r in await reap(store, *ids[::-1])] == ids[::-1]
