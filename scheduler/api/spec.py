"""What a client may say about a new task, and how it becomes a NewTask."""

from __future__ import annotations

import hashlib
import json
import re
from contextlib import suppress
from datetime import UTC, datetime
from typing import Annotated, Any, Final

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationError,
    WithJsonSchema,
)
from pydantic_core import to_json

from scheduler.api.body import TooLarge, Unfit, payload_text
from scheduler.api.problems import UNKNOWN_FIELD, FieldError, field_errors
from scheduler.backoff import Jitter, Strategy
from scheduler.config import Settings
from scheduler.model import DEFAULT_QUEUE, NAME_PATTERN, TYPE_PATTERN, NewTask, Priority, new_id

DAY_MS: Final = 86_400_000
YEAR_MS: Final = 365 * DAY_MS

_RFC3339: Final = re.compile(
    r"[0-9]{4}-[0-9]{2}-[0-9]{2}[Tt][0-9]{2}:[0-9]{2}:[0-9]{2}(\.[0-9]{1,9})?([Zz]|[+-][0-9]{2}:[0-9]{2})"
)
_EARLIEST: Final = datetime(1970, 1, 1, tzinfo=UTC)
_LATEST: Final = datetime(9999, 12, 31, tzinfo=UTC)
"""A day short of what a datetime can hold, so that it can be shown in any zone."""


def _instant(value: Any) -> Any:
    if value is None:
        return None
    if isinstance(value, str) and _RFC3339.fullmatch(value):
        with suppress(ValueError, OverflowError):  # no such day; beyond year 1 or 9999 in UTC
            instant = datetime.fromisoformat(value.upper()).astimezone(UTC)
            if _EARLIEST <= instant < _LATEST:
                return instant
    raise ValueError("Must be an instant of RFC 3339 with its zone, from 1970 to 9999-12-30")


def _printable(value: str) -> str:
    if not value.isprintable():
        raise ValueError("Must consist of printable characters")
    return value


Name = Annotated[str, StringConstraints(pattern=rf"^{NAME_PATTERN}$")]
TypeName = Annotated[str, StringConstraints(pattern=rf"^{TYPE_PATTERN}$")]
Instant = Annotated[datetime | None, BeforeValidator(_instant)]
Key = Annotated[str, StringConstraints(min_length=1, max_length=255), AfterValidator(_printable)]
Payload = Annotated[dict[Any, Any], WithJsonSchema({"type": "object", "additionalProperties": True})]
Span = Annotated[int, Field(ge=0, le=DAY_MS)]


class BackoffSpec(BaseModel):
    """How long the task waits before each retry. What is left out is as the server's settings say."""

    model_config = ConfigDict(strict=True, extra="forbid")

    strategy: Strategy | None = Field(None, description="How the wait grows with the failures.")
    base_ms: Span | None = Field(
        None, description="The wait after the first failure, before jitter. Not above `max_ms`."
    )
    max_ms: Span | None = Field(None, description="The longest wait, before jitter.")
    jitter: Jitter | None = Field(None, description="How the wait is spread.")
    jitter_ms: Span | None = Field(None, description="The width of the jitter `added`.")


class TaskSpec(BaseModel):
    """A task to be run. Fields that are not listed here are refused."""

    model_config = ConfigDict(strict=True, extra="forbid")

    type: TypeName = Field(description="Names the handler that runs the task.")
    priority: Priority = Field("default", description="Which share of the workers it gets.")
    payload: Payload = Field(
        {},
        description="What the handler is given: text without NUL, integers of 64 bits, at most 64 levels. "
        "Numbers are kept as decimals: 1e20 comes back as its digits.",
    )
    queue: Name = Field(DEFAULT_QUEUE, description="The group of workers that it is for.")
    max_retries: int | None = Field(
        None, ge=0, le=1000, description="Failures that are tried again; by default MAX_RETRIES."
    )
    timeout_ms: int | None = Field(
        None, ge=1, le=DAY_MS, description="Longest run of the handler; by default TASK_TIMEOUT_MS."
    )
    run_at: Instant = Field(
        None, description="Not before this instant, from 1970 to 9999-12-30. Not together with `delay_ms`."
    )
    delay_ms: int | None = Field(
        None, ge=0, le=YEAR_MS, description="Not before this long from now. Not together with `run_at`."
    )
    backoff: BackoffSpec | None = None
    idempotency_key: Key | None = Field(
        None,
        description="A second request with this key creates nothing and is answered with the first one's "
        "task. Printable characters. The header `Idempotency-Key` says the same.",
    )


