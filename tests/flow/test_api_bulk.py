"""Many tasks in one request: all of them in one transaction, or none."""

from __future__ import annotations

import asyncio
import json

import pytest
from fix_api import rows

from scheduler.api import submissions
from scheduler.api.views import BulkResults


async def post(api, tasks):
    return await api.post("/v1/tasks/bulk", json={"tasks": tasks})


async def test_a_thousand_tasks_are_accepted_in_their_order(api, settings):
    answer = await post(api, [{"type": "noop", "payload": {"n": n}} for n in range(1000)])
    assert answer.status_code == 200
    items = BulkResults.model_validate_json(answer.content).items
    assert [item.task.payload["n"] for item in items] == list(range(1000))
    assert {item.result for item in items} == {"created"}
    assert rows(settings) == 1000


async def test_each_task_is_told_what_became_of_it(api, settings):
    def keyed(n):
        return {"type": "noop", "payload": {"n": n}, "idempotency_key": "key"}

    first = await api.post("/v1/tasks", json=keyed(1))
    items = (await post(api, [keyed(1), {"type": "noop"}, keyed(2)])).json()["items"]
    assert [item["result"] for item in items] == ["existing", "created", "conflict"]
    assert items[0]["task"] == first.json()
    assert items[2]["task"] == {"id": first.json()["id"]}
    assert rows(settings) == 2


async def test_a_key_that_comes_twice_in_one_request_makes_one_task(api, settings):
    task = {"type": "noop", "idempotency_key": "key"}
    items = (await post(api, [task, task, task | {"type": "other"}])).json()["items"]
    assert sorted(item["result"] for item in items) == ["conflict", "created", "existing"]
    assert len({item["task"]["id"] for item in items}) == 1
    assert rows(settings) == 1


async def test_one_malformed_task_refuses_all_and_is_named(api, settings):
    bad = {"type": "noop", "priority": "s3cret", "s3cret": 1}
    answer = await post(api, [{"type": "noop"}, bad, {"type": "noop"}, "s3cret"])
    assert answer.status_code == 422
    problem = answer.json()
    assert problem["indexes"] == [1, 3]
    assert [error["loc"] for error in problem["errors"]] == [
        ["tasks", 1, "priority"],
        ["tasks", 1],
        ["tasks", 3],
    ]
    assert problem["detail"].startswith("2 of 4 tasks are malformed")
    assert "s3cret" not in answer.text
    assert rows(settings) == 0


async def test_a_thousand_malformed_tasks_are_all_named_in_a_small_answer(api):
    answer = await post(api, [{}] * 1000)
    assert answer.json()["indexes"] == list(range(1000))
    assert len(answer.content) < 10_000


@pytest.mark.parametrize(
    "body",
    [
        {},
        [],
        None,
        {"tasks": []},
        {"tasks": None},
        {"tasks": {"0": {"type": "noop"}}},
        {"tasks": [{"type": "noop"}] * 1001},
        {"tasks": [{"type": "noop"}], "more": 1},
        [{"type": "noop"}],
    ],
)
async def test_a_bulk_request_is_one_to_a_thousand_tasks(api, settings, body):
    answer = await api.post(
        "/v1/tasks/bulk", content=json.dumps(body), headers={"Content-Type": "application/json"}
    )
    assert answer.status_code == 422
    assert rows(settings) == 0


async def test_a_payload_that_is_too_large_refuses_all(api, settings):
    large = {"type": "noop", "payload": {"a": "x" * settings.max_payload_bytes}}
    answer = await post(api, [{"type": "noop"}, large])
    assert answer.status_code == 422
    assert answer.json()["indexes"] == [1]
    assert rows(settings) == 0


async def test_one_key_for_many_tasks_is_refused(api, settings):
    answer = await api.post(
        "/v1/tasks/bulk", json={"tasks": [{"type": "noop"}]}, headers={"Idempotency-Key": "key"}
    )
    assert answer.status_code == 422
    assert rows(settings) == 0


async def test_others_get_their_turns_while_a_large_request_is_checked(backend):
    """Else every small request would wait for the whole of it."""
    turns = 0

    async def count() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    counting = asyncio.create_task(count())
    await submissions._new_tasks([{"type": "noop"}] * 1000, backend)
    counting.cancel()
    assert turns >= 10
