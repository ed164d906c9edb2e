"""What a client may say about a task: bounds, defaults, and the fingerprint of a request."""

from __future__ import annotations

import json
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scheduler import config
from scheduler.api.spec import Refused, TaskSpec, new_task

SETTINGS = config.Settings()


def task(**fields):
    return new_task({"type": "noop"} | fields, SETTINGS)


def refused(**fields) -> Refused:
    with pytest.raises(Refused) as caught:
        task(**fields)
    return caught.value


def test_only_the_type_is_required():
    made = task()
    assert (made.type, made.queue, made.priority, made.payload) == ("noop", "default", "default", "{}")
    assert made.max_retries == SETTINGS.max_retries
    assert [made.timeout_ms, made.delay_ms, made.run_at, made.backoff] == [None] * 4
    assert [made.idempotency_key, made.fingerprint] == [None] * 2
    assert refused(type=None).errors[0].loc == ["type"]


def test_thousands_of_unknown_fields_are_one_error():
    """One for each would take a second per 50,000, in which nobody else is answered."""
    many = {str(n): n for n in range(1000)}
    assert [error.loc for error in refused(**many).errors] == [[]]
    assert [error.loc for error in refused(backoff=many).errors] == [["backoff"]]


@pytest.mark.parametrize(
    ("field", "good", "bad"),
    [
        ("type", ["noop", "Send.Mail:v2", "a" * 128, "0_"], ["", "a" * 129, "_a", "a b", "a\n", "é", 1]),
        ("queue", ["default", "a", "mail-2.b", "a" * 63], ["", "A", "a" * 64, "a:b", "{a}", "a\n", None]),
        ("priority", ["critical", "high", "default", "low"], ["CRITICAL", "critical\n", "", 1, None]),
        ("payload", [{}, {"a": [1, None]}], [[], "x", 1, None, True]),
        ("max_retries", [0, 1000, None], [-1, 1001, "3", True, 3.0, 2**70, float("inf")]),
        ("timeout_ms", [1, 86_400_000, None], [0, 86_400_001, "1", False, 1.0]),
        ("delay_ms", [0, 31_536_000_000, None], [-1, 31_536_000_001, float("nan"), "1"]),
        ("backoff", [None, {}, {"strategy": "linear", "base_ms": 0}], [[], "linear", {"base": 1}]),
        (
            "idempotency_key",
            ["a", "a b", "ż" * 255, None],
            ["", "a" * 256, "a\0", "a\n", "\ud800", "\x1b[m", 1],
        ),
    ],
)
def test_a_field_takes_what_fits_and_nothing_else(field, good, bad):
    for value in good:
        task(**{field: value})
    for value in bad:
        assert [error.loc[0] for error in refused(**{field: value}).errors] == [field]


@pytest.mark.parametrize("field", ["id", "status", "attempts", "tenant", "created_at", "lease_gen"])
def test_a_field_that_is_not_the_clients_to_say_is_refused(field):
    [error] = refused(**{field: "x"}).errors
    assert error.loc == []
    assert field not in error.message


@pytest.mark.parametrize("fields", [None, [], "x", 1, [{"type": "noop"}]])
def test_a_task_is_an_object(fields):
    with pytest.raises(Refused):
        new_task(fields, SETTINGS)


@pytest.mark.parametrize(
    ("text", "instant"),
    [
        ("2030-01-02T03:04:05Z", datetime(2030, 1, 2, 3, 4, 5, tzinfo=UTC)),
        ("2030-01-02t03:04:05.5z", datetime(2030, 1, 2, 3, 4, 5, 500_000, tzinfo=UTC)),
        ("2030-01-02T03:04:05.123456789+02:00", datetime(2030, 1, 2, 1, 4, 5, 123_456, tzinfo=UTC)),
        ("1970-01-01T00:00:00-00:00", datetime(1970, 1, 1, tzinfo=UTC)),
        ("9999-12-30T23:59:59Z", datetime(9999, 12, 30, 23, 59, 59, tzinfo=UTC)),
    ],
)
def test_run_at_is_an_instant_with_its_zone(text, instant):
    made = task(run_at=text)
    assert made.run_at == instant
    assert made.run_at.utcoffset().total_seconds() == 0


