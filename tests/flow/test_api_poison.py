"""The poison table: whatever is sent, the answer is small, says nothing of it, and no row is left.

Every entry is a request that brought down or fooled a naive API: see the names.
"""

from __future__ import annotations

import asyncio
import gzip
import json
from collections.abc import Iterator

import httpx
import pytest
import structlog
from fix_api import client_of, open_backend, rows

from scheduler import config
from scheduler.api import body

JSON = {"Content-Type": "application/json"}
MARK = "s3cret"
BIG = 9 * 2**20
"""More than MAX_BODY_BYTES."""


def raw(text: str | bytes, status: int, **headers: str):
    """A body as it is written here."""
    return {"content": text, "headers": JSON | headers}, status


def field(name: str, value: str, status: int = 422):
    """A task with one field more, as JSON text."""
    fields = {"type": '"noop"', name: value}
    return raw("{" + ",".join(f'"{key}":{text}' for key, text in fields.items()) + "}", status)


def text(name: str, value: str, status: int = 422):
    """A task with one field more, as any text."""
    return field(name, json.dumps(value), status)


def nested(depth: int) -> str:
    return '{"a":' + "[" * depth + "]" * depth + "}"


def drip(*chunks: bytes, times: int = 1):
    """A chunked body, which says nothing of its length."""

    async def chunked():
        for _ in range(times):
            for chunk in chunks:
                yield chunk

    return {"content": chunked(), "headers": JSON}


async def never():
    yield b'{"type":'
    await asyncio.Event().wait()


async def trickle():
    """No single wait is long, and all together are."""
    while True:
        yield b" "
        await asyncio.sleep(0.01)


MANY = [f"{MARK}{n}" for n in range(300_000)]

NUL, HALF = r'"a\u0000s3cret"', r'"\ud800s3cret"'

