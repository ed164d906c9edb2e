"""Queues and health over HTTP, with both stores and with one or none of them."""

from __future__ import annotations

import asyncio
from time import monotonic

import psycopg
import pytest
from fix_api import client_of, open_backend, rows

from scheduler.api import health
from scheduler.api.views import QueuePage, ReadyView
from scheduler.supervisor import free_port

TASK = {"type": "noop"}
WORKER = (
    "INSERT INTO workers (id, host, pid, queues, types, slots, polled_at, alive_until)"
    " VALUES ('w', 'h', 1, '{default}', '{}', 1, now() - interval '7 s', now())"
)
"""One that looked for work seven seconds ago."""


async def test_queues_show_what_is_ready_waiting_and_in_flight(api, backend):
    for fields in (
        {"priority": "high"},
        {"priority": "high"},
        {"delay_ms": 60_000},
        {"queue": "mail", "priority": "low"},
    ):
        await api.post("/v1/tasks", json=TASK | fields)
    page = QueuePage.model_validate_json((await api.get("/v1/queues")).content)
    default, mail = page.items
    assert (default.name, mail.name) == ("default", "mail")
    assert default.depth.model_dump() == {"critical": 0, "high": 2, "default": 0, "low": 0}
    assert default.retry.model_dump() == {"critical": 0, "high": 0, "default": 1, "low": 0}
    assert (mail.depth.low, mail.dlq.low, mail.in_flight) == (1, 0, 0)


async def test_a_process_lives_without_its_stores(make_settings):
    settings = make_settings(
        POSTGRES_URL=f"postgres://app:app@127.0.0.1:{free_port()}/app", REDIS_ADDR=f"127.0.0.1:{free_port()}"
    )
    async with open_backend(settings) as backend, client_of(backend) as api:
        assert (await api.get("/healthz")).json() == {"status": "ok"}
        answer = await api.get("/readyz")
        assert answer.status_code == 503
        assert answer.headers["content-type"] == "application/problem+json"
        assert answer.json()["detail"] == "No answer from postgres and redis."
        body = answer.json()
        assert (body["postgres"], body["redis"], body["last_poll_s"]) == ("down", "down", None)
        assert body["last_poll_age_s"] == {"postgres": None, "redis": None}


async def test_a_process_is_ready_while_both_stores_answer(api, settings):
    assert ReadyView.model_validate_json((await api.get("/readyz")).content).last_poll_s is None
    with psycopg.connect(settings.postgres_url) as connection:
        connection.execute(WORKER)
    answer = await api.get("/readyz")
    assert answer.status_code == 200
    assert 7 <= answer.json()["last_poll_s"] < 60
    assert max(answer.json()["last_poll_age_s"].values()) < 7  # both have just answered


@pytest.mark.parametrize(("away", "there"), [("postgres", "redis"), ("redis", "postgres")])
async def test_while_a_store_is_away_the_time_since_the_last_poll_goes_on(
    make_settings, postgres_url, redis_url, proxy, monkeypatch, away, there
):
    monkeypatch.setattr(health, "PATIENCE_S", 0.2)
    silent = proxy(postgres_url if away == "postgres" else redis_url)
    settings = make_settings(**{"POSTGRES_URL" if away == "postgres" else "REDIS_ADDR": silent.url})
    with psycopg.connect(postgres_url) as connection:
        connection.execute(WORKER)
    async with open_backend(settings) as backend, client_of(backend) as api:
        asked = monotonic()
        before = ReadyView.model_validate_json((await api.get("/readyz")).content)
        answered = monotonic()
        silent.swallow("up", "down")
        for _ in range(2):
            at_least = monotonic() - answered
            answer = await api.get("/readyz")
            at_most = monotonic() - asked
            body = answer.json()
            assert (answer.status_code, body[away], body[there]) == (503, "down", "up")
            assert at_least - 0.01 < body["last_poll_s"] - before.last_poll_s < at_most + 0.01
            assert at_least - 0.01 < body["last_poll_age_s"][away] < at_most + 0.01
            assert body["last_poll_age_s"][there] < at_most - at_least


