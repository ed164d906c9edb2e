"""The document that describes the API: every route with its answers, its errors, and an example of each."""

from __future__ import annotations

from collections import defaultdict
from typing import Any, Final

from fastapi import APIRouter, FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic.json_schema import models_json_schema

from scheduler.api import problems
from scheduler.api.access import REASON
from scheduler.api.problems import Kind, Problem, ProblemView
from scheduler.api.spec import TaskSpec
from scheduler.api.views import EXAMPLE_ID, Answer, BulkResults, TaskView

Responses = dict[int | str, dict[str, Any]]

MAX_BULK: Final = 1000
"""Most tasks in one bulk request."""

_REF: Final = "#/components/schemas/{model}"
_SAMPLES: Final = {
    sample.kind: sample.document()
    for sample in (
        Problem(
            problems.MALFORMED, "The body is not JSON in UTF-8 without a byte order mark: line 1, column 9."
        ),
        Problem(problems.FORBIDDEN, REASON),
        problems.no_task(),
        problems.too_slow(10),
        Problem(
            problems.KEY_CONFLICT, "Another request came with this key before.", extra={"task_id": EXAMPLE_ID}
        ),
        Problem(problems.FINISHED, "The task is succeeded, which is final."),
        problems.too_large("The body", 8388608),
        Problem(problems.UNSUPPORTED, "Send Content-Type: application/json, in UTF-8."),
        problems.invalid(
            [problems.FieldError(loc=["max_retries"], message="Input should be a valid integer")]
        ),
        Problem(
            problems.INTERNAL,
            "The log has the reason under this id.",
            extra={"instance": f"urn:uuid:{EXAMPLE_ID}"},
        ),
        Problem(problems.UNAVAILABLE, "Redis cannot be reached. Try again."),
        Problem(problems.OVERLOADED, "10000 tasks wait for their commit already. Try again."),
        Problem(
            problems.NOT_READY,
            "No answer from redis.",
            extra={
                "postgres": "up",
                "redis": "down",
                "last_poll_s": 0.4,
                "last_poll_age_s": {"postgres": 0.002, "redis": 12.3},
            },
        ),
    )
}


def new_router(tag: str) -> APIRouter:
    """A router for the routes that the document shows under `tag`; a route's function names its operation."""
    return APIRouter(tags=[tag], generate_unique_id_function=lambda route: route.name)


def answers(*kinds: Kind) -> Responses:
    """What a route may answer besides its success: these problems and those that every route has."""
    by_status: dict[int | str, list[Kind]] = defaultdict(list)
    for kind in (problems.FORBIDDEN, *kinds):
        by_status[kind.status].append(kind)
    by_status["default"] = [problems.INTERNAL]
    return {status: _problem(same) for status, same in sorted(by_status.items(), key=str)}


def _problem(kinds: list[Kind]) -> dict[str, Any]:
    samples = {kind.slug: {"value": _SAMPLES[kind]} for kind in kinds}
    schema = {"$ref": _REF.format(model=ProblemView.__name__)}
    return {
        "description": " or: ".join(kind.title for kind in kinds) + ".",
        "content": {problems.MEDIA_TYPE: {"schema": schema, "examples": samples}},
    }


def _text_header(description: str) -> dict[str, Any]:
    return {"description": description, "schema": {"type": "string"}}


def _body(schema: dict[str, Any], example: dict[str, Any]) -> dict[str, Any]:
    content = {"application/json": {"schema": schema, "example": example}}
    return {"required": True, "content": content}


_BODY_PROBLEMS: Final = (
    problems.MALFORMED,
    problems.TOO_SLOW,
    problems.TOO_LARGE,
    problems.UNSUPPORTED,
    problems.INVALID,
    problems.UNAVAILABLE,
    problems.OVERLOADED,
)
_SPEC: Final = {"$ref": _REF.format(model=TaskSpec.__name__)}
_SPEC_EXAMPLE: Final[dict[str, Any]] = {
    "type": "noop",
    "priority": "high",
    "payload": {"example": True},
    "idempotency_key": "demo-123",
}

TASK_POST: Final[dict[str, Any]] = {
    "status_code": 201,
    "response_model": None,
    "responses": {
        200: {
            "model": TaskView,
            "description": "The idempotency key came with the same request before: the task of that time.",
            "headers": {"Idempotent-Replayed": _text_header("`true`.")},
        },
        201: {
            "model": TaskView,
            "description": "The task is committed.",
            "headers": {"Location": _text_header("The path of the new task.")},
        },
        **answers(*_BODY_PROBLEMS, problems.KEY_CONFLICT),
    },
    "openapi_extra": {
        "parameters": [
            {
                "name": "Idempotency-Key",
                "in": "header",
                "required": False,
                "description": "The same as the field `idempotency_key`; both together must agree.",
                "schema": {"type": "string", "minLength": 1, "maxLength": 255},
            }
        ],
        "requestBody": _body(_SPEC, _SPEC_EXAMPLE),
    },
}
"""How POST /v1/tasks is declared."""

TASKS_POST: Final[dict[str, Any]] = {
    "status_code": 200,
    "response_model": None,
    "responses": {
        200: {
            "model": BulkResults,
            "description": "Every task that is new is committed.",
        },
        **answers(*_BODY_PROBLEMS),
    },
    "openapi_extra": {
        "requestBody": _body(
            {
                "type": "object",
                "required": ["tasks"],
                "additionalProperties": False,
                "properties": {
                    "tasks": {"type": "array", "minItems": 1, "maxItems": MAX_BULK, "items": _SPEC}
                },
            },
            {"tasks": [_SPEC_EXAMPLE]},
        ),
    },
}
"""How POST /v1/tasks/bulk is declared."""


def document(app: FastAPI) -> dict[str, Any]:
    """The OpenAPI document of `app`."""
    made = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
    _, named = models_json_schema(
        [(TaskSpec, "validation"), (ProblemView, "serialization")], ref_template=_REF
    )
    schemas = made["components"]["schemas"] | named["$defs"]
    for model in Answer.__subclasses__():
        schemas[model.__name__]["examples"] = model.EXAMPLES  # FastAPI leaves out what is null in them
    made["components"]["schemas"] = dict(sorted(schemas.items()))
    return made
