"""Problems: every error has a status, says nothing of the input, and ours are logged under a number."""

from __future__ import annotations

import json

import pytest
import structlog

from scheduler import errors
from scheduler.api.problems import MAX_ERRORS, FieldError, ProblemView, invalid, problem_of


@pytest.mark.parametrize(
    ("error", "status", "retry"),
    [
        (errors.InputRefused("'secret'"), 422, False),
        (errors.Overloaded("secret"), 503, True),
        (errors.StoreUnavailable("secret"), 503, True),
        (errors.QueueUnavailable("secret"), 503, True),
        (errors.StoreError("secret"), 500, False),
        (errors.QueueError("secret"), 500, False),
        (ValueError("secret"), 500, False),
    ],
)
def test_every_error_becomes_a_problem_that_tells_no_secrets(error, status, retry):
    response = problem_of(error).response()
    document = ProblemView.model_validate_json(response.body)
    assert response.status_code == document.status == status
    assert response.media_type == "application/problem+json"
    assert ("retry-after" in response.headers) == retry
    assert b"secret" not in response.body


def test_a_defect_is_logged_under_the_number_that_the_client_is_told():
    with structlog.testing.capture_logs() as logs:
        document = problem_of(RuntimeError("boom")).document()
    [line] = logs
    assert document["instance"] == f"urn:uuid:{line['instance']}"
    assert str(line["exc_info"]) == "boom"


def test_a_long_list_of_errors_is_cut_short():
    document = invalid([FieldError(loc=["a"], message="no")] * 1000).document()
    assert len(document["errors"]) == MAX_ERRORS
    assert document["detail"].startswith("1000 values")
    assert len(json.dumps(document)) < 2000
