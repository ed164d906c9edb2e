"""settle: one outcome an attempt, by whoever still holds it; any other is noted and changes nothing."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any

import pytest
from fix_store import TOKEN, WORKER, Database, lease_of

from scheduler.errors import InputRefused
from scheduler.model import Settlement
from scheduler.store import Store

SUCCESS: dict[str, Any] = {"outcome": "succeeded", "status": "succeeded"}
FAILURE: dict[str, Any] = {"outcome": "failed", "status": "retrying", "delay_ms": 5000, "error": "why"}
RELEASE: dict[str, Any] = {"outcome": "released", "status": "queued"}

CASES: dict[str, tuple[dict[str, Any], dict[str, int]]] = {
    "succeeded": (SUCCESS, {}),
    "failed": (FAILURE, {"failures": 1}),
    "retried at once": (FAILURE | {"delay_ms": 0}, {"failures": 1}),
    "failed for good": (
        {"outcome": "failed", "status": "dead", "reason": "failed", "error": "why"},
        {"failures": 1},
    ),
    "timed out": (FAILURE | {"outcome": "timed_out"}, {"failures": 1}),
    "timed out for good": (
        {"outcome": "timed_out", "status": "dead", "reason": "timed_out"},
        {"failures": 1},
    ),
    "rejected": ({"outcome": "failed", "status": "dead", "reason": "rejected"}, {"failures": 1}),
    "released": (RELEASE, {}),
    "unknown type": (RELEASE | {"delay_ms": 5000, "refused": True}, {"refusals": 1}),
    "unknown type for good": (
        {"outcome": "released", "status": "dead", "reason": "unknown_type", "refused": True},
        {"refusals": 1},
    ),
    "died alone": ({"outcome": "lost", "status": "queued", "error": "why"}, {"losses": 1}),
    "died alone for good": ({"outcome": "lost", "status": "dead", "reason": "lost"}, {"losses": 1}),
}
"""Every settlement that lifecycle can decide on, and the count that it raises."""


def settlement(id_: str, attempt: int = 1, token: str = TOKEN, **fields: Any) -> Settlement:
    return Settlement(lease_of(id_, attempt, token), **(SUCCESS | fields))


async def settle(store: Store, *settlements: Settlement) -> set[str]:
    return await store.settle(settlements, worker=WORKER)


@pytest.mark.parametrize("case", CASES)
async def test_an_outcome_moves_its_task_and_leaves_one_run(store: Store, db: Database, case: str):
    fields, counts = CASES[case]
    id_ = db.put("running", attempts=4, failures=1, losses=1, refusals=1)
    before = db.task(id_)
    assert await settle(store, settlement(id_, 4, **fields)) == {id_}
    row, (run,) = db.task(id_), db.runs(id_)
    status, delay_ms = fields["status"], fields.get("delay_ms", 0)
    assert (row["status"], row["attempts"], row["dead_reason"]) == (status, 4, fields.get("reason"))
    for name in ("failures", "losses", "refusals"):
        assert row[name] == 1 + counts.get(name, 0), name
    assert [row[name] for name in ("worker", "lease_token", "lease_expires_at")] == [None] * 3
    assert (row["finished_at"] is not None) == (status in {"succeeded", "dead"})
    assert (row["dead_at"] is not None) == (status == "dead")
    if delay_ms or status == "retrying":
        assert delay_ms - 4000 < row["due_in_ms"] <= delay_ms
    else:
        assert row["due_at"] == before["due_at"]
    assert row["last_error"] == run["error"] == fields.get("error")
    assert (run["attempt"], run["outcome"], run["worker"], run["lease_token"]) == (
        4,
        fields["outcome"],
        WORKER,
        TOKEN,
    )
    assert run["claimed_at"] == before["claimed_at"]
    assert (run["late_outcome"], run["late_at"]) == (None, None)


async def test_a_run_is_dated_by_durations_from_its_claim(store: Store, db: Database):
    claimed_at = db.value("SELECT now() - interval '9 s'")
    ran, never = (db.put("running", claimed_at=claimed_at) for _ in range(2))
    await settle(
        store,
        settlement(ran, wait_us=1_500_000, run_us=250_000),
        settlement(never, **RELEASE, wait_us=700_000),
    )
    (run,) = db.runs(ran)
    assert run["started_at"] - run["claimed_at"] == timedelta(seconds=1.5)
    assert run["finished_at"] - run["started_at"] == timedelta(seconds=0.25)
    (run,) = db.runs(never)
    assert run["started_at"] is None
    assert run["finished_at"] - run["claimed_at"] == timedelta(seconds=0.7)


async def test_no_run_is_dated_after_its_own_end(store: Store, db: Database):
    """A worker counts from before its claim arrived; a retry would seem to come early by what that took."""
    quick, long = db.put("running"), db.put("running")
    hour_us = 3_600_000_000
    await settle(
        store,
        settlement(quick, **FAILURE, wait_us=hour_us, run_us=1000),
        settlement(long, **FAILURE, wait_us=0, run_us=hour_us),
    )
    (run,) = db.runs(quick)
    assert run["claimed_at"] < run["started_at"]
    assert run["finished_at"] - run["started_at"] == timedelta(milliseconds=1)
    assert run["finished_at"] + timedelta(seconds=5) == db.task(quick)["due_at"]
    (run,) = db.runs(long)
    assert run["claimed_at"] == run["started_at"]
    assert run["finished_at"] + timedelta(seconds=5) == db.task(long)["due_at"]


async def test_a_success_keeps_the_last_error(store: Store, db: Database):
    """It says what had gone wrong before; the history says when."""
    id_ = db.put("running", last_error="earlier")
    await settle(store, settlement(id_))
    assert db.task(id_)["last_error"] == "earlier"


@pytest.mark.parametrize("status", ["queued", "retrying", "succeeded", "dead", "cancelled"])
async def test_a_task_that_does_not_run_any_more_is_left_alone(store: Store, db: Database, status: str):
    id_ = db.put(status, attempts=1, claimed_at=db.value("SELECT now()"))
    before = db.row("SELECT *, xmin FROM tasks")
    assert await settle(store, settlement(id_, **FAILURE)) == set()
    assert db.row("SELECT *, xmin FROM tasks") == before
    assert db.runs(id_) == []


@pytest.mark.parametrize("attempt", [1, 3])
async def test_another_attempt_of_a_running_task_is_left_alone(store: Store, db: Database, attempt: int):
    """A worker that lost its lease must not end the run of whoever took over."""
    id_ = db.put("running", attempts=2)
    before = db.row("SELECT *, xmin FROM tasks")
    assert await settle(store, settlement(id_, attempt)) == set()
    assert db.row("SELECT *, xmin FROM tasks") == before
    assert db.runs(id_) == []


@pytest.mark.parametrize("case", CASES)
async def test_settling_again_after_a_lost_answer_counts_as_mine(store: Store, db: Database, case: str):
    fields, _ = CASES[case]
    id_, other = db.put("running"), db.put("running")
    assert await settle(store, settlement(id_, **fields)) == {id_}
    before = db.row("SELECT *, xmin FROM tasks WHERE id = %s", id_)
    assert await settle(store, settlement(id_, **fields), settlement(other)) == {id_, other}
    assert db.row("SELECT *, xmin FROM tasks WHERE id = %s", id_) == before
    (run,) = db.runs(id_)
    assert run["late_outcome"] is None


async def test_settling_again_counts_as_mine_even_if_the_task_runs_again(store: Store, db: Database):
    id_ = db.put("running")
    await settle(store, settlement(id_, **FAILURE | {"delay_ms": 0}))
    await store.claim([id_], token="next", worker="other", vis_ms=60_000)
    assert await settle(store, settlement(id_, **FAILURE | {"delay_ms": 0})) == {id_}
    assert (db.task(id_)["status"], db.task(id_)["failures"], len(db.runs(id_))) == ("running", 1, 1)


async def test_the_same_outcome_by_another_lease_is_not_mine(store: Store, db: Database):
    """An attempt number alone is no proof: a store that went back in time gives it out twice."""
    id_ = db.put("running", lease_token="theirs")
    await settle(store, settlement(id_, token="theirs", **FAILURE))
    assert await settle(store, settlement(id_, token="mine", **FAILURE)) == set()


async def test_a_late_outcome_is_noted_once_beside_the_one_that_stands(store: Store, db: Database):
    id_, other = db.put("running", lease_ms=-1), db.put("running")
    await store.reap([id_], max_losses=3)
    assert await settle(store, settlement(id_), settlement(other)) == {other}
    (run,) = db.runs(id_)
    assert (run["outcome"], run["late_outcome"]) == ("lost", "succeeded")
    noted = run["late_at"]
    assert await settle(store, settlement(id_, **FAILURE)) == set()
    (run,) = db.runs(id_)
    assert (run["outcome"], run["late_outcome"], run["late_at"]) == ("lost", "succeeded", noted)
    assert db.task(id_)["status"] == "queued"


async def test_a_different_outcome_of_a_settled_attempt_is_late(store: Store, db: Database):
    id_ = db.put("running")
    await settle(store, settlement(id_))
    assert await settle(store, settlement(id_, **FAILURE)) == set()
    (run,) = db.runs(id_)
    assert (run["outcome"], run["late_outcome"]) == ("succeeded", "failed")
    assert db.task(id_)["status"] == "succeeded"


async def test_an_outcome_after_a_cancel_is_late(store: Store, db: Database):
    id_ = db.put("running")
    await store.cancel(id_)
    assert await settle(store, settlement(id_)) == set()
    (run,) = db.runs(id_)
    assert (run["outcome"], run["late_outcome"]) == ("cancelled", "succeeded")
    assert db.task(id_)["status"] == "cancelled"


async def test_a_settle_that_had_to_wait_for_a_cancel_is_late(store: Store, db: Database):
    id_ = db.put("running")
    with db.transaction() as other:
        other.rows(
            "UPDATE tasks SET status = 'cancelled', finished_at = now(), worker = NULL, lease_token = NULL,"
            " lease_expires_at = NULL WHERE id = %s",
            id_,
        )
        waiting = asyncio.create_task(settle(store, settlement(id_)))
        await db.blocked()
    assert await waiting == set()
    assert db.task(id_)["status"] == "cancelled"


async def test_many_outcomes_are_one_statement(store: Store, db: Database):
    ids = [db.put("running") for _ in range(60)]
    kinds = [SUCCESS, FAILURE, RELEASE]
    batch = [settlement(id_, **kinds[n % 3]) for n, id_ in enumerate(ids)]
    assert await settle(store, *batch[::-1]) == set(ids)
    assert db.value("SELECT count(DISTINCT xmin::text) FROM tasks") == 1
    assert [db.task(id_)["status"] for id_ in ids] == ["succeeded", "retrying", "queued"] * 20
    assert [db.outcomes(id_) for id_ in ids] == [["succeeded"], ["failed"], ["released"]] * 20


@pytest.mark.parametrize(
    "text",
    ["'; DROP TABLE tasks; --", "%s %(id)s {} {task}", 'a\\ "b" \\"', "null", "{a,b}", "\N{SNOWMAN}\n\t", ""],
)
async def test_a_hostile_error_is_only_text(store: Store, db: Database, text: str):
    id_, neighbour = db.put("running"), db.put("running")
    await settle(store, settlement(id_, **FAILURE | {"error": text}), settlement(neighbour))
    assert db.task(id_)["last_error"] == db.runs(id_)[0]["error"] == text


@pytest.mark.parametrize("text", ["a\0b", "\ud800"])
async def test_a_text_that_cannot_be_stored_is_refused_and_changes_nothing(
    store: Store, db: Database, text: str
):
    """The settler halves the batch then: see the flow's tests."""
    ids = [db.put("running") for _ in range(3)]
    with pytest.raises(InputRefused):
        await settle(store, *(settlement(id_, **FAILURE | {"error": text}) for id_ in ids))
    assert [db.task(id_)["status"] for id_ in ids] == ["running"] * 3
    assert db.count("task_runs") == 0


async def test_a_life_of_many_attempts_is_told_in_order(store: Store, db: Database):
    id_ = db.put()
    for attempt, fields in enumerate(
        [FAILURE, RELEASE, FAILURE | {"outcome": "timed_out"}, SUCCESS], start=1
    ):
        (lease,), _ = await store.claim([id_], token=f"t:{attempt}", worker=WORKER, vis_ms=60_000)
        assert lease.attempt == attempt
        await settle(store, Settlement(lease, **fields))
        db.age(id_, 10_000)
    assert db.outcomes(id_) == ["failed", "released", "timed_out", "succeeded"]
    assert [run["lease_token"] for run in db.runs(id_)] == ["t:1", "t:2", "t:3", "t:4"]
    assert [run.outcome for run in await store.runs(id_)] == db.outcomes(id_)
    row = db.task(id_)
    assert (row["attempts"], row["failures"]) == (4, 2)
