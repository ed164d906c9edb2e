"""Tasks over HTTP: accepted, known again by their key, shown, listed and cancelled."""

from __future__ import annotations

import asyncio
from uuid import UUID

import psycopg
import pytest
import structlog
from fix_api import client_of, rows

from scheduler.api.views import RunPage, TaskPage, TaskView

UNKNOWN = "0192f5c1-7a3e-7000-8b3c-4d2a9e6f1b07"
SEED = {"type": "noop", "priority": "high", "payload": {"example": True}, "idempotency_key": "demo-123"}


async def post(api, **fields):
    answer = await api.post("/v1/tasks", json={"type": "noop"} | fields)
    assert answer.status_code == 201, answer.text
    return answer.json()


async def test_a_task_is_committed_pushed_and_shown(api, backend):
    answer = await api.post("/v1/tasks", json=SEED)
    assert answer.status_code == 201
    assert answer.headers["content-type"] == "application/json"
    task = TaskView.model_validate_json(answer.content)
    assert answer.headers["location"] == f"/v1/tasks/{task.id}"
    assert UUID(task.id).version == 7
    assert (task.type, task.priority, task.payload, task.status) == (
        "noop",
        "high",
        {"example": True},
        "queued",
    )
    assert (await api.get(answer.headers["location"])).json() == answer.json()
    assert await backend.index.shard("default").known([task.id]) == [""]


async def test_the_seeds_path_is_an_alias_of_every_route(api):
    answer = await api.post("/tasks", json=SEED)
    assert answer.status_code == 201
    id_ = answer.json()["id"]
    assert (await api.get(f"/tasks/{id_}")).json() == answer.json()
    assert [item["id"] for item in (await api.get("/tasks")).json()["items"]] == [id_]
    assert (await api.post("/tasks/bulk", json={"tasks": [SEED]})).json()["items"][0]["result"] == "existing"
    assert (await api.get(f"/tasks/{id_}/runs")).json()["items"] == []
    assert (await api.post(f"/tasks/{id_}/cancel")).json()["status"] == "cancelled"
    assert (await api.get("/tasksx")).status_code == 404


async def test_every_field_is_kept(api):
    fields = {
        "queue": "mail",
        "priority": "low",
        "payload": {"text": "ż\U0001f600 '; DROP TABLE tasks; -- %s {} {0}", "n": [1, None, 2.5, 2**63 - 1]},
        "max_retries": 7,
        "timeout_ms": 1234,
        "backoff": {"strategy": "linear", "base_ms": 5, "max_ms": 50, "jitter": "full", "jitter_ms": 0},
        "idempotency_key": "a key",
        "run_at": "2099-01-02T03:04:05.678+02:00",
    }
    made = await post(api, type="Send.Mail:v2", **fields)
    shown = (await api.get(f"/v1/tasks/{made['id']}")).json()
    assert shown["due_at"] == made["due_at"] == "2099-01-02T01:04:05.678Z"
    del fields["run_at"]
    assert {name: shown[name] for name in fields} == fields
    assert {name: made[name] for name in fields} == fields


async def test_a_delayed_task_is_not_due_yet(api, backend):
    made = await post(api, delay_ms=3_600_000)
    assert made["due_at"] > made["created_at"]
    assert (await backend.index.shard("default").depths()).retry == (0, 0, 1, 0)


async def test_a_known_key_with_the_same_request_is_answered_with_the_same_task(api, settings):
    first = await api.post("/v1/tasks", json=SEED)
    again = await api.post("/v1/tasks", json={"max_retries": 3, "queue": "default"} | SEED)
    assert (first.status_code, again.status_code) == (201, 200)
    assert again.headers["idempotent-replayed"] == "true"
    assert "idempotent-replayed" not in first.headers
    assert again.json() == first.json()
    assert rows(settings) == 1


async def test_a_known_key_with_another_request_is_a_conflict(api, settings):
    first = await post(api, **SEED)
    answer = await api.post("/v1/tasks", json=SEED | {"priority": "low"})
    assert answer.status_code == 409
    assert answer.json()["type"] == "urn:scheduler:problem:idempotency-conflict"
    assert answer.json()["task_id"] == first["id"]
    assert rows(settings) == 1