async def test_without_redis_tasks_are_accepted_and_queues_are_unknown(make_settings):
    settings = make_settings(REDIS_ADDR=f"127.0.0.1:{free_port()}")
    async with open_backend(settings) as backend, client_of(backend) as api:
        made = await api.post("/v1/tasks", json=TASK)
        assert made.status_code == 201
        assert rows(settings) == 1
        assert (await api.post(made.headers["location"] + "/cancel")).json()["status"] == "cancelled"
        answer = await api.get("/v1/queues")
        assert answer.status_code == 503
        assert answer.headers["retry-after"] == "1"
        answer = await api.get("/readyz")
        assert [answer.json()[name] for name in ("postgres", "redis")] == ["up", "down"]


async def test_without_postgres_nothing_is_promised(make_settings):
    settings = make_settings(
        POSTGRES_URL=f"postgres://app:app@127.0.0.1:{free_port()}/app", ENQUEUE_TIMEOUT_MS=100
    )
    async with open_backend(settings) as backend, client_of(backend) as api:
        for method, path, content in [
            ("POST", "/v1/tasks", TASK),
            ("POST", "/v1/tasks/bulk", {"tasks": [TASK]}),
            ("GET", "/v1/tasks", None),
            ("GET", "/v1/queues", None),
            ("GET", "/v1/tasks/0192f5c1-7a3e-7000-8b3c-4d2a9e6f1b07", None),
            ("POST", "/v1/tasks/0192f5c1-7a3e-7000-8b3c-4d2a9e6f1b07/cancel", None),
        ]:
            answer = await api.request(method, path, json=content)
            assert answer.status_code == 503, path
            assert answer.headers["retry-after"] == "1"
            assert answer.json()["type"] == "urn:scheduler:problem:store-unavailable"
            assert "app" not in answer.json()["detail"]


async def test_a_store_that_is_silent_is_down_in_good_time(
    make_settings, postgres_url, redis_url, proxy, monkeypatch
):
    monkeypatch.setattr(health, "PATIENCE_S", 0.2)
    silent = proxy(redis_url)
    settings = make_settings(REDIS_ADDR=silent.url)
    async with open_backend(settings) as backend, client_of(backend) as api:
        assert (await api.get("/readyz")).status_code == 200
        silent.swallow("up", "down")
        before = monotonic()
        answer = await api.get("/readyz")
        assert monotonic() - before < 2
        assert [answer.json()[name] for name in ("postgres", "redis")] == ["up", "down"]
        silent.heal()
        async with asyncio.timeout(10):
            while (await api.get("/readyz")).status_code != 200:
                pass  # each look waits for the store


async def test_more_than_may_wait_is_refused_at_once(make_settings, postgres_url, proxy):
    slow = proxy(postgres_url)
    settings = make_settings(POSTGRES_URL=slow.url, ENQUEUE_MAX_WAITING=2)
    async with open_backend(settings) as backend, client_of(backend) as api:
        assert (await api.post("/v1/tasks", json=TASK)).status_code == 201
        slow.swallow("down")
        posts = [asyncio.create_task(api.post("/v1/tasks", json=TASK)) for _ in range(4)]
        done, waiting = await asyncio.wait(posts, return_when=asyncio.FIRST_COMPLETED)
        assert (len(done), len(waiting)) == (2, 2)
        for refused in done:
            answer = refused.result()
            assert answer.json()["type"] == "urn:scheduler:problem:overloaded"
            assert answer.headers["retry-after"] == "1"
        for path in ("/v1/tasks", "/v1/tasks/bulk"):  # before anybody reads what it says
            answer = await api.post(path, content=b"{", headers={"Content-Type": "application/json"})
            assert answer.status_code == 503
        slow.heal()
        assert [(await post).status_code for post in waiting] == [201, 201]
    assert rows(settings) == 3
