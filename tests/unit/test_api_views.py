"""Answers: the text of a task has the shape that the document promises."""

from __future__ import annotations

import json
from dataclasses import fields, replace
from datetime import UTC, datetime, timedelta, timezone

from scheduler.api.views import TaskPage, TaskView, page_json, rfc3339, task_json
from scheduler.model import Task

NOW = datetime(2026, 1, 2, 3, 4, 5, 678_999, tzinfo=UTC)
QUEUED = Task(
    id="0192f5c1-7a3e-7000-8b3c-4d2a9e6f1b07",
    tenant="default",
    queue="default",
    type="noop",
    priority="high",
    payload='{"a": 12345678901234567890123}',
    status="queued",
    attempts=0,
    failures=0,
    losses=0,
    redrives=0,
    max_retries=3,
    timeout_ms=None,
    backoff=None,
    idempotency_key='say "hi"',
    due_at=NOW,
    created_at=NOW,
    claimed_at=None,
    finished_at=None,
    dead_at=None,
    dead_reason=None,
    worker=None,
    lease_expires_at=None,
    last_error=None,
)
DEAD = replace(
    QUEUED,
    status="dead",
    backoff='{"base_ms": 5}',
    claimed_at=NOW,
    finished_at=NOW,
    dead_at=NOW,
    dead_reason="failed",
    last_error='boom "\n\x01é',
)


def test_instants_are_utc_with_milliseconds():
    assert rfc3339(NOW) == "2026-01-02T03:04:05.678Z"
    assert rfc3339(NOW.astimezone(timezone(timedelta(hours=5)))) == "2026-01-02T03:04:05.678Z"


def test_a_task_is_written_in_the_shape_that_the_document_promises():
    for task in (QUEUED, DEAD):
        written = json.loads(task_json(task))
        assert list(written) == list(TaskView.model_fields)
        assert TaskView.model_validate(written).model_dump(mode="json") == written


def test_a_task_shows_every_field_of_its_row_but_the_tenant():
    assert set(TaskView.model_fields) == {field.name for field in fields(Task)} - {"tenant"}


def test_the_payload_is_shown_as_it_is_stored():
    assert json.loads(task_json(QUEUED))["payload"] == {"a": 12345678901234567890123}
    assert json.loads(task_json(DEAD))["last_error"] == DEAD.last_error


def test_a_page_is_written_in_the_shape_that_the_document_promises():
    assert json.loads(page_json([], None)) == {"items": [], "next_cursor": None}
    page = TaskPage.model_validate_json(page_json([QUEUED, DEAD], QUEUED.id))
    assert [item.status for item in page.items] == ["queued", "dead"]
    assert page.next_cursor == QUEUED.id
