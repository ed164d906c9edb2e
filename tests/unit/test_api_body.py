"""Bodies: what is JSON, what of it can be kept, and what is refused without a word of it in the answer."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scheduler.api.body import MAX_DEPTH, TooLarge, Unfit, decode, payload_text
from scheduler.api.problems import Problem

ROOM = 10_000


def nested(depth: int) -> dict:
    """An object that holds lists, `depth` levels in all."""
    value: object = 1
    for _ in range(depth - 1):
        value = [value]
    return {"a": value}


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"{",
        b'{"a":1}}',
        b'{"a":1} x',
        b"{'a':1}",
        b'{"a":01}',
        b'{"a":.5}',
        b'{"a":1,}',
        b'{"a":"\n"}',
        b'{"a":"\\x"}',
        b"\xef\xbb\xbf{}",
        '{"a":1}'.encode("utf-16"),
        '{"a":1}'.encode("utf-16-le"),
        '{"a":"é"}'.encode("latin-1"),
        b'{"a":"\xed\xa0\x80"}',
        b'{"a":NaN}',
        b'{"a":-Infinity}',
    ],
)
def test_what_is_not_json_in_utf8_is_malformed(raw):
    with pytest.raises(Problem) as caught:
        decode(raw)
    assert caught.value.kind.status == 400


@pytest.mark.parametrize(
    "raw",
    [
        b'{"a":1,"a":2}',
        b'{"a":{"b":1,"\\u0062":1}}',
        b'{"a":' + b"1" * 5000 + b"}",
        b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    ],
)
def test_json_that_cannot_be_kept_as_it_is_is_invalid(raw):
    with pytest.raises(Problem) as caught:
        decode(raw)
    assert caught.value.kind.status == 422


def test_a_problem_with_a_body_does_not_quote_it():
    with pytest.raises(Problem) as caught:
        decode(b'{"secret": hunter2}')
    assert "hunter2" not in json.dumps(caught.value.document())
    assert "line 1, column 12" in caught.value.detail


@pytest.mark.parametrize(
    "payload",
    [
        {"a": "\0"},
        {"\0": 1},
        {"a": [{"b": "x\0"}]},
        {"a": "\ud800"},
        {"\udfff": 1},
        {"a": float("inf")},
        {"a": [float("nan")]},
        {"a": 2**63},
        {"a": [-(2**63) - 1]},
        {"a": 10**4000},
        nested(MAX_DEPTH + 1),
        nested(5000),
    ],
)
def test_a_payload_that_postgres_or_a_reader_cannot_keep_is_refused(payload):
    with pytest.raises(Unfit):
        payload_text(payload, ROOM)


@pytest.mark.parametrize(
    "payload",
    [
        {},
        {"a": "\\u0000"},  # the six characters, not the one that they stand for
        {"a": "inf"},
        {"a": "[" * 100},
        {"a": "1" * 100},
        {"a": 2**63 - 1, "b": -(2**63)},
        {"a": 1e308, "b": True},
        {"a": [[1]] * 100},
        {"a": "ż\U0001f600"},
        nested(MAX_DEPTH),
    ],
)
def test_a_payload_that_only_looks_suspicious_is_kept(payload):
    assert json.loads(payload_text(payload, ROOM)) == payload


def test_a_payload_is_measured_in_bytes_of_its_compact_text():
    payload = {"a": "é" * 10}
    assert payload_text(payload, 28) == '{"a":"' + "é" * 10 + '"}'
    with pytest.raises(TooLarge):
        payload_text(payload, 27)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters()),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(st.characters()), inner, max_size=4),
    max_leaves=20,
)


@given(st.dictionaries(st.text(st.characters()), JSON, max_size=4))
def test_the_fast_look_and_a_slow_one_agree(payload):
    """Whatever passes is text without NUL and surrogates, with 64-bit integers and finite numbers."""

    def fit(value: object) -> bool:
        if isinstance(value, dict):
            return all(fit(key) and fit(part) for key, part in value.items())
        if isinstance(value, list):
            return all(map(fit, value))
        if isinstance(value, str):
            return "\0" not in value and not any("\ud800" <= c <= "\udfff" for c in value)
        if isinstance(value, int):
            return -(2**63) <= value < 2**63
        return not isinstance(value, float) or abs(value) < float("inf")

    try:
        text = payload_text(payload, 1_000_000)
    except Unfit:
        assert not fit(payload)
    else:
        assert fit(payload)
        assert decode(text.encode()) == payload