async def test_the_header_says_the_same_as_the_field(api):
    plain = {name: value for name, value in SEED.items() if name != "idempotency_key"}
    by_field = await post(api, **SEED)
    for body, header, status in [
        (plain, "demo-123", 200),
        (SEED, "demo-123", 200),
        (plain | {"idempotency_key": None}, "demo-123", 200),
        (SEED, "demo-124", 422),
        (plain, "", 422),
        (plain, b"\xff", 400),
        (plain, "k" * 256, 422),
    ]:
        answer = await api.post("/v1/tasks", json=body, headers={"Idempotency-Key": header})
        assert answer.status_code == status, (body, header)
        if status == 200:
            assert answer.json() == by_field
    twice = [("Idempotency-Key", "a"), ("Idempotency-Key", "b")]
    assert (await api.post("/v1/tasks", json=plain, headers=twice)).status_code == 400


async def test_of_many_equal_requests_at_once_one_makes_the_task(api, settings):
    answers = await asyncio.gather(*(api.post("/v1/tasks", json=SEED) for _ in range(40)))
    assert sorted(answer.status_code for answer in answers) == [200] * 39 + [201]
    assert len({answer.json()["id"] for answer in answers}) == 1
    assert rows(settings) == rows(settings, "idempotency_keys") == 1


async def test_a_task_that_nobody_knows_is_not_found(api):
    for id_ in (UNKNOWN, "x", str(2**70), "%00", "%2e%2e", "a" * 5000, UNKNOWN + "%0a"):
        for method, path in [("GET", ""), ("GET", "/runs"), ("POST", "/cancel")]:
            answer = await api.request(method, f"/v1/tasks/{id_}{path}")
            assert answer.status_code == 404, (method, id_, path)
            assert answer.headers["content-type"] == "application/problem+json"


async def test_an_id_may_be_written_in_capitals(api):
    made = await post(api)
    assert (await api.get(f"/v1/tasks/{made['id'].upper()}")).json() == made


async def test_tasks_are_listed_newest_first_page_by_page(api):
    made = [(await post(api, payload={"n": n}))["id"] for n in range(7)]
    seen, cursor = [], None
    for _ in range(3):
        page = TaskPage.model_validate_json(
            (await api.get("/v1/tasks", params={"limit": 3} | ({"cursor": cursor} if cursor else {}))).content
        )
        seen += [item.id for item in page.items]
        cursor = page.next_cursor
    assert seen == made[::-1]
    assert cursor is None
    last = (await api.get("/v1/tasks", params={"limit": 7})).json()
    assert (len(last["items"]), last["next_cursor"]) == (7, None)
    assert len((await api.get("/v1/tasks", params={"limit": 1000})).json()["items"]) == 7


async def test_tasks_are_listed_by_what_they_are(api):
    mail = await post(api, type="Mail", queue="mail", priority="low")
    noop = await post(api)
    await api.post(f"/v1/tasks/{noop['id']}/cancel")
    for query, expected in [
        ({}, [noop["id"], mail["id"]]),
        ({"type": "Mail"}, [mail["id"]]),
        ({"queue": "default"}, [noop["id"]]),
        ({"priority": "low"}, [mail["id"]]),
        ({"status": "queued"}, [mail["id"]]),
        ({"status": "cancelled", "type": "noop", "queue": "default", "priority": "default"}, [noop["id"]]),
        ({"status": "dead"}, []),
    ]:
        answer = await api.get("/v1/tasks", params=query)
        assert [item["id"] for item in answer.json()["items"]] == expected, query


@pytest.mark.parametrize(
    "query",
    [
        "limit=0",
        "limit=1001",
        "limit=x",
        "limit=1e400",
        "limit=" + "9" * 5000,
        "status=done",
        "status=",
        "priority=CRITICAL",
        "type=%00",
        "type=%ff",
        "queue=a:b",
        "cursor=x",
        "cursor=" + UNKNOWN[:-1],
        "stauts=dead",
        "s3cret=1",
    ],
)
async def test_a_query_that_means_nothing_is_refused(api, query):
    answer = await api.get(f"/v1/tasks?{query}")
    assert answer.status_code == 422
    assert answer.headers["content-type"] == "application/problem+json"
    assert "s3cret" not in answer.text
    assert len(answer.content) < 2000