POISON = {
    "NUL in a value": field("payload", '{"a":' + NUL + "}"),
    "NUL in a name": field("payload", "{" + NUL + ":1}"),
    "NUL deep below": field("payload", '{"a":[{"b":[' + NUL + "]}]}"),
    "NUL in the type": field("type", NUL),
    "NUL in the queue": field("queue", NUL),
    "NUL in the priority": field("priority", NUL),
    "NUL in the key": field("idempotency_key", NUL),
    "NUL in an unknown field": field(NUL[1:-1], "1"),
    "raw NUL": raw(b'{"type":"no\0op"}', 400),
    "half a surrogate pair in a value": field("payload", '{"a":' + HALF + "}"),
    "half a surrogate pair in a name": field("payload", "{" + HALF + ":1}"),
    "half a surrogate pair in the type": field("type", HALF),
    "half a surrogate pair in the queue": field("queue", HALF),
    "half a surrogate pair in the priority": field("priority", HALF),
    "half a surrogate pair in the key": field("idempotency_key", HALF),
    "half a surrogate pair in an unknown field": field(HALF[1:-1], "1"),
    "half a surrogate pair in raw bytes": raw(b'{"type":"noop","payload":{"a":"\xed\xa0\x80"}}', 400),
    "NaN": field("payload", '{"a":NaN}', 400),
    "Infinity": field("payload", '{"a":Infinity}', 400),
    "-Infinity": field("payload", '{"a":[-Infinity]}', 400),
    "1e400": field("payload", '{"a":1e400}'),
    "-1e400 deep below": field("payload", '{"a":[[-1e400]]}'),
    "NaN as priority": field("priority", "NaN", 400),
    "1e400 as max_retries": field("max_retries", "1e400"),
    "depth 65": field("payload", nested(64)),
    "depth 100": field("payload", nested(100)),
    "depth 955": field("payload", nested(955)),
    "depth 5,000": field("payload", nested(5000)),
    "depth 1,000,000": field("payload", nested(1_000_000)),
    "depth in the wrong place": field("type", nested(5000)),
    "an integer of 20 digits": field("payload", '{"a":18446744073709551616}'),
    "an integer of 4,000 digits": field("payload", '{"a":' + "9" * 4000 + "}"),
    "an integer of 5,000 digits": field("payload", '{"a":' + "9" * 5000 + "}"),
    "an integer of 4,000 digits as max_retries": field("max_retries", "9" * 4000),
    "300,000 names": field("payload", json.dumps(dict.fromkeys(MANY)), 413),
    "a payload of 264 KiB": field("payload", json.dumps({"a": MARK * 45_000}), 413),
    "50 MB": raw(b" " * 50_000_000, 413),
    "50 MB, chunked": (drip(b" " * 65536, times=800), 413),
    "300 MB, chunked": (drip(b" " * 2**20, times=300), 413),
    "9 MiB in one piece, chunked": (drip(b" " * BIG), 413),
    "300,000 unknown fields": raw(json.dumps({"type": "noop"} | dict.fromkeys(MANY)), 422),
    "300,000 unknown fields in the backoff": field("backoff", json.dumps(dict.fromkeys(MANY))),
    "a length that is no number": raw(b"{}", 400, **{"Content-Length": "x"}),
    "a length of 5,000 digits": raw(b"{}", 413, **{"Content-Length": "9" * 5000}),
    "a body that does not end": ({"content": never(), "headers": JSON}, 408),
    "a body of a byte now and then": ({"content": trickle(), "headers": JSON}, 408),
    "UTF-16": raw('{"type":"noop"}'.encode("utf-16"), 400),
    "UTF-16 without a mark": raw('{"type":"noop"}'.encode("utf-16-le"), 400),
    "UTF-32": raw('{"type":"noop"}'.encode("utf-32-be"), 400),
    "a byte order mark": raw(b'\xef\xbb\xbf{"type":"noop"}', 400),
    "latin-1": raw('{"type":"noop","payload":{"a":"é"}}'.encode("latin-1"), 400),
    "a name twice": raw('{"type":"noop","type":"s3cret"}', 422),
    "a name twice in the payload": field("payload", '{"a":1,"\\u0061":2}'),
    "trailing garbage": raw('{"type":"noop"} s3cret', 400),
    "two bodies": raw('{"type":"noop"}{"type":"noop"}', 400),
    "no body": raw(b"", 400),
    "a comment": raw('{"type":"noop"} // s3cret', 400),
    "gzip": raw(gzip.compress(b'{"type":"noop"}'), 415, **{"Content-Encoding": "gzip"}),
    "gzip that is not named": raw(gzip.compress(b'{"type":"noop"}'), 400),
    "text/plain": ({"content": '{"type":"noop"}', "headers": {"Content-Type": "text/plain"}}, 415),
    "no content type": ({"content": b'{"type":"noop"}'}, 415),
    "a form": ({"data": {"type": "noop"}}, 415),
    "a file": ({"files": {"type": b"noop"}}, 415),
    "another charset": (
        {"content": '{"type":"noop"}', "headers": {"Content-Type": "application/json; charset=utf-16"}},
        415,
    ),
    "another kind of JSON": (
        {"content": '{"type":"noop"}', "headers": {"Content-Type": "application/problem+json"}},
        415,
    ),
    "two content types": (
        {
            "content": '{"type":"noop"}',
            "headers": [("Content-Type", "application/json"), ("Content-Type", "text/plain")],
        },
        400,
    ),
    "max_retries as text": field("max_retries", '"3"'),
    "max_retries as truth": field("max_retries", "true"),
    "max_retries with a point": field("max_retries", "3.0"),
    "max_retries below 0": field("max_retries", "-1"),
    "max_retries of 2^31": field("max_retries", str(2**31)),
    "max_retries of 2^70": field("max_retries", str(2**70)),
    "timeout_ms of 0": field("timeout_ms", "0"),
    "timeout_ms of 2^63": field("timeout_ms", str(2**63)),
    "an empty type": text("type", ""),
    "a type of 1 MB": text("type", MARK * 170_000),
    "a type that climbs": text("type", "../../etc/s3cret"),
    "a type that is Python": text("type", "__class__"),
    "a type of two lines": text("type", "noop\r\ns3cret: yes"),
    "a type with a newline at its end": text("type", "noop\n"),
    "a type that colours the log": text("type", "\x1b[31ms3cret"),
    "a type that is SQL": text("type", "'; DROP TABLE tasks; --"),
    "no type": raw("{}", 422),
    "a key of 10 kB": text("idempotency_key", MARK * 1700),
    "a key of 10 kB in the header": raw('{"type":"noop"}', 422, **{"Idempotency-Key": MARK * 1700}),
    "an empty key": text("idempotency_key", ""),
    "a key of two lines": text("idempotency_key", "a\r\nb"),
    "priority critical and a newline": text("priority", "critical\n"),
    "priority q:critical": text("priority", "q:critical"),
    "priority CRITICAL": text("priority", "CRITICAL"),
    "priority by number": field("priority", "0"),
    "a priority of 2 MB": text("priority", MARK * 330_000),
    "a queue that is a key of Redis": text("queue", "sched1:{default.0}:q"),
    "a queue in capitals": text("queue", "Default"),
    "a queue with a newline at its end": text("queue", "default\n"),
    "the year 300000": text("run_at", "300000-01-01T00:00:00Z"),
    "the end of the year 9999, west": text("run_at", "9999-12-31T23:59:59-12:00"),
    "the year 0": text("run_at", "0000-01-01T00:00:00Z"),
    "no zone": text("run_at", "2030-01-01T00:00:00"),
    "an instant by number": field("run_at", "1e300"),
    "an instant of NaN": field("run_at", "NaN", 400),
    "a delay below 0": field("delay_ms", "-1"),
    "a delay of 2^70": field("delay_ms", str(2**70)),
    "a delay of NaN": field("delay_ms", "NaN", 400),
    "a delay of a thousand years": field("delay_ms", str(31_536_000_000_000)),
    "due twice": raw('{"type":"noop","delay_ms":1,"run_at":"2030-01-01T00:00:00Z"}', 422),
    "status by the client": text("status", "succeeded"),
    "attempts by the client": field("attempts", "5"),
    "a tenant by the client": text("tenant", MARK),
    "an id by the client": text("id", MARK),
    "an unknown field of 1 MB": field(MARK * 170_000, "1"),
    "a payload that is a list": field("payload", "[]"),
    "a payload that is nothing": field("payload", "null"),
    "a payload that is text": text("payload", MARK),
    "a backoff with an unknown field": field("backoff", '{"s3cret":1}'),
    "a backoff of 2^63": field("backoff", '{"base_ms":9223372036854775808}'),
    "a list of tasks": raw('[{"type":"noop"}]', 422),
    "text for a task": raw('"s3cret"', 422),
    "nothing for a task": raw("null", 422),
}


