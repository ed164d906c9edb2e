"""claim and renew: an id becomes a running attempt once, and a refused one is told where it belongs."""

from __future__ import annotations

import asyncio
import json

import pytest
from fix_store import TOKEN, VIS_MS, WORKER, Database, lease_of, open_store

from scheduler.model import Refusal, new_id
from scheduler.store import Store

FORGED = ["", "null", "a,b", "{}", "'; DROP TABLE tasks; --", '"', "\\", "\udcff\udcfe", "x" * 1000]
"""What somebody else may have put into Redis: no ids of ours."""


async def claim(store: Store, *ids: str, token: str = "mine", worker: str = "me"):
    return await store.claim(ids, token=token, worker=worker, vis_ms=VIS_MS)


@pytest.mark.parametrize("status", ["queued", "retrying"])
async def test_a_task_that_is_due_becomes_a_running_attempt(store: Store, db: Database, status: str):
    id_ = db.put(status, due_ms=-2500, priority="low", payload='{"a": [1, null]}', backoff='{"base_ms": 5}')
    before = db.task(id_)
    (lease,), refusals = await claim(store, id_)
    assert refusals == []
    row = db.task(id_)
    assert (row["status"], row["attempts"]) == ("running", before["attempts"] + 1)
    assert (row["worker"], row["lease_token"]) == ("me", "mine")
    assert VIS_MS - 5000 < row["lease_ms"] <= VIS_MS
    assert row["claimed_at"] > before["due_at"] == row["due_at"]
    assert (row["failures"], row["losses"]) == (before["failures"], before["losses"])
    assert (lease.id, lease.attempt, lease.token) == (id_, row["attempts"], "mine")
    assert (lease.priority, lease.payload, lease.backoff) == ("low", {"a": [1, None]}, {"base_ms": 5})
    assert 2.5 <= lease.waited_s < 30


async def test_a_lease_carries_what_its_verdict_needs(store: Store, db: Database):
    counts = {"failures": 2, "losses": 1, "refusals": 4, "max_retries": 9, "timeout_ms": 77}
    id_ = db.put("queued", attempts=8, suspect=True, queue="mail", type="t", **counts)
    (lease,), _ = await claim(store, id_)
    assert {name: getattr(lease, name) for name in counts} == counts
    assert (lease.attempt, lease.suspect, lease.queue, lease.type) == (9, True, "mail", "t")


@pytest.mark.parametrize(
    ("status", "columns", "expected"),
    [
        ("queued", {"due_ms": 5000}, ("not_due", "retry")),
        ("retrying", {"due_ms": 5000}, ("not_due", "retry")),
        ("running", {"lease_ms": 5000}, ("running", "held")),
        ("running", {"lease_ms": -5000}, ("running", "held")),
        ("succeeded", {}, ("terminal", "gone")),
        ("cancelled", {}, ("terminal", "gone")),
        ("dead", {}, ("dead", "dead")),
        ("dead", {"dead_at": None}, ("terminal", "gone")),
    ],
    ids=["delayed", "retrying", "running", "lapsed", "succeeded", "cancelled", "dead", "purged"],
)
async def test_a_refused_id_goes_where_its_row_says(
    store: Store, db: Database, status: str, columns: dict, expected: tuple[str, str]
):
    id_ = db.put(status, priority="high", **columns)
    before = db.row("SELECT *, xmin FROM tasks")
    leases, (refusal,) = await claim(store, id_)
    assert leases == []
    assert (refusal.id, refusal.reason, refusal.where, refusal.priority) == (id_, *expected, "high")
    assert refusal.token == (TOKEN if status == "running" else "")
    wait = columns.get("due_ms", 0) or columns.get("lease_ms", 0)
    assert wait - 4000 < refusal.delay_ms <= wait
    assert db.row("SELECT *, xmin FROM tasks") == before


async def test_an_unknown_id_is_gone(store: Store):
    id_ = new_id()
    assert await claim(store, id_) == ([], [Refusal(id_, "unknown", "gone", "default")])


@pytest.mark.parametrize("forged", FORGED)
async def test_a_forged_id_is_gone_and_does_its_neighbours_no_harm(store: Store, db: Database, forged: str):
    first, last = db.put(), db.put()
    leases, refusals = await claim(store, first, forged, last)
    assert [lease.id for lease in leases] == [first, last]
    assert refusals == [Refusal(forged, "unknown", "gone", "default")]


