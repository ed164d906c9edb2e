"""The statements against the reference: random tables, one operation, and then all tables again.

Stored instants lie at half seconds, and between two steps time passes by whole seconds: see comparison.py.
"""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Any

import postgres_tables
import pytest
from comparison import moved_tables, plain
from fix_store import Database, lease_of
from reference_store import ReferenceStore
from reference_tables import Ended, Key, Leader, QueueRow, Registered, Row, Tables, id_at, instant

from scheduler.lifecycle import DEAD_REASONS, OUTCOMES, STATUSES, TERMINAL
from scheduler.model import PRIORITIES, NewTask, OpenRow, Settlement
from scheduler.store import FIRST_ID, Filter, Store, WorkerIdentity

STEPS = 15
HOUR_MS = 3_600_000
BASE_MS = 1_700_000_000_000
IDS = [f"{id_at(BASE_MS + i * HOUR_MS)[:-2]}{i:02}" for i in range(14)]
NEW_IDS = IDS[10:]
WORKERS = ["host:1:a", "host:2:b", "host:3:c"]
TOKENS = ["a:1", "b:1", "b:2"]
QUEUES = ["default", "mail"]
TYPES = ["noop", "flaky"]
Step = Callable[[Any], Awaitable[Any]]


def half_seconds(rng: random.Random, low: int = -8, high: int = 8) -> int:
    """A duration in milliseconds that ends between two steps."""
    return rng.randrange(low, high) * 1000 + 500


# a random state


def random_tables(rng: random.Random) -> Tables:
    """Rows in every status, with histories, keys and workers; instants are from now."""
    tables = Tables()
    for id_ in IDS[:10]:
        tables.tasks[id_] = row = random_row(rng, id_)
        ended = row.attempts - (row.status == "running")
        for attempt in rng.sample(range(1, ended + 1), rng.randint(0, ended)):
            tables.task_runs[id_, attempt] = random_run(rng, id_, attempt)
        if rng.random() < 0.3:
            row.idempotency_key = f"key-{id_[-1]}"
            key = Key("default", row.idempotency_key, rng.choice("ab"), id_, half_seconds(rng))
            tables.idempotency_keys["default", key.key] = key
    for id_ in rng.sample(WORKERS, 2):
        tables.workers[id_] = Registered(
            id_, "host", 1, ["default"], TYPES, 4, rng.randint(-9, 0) * 1000, alive_until=half_seconds(rng)
        )
    if rng.random() < 0.5:
        tables.leaders["reconcile"] = Leader("reconcile", rng.choice(WORKERS), half_seconds(rng))
    for name in rng.sample(QUEUES, rng.randint(0, 2)):
        tables.queues[name] = QueueRow(name, rng.randint(0, 5), rng.choice([None, "run-1"]))
    return tables


def random_row(rng: random.Random, id_: str) -> Row:
    status = rng.choice(STATUSES)
    failures, losses, refusals = (rng.randint(0, 2) for _ in range(3))
    row = Row(
        id_,
        rng.choice(TYPES),
        created_at=half_seconds(rng, high=0),
        due_at=half_seconds(rng),
        queue=rng.choice(QUEUES),
        priority=rng.choice(PRIORITIES),
        payload={"n": rng.randint(0, 9)},
        status=status,
        attempts=failures + losses + refusals + rng.randint(1, 2),
        failures=failures,
        losses=losses,
        refusals=refusals,
        suspect=rng.random() < 0.3,
        max_retries=rng.randint(0, 3),
        timeout_ms=rng.choice([None, 1500]),
        backoff=rng.choice([None, {"base_ms": 5}]),
        claimed_at=half_seconds(rng, high=0),
        last_error=rng.choice([None, "Error: earlier"]),
    )
    if status == "running":
        row.worker, row.lease_token = rng.choice(WORKERS), rng.choice(TOKENS)
        row.lease_expires_at = half_seconds(rng)
    if status in TERMINAL:
        row.finished_at = half_seconds(rng, high=0)
    if status == "dead":
        row.dead_reason = rng.choice(DEAD_REASONS)
        row.dead_at = rng.choice([None, row.finished_at])
    return row


