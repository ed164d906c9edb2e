"""Reading, listing and cancelling tasks."""

from __future__ import annotations

import re
from typing import Annotated, Final

from fastapi import Depends, Path, Query
from pydantic import BaseModel, ConfigDict, Field, StringConstraints
from starlette.responses import Response

from scheduler.api.backend import Needs
from scheduler.api.openapi import answers, new_router
from scheduler.api.problems import FINISHED, INVALID, NO_TASK, UNAVAILABLE, Problem, no_task
from scheduler.api.spec import Name, TypeName
from scheduler.api.views import EXAMPLE_ID, RunPage, RunView, TaskPage, TaskView, page_json, task_json
from scheduler.cancel import cancel
from scheduler.lifecycle import Status
from scheduler.model import Priority

UUID: Final = r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}"
Cursor = Annotated[str, StringConstraints(pattern=f"^{UUID}$")]

router = new_router("tasks")


def _task_id(task_id: Annotated[str, Path(description="The task's id.", examples=[EXAMPLE_ID])]) -> str:
    """An id as Postgres takes it; what is no id names no task."""
    if not re.fullmatch(UUID, task_id.lower()):
        raise no_task()
    return task_id.lower()


TaskId = Annotated[str, Depends(_task_id)]


class TaskFilter(BaseModel):
    """Which tasks to list: those that agree with all that is given."""

    model_config = ConfigDict(extra="forbid")

    status: Status | None = None
    type: TypeName | None = Field(None, examples=["noop"])
    queue: Name | None = Field(None, examples=["default"])
    priority: Priority | None = None
    limit: int = Field(50, ge=1, le=1000, description="Most tasks in one page.")
    cursor: Cursor | None = Field(
        None, description="The `next_cursor` of the page before.", examples=[EXAMPLE_ID]
    )


@router.get("/v1/tasks", response_model=TaskPage, responses=answers(INVALID, UNAVAILABLE))
async def list_tasks(backend: Needs, wanted: Annotated[TaskFilter, Query()]) -> Response:
    """List tasks, newest first, a page at a time."""
    rows = await backend.store.tasks(
        status=wanted.status,
        type=wanted.type,
        queue=wanted.queue,
        priority=wanted.priority,
        before=wanted.cursor,
        limit=wanted.limit + 1,
    )
    page = rows[: wanted.limit]
    return _json(page_json(page, page[-1].id if len(rows) > wanted.limit else None))


@router.get("/v1/tasks/{task_id}", response_model=TaskView, responses=answers(NO_TASK, UNAVAILABLE))
async def show_task(backend: Needs, task_id: TaskId) -> Response:
    """Show one task."""
    task = await backend.store.task(task_id)
    if task is None:
        raise no_task()
    return _json(task_json(task))


@router.get("/v1/tasks/{task_id}/runs", responses=answers(NO_TASK, UNAVAILABLE))
async def list_runs(backend: Needs, task_id: TaskId) -> RunPage:
    """List the attempts of a task that have ended, oldest first."""
    runs = await backend.store.runs(task_id)
    if not runs and await backend.store.task(task_id) is None:
        raise no_task()
    return RunPage(items=[RunView.model_validate(run) for run in runs])


@router.post(
    "/v1/tasks/{task_id}/cancel",
    response_model=TaskView,
    responses=answers(NO_TASK, FINISHED, UNAVAILABLE),
)
async def cancel_task(backend: Needs, task_id: TaskId) -> Response:
    """Cancel a task that has not ended; cancelling it again changes nothing.

    A handler that is running is told to stop, and what it still reports does not count.
    """
    task, _ = await cancel(backend.store, backend.index, task_id)
    if task is None:
        raise no_task()
    if task.status != "cancelled":
        raise Problem(FINISHED, f"The task is {task.status}, which is final.")
    return _json(task_json(task))


def _json(text: str) -> Response:
    return Response(text, media_type="application/json")