class Refused(Exception):
    """A task that is not accepted, with everything that is wrong about it."""

    def __init__(self, errors: list[FieldError], *, too_large: bool = False) -> None:
        super().__init__(errors)
        self.errors = errors
        self.too_large = too_large


def new_task(fields: Any, settings: Settings) -> NewTask:
    """A task with a new id from what a client said about it, or why not.

    Raises:
        Refused: every field that is wrong, or else every rule between the fields that is broken.
    """
    if isinstance(fields, dict):
        _check_size(fields, TaskSpec, [])
        _check_size(fields.get("backoff"), BackoffSpec, ["backoff"])
    try:
        spec = TaskSpec.model_validate(fields)
    except ValidationError as error:
        found = error.errors(include_url=False, include_context=False, include_input=False)
        raise Refused(field_errors(found)) from None
    if spec.run_at is not None and spec.delay_ms is not None:
        raise Refused([FieldError(loc=["run_at"], message="Must not be given together with delay_ms")])
    try:
        payload = payload_text(spec.payload, settings.max_payload_bytes)
    except Unfit as error:
        errors = [FieldError(loc=["payload"], message=str(error))]
        raise Refused(errors, too_large=isinstance(error, TooLarge)) from None
    backoff = _backoff(spec.backoff)
    max_retries = settings.max_retries if spec.max_retries is None else spec.max_retries
    return NewTask(
        new_id(),
        spec.type,
        spec.priority,
        spec.queue,
        payload=payload,
        max_retries=max_retries,
        timeout_ms=spec.timeout_ms,
        backoff=backoff,
        delay_ms=spec.delay_ms or None,
        run_at=spec.run_at,
        idempotency_key=spec.idempotency_key,
        fingerprint=_fingerprint(spec, backoff, max_retries) if spec.idempotency_key is not None else None,
    )


def _check_size(fields: Any, model: type[BaseModel], loc: list[str | int]) -> None:
    """Refuse an object of more fields than there are: pydantic would make an error for each, at a price."""
    if isinstance(fields, dict) and len(fields) > len(model.model_fields):
        raise Refused([FieldError(loc=loc, message=UNKNOWN_FIELD)])


def _backoff(spec: BackoffSpec | None) -> str | None:
    if spec is None:
        return None
    if spec.base_ms is not None and spec.max_ms is not None and spec.base_ms > spec.max_ms:
        raise Refused([FieldError(loc=["backoff", "base_ms"], message="Must not exceed max_ms")])
    given = spec.model_dump(exclude_none=True)
    return json.dumps(given, sort_keys=True) if given else None


def _fingerprint(spec: TaskSpec, backoff: str | None, max_retries: int) -> str:
    """SHA-256 of the request in canonical form: defaults filled in, names sorted, without the key itself.

    1 and 1.0 differ; 100.0 and 1e2 do not; nor does an instant in another zone.
    """
    canonical = to_json(
        [
            spec.type,
            spec.priority,
            _in_order(spec.payload),
            spec.queue,
            max_retries,
            spec.timeout_ms,
            spec.run_at and spec.run_at.isoformat(),
            spec.delay_ms or None,
            backoff,
        ]
    )
    return hashlib.sha256(canonical).hexdigest()


def _in_order(value: Any) -> Any:
    """The same with the fields of every object sorted by name. The levels are counted before."""
    if isinstance(value, dict):
        return {name: _in_order(value[name]) for name in sorted(value)}
    if isinstance(value, list):
        return [_in_order(part) for part in value]
    return value