def random_run(rng: random.Random, id_: str, attempt: int) -> Ended:
    start = half_seconds(rng, high=-4)
    return Ended(
        id_,
        attempt,
        rng.choice(OUTCOMES),
        rng.choice(WORKERS),
        rng.choice(TOKENS),
        start,
        rng.choice([None, start]),
        start + 1000,
        rng.choice([None, "Error: why"]),
        late_outcome=rng.choice([None, "succeeded"]),
    )


# a random operation


def random_step(rng: random.Random, tables: Tables, now_ms: float) -> Step:
    """One call, the same for either store."""
    ids = rng.sample(IDS, rng.randint(1, 6))
    asked = [*ids, *rng.choices(["no id of ours", "", IDS[0].upper()], k=rng.randint(0, 1))]
    worker, token, ms, page = (
        rng.choice(WORKERS),
        rng.choice(TOKENS),
        half_seconds(rng, low=0),
        rng.randint(1, 5),
    )
    after = rng.choice([FIRST_ID, *IDS])
    identity = WorkerIdentity(worker, "host", 1, ("default",), tuple(TYPES), 4)
    letters = Filter(
        rng.choice([None, ids]),
        rng.choice([None, rng.choice(TYPES)]),
        rng.choice([None, rng.choice(QUEUES)]),
        rng.choice([None, rng.choice(PRIORITIES)]),
        rng.choice([None, rng.choice(DEAD_REASONS)]),
    )
    listed = {
        "status": rng.choice([None, rng.choice(STATUSES)]),
        "queue": rng.choice([None, rng.choice(QUEUES)]),
        "type": letters.type,
        "priority": letters.priority,
        "dead": rng.random() < 0.3,
        "reason": letters.reason,
        "before": rng.choice([None, after]),
        "limit": page,
    }
    new = random_new_tasks(rng)
    settlements = [random_settlement(rng, tables, id_) for id_ in ids]
    leases = [s.lease for s in settlements]
    seen = [random_open_row(rng, tables, id_) for id_ in ids]
    polled_ms = rng.choice([None, 1500])
    until = rng.choice([None, instant(now_ms - ms).isoformat()])

    async def in_any_order(answer: Awaitable[list[Any]]) -> list[Any]:
        return sorted(await answer)

    steps: list[tuple[int, Step]] = [
        (4, lambda store: store.enqueue(new)),
        (6, lambda store: store.claim(asked, token=token, worker=worker, vis_ms=ms)),
        (8, lambda store: store.settle(settlements, worker=worker)),
        (3, lambda store: store.renew(leases, vis_ms=ms)),
        (5, lambda store: store.reap(asked, max_losses=page)),
        (3, lambda store: store.cancel(ids[0])),
        (3, lambda store: in_any_order(store.redrive(letters, page=page, until=until))),
        (1, lambda store: in_any_order(store.purge(letters, page=page, until=until))),
        (1, lambda store: store.task(ids[0])),
        (1, lambda store: store.runs(ids[0])),
        (2, lambda store: store.tasks(**listed)),
        (1, lambda store: store.queues()),
        (1, lambda store: store.workers()),
        (1, lambda store: store.last_poll_s()),
        (2, lambda store: store.beat(identity, running=page, polled_ms=polled_ms, alive_ms=ms)),
        (1, lambda store: store.leave(worker)),
        (2, lambda store: store.lead("reconcile", worker, ttl_ms=ms)),
        (1, lambda store: store.epochs()),
        (2, lambda store: store.set_epoch("default", page, "run-2")),
        (2, lambda store: store.open_page(after, page)),
        (2, lambda store: store.unchanged(seen, min_age_ms=ms)),
        (2, lambda store: store.dead_page(after, page)),
        (1, lambda store: store.still_dead(asked)),
        (1, lambda store: store.expire_keys(page=page)),
        (1, lambda store: store.prune_tasks(FIRST_ID, keep_ms=ms, page=2 * page)),
        (1, lambda store: store.prune_workers(keep_ms=ms)),
    ]
    return rng.choices([step for _, step in steps], [weight for weight, _ in steps])[0]