@pytest.mark.parametrize(
    "value",
    [
        "2030-01-02T03:04:05",
        "2030-01-02",
        "2030-02-30T00:00:00Z",
        "2030-01-02T24:00:00Z",
        "2030-01-02T03:04:05+25:00",
        "2030-01-02T03:04:05Z\n",
        "300000-01-01T00:00:00Z",
        "9999-12-31T23:59:59-12:00",
        "0001-01-01T00:00:00+14:00",
        "1969-12-31T23:59:59Z",
        "٢٠٣٠-01-02T03:04:05Z",
        "now",
        "",
        1_900_000_000,
        1.5,
        True,
        {},
    ],
)
def test_run_at_is_nothing_else(value):
    [error] = refused(run_at=value).errors
    assert error.loc == ["run_at"]
    assert not error.message.startswith("Value error")


def test_a_task_is_due_by_instant_or_by_delay_not_both():
    both = {"run_at": "2030-01-02T03:04:05Z", "delay_ms": 5}
    assert [error.loc for error in refused(**both).errors] == [["run_at"]]


def test_a_backoff_keeps_what_was_given_and_only_that():
    assert json.loads(task(backoff={"jitter": "full", "base_ms": 5}).backoff) == {
        "jitter": "full",
        "base_ms": 5,
    }
    assert task(backoff={}).backoff is None
    assert [error.loc for error in refused(backoff={"base_ms": 2, "max_ms": 1}).errors] == [
        ["backoff", "base_ms"]
    ]


def test_every_wrong_field_is_named():
    assert {error.loc[0] for error in refused(type="", queue="", max_retries=-1).errors} == {
        "type",
        "queue",
        "max_retries",
    }


def fingerprint(**fields):
    return task(**{"idempotency_key": "k"} | fields).fingerprint


def test_defaults_that_are_left_out_or_written_down_have_one_fingerprint():
    plain = fingerprint()
    assert plain == fingerprint(idempotency_key="other")
    assert plain == fingerprint(
        priority="default",
        queue="default",
        payload={},
        max_retries=SETTINGS.max_retries,
        delay_ms=0,
        backoff={},
    )


def test_the_order_of_names_and_the_zone_of_an_instant_do_not_change_a_fingerprint():
    assert fingerprint(payload={"a": 1, "b": {"c": 2, "d": 3}}) == fingerprint(
        payload={"b": {"d": 3, "c": 2}, "a": 1}
    )
    assert fingerprint(run_at="2030-01-02T03:04:05Z") == fingerprint(run_at="2030-01-02T05:04:05+02:00")


@pytest.mark.parametrize(
    "fields",
    [
        {"type": "other"},
        {"priority": "low"},
        {"queue": "other"},
        {"payload": {"a": 1}},
        {"payload": {"a": 1.0}},
        {"payload": {"a": "1"}},
        {"max_retries": 7},
        {"timeout_ms": 7},
        {"delay_ms": 7},
        {"run_at": "2030-01-02T03:04:05Z"},
        {"backoff": {"base_ms": 7}},
    ],
)
def test_every_field_is_part_of_the_fingerprint(fields):
    assert fingerprint(**fields) != fingerprint()
    assert set(fields) <= set(TaskSpec.model_fields)


NUMBERS = st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False, allow_infinity=False)


@given(st.dictionaries(st.text("ab", max_size=2), NUMBERS, max_size=3), st.randoms())
def test_a_payload_has_one_fingerprint_however_it_is_written(payload, rng):
    shuffled = list(payload.items())
    rng.shuffle(shuffled)
    assert fingerprint(payload=payload) == fingerprint(payload=dict(shuffled))
