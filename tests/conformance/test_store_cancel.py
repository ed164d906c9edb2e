"""A cancel that had to wait for a claim ends the task after the claim, not before it."""

from __future__ import annotations

import asyncio


async def test_a_cancel_that_waited_for_a_claim_ends_the_task_after_it(store, db):
    id_ = db.put()
    with db.transaction() as claim:
        claim.rows("SELECT FROM tasks WHERE id = %s FOR UPDATE", id_)
        cancel = asyncio.create_task(store.cancel(id_))  # it begins now, by its own clock,
        await db.blocked()
        claim.rows(  # and what it waits for comes later
            "UPDATE tasks SET status = 'running', attempts = 1, claimed_at = clock_timestamp(), worker = 'w',"
            " lease_token = 't', lease_expires_at = now() + interval '1 minute' WHERE id = %s",
            id_,
        )
    task, cancelled = await cancel
    assert cancelled
    [run] = db.runs(id_)
    assert run["outcome"] == "cancelled"
    assert run["finished_at"] >= run["claimed_at"]
    assert task.finished_at >= run["claimed_at"]
