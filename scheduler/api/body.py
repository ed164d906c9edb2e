"""Bodies on their way in: bounded, on time, UTF-8, and JSON in the strictest sense.

Python's reader of JSON accepts more than JSON (NaN, repeated names, 1e400, half surrogate pairs) and
Postgres stores less (no NUL), so what one of them cannot keep unchanged is refused here.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Iterable
from itertools import chain
from math import isfinite
from typing import Any, Final, NoReturn

from pydantic_core import PydanticSerializationError, to_json
from starlette.requests import ClientDisconnect, Request

from scheduler.api.problems import (
    BAD_HEADER,
    MALFORMED,
    UNSUPPORTED,
    FieldError,
    Problem,
    invalid,
    too_large,
    too_slow,
)

MAX_DEPTH: Final = 64
"""Levels of objects and lists within each other, the payload itself being the first."""

READ_TIMEOUT_S: Final = 10.0
"""Longest wait for a complete body."""

_TOO_DEEP: Final = f"Objects and lists must not nest deeper than {MAX_DEPTH} levels"
_BIG_NUMBER: Final = "Integers must fit into 64 bits, other numbers into a double"
_SUSPICIOUS: Final = re.compile(r"\\u0000|[0-9]{19}|NaN|Infinity")
"""What the text of a payload with a NUL, an integer beyond 64 bits or a number that is none must contain."""

_SURROGATE: Final = re.compile("[\ud800-\udfff]")


Headers = Iterable[tuple[bytes, bytes]]


class Unfit(ValueError):
    """A payload that cannot be stored as it is."""


class TooLarge(Unfit):
    """A payload of more bytes than are allowed."""


async def read(request: Request, limit: int) -> bytearray:
    """The whole body, at most `limit` bytes of it.

    Raises:
        Problem: 413 too large, by its own account or as it arrives; 415 not plain JSON; 408 too slow.
        ClientDisconnect: nobody is left to answer.
    """
    headers = request.scope["headers"]
    _check_media(headers)
    _check_length(headers, limit)
    body = bytearray()
    try:
        async with asyncio.timeout(READ_TIMEOUT_S):
            while True:
                message = await request.receive()
                if message["type"] == "http.disconnect":
                    raise ClientDisconnect
                body += message.get("body", b"")
                if len(body) > limit:
                    raise too_large("The body", limit)
                if not message.get("more_body", False):
                    return body
    except TimeoutError:
        raise too_slow(READ_TIMEOUT_S) from None


def _check_length(headers: Headers, limit: int) -> None:
    """Refuse a body that is too large by its own account before any of it is read."""
    declared = _only(headers, b"content-length")
    if declared is None:
        return
    if not declared.isdigit():
        raise Problem(BAD_HEADER, "The header Content-Length is no number.")
    if len(declared) > 18 or int(declared) > limit:
        raise too_large("The body", limit)


def _check_media(headers: Headers) -> None:
    media, coding = _only(headers, b"content-type"), _only(headers, b"content-encoding")
    if media != b"application/json":
        name, _, parameter = (media or b"").lower().partition(b";")
        if name.strip() != b"application/json" or parameter.strip() not in {
            b"",
            b"charset=utf-8",
            b'charset="utf-8"',
        }:
            raise Problem(UNSUPPORTED, "Send Content-Type: application/json, in UTF-8.")
    if coding is not None and coding.lower() != b"identity":
        raise Problem(UNSUPPORTED, "Send the body without a Content-Encoding.")


def _only(headers: Headers, name: bytes) -> bytes | None:
    values = [value for key, value in headers if key == name]
    if len(values) > 1:
        raise Problem(BAD_HEADER, f"The header {name.decode()} is sent more than once.")
    return values[0] if values else None


def decode(raw: bytes | bytearray) -> Any:
    """The JSON value that `raw` holds.

    Raises:
        Problem: 400 not UTF-8 or not JSON; 422 JSON that cannot be kept as it is.
    """
    try:
        return _DECODER.decode(raw.decode())
    except UnicodeDecodeError:
        raise Problem(MALFORMED, "The body is not UTF-8.") from None
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}"
        raise Problem(
            MALFORMED, f"The body is not JSON in UTF-8 without a byte order mark: {where}."
        ) from None
    except RecursionError:
        raise invalid([FieldError(loc=[], message=_TOO_DEEP)]) from None
    except ValueError:  # int() refuses thousands of digits
        raise invalid([FieldError(loc=[], message=_BIG_NUMBER)]) from None


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) != len(pairs):
        raise invalid([FieldError(loc=[], message="An object must not have two fields of one name")])
    return fields


def _constant(_: str) -> NoReturn:
    raise Problem(MALFORMED, "NaN and Infinity are not JSON.")


_DECODER: Final = json.JSONDecoder(object_pairs_hook=_object, parse_constant=_constant)


def payload_text(payload: dict[str, Any], limit: int) -> str:
    """The payload as compact JSON text of at most `limit` bytes that Postgres and every reader can keep.

    The text is made and searched at the speed of C; only one that looks suspicious is walked in Python.

    Raises:
        TooLarge, Unfit: what is wrong with it, as a sentence without its full stop.
    """
    try:
        encoded = to_json(payload, inf_nan_mode="constants")
    except PydanticSerializationError:  # it is much too deep, or holds text that is no UTF-8
        _walk(payload)
        raise
    if len(encoded) > limit:
        raise TooLarge(f"The payload must not take more than {limit} bytes")
    text = encoded.decode()
    if _SUSPICIOUS.search(text) or text.count("{") + text.count("[") > MAX_DEPTH:
        _walk(payload)
    return text


def _walk(payload: dict[str, Any]) -> None:
    """Look at every part, level by level: recursion would end at a depth of its own."""
    level: list[Any] = [payload]
    depth = 0
    while level:
        depth += 1
        if depth > MAX_DEPTH:
            raise Unfit(_TOO_DEEP)
        below = []
        for holder in level:
            for part in chain(holder, holder.values()) if isinstance(holder, dict) else holder:
                if isinstance(part, (dict, list)):
                    below.append(part)
                else:
                    _check(part)
        level = below


def _check(part: str | float | bool | None) -> None:
    if isinstance(part, str):
        if "\0" in part:
            raise Unfit("Text must not contain the NUL character")
        if _SURROGATE.search(part):
            raise Unfit("Text must not contain half of a surrogate pair")
    elif isinstance(part, int):
        if not -(2**63) <= part < 2**63:
            raise Unfit(_BIG_NUMBER)
    elif isinstance(part, float) and not isfinite(part):
        raise Unfit(_BIG_NUMBER)
