"""enqueue: tasks and their keys are committed together or not at all, and sending again changes nothing."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from fix_store import Database, new_task

from scheduler.errors import InputRefused
from scheduler.model import PRIORITIES, new_id
from scheduler.store import Store

HOSTILE = [
    "'; DROP TABLE tasks; --",
    "%s %(id)s %%",
    "{} {0} {task}",
    'back\\slash \\" quote " \\\\',
    "null",
    "{a,b}",
    "строка \N{SNOWMAN} \N{PILE OF POO} \u202e",
    "line\nbreak\ttab\x1b[31m",
    "  ",
]


def keyed(key: str, fingerprint: str = "f" * 64, **fields: object):
    return new_task(idempotency_key=key, fingerprint=fingerprint, **fields)


async def test_a_new_task_is_queued_and_due_at_once(store: Store, db: Database):
    sent = new_task()
    (accepted,) = await store.enqueue([sent])
    assert (accepted.result, accepted.delay_ms) == ("created", 0)
    assert accepted.task == await store.task(sent.id)
    row = db.task(sent.id)
    assert (row["status"], row["attempts"], row["failures"], row["losses"]) == ("queued", 0, 0, 0)
    assert row["due_at"] == row["created_at"] == accepted.task.created_at


async def test_every_field_comes_back_as_it_was_sent(store: Store, db: Database):
    sent = new_task(
        "mail.Send:v2",
        priority="low",
        queue="mail",
        tenant="acme",
        payload='{"to": ["a", 1.5, null, {"b": 12345678901234567890}]}',
        max_retries=7,
        timeout_ms=1234,
        backoff='{"base_ms": 5, "strategy": "linear"}',
        delay_ms=60_000,
        idempotency_key="key",
        fingerprint="a" * 64,
        trace_context="00-abc-def-01",
    )
    (accepted,) = await store.enqueue([sent])
    assert accepted.task == await store.task(sent.id)
    row = db.task(sent.id)
    for name in ("type", "priority", "queue", "tenant", "max_retries", "timeout_ms", "trace_context"):
        assert row[name] == getattr(sent, name), name
    assert row["payload"] == json.loads(sent.payload)
    assert row["backoff"] == json.loads(sent.backoff)
    assert row["idempotency_key"] == "key"
    assert 59_000 < row["due_in_ms"] <= 60_000 == accepted.delay_ms
    key = db.row("SELECT * FROM idempotency_keys")
    assert (key["tenant"], key["key"], str(key["task_id"]), key["fingerprint"]) == (
        "acme",
        "key",
        sent.id,
        "a" * 64,
    )


@pytest.mark.parametrize("text", HOSTILE)
async def test_hostile_text_is_only_text(store: Store, db: Database, text: str):
    payload = {text: [text, {text: text}]}
    sent = new_task(
        text,
        payload=json.dumps(payload, ensure_ascii=False),
        idempotency_key=text,
        fingerprint="a" * 64,
        trace_context=text,
    )
    neighbour = new_task()
    (accepted, _) = await store.enqueue([sent, neighbour])
    assert accepted.task == await store.task(sent.id)
    row = db.task(sent.id)
    assert row["payload"] == payload
    assert [row["type"], row["idempotency_key"], row["trace_context"]] == [text] * 3
    again = replace(sent, id=new_id())
    assert [a.task.id for a in await store.enqueue([again])] == [sent.id]
    assert db.count("tasks") == 2


@pytest.mark.parametrize("queue", ["null", "default", "0", "a.b-c_d"])
async def test_any_legal_queue_name_is_only_a_name(store: Store, db: Database, queue: str):
    """`null` is a word that array literals give a meaning of their own."""
    sent, neighbour = new_task(queue=queue), new_task()
    assert [a.task.queue for a in await store.enqueue([sent, neighbour])] == [queue, "default"]
    assert db.task(sent.id)["queue"] == queue
    assert queue in await store.queues()


@pytest.mark.parametrize("priority", PRIORITIES)
async def test_each_priority_is_kept(store: Store, db: Database, priority: str):
    sent = new_task(priority=priority)
    await store.enqueue([sent])
    assert db.task(sent.id)["priority"] == priority


async def test_an_instant_to_run_at_is_kept_and_answered_as_a_delay(store: Store, db: Database):
    instant = db.value("SELECT now()") + timedelta(hours=1)
    later, past = new_task(run_at=instant), new_task(run_at=datetime(1970, 1, 1, tzinfo=UTC))
    last = new_task(run_at=datetime(9999, 12, 29, tzinfo=UTC))
    answers = await store.enqueue([later, past, last])
    assert [db.task(t.id)["due_at"] for t in (later, past, last)] == [t.run_at for t in (later, past, last)]
    assert 3_590_000 < answers[0].delay_ms <= 3_600_000
    assert answers[1].delay_ms == 0


async def test_sending_again_after_a_lost_answer_changes_nothing(store: Store, db: Database):
    sent = [new_task(), keyed("a"), new_task(delay_ms=60_000)]
    first = await store.enqueue(sent)
    before = db.rows("SELECT *, xmin FROM tasks ORDER BY id")
    again = await store.enqueue(sent)
    assert [a.result for a in again] == ["created"] * 3
    assert [a.task for a in again] == [a.task for a in first]
    assert db.rows("SELECT *, xmin FROM tasks ORDER BY id") == before
    assert 59_000 < again[2].delay_ms <= 60_000, "a task that is not due yet must not be pushed as if it were"
    assert [a.delay_ms for a in again[:2]] == [0, 0]


async def test_sending_again_answers_with_what_has_become_of_the_task(store: Store, db: Database):
    sent = new_task()
    await store.enqueue([sent])
    await store.claim([sent.id], token="t", worker="w", vis_ms=1000)
    (again,) = await store.enqueue([sent])
    assert (again.result, again.task.status) == ("created", "running")


async def test_a_part_that_is_known_already_is_left_out(store: Store, db: Database):
    old, new = new_task(), new_task()
    await store.enqueue([old])
    assert [a.result for a in await store.enqueue([new, old])] == ["created", "created"]
    assert db.count("tasks") == 2


async def test_a_key_that_is_known_answers_with_its_task(store: Store, db: Database):
    first = keyed("a")
    await store.enqueue([first])
    (same,) = await store.enqueue([keyed("a")])
    assert (same.result, same.task.id) == ("existing", first.id)
    (other,) = await store.enqueue([keyed("a", "0" * 64)])
    assert (other.result, other.task.id) == ("conflict", first.id)
    assert db.count("tasks") == 1


async def test_a_key_belongs_to_its_tenant(store: Store):
    mine, yours = keyed("a", tenant="me"), keyed("a", tenant="you")
    assert [a.result for a in await store.enqueue([mine, yours])] == ["created", "created"]


async def test_a_key_lives_as_long_as_the_settings_say(store: Store, db: Database):
    await store.enqueue([keyed("a")])
    assert db.value("SELECT expires_at - now() FROM idempotency_keys") > timedelta(hours=23, minutes=59)


async def test_of_one_key_twice_in_a_batch_one_task_is_made(store: Store, db: Database):
    sent = [keyed("a"), keyed("b"), keyed("a"), keyed("a", "0" * 64), new_task()]
    answers = await store.enqueue(sent)
    same = [answers[i] for i in (0, 2, 3)]
    assert len({a.task.id for a in same}) == 1
    assert sum(a.result == "created" for a in same) == 1
    assert [answers[i].result for i in (1, 4)] == ["created", "created"]
    assert db.count("tasks") == 3
    assert db.count("idempotency_keys") == 2


async def test_of_one_key_in_many_batches_at_once_one_task_is_made(store: Store, db: Database):
    """Every batch has the same keys, each in an order of its own: none waits for another for ever."""
    keys = [f"key-{i}" for i in range(40)]
    batches = [[keyed(k) for k in (keys if n % 2 else reversed(keys))] for n in range(8)]
    answers = [a for batch in await asyncio.gather(*map(store.enqueue, batches)) for a in batch]
    by_key: dict[str, set[str]] = {}
    for a in answers:
        by_key.setdefault(a.task.idempotency_key, set()).add(a.task.id)
    assert sorted(by_key) == sorted(keys)
    assert all(len(ids) == 1 for ids in by_key.values())
    assert sum(a.result == "created" for a in answers) == len(keys) == db.count("tasks")
    assert {a.result for a in answers} == {"created", "existing"}


async def test_batches_with_the_same_keys_do_not_wait_for_each_other(store: Store, db: Database):
    """One has the keys forwards, one backwards, and both come to the one in the middle, which is taken."""
    forwards = [keyed(key) for key in "abcde"]
    backwards = [keyed(key) for key in "edcba"]
    with db.transaction(commit=False) as other:
        other.rows(
            "INSERT INTO idempotency_keys VALUES ('default', 'c', 'f', %s, now() + interval '1 day')",
            new_id(),
        )
        waiting = [asyncio.create_task(store.enqueue(batch)) for batch in (forwards, backwards)]
        await db.blocked(sessions=2)
    first, second = [await each for each in waiting]
    assert {a.task.id for a in first} == {a.task.id for a in second}
    assert sorted(a.result for a in first + second) == ["created"] * 5 + ["existing"] * 5


async def test_a_key_whose_holder_gives_up_is_free(store: Store, db: Database):
    """Whoever waits for the commit of the same key gets the key if that commit does not come."""
    with db.transaction(commit=False) as other:
        other.rows(
            "INSERT INTO idempotency_keys VALUES ('default', 'a', 'f', %s, now() + interval '1 day')",
            new_id(),
        )
        waiting = asyncio.create_task(store.enqueue([keyed("a")]))
        await db.blocked()
    (accepted,) = await waiting
    assert accepted.result == "created"


async def test_a_thousand_tasks_are_one_statement(store: Store, db: Database):
    sent = [new_task(payload=f'{{"n": {n}}}', priority=PRIORITIES[n % 4]) for n in range(1000)]
    out_of_order = sent[::2] + sent[1::2]
    answers = await store.enqueue(out_of_order)
    assert [a.task.id for a in answers] == [t.id for t in out_of_order]
    assert db.value("SELECT count(DISTINCT xmin::text) FROM tasks") == 1
    rows = db.rows("SELECT id::text, payload, priority FROM tasks ORDER BY id")
    assert [(r["id"], r["payload"]["n"], r["priority"]) for r in rows] == [
        (t.id, n, PRIORITIES[n % 4]) for n, t in enumerate(sent)
    ]


@pytest.mark.parametrize(
    "fields",
    [
        {"payload": r'{"a": "\u0000"}'},
        {"payload": r'{"a": "\ud800"}'},
        {"payload": '{"a": 1e131073}'},
        {"type_": "a\0b"},
    ],
    ids=["NUL in the payload", "a lone surrogate", "a number too large", "NUL in a text"],
)
async def test_a_refused_value_writes_nothing_at_all(store: Store, db: Database, fields: dict):
    with pytest.raises(InputRefused):
        await store.enqueue([keyed("a"), keyed("b", **fields)])
    assert db.count("tasks") == db.count("idempotency_keys") == 0
    (accepted,) = await store.enqueue([keyed("a")])
    assert accepted.result == "created"


async def test_nothing_to_enqueue_is_no_statement(store: Store):
    assert await store.enqueue([]) == []
    assert store.polled is None