async def test_an_id_in_another_spelling_is_not_the_id(store: Store, db: Database):
    """Postgres would read it as the same id; Redis knows it as another one."""
    id_ = db.put()
    leases, refusals = await claim(store, id_.upper(), id_.replace("-", ""), f"{{{id_}}}")
    assert leases == []
    assert [(r.reason, r.where) for r in refusals] == [("unknown", "gone")] * 3
    assert db.task(id_)["status"] == "queued"


async def test_a_task_that_became_claimable_meanwhile_is_left_to_the_reaper(store: Store, db: Database):
    """The second look sees it due, which the claim did not: to put it anywhere now would start a race."""
    id_ = db.put("queued")
    assert await store._refusals([id_]) == [Refusal(id_, "undecided", None, "default")]


async def test_claiming_again_with_the_same_token_returns_the_same_and_starts_nothing(
    store: Store, db: Database
):
    ids = [db.put() for _ in range(3)]
    first, _ = await claim(store, *ids)
    before = db.rows("SELECT *, xmin FROM tasks ORDER BY id")
    again, refusals = await claim(store, *ids)
    assert refusals == []
    assert [(lease.id, lease.attempt, lease.token) for lease in again] == [
        (lease.id, 1, "mine") for lease in first
    ]
    assert db.rows("SELECT *, xmin FROM tasks ORDER BY id") == before


async def test_claiming_again_takes_what_the_first_time_could_not(store: Store, db: Database):
    old, new = db.put(), db.put(due_ms=60_000)
    await claim(store, old, new)
    db.age(new, 70_000)
    leases, refusals = await claim(store, old, new)
    assert [(lease.id, lease.attempt) for lease in leases] == [(old, 1), (new, 1)]
    assert refusals == []


async def test_what_a_token_was_granted_can_be_asked_for(store: Store, db: Database):
    """Without its claim being sent again: only what runs under the token, and nothing is changed."""
    mine, theirs, queued = (db.put() for _ in range(3))
    ended = db.put("succeeded")
    await claim(store, mine, ended)
    await claim(store, theirs, token="theirs")
    before = db.rows("SELECT *, xmin FROM tasks ORDER BY id")
    granted = await store.reclaim([mine, ended, theirs, queued, new_id(), *FORGED], token="mine")
    assert [(lease.id, lease.attempt, lease.token) for lease in granted] == [(mine, 1, "mine")]
    assert db.rows("SELECT *, xmin FROM tasks ORDER BY id") == before
    assert await store.reclaim([], token="mine") == []


async def test_a_claim_of_an_earlier_attempt_does_not_return(store: Store, db: Database):
    """The lease was lost and the task is another worker's now: the same ids, but another token."""
    id_ = db.put()
    await claim(store, id_, token="earlier")
    db.age(id_, 2 * VIS_MS)
    await store.reap([id_], max_losses=3)
    await claim(store, id_, token="later")
    leases, (refusal,) = await claim(store, id_, token="earlier")
    assert (leases, refusal.where, refusal.token) == ([], "held", "later")


async def test_the_order_of_the_fair_choice_is_kept(store: Store, db: Database):
    ids = [db.put() for _ in range(5)]
    shuffled = [ids[i] for i in (3, 0, 4, 1, 2)]
    leases, _ = await claim(store, *shuffled)
    assert [lease.id for lease in leases] == shuffled


async def test_of_two_claims_at_once_each_task_falls_to_one(store: Store, db: Database):
    """Both name all ids, each in an order of its own: no deadlock, and nothing starts twice."""
    ids = [db.put() for _ in range(50)]
    async with open_store(db.url) as other:
        answers = await asyncio.gather(
            *(
                claim(s, *order, token=token)
                for s, order, token in [(store, ids, "a"), (other, ids[::-1], "b")]
            )
        )
    claimed = [{lease.id for lease in leases} for leases, _ in answers]
    assert claimed[0] | claimed[1] == set(ids)
    assert claimed[0] & claimed[1] == set()
    for (_, refusals), theirs, token in zip(answers, reversed(claimed), "ba", strict=True):
        assert {r.id for r in refusals} == theirs
        assert {(r.where, r.token) for r in refusals} <= {("held", token)}
    assert db.value("SELECT max(attempts) FROM tasks") == 1


