"""What errors look like: problem documents (RFC 9457), one kind a reason, never a word of the input."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, Final

from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ConfigDict, Field
from pydantic_core import ErrorDetails
from starlette.exceptions import HTTPException
from starlette.responses import Response

from scheduler import log
from scheduler.errors import InputRefused, Overloaded, QueueUnavailable, StoreUnavailable
from scheduler.model import new_id

MEDIA_TYPE: Final = "application/problem+json"
MAX_ERRORS: Final = 20
"""Most entries of `errors` in one answer; `detail` says how many there are."""

UNKNOWN_FIELD: Final = "There is a field here that does not exist"
"""The name of an unknown field is input too, so it is left out."""

_RETRY: Final = {"Retry-After": "1"}
_CLOSE: Final = {"Connection": "close"}
_log = log.get("api")


@dataclass(frozen=True, slots=True)
class Kind:
    """A reason to refuse: its status, the last part of its `type`, and its `title`."""

    status: int
    slug: str
    title: str

    @property
    def type(self) -> str:
        return f"urn:scheduler:problem:{self.slug}"


MALFORMED: Final = Kind(400, "malformed-json", "The body is not JSON")
BAD_HEADER: Final = Kind(400, "malformed-header", "A header cannot be read")
FORBIDDEN: Final = Kind(403, "forbidden", "This client is not answered")
NO_ROUTE: Final = Kind(404, "no-such-route", "There is no such route")
NO_TASK: Final = Kind(404, "no-such-task", "There is no such task")
METHOD: Final = Kind(405, "method-not-allowed", "The route does not know this method")
TOO_SLOW: Final = Kind(408, "body-too-slow", "The body did not arrive in time")
KEY_CONFLICT: Final = Kind(409, "idempotency-conflict", "The idempotency key belongs to another request")
FINISHED: Final = Kind(409, "task-finished", "The task has ended")
TOO_LARGE: Final = Kind(413, "too-large", "The content is too large")
UNSUPPORTED: Final = Kind(415, "unsupported-media", "The body is not plain application/json")
INVALID: Final = Kind(422, "invalid", "The content is not valid")
INTERNAL: Final = Kind(500, "internal", "The server failed")
UNAVAILABLE: Final = Kind(503, "store-unavailable", "A store cannot be reached")
OVERLOADED: Final = Kind(503, "overloaded", "Too much is waiting")
NOT_READY: Final = Kind(503, "not-ready", "A store is down")


class FieldError(BaseModel):
    """Where a value was refused, and why."""

    loc: list[str | int] = Field(description="The way to the value, from the body or the query inwards.")
    message: str


class ProblemView(BaseModel):
    """An error, after RFC 9457. Some kinds carry more members than these."""

    model_config = ConfigDict(extra="allow")

    type: str = Field(description="The kind of problem: `urn:scheduler:problem:…`, fit for programs.")
    title: str
    status: int
    detail: str = Field(description="What was wrong here, fit for people.")
    errors: list[FieldError] | None = Field(None, description="422 only: each value that was refused.")


class Problem(Exception):
    """An answer that says why there is no other one.

    Args:
        kind: The reason.
        detail: What was wrong, in one or two sentences, without any of the input.
        errors: For 422: what was refused; the first MAX_ERRORS are shown.
        headers: More response headers.
        extra: More members of the document.
    """

    def __init__(
        self,
        kind: Kind,
        detail: str,
        *,
        errors: Sequence[FieldError] = (),
        headers: Mapping[str, str] | None = None,
        extra: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(detail)
        self.kind = kind
        self.detail = detail
        self.errors = errors
        self.headers = headers
        self.extra = extra or {}

    def document(self) -> dict[str, Any]:
        """The body of the answer."""
        kind = self.kind
        body = {"type": kind.type, "title": kind.title, "status": kind.status, "detail": self.detail}
        if self.errors:
            body["errors"] = [error.model_dump() for error in self.errors[:MAX_ERRORS]]
        return body | dict(self.extra)

    def response(self) -> Response:
        """The answer itself."""
        return Response(
            json.dumps(self.document()), self.kind.status, headers=self.headers, media_type=MEDIA_TYPE
        )


def too_large(what: str, limit: int) -> Problem:
    """`what` takes more than `limit` bytes. The connection is closed, as the rest of the body is not read."""
    return Problem(TOO_LARGE, f"{what} is larger than the {limit} bytes that are allowed.", headers=_CLOSE)


def too_slow(seconds: float) -> Problem:
    """The body was not complete after `seconds`."""
    return Problem(TOO_SLOW, f"The body was not complete after {seconds:g} s.", headers=_CLOSE)


def invalid(
    errors: Sequence[FieldError], detail: str = "", extra: Mapping[str, Any] | None = None
) -> Problem:
    """The content was understood and refused for `errors`, one or more."""
    count = "1 value was" if len(errors) == 1 else f"{len(errors)} values were"
    return Problem(INVALID, detail or f"{count} refused; see errors.", errors=errors, extra=extra)


def no_task() -> Problem:
    """No task has the id that was asked for, or it is no id at all."""
    return Problem(NO_TASK, "No task has this id.")


def field_errors(found: Sequence[ErrorDetails | Any]) -> list[FieldError]:
    """Pydantic's errors as ours."""
    errors = []
    for error in found:
        loc, message = [*error["loc"]], str(error["msg"]).removeprefix("Value error, ")
        if error["type"] == "extra_forbidden":
            loc, message = loc[:-1], UNKNOWN_FIELD
        errors.append(FieldError(loc=loc, message=message))
    return errors


def problem_of(error: Exception) -> Problem:
    """The problem that an exception amounts to; one that is our own fault is logged under a number."""
    match error:
        case Problem():
            return error
        case RequestValidationError():
            return invalid(field_errors(error.errors()))
        case HTTPException():
            return _http_problem(error)
        case InputRefused():
            return Problem(INVALID, "Postgres refused a value of the request.")
        case Overloaded():
            why = str(error)
            return Problem(OVERLOADED, f"{why[:1].upper()}{why[1:]}. Try again.", headers=_RETRY)
        case StoreUnavailable():
            detail = (
                "Postgres could not be reached or gave no answer in time. Try again: to enqueue, with an"
                " idempotency key, as the task may have been accepted; to list, with filters that fit more of"
                " the newest tasks."
            )
            return Problem(UNAVAILABLE, detail, headers=_RETRY)
        case QueueUnavailable():
            return Problem(UNAVAILABLE, "Redis cannot be reached. Try again.", headers=_RETRY)
        case _:
            return _defect(error)


def _http_problem(error: HTTPException) -> Problem:
    """What Starlette's router refused."""
    if error.status_code == METHOD.status:
        return Problem(METHOD, "See the Allow header.", headers=error.headers)
    if error.status_code == NO_ROUTE.status:
        return Problem(NO_ROUTE, "Nothing is here. GET /openapi.json lists what there is.")
    phrase = HTTPStatus(error.status_code).phrase
    return Problem(Kind(error.status_code, phrase.lower().replace(" ", "-"), phrase), f"{phrase}.")


def _defect(error: Exception) -> Problem:
    number = new_id()
    _log.error("request failed", instance=number, exc_info=error)
    return Problem(
        INTERNAL, "The log has the reason under this id.", extra={"instance": f"urn:uuid:{number}"}
    )
