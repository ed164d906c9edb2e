"""One key is one task, however many send it at once, to whichever API, and whichever of them dies."""

from __future__ import annotations

import asyncio
import json
import random
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import psycopg
import pytest
from fix_process import environment, variables
from fix_servers import Servers, new_directory
from waiting import eventually

from bench.audit import audit
from bench.http import Connection, NoAnswer, Origin, Response
from bench.stand import Part, Stand

CROWD = 300

PAUSE_S = 0.05
"""Between two tries of a client."""


@dataclass(slots=True)
class Town:
    """Two API processes and a worker on servers of their own database."""

    postgres_url: str
    redis_url: str
    apis: Sequence[Part]

    def rows(self, sql: str, *params: object) -> list[tuple[Any, ...]]:
        with psycopg.connect(self.postgres_url, autocommit=True) as connection:
            return connection.execute(sql.encode(), params).fetchall()


@pytest.fixture(scope="module")
def town(servers: Servers) -> Iterator[Town]:
    with new_directory() as folder, servers.database() as postgres_url:
        redis_url = servers.empty_redis()
        with Stand(environment(**variables(postgres_url, redis_url)), folder) as stand:
            apis = [stand.api(name).start() for name in ("first", "second")]
            stand.worker("worker").start()
            yield Town(postgres_url, redis_url, apis)


@dataclass(slots=True)
class Crowd:
    """Clients that all send at once. Each tries again until it is answered for good."""

    answers: list[Response] = field(default_factory=list)
    broken: int = 0

    async def send(self, bodies: Sequence[bytes], apis: Sequence[Part]) -> None:
        """Send the bodies, to the APIs in turn."""
        async with asyncio.TaskGroup() as group:
            for i, body in enumerate(bodies):
                group.create_task(self._client(body, apis[i % len(apis)].url))

    async def _client(self, body: bytes, url: str) -> None:
        connection = Connection(Origin.parse(url))
        while True:
            try:
                answer = await connection.post("/v1/tasks", body)
            except NoAnswer:
                self.broken += 1
            else:
                if answer.status != 503:
                    break
            await asyncio.sleep(PAUSE_S)
        self.answers.append(answer)
        connection.close()

    @property
    def statuses(self) -> Counter[int]:
        return Counter(answer.status for answer in self.answers)

    @property
    def ids(self) -> set[str]:
        """The ids that the answers name: of the task, or of the task that the key belongs to."""
        said = [json.loads(answer.body) for answer in self.answers]
        return {body["task_id" if body.get("status") == 409 else "id"] for body in said}


def spellings(key: str, n: int, **fields: Any) -> list[bytes]:
    """One request n times, in two ways of writing it."""
    plain = {"type": "noop", "payload": {"a": 1, "b": 2}, "idempotency_key": key} | fields
    wordy = {"delay_ms": 0, "priority": "default", "queue": "default"} | plain | {"payload": {"b": 2, "a": 1}}
    return [json.dumps(plain if i % 4 < 2 else wordy).encode() for i in range(n)]


async def ask(town: Town, body: bytes) -> list[Response]:
    """Send one body to each API in turn."""
    crowds = [Crowd() for _ in town.apis]
    for crowd, api in zip(crowds, town.apis, strict=True):
        await crowd.send([body], [api])
    return [crowd.answers[0] for crowd in crowds]


async def check(town: Town, key: str, ids: set[str]) -> None:
    """One id, one row, one run; and whoever comes later is told so."""
    [id_] = ids
    assert town.rows("SELECT id::text FROM tasks WHERE idempotency_key = %s", key) == [(id_,)]
    assert town.rows("SELECT task_id::text FROM idempotency_keys WHERE key = %s", key) == [(id_,)]
    for answer in await ask(town, spellings(key, 1)[0]):
        assert (answer.status, json.loads(answer.body)["id"]) == (200, id_)
        assert answer.headers["idempotent-replayed"] == "true"
    for answer in await ask(town, spellings(key, 1, max_retries=9)[0]):
        assert (answer.status, json.loads(answer.body)["task_id"]) == (409, id_)
    await eventually(lambda: town.rows("SELECT 1 FROM tasks WHERE id = %s AND status = 'succeeded'", id_), 30)
    assert town.rows("SELECT outcome FROM task_runs WHERE task_id = %s", id_) == [("succeeded",)]
    verdict = audit(town.postgres_url, town.redis_url, list(ids), keys={key: ids})
    assert verdict.passed, "\n".join(verdict.lines())


async def test_twenty_at_once_make_one_task(town):
    crowd = Crowd()
    await crowd.send(spellings("twenty", 20), town.apis)
    assert crowd.statuses == {200: 19, 201: 1}
    await check(town, "twenty", crowd.ids)


async def test_of_two_requests_with_one_key_the_same_one_wins_everywhere(town):
    crowd, key = Crowd(), "contested"
    bodies = spellings(key, CROWD // 2) + spellings(key, CROWD // 2, priority="low", delay_ms=60_000)
    random.Random(1).shuffle(bodies)
    await crowd.send(bodies, town.apis)
    assert crowd.statuses == {201: 1, 200: CROWD // 2 - 1, 409: CROWD // 2}
    [id_] = crowd.ids
    assert town.rows("SELECT id::text FROM tasks WHERE idempotency_key = %s", key) == [(id_,)]


async def crash(api: Part, crowd: Crowd, answered: int) -> None:
    """Kill an API when so many clients have their answer, and start it again."""
    await eventually(lambda: len(crowd.answers) >= answered)
    api.kill()
    await asyncio.to_thread(api.start)


@pytest.mark.parametrize("rounds", [2, pytest.param(15, marks=pytest.mark.slow)])
async def test_a_key_survives_the_api_that_took_it(town, rounds):
    """In each round an API is killed early in the rush, while other clients of it wait for an answer.

    An API that has answered all of its clients before the kill proves nothing: most rounds must do better.
    """
    rng = random.Random(rounds)
    broken = 0
    for number in range(rounds):
        crowd, key = Crowd(), f"{rounds} rounds, {number}"
        async with asyncio.TaskGroup() as group:
            group.create_task(crowd.send(spellings(key, CROWD), town.apis))
            group.create_task(crash(rng.choice(town.apis), crowd, rng.choice((0, 1, 10, 60))))
        broken += crowd.broken > 0
        assert crowd.statuses.total() == CROWD
        assert set(crowd.statuses) <= {200, 201}
        assert crowd.statuses[201] <= 1  # none, if it was the first one's answer that was lost
        await check(town, key, crowd.ids)
    assert broken > rounds / 2