async def test_a_task_is_cancelled_once_and_stays_so(api, backend):
    made = await post(api, delay_ms=60_000)
    for _ in range(2):
        answer = await api.post(f"/v1/tasks/{made['id']}/cancel")
        assert answer.status_code == 200
        assert answer.json()["status"] == "cancelled"
    assert answer.json()["finished_at"] is not None
    assert await backend.index.shard("default").known([made["id"]]) == [None]


async def test_a_task_that_ended_otherwise_cannot_be_cancelled(api, settings):
    made = await post(api)
    with psycopg.connect(settings.postgres_url) as connection:
        connection.execute(
            "UPDATE tasks SET status = 'succeeded', attempts = 1, claimed_at = now(), finished_at = now()"
        )
    answer = await api.post(f"/v1/tasks/{made['id']}/cancel")
    assert answer.status_code == 409
    assert answer.json()["type"] == "urn:scheduler:problem:task-finished"
    assert "succeeded" in answer.json()["detail"]


async def test_the_attempts_of_a_task_are_listed_oldest_first(api, settings):
    made = await post(api)
    with psycopg.connect(settings.postgres_url) as connection:
        for attempt, outcome in [(1, "failed"), (2, "lost")]:
            connection.execute(
                "INSERT INTO task_runs (task_id, attempt, outcome, worker, claimed_at, finished_at, error)"
                " VALUES (%s, %s, %s, 'w', now(), now(), 'boom')",
                (made["id"], attempt, outcome),
            )
    page = RunPage.model_validate_json((await api.get(f"/v1/tasks/{made['id']}/runs")).content)
    assert [(run.attempt, run.outcome, run.error) for run in page.items] == [
        (1, "failed", "boom"),
        (2, "lost", "boom"),
    ]


async def test_a_wrong_method_is_told_the_right_ones(api):
    for path, allowed in [
        ("/v1/tasks", "GET, POST"),
        ("/v1/tasks/bulk", "POST"),  # and no task has that name
        (f"/v1/tasks/{UNKNOWN}", "GET"),
        ("/healthz", "GET"),
    ]:
        answer = await api.put(path)
        assert answer.status_code == 405
        assert answer.headers["allow"] == allowed
        assert answer.headers["content-type"] == "application/problem+json"


async def test_an_unknown_route_is_a_problem_too(api):
    for path in ("/", "/v1", "/v1/tasks/", "/docs", "/v1/s3cret"):
        answer = await api.get(path)
        assert answer.status_code == 404, path
        assert answer.json()["type"] == "urn:scheduler:problem:no-such-route"
        assert "s3cret" not in answer.text


async def test_a_peer_on_another_machine_is_answered_nowhere(backend):
    async with client_of(backend, "10.0.0.7") as stranger:
        headers = {"X-Forwarded-For": "127.0.0.1"}
        for path in ("/healthz", "/readyz", "/v1/tasks", "/v1/queues", "/openapi.json", "/nowhere"):
            answer = await stranger.get(path, headers=headers)
            assert answer.status_code == 403, path
            assert "no keys configured" in answer.json()["detail"]
        assert (await stranger.post("/tasks", json=SEED, headers=headers)).status_code == 403
    assert rows(backend.settings) == 0


async def test_a_defect_is_answered_and_logged_once_and_tells_nothing(api, backend, monkeypatch):
    async def broken(*_):
        raise RuntimeError(f"s3cret {UNKNOWN}")

    monkeypatch.setattr(backend.enqueuer, "submit", broken)
    monkeypatch.setattr(backend.store, "task", broken)
    for method, path in [("POST", "/v1/tasks"), ("GET", f"/v1/tasks/{UNKNOWN}")]:
        with structlog.testing.capture_logs() as logs:
            answer = await api.request(method, path, json=SEED)
        assert answer.status_code == 500
        assert answer.headers["content-type"] == "application/problem+json"
        assert "s3cret" not in answer.text
        assert [answer.json()["instance"]] == [f"urn:uuid:{line['instance']}" for line in logs]
