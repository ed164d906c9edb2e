"""The OpenAPI document: it is the one that is kept here, complete, and true."""

from __future__ import annotations

import json
from pathlib import Path

import jsonschema
import psycopg
import pytest
from fastapi.routing import APIRoute

from scheduler import config
from scheduler.api.app import create_app
from scheduler.api.backend import Backend
from scheduler.api.openapi import MAX_BULK
from scheduler.enqueue import Enqueuer
from scheduler.metrics import Metrics
from scheduler.queue import Index
from scheduler.store import Store

GOLDEN = Path(__file__).with_name("openapi.json")
UNKNOWN = "0192f5c1-7a3e-7000-8b3c-4d2a9e6f1b07"
KEYED = {"type": "noop", "idempotency_key": "k"}
PROBLEM = "application/problem+json"


def offline_app():
    """The app without its stores: nothing here connects."""
    settings = config.Settings()
    store, index = Store(settings, name="test", max_conns=1), Index.open(settings, name="test")
    return create_app(Backend(store, index, Enqueuer(store, index, settings, Metrics()), settings))


APP = offline_app()
DOCUMENT = APP.openapi()
OPERATIONS = {
    (method.upper(), path): operation
    for path, item in DOCUMENT["paths"].items()
    for method, operation in item.items()
}


def check(value: object, schema: dict) -> None:
    """Raise if `value` does not fit a schema of the document."""
    whole = {"$ref": "#/schema", "schema": schema, "components": DOCUMENT["components"]}
    jsonschema.Draft202012Validator(whole).validate(value)


def test_the_document_is_the_one_that_is_kept_here():
    """After a change that is meant: `python tests/contracts/test_openapi.py` writes it anew."""
    assert json.loads(GOLDEN.read_text(encoding="utf-8")) == json.loads(json.dumps(DOCUMENT))


def test_the_document_describes_every_route():
    routes = {
        (method, route.path)
        for route in APP.routes
        if isinstance(route, APIRoute)
        for method in route.methods
    }
    assert set(OPERATIONS) == routes
    assert len({operation["operationId"] for operation in OPERATIONS.values()}) == len(OPERATIONS)


@pytest.mark.parametrize("operation", OPERATIONS.values(), ids=" ".join)
def test_a_route_shows_an_example_of_its_success_and_of_each_of_its_errors(operation):
    answers = operation["responses"]
    assert {"403", "default"} <= set(answers)
    assert min(answers) in {"200", "201"}
    for status, answer in answers.items():
        if status.startswith("2"):
            [(media, content)] = answer["content"].items()
            assert media == "application/json"
            model = DOCUMENT["components"]["schemas"][content["schema"]["$ref"].rpartition("/")[2]]
            for example in model["examples"]:
                check(example, content["schema"])
            continue
        content = answer["content"][PROBLEM]
        assert content["examples"]
        for example in content["examples"].values():
            check(example["value"], content["schema"])
            assert status in {"default", str(example["value"]["status"])}


def test_every_request_body_has_an_example_that_fits_its_schema():
    bodies = [operation["requestBody"] for operation in OPERATIONS.values() if "requestBody" in operation]
    assert len(bodies) == 2
    for body in bodies:
        [content] = body["content"].values()
        check(content["example"], content["schema"])


def test_the_limits_in_the_document_are_the_ones_that_are_kept():
    schema = OPERATIONS["POST", "/v1/tasks/bulk"]["requestBody"]["content"]["application/json"]["schema"]
    assert schema["properties"]["tasks"]["maxItems"] == MAX_BULK
    with pytest.raises(jsonschema.ValidationError):
        check({"type": "noop", "unknown": 1}, {"$ref": "#/components/schemas/TaskSpec"})


async def test_what_is_answered_is_what_the_document_says(api, settings):
    made = (await api.post("/v1/tasks", json=KEYED)).json()["id"]
    ended = (await api.post("/v1/tasks", json={"type": "noop"})).json()["id"]
    with psycopg.connect(settings.postgres_url) as connection:
        connection.execute(
            "UPDATE tasks SET status = 'succeeded', attempts = 1, claimed_at = now(), finished_at = now()"
            " WHERE id = %s",
            (ended,),
        )
        connection.execute(
            "INSERT INTO task_runs (task_id, attempt, outcome, worker, claimed_at, started_at, finished_at)"
            " VALUES (%s, 1, 'succeeded', 'w', now(), now(), now())",
            (ended,),
        )
    bulk = {"tasks": [KEYED, KEYED | {"type": "other"}, {"type": "noop", "backoff": {"base_ms": 1}}]}
    task = "/v1/tasks/{task_id}"
    for method, path, target, sent, status in [
        ("POST", "/v1/tasks", "/v1/tasks", {"json": {"type": "noop"}}, 201),
        ("POST", "/v1/tasks", "/v1/tasks", {"json": KEYED}, 200),
        ("POST", "/v1/tasks", "/v1/tasks", {"json": KEYED | {"type": "other"}}, 409),
        ("POST", "/v1/tasks", "/v1/tasks", {"json": {}}, 422),
        ("POST", "/v1/tasks", "/v1/tasks", {"content": b"{"}, 415),
        (
            "POST",
            "/v1/tasks",
            "/v1/tasks",
            {"content": b"{", "headers": {"Content-Type": "application/json"}},
            400,
        ),
        ("POST", "/v1/tasks", "/v1/tasks", {"json": {"payload": " " * settings.max_body_bytes}}, 413),
        ("POST", "/v1/tasks/bulk", "/v1/tasks/bulk", {"json": bulk}, 200),
        ("POST", "/v1/tasks/bulk", "/v1/tasks/bulk", {"json": {"tasks": [{}]}}, 422),
        ("GET", "/v1/tasks", "/v1/tasks?limit=2", {}, 200),
        ("GET", "/v1/tasks", "/v1/tasks?limit=0", {}, 422),
        ("GET", task, f"/v1/tasks/{ended}", {}, 200),
        ("GET", task, f"/v1/tasks/{UNKNOWN}", {}, 404),
        ("GET", task + "/runs", f"/v1/tasks/{ended}/runs", {}, 200),
        ("POST", task + "/cancel", f"/v1/tasks/{made}/cancel", {}, 200),
        ("POST", task + "/cancel", f"/v1/tasks/{ended}/cancel", {}, 409),
        ("GET", "/v1/queues", "/v1/queues", {}, 200),
        ("GET", "/healthz", "/healthz", {}, 200),
        ("GET", "/readyz", "/readyz", {}, 200),
    ]:
        answer = await api.request(method, target, **sent)
        assert answer.status_code == status, (method, target, answer.text)
        described = OPERATIONS[method, path]["responses"][str(status)]
        check(answer.json(), described["content"][answer.headers["content-type"]]["schema"])
        for header in described.get("headers", {}):
            assert header in answer.headers
    assert (await api.get("/openapi.json")).json() == json.loads(GOLDEN.read_text(encoding="utf-8"))


if __name__ == "__main__":
    GOLDEN.write_text(json.dumps(DOCUMENT, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
