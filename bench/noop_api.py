"""An ordinary FastAPI application that takes a task and keeps nothing: what the real API is measured against.

One route, written as FastAPI's documentation writes one: a pydantic model in, a pydantic model out, no
database. `python -m uvicorn bench.noop_api:app` serves it.
"""

from __future__ import annotations

from typing import Any, Literal
from uuid import uuid4

from fastapi import FastAPI
from pydantic import BaseModel, Field

app = FastAPI()


class NewTask(BaseModel):
    """The fields that the load sends, and the most common optional ones."""

    type: str = Field(min_length=1, max_length=128)
    queue: str = "default"
    priority: Literal["critical", "high", "default", "low"] = "default"
    payload: dict[str, Any] = Field(default_factory=dict)
    max_retries: int = Field(default=3, ge=0, le=1000)
    idempotency_key: str | None = None


class Task(BaseModel):
    """The answer."""

    id: str
    type: str
    queue: str
    priority: str
    status: str = "queued"


@app.post("/v1/tasks", status_code=201)
async def create_task(task: NewTask) -> Task:
    """Take a task and forget it."""
    return Task(id=str(uuid4()), type=task.type, queue=task.queue, priority=task.priority)
