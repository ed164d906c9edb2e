"""Two statements over the same rows, one naming them backwards: neither waits for the other for ever."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from itertools import product
from typing import Any

import pytest
from fix_store import WORKER, Database, lease_of

from scheduler.model import Settlement
from scheduler.store import Store

Statement = Callable[[Store, Sequence[str]], Awaitable[Any]]

ON_RUNNING: dict[str, Statement] = {
    "settle": lambda store, ids: store.settle(
        [Settlement(lease_of(id_), "failed", "retrying") for id_ in ids], worker=WORKER
    ),
    "renew": lambda store, ids: store.renew([lease_of(id_) for id_ in ids], vis_ms=60_000),
    "reap": lambda store, ids: store.reap(ids, max_losses=3),
}


async def meet(store: Store, db: Database, ids: Sequence[str], first: Statement, second: Statement) -> None:
    """Let both come as far as they can while the row in the middle is locked, and then finish."""
    with db.transaction() as other:
        other.rows("SELECT FROM tasks WHERE id = %s FOR UPDATE", ids[2])
        waiting = [asyncio.create_task(first(store, ids)), asyncio.create_task(second(store, ids[::-1]))]
        await db.blocked(sessions=2)
    await asyncio.gather(*waiting)


@pytest.mark.parametrize(("first", "second"), list(product(ON_RUNNING, repeat=2)))
async def test_rows_that_run_are_locked_in_the_order_of_their_ids(
    store: Store, db: Database, first: str, second: str
):
    ids = [db.put("running", lease_ms=-5) for _ in range(5)]
    await meet(store, db, ids, ON_RUNNING[first], ON_RUNNING[second])
    ended = {len(db.runs(id_)) for id_ in ids}
    assert ended in ({0}, {1}), "whoever came first came first to all of them"


async def test_rows_are_claimed_in_the_order_of_their_ids(store: Store, db: Database):
    ids = [db.put() for _ in range(5)]

    def claim(token: str) -> Statement:
        return lambda store, ids: store.claim(ids, token=token, worker=WORKER, vis_ms=60_000)

    await meet(store, db, ids, claim("a"), claim("b"))
    assert {db.task(id_)["attempts"] for id_ in ids} == {1}