async def test_a_claim_that_had_to_wait_sees_what_it_waited_for(store: Store, db: Database):
    cancelled, claimed, free = (db.put() for _ in range(3))
    with db.transaction() as other:
        other.change(cancelled, status="cancelled", finished_at=other.value("SELECT now()"))
        other.rows(
            "UPDATE tasks SET status = 'running', attempts = 1, worker = 'other', lease_token = 'other',"
            " claimed_at = now(), lease_expires_at = now() + interval '9 s' WHERE id = %s",
            claimed,
        )
        waiting = asyncio.create_task(claim(store, cancelled, claimed, free))
        await db.blocked()
    (lease,), refusals = await waiting
    assert lease.id == free
    assert [(r.id, r.where, r.token) for r in refusals] == [
        (cancelled, "gone", ""),
        (claimed, "held", "other"),
    ]
    assert db.task(claimed)["attempts"] == 1


async def test_a_renewed_lease_lasts_from_now_on(store: Store, db: Database):
    held, lapsed = db.put("running", lease_ms=100), db.put("running", lease_ms=-100)
    assert await store.renew([lease_of(lapsed), lease_of(held)], vis_ms=VIS_MS) == {held, lapsed}
    for id_ in (held, lapsed):
        assert VIS_MS - 5000 < db.task(id_)["lease_ms"] <= VIS_MS
        assert db.task(id_)["attempts"] == 1


@pytest.mark.parametrize("status", ["queued", "retrying", "succeeded", "dead", "cancelled"])
async def test_what_does_not_run_is_not_renewed(store: Store, db: Database, status: str):
    id_ = db.put(status, attempts=1)
    assert await store.renew([lease_of(id_)], vis_ms=VIS_MS) == set()
    assert db.task(id_)["lease_expires_at"] is None


@pytest.mark.parametrize("attempt", [1, 3])
async def test_another_attempt_is_not_renewed(store: Store, db: Database, attempt: int):
    """A zombie must not extend the lease of whoever took over."""
    id_ = db.put("running", attempts=2, lease_ms=5000)
    assert await store.renew([lease_of(id_, attempt)], vis_ms=VIS_MS) == set()
    assert db.task(id_)["lease_ms"] <= 5000


async def test_a_renewal_names_those_that_are_still_held(store: Store, db: Database):
    ids = [db.put("running") for _ in range(20)]
    for id_ in ids[::2]:
        db.change(id_, attempts=2)
    assert await store.renew([lease_of(id_) for id_ in reversed(ids)], vis_ms=VIS_MS) == set(ids[1::2])
    assert db.task(ids[0])["worker"] == WORKER


# --- large payloads ---


@pytest.mark.parametrize("text", ["x", "q7Zt"], ids=["compressed", "two kilobytes in the row"])
async def test_a_payload_that_is_too_large_does_not_come_with_its_lease(
    store: Store, db: Database, text: str
):
    """What it holds counts, not what it takes in the table: one letter again and again takes a hundredth."""
    payload = json.dumps({"text": text * 10_000 if text == "x" else text * 400})
    large, small = db.put("queued", payload=payload), db.put("queued", payload='{"a": 1}')
    leases, refusals = await store.claim([large, small], token="t", worker="w", vis_ms=VIS_MS, most=1500)
    assert refusals == []
    assert [(lease.id, lease.payload) for lease in leases] == [(large, None), (small, {"a": 1})]
    assert db.task(large)["status"] == "running"
    again = await store.reclaim([large, small], token="t", most=1500)
    assert {lease.id: lease.payload for lease in again} == {large: None, small: {"a": 1}}
    assert [lease.payload for lease in await store.reclaim([large], token="t", most=len(payload) + 10)] == [
        json.loads(payload)
    ]


async def test_without_a_bound_every_payload_comes(store: Store, db: Database):
    payload = json.dumps({"text": "x" * 200_000})
    (lease,), _ = await claim(store, db.put("queued", payload=payload))
    assert lease.payload == json.loads(payload)


async def test_an_id_that_is_there_twice_is_claimed_once(store: Store, db: Database):
    """Twice in Redis, by damage or by hand: its handler must not run twice at once."""
    id_, other = db.put(), db.put()
    leases, refusals = await store.claim([id_, other, id_], token="t", worker=WORKER, vis_ms=VIS_MS)
    assert [lease.id for lease in leases] == [id_, other]
    assert refusals == []