@pytest.fixture(scope="module")
def shared(servers) -> Iterator[config.Settings]:
    """One database for the whole table: nothing may ever be in it."""
    with servers.database() as postgres_url:
        env = {"POSTGRES_URL": postgres_url, "REDIS_ADDR": servers.empty_redis()}
        yield config.load(env)[0]


def in_bulk() -> dict:
    """The bodies that are refused for the task in them, with a good task before it."""
    return {
        f"{name}, in bulk": ({**request, "content": b'{"tasks":[{"type":"noop"},' + as_bytes + b"]}"}, status)
        for name, (request, status) in POISON.items()
        if status == 422 and (as_bytes := httpx.Request("POST", "http://x", **request).content)
    }


CASES = {name: ("/v1/tasks", *case) for name, case in POISON.items()} | {
    name: ("/v1/tasks/bulk", *case) for name, case in in_bulk().items()
}


@pytest.mark.parametrize("name", CASES)
async def test_poison_is_refused(shared, monkeypatch, name):
    path, request, status = CASES[name]
    if status == 408:
        monkeypatch.setattr(body, "READ_TIMEOUT_S", 0.05)
    with structlog.testing.capture_logs() as logs:
        async with open_backend(shared) as backend, client_of(backend) as api:
            answer = await api.post(path, **request)
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["status"] == status
    assert len(answer.content) <= 2000
    assert MARK not in answer.text
    assert logs == []
    assert rows(shared) == rows(shared, "idempotency_keys") == 0


async def test_the_table_refuses_poison_and_not_everything(shared):
    """The same requests without their poison are accepted."""
    async with open_backend(shared) as backend, client_of(backend) as api:
        for name, value in [
            ("payload", r'{"a":"\\u0000 \ud83d\ude00"}'),
            ("payload", nested(63)),
            ("payload", '{"a":9223372036854775807,"b":1e308}'),
            ("idempotency_key", json.dumps("k" * 255)),
            ("idempotency_key", json.dumps("'; DROP TABLE tasks; -- %s %(id)s {} {0}")),
            ("run_at", '"9999-12-30T00:00:00-00:00"'),
            ("max_retries", "1000"),
        ]:
            request, _ = field(name, value)
            answer = await api.post("/v1/tasks", **request)
            assert answer.status_code == 201, (name, answer.text)
            assert (await api.get(answer.headers["location"])).status_code == 200
        media = {"Content-Type": 'Application/JSON; charset="UTF-8"', "Content-Encoding": "identity"}
        answer = await api.post("/v1/tasks", content='{"type":"noop"}', headers=media)
        assert answer.status_code == 201