def random_new_tasks(rng: random.Random) -> list[NewTask]:
    """New ones, some sent before, some with a key that is taken; no key comes twice in a batch."""
    keys = rng.sample([f"key-{n}" for n in range(10)], 4)
    return [
        NewTask(
            id_,
            rng.choice(TYPES),
            rng.choice(PRIORITIES),
            queue=rng.choice(QUEUES),
            payload='{"n": 1}',
            timeout_ms=rng.choice([None, 2500]),
            backoff=rng.choice([None, '{"base_ms": 7}']),
            delay_ms=rng.choice([None, 0, 3500]),
            idempotency_key=key,
            fingerprint=key and rng.choice("ab"),
        )
        for id_, key in zip(NEW_IDS, rng.sample([*keys, None, None, None], 4), strict=True)
        if rng.random() < 0.7
    ]


def random_settlement(rng: random.Random, tables: Tables, id_: str) -> Settlement:
    """An outcome of the attempt that runs, or of an older one."""
    row = tables.tasks.get(id_)
    attempt = max((row.attempts if row else 1) - rng.choice([0, 0, 0, 1]), 1)
    run = tables.task_runs.get((id_, attempt))
    token = rng.choice([*TOKENS, run.lease_token if run else TOKENS[0]])
    outcome = rng.choice(
        [rng.choice(["succeeded", "failed", "released", "lost"]), run.outcome if run else "failed"]
    )
    status = {"succeeded": "succeeded", "released": "queued", "lost": "queued"}.get(outcome)
    status = status or rng.choice(["retrying", "dead"])
    return Settlement(
        lease_of(id_, attempt, token),
        outcome,
        status,
        reason="failed" if status == "dead" else None,
        delay_ms=2500 if status == "retrying" else rng.choice([0, 0, 3500]) if status == "queued" else 0,
        error=rng.choice([None, "Error: now"]),
        wait_us=rng.choice([0, 1_000_000]),
        run_us=rng.choice([None, 0, 1_500_000]),
        refused=outcome == "released" and rng.random() < 0.3,
    )


def random_open_row(rng: random.Random, tables: Tables, id_: str) -> OpenRow:
    """A row as reconcile may have seen it a moment ago."""
    row = tables.tasks.get(id_)
    status = row.status if row and rng.random() < 0.8 else "queued"
    token = (row.lease_token if row else None) or ""
    return OpenRow(id_, "default", "default", status, 0, 0, token)


@pytest.mark.parametrize("seed", range(20))
async def test_the_statements_do_what_the_reference_does(store: Store, db: Database, seed: int):
    rng, compared = random.Random(seed), 0
    held = random_tables(rng)
    for number in range(STEPS):
        now_ms = postgres_tables.now_ms(db)
        postgres_tables.write(db, moved_tables(held, now_ms))
        reference = ReferenceStore(lambda now_ms=now_ms: now_ms)
        reference.held = postgres_tables.read(db)
        step = random_step(rng, reference.held, now_ms)
        expected = await step(reference)
        store._known_queues.clear()
        answer = await step(store)
        found = postgres_tables.read(db)
        if postgres_tables.now_ms(db) - now_ms < 300:  # else the machine was too busy to compare times
            where = f"step {number} of seed {seed}"
            assert plain(answer, now_ms) == plain(expected, now_ms), where
            assert plain(found, now_ms) == plain(reference.held, now_ms), where
            compared += 1
        held = moved_tables(reference.held, -now_ms - rng.choice([1000, 2000]))
    assert compared > STEPS / 2


async def test_a_run_at_is_due_at_that_instant(store: Store, db: Database):
    now_ms = postgres_tables.now_ms(db)
    reference = ReferenceStore(lambda: now_ms)
    for seconds in (-60, 60):
        task = NewTask(IDS[seconds > 0], "noop", run_at=instant(now_ms) + timedelta(seconds=seconds))
        (expected,), (answer,) = await reference.enqueue([task]), await store.enqueue([task])
        assert answer.task.due_at == expected.task.due_at == task.run_at
        assert expected.delay_ms - 5000 <= answer.delay_ms <= expected.delay_ms


async def test_recent_ids_are_those_of_the_last_moments(store: Store, db: Database):
    now_ms = postgres_tables.now_ms(db)
    reference = ReferenceStore(lambda: now_ms)
    bounds = await reference.recent_id(5000), await store.recent_id(5000)
    first, second = (int(id_[:13].replace("-", ""), 16) for id_ in bounds)
    assert bounds[0][13:] == bounds[1][13:]
    assert now_ms - 5001 <= first <= second <= first + 5000
