"""POST /v1/tasks and /v1/tasks/bulk: the hot routes.

They are plain functions from request to response, which `app` calls without FastAPI's layers: these would
cost more than everything that happens here. A 2xx is sent only after Postgres has committed.
"""

from __future__ import annotations

import asyncio
from typing import Any, Final

from starlette.requests import Request
from starlette.responses import Response

from scheduler.api import body, problems, views
from scheduler.api.backend import Backend, of_request
from scheduler.api.openapi import MAX_BULK, TASK_POST, TASKS_POST, new_router
from scheduler.api.problems import BAD_HEADER, KEY_CONFLICT, FieldError, Problem, invalid, too_large
from scheduler.api.spec import Refused, new_task
from scheduler.model import NewTask

_KEY: Final = "idempotency_key"
_TURN: Final = 100
"""Tasks of a bulk request that are checked before others get their turn: about a millisecond."""

router = new_router("tasks")


@router.post("/v1/tasks", **TASK_POST)
async def create_task(request: Request) -> Response:
    """Accept one task."""
    backend = of_request(request)
    backend.enqueuer.check_room()
    fields = body.decode(await body.read(request, backend.settings.max_body_bytes))
    _take_header_key(request, fields)
    try:
        task = new_task(fields, backend.settings)
    except Refused as refused:
        if refused.too_large:
            raise too_large("The payload", backend.settings.max_payload_bytes) from None
        raise invalid(refused.errors) from None
    [accepted] = await backend.enqueuer.submit((task,))
    if accepted.result == "conflict":
        raise Problem(
            KEY_CONFLICT,
            "Another request came with this idempotency key before. Use a new key for a new task.",
            extra={"task_id": accepted.task.id},
        )
    text = views.task_json(accepted.task)
    if accepted.result == "existing":
        return Response(text, 200, {"Idempotent-Replayed": "true"}, "application/json")
    return Response(text, 201, {"Location": f"/v1/tasks/{accepted.task.id}"}, "application/json")


@router.post("/v1/tasks/bulk", **TASKS_POST)
async def create_tasks(request: Request) -> Response:
    """Accept up to 1,000 tasks in one transaction: all of them, or none if one is malformed."""
    backend = of_request(request)
    if _header_key(request) is not None:
        message = "A bulk request takes no Idempotency-Key; give each task an idempotency_key"
        raise invalid([FieldError(loc=["header", "Idempotency-Key"], message=message)])
    backend.enqueuer.check_room()
    content = body.decode(await body.read(request, backend.settings.max_body_bytes))
    tasks = await _new_tasks(_items(content), backend)
    accepted = await backend.enqueuer.submit(tasks)
    return Response(views.bulk_json(accepted), 200, media_type="application/json")


def _items(content: Any) -> list[Any]:
    items = content.get("tasks") if isinstance(content, dict) and len(content) == 1 else None
    if not isinstance(items, list) or not 1 <= len(items) <= MAX_BULK:
        message = f'Must be {{"tasks": […]}} with 1 to {MAX_BULK} tasks and no other field'
        raise invalid([FieldError(loc=[], message=message)])
    return items


async def _new_tasks(items: list[Any], backend: Backend) -> list[NewTask]:
    tasks: list[NewTask] = []
    errors: list[FieldError] = []
    indexes: list[int] = []
    for index, fields in enumerate(items):
        if index % _TURN == _TURN - 1:
            await asyncio.sleep(0)  # a small request must not wait for the whole of a large one
        try:
            tasks.append(new_task(fields, backend.settings))
        except Refused as refused:
            indexes.append(index)
            errors += [FieldError(loc=["tasks", index, *e.loc], message=e.message) for e in refused.errors]
    if indexes:
        shown = (
            f" The first {problems.MAX_ERRORS} errors are shown." if len(errors) > problems.MAX_ERRORS else ""
        )
        detail = f"{len(indexes)} of {len(items)} tasks are malformed, so none was accepted.{shown}"
        raise invalid(errors, detail, {"indexes": indexes})
    return tasks


def _header_key(request: Request) -> str | None:
    """The header Idempotency-Key, in UTF-8."""
    values = {value for name, value in request.scope["headers"] if name == b"idempotency-key"}
    if len(values) > 1:
        raise Problem(BAD_HEADER, "The header Idempotency-Key is sent twice and differs.")
    for value in values:
        try:
            return bytes(value).decode()
        except UnicodeDecodeError:
            raise Problem(BAD_HEADER, "The header Idempotency-Key is not UTF-8.") from None
    return None


def _take_header_key(request: Request, fields: Any) -> None:
    """Let the header stand for the field `idempotency_key`."""
    key = _header_key(request)
    if key is None or not isinstance(fields, dict):
        return
    if fields.get(_KEY) not in (None, key):
        message = "Differs from the header Idempotency-Key"
        raise invalid([FieldError(loc=[_KEY], message=message)])
    fields[_KEY] = key
