"""A trace is written whole or not at all, and what is none is refused in one line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench import trace
from bench.trace import Header, Traced
from scheduler.errors import StartError

MAIL = Traced(12.5, "mail", "high", "bulk", 3, 5000, 20, "succeeded", (("failed", 3.1), ("succeeded", 40)))
NOOP = Traced(0, "noop", "low", "default", 0, None, 0, "queued", (("cancelled", None),))


def write(path: Path, *tasks: Traced) -> Header:
    return trace.write(path, "2026-11-24T09:00:00+00:00", "2026-11-24T10:00:00+00:00", "8a1b20e", tasks)


def test_what_is_written_is_read_again(tmp_path):
    path = tmp_path / "folder" / "trace.jsonl"
    header = write(path, MAIL, NOOP)
    assert (header.tasks, header.runs, header.commit) == (2, 3, "8a1b20e")
    assert trace.header(path) == header
    assert list(trace.read(path)) == [MAIL, NOOP]
    assert [each.name for each in path.parent.iterdir()] == ["trace.jsonl"]
    first = json.loads(path.read_text().splitlines()[0])
    assert (first["format"], first["version"]) == ("scheduler-trace", 1)


def test_what_breaks_off_leaves_the_old_file(tmp_path):
    path = tmp_path / "trace.jsonl"
    write(path, MAIL)
    before = path.read_bytes()

    def breaking():
        yield NOOP
        raise RuntimeError("the server is gone")

    with pytest.raises(RuntimeError, match="gone"):
        write(path, *breaking())
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_the_digest_is_of_the_content(tmp_path):
    a, b, c = (tmp_path / name for name in "abc")
    write(a, MAIL)
    write(b, MAIL)
    write(c, NOOP)
    assert trace.digest(a) == trace.digest(b) != trace.digest(c)


def test_another_name_is_the_same_for_the_same():
    assert trace.anonymous("queue", "mail") == trace.anonymous("queue", "mail")
    assert trace.anonymous("queue", "mail") != trace.anonymous("queue", "bulk")
    assert "mail" not in trace.anonymous("queue", "mail")


@pytest.mark.parametrize(
    ("field", "value", "error"),
    [
        ("at_ms", -1, "-1 is no number from 0 on"),
        ("at_ms", float("inf"), "inf is no number from 0 on"),
        ("at_ms", True, "True is no number from 0 on"),
        ("type", "", "'' is no name"),
        ("queue", 5, "5 is no name"),
        ("priority", "urgent", "'urgent' is none of critical, high, default, low"),
        ("max_retries", 1.5, "1.5 is no whole number from 0 on"),
        ("timeout_ms", "9", "'9' is no whole number from 0 on"),
        ("status", "done", "'done' is none of queued, running"),
        ("runs", [["exploded", 1]], "'exploded' is none of succeeded, failed"),
        ("runs", [["failed"]], "not enough values"),
        ("runs", None, "not iterable"),
    ],
)
def test_a_line_that_is_no_task_is_named(tmp_path, field, value, error):
    path = tmp_path / "trace.jsonl"
    write(path, MAIL, NOOP)
    lines = path.read_text().splitlines()
    lines[2] = json.dumps(json.loads(lines[2]) | {field: value})
    path.write_text("\n".join(lines))
    with pytest.raises(StartError) as refused:
        list(trace.read(path))
    assert str(refused.value).startswith(f"{path}, line 3: no task of a trace (")
    assert error in str(refused.value)


def test_a_field_that_is_missing_is_named(tmp_path):
    path = tmp_path / "trace.jsonl"
    write(path, MAIL)
    path.write_text(path.read_text().replace('"queue"', '"line"'))
    with pytest.raises(StartError, match=r"line 2: no task of a trace .*'queue'"):
        list(trace.read(path))


def test_a_trace_that_was_cut_off_is_refused(tmp_path):
    path = tmp_path / "trace.jsonl"
    write(path, MAIL, NOOP)
    path.write_text("\n".join(path.read_text().splitlines()[:2]))
    with pytest.raises(StartError, match="has 1 tasks and its header says 2; capture it again"):
        list(trace.read(path))


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("", "is no trace: name a file that `bench capture` wrote"),
        ("[]", "is no trace"),
        ('{"format": "other"}', "is no trace"),
        ('{"format": "scheduler-trace", "version": 1}', "is no trace"),
        ('{"format": "scheduler-trace", "version": 2}', "is a trace of version 2; this one reads 1"),
        (b"\xff", "cannot be read: it is not UTF-8"),
        (None, "cannot be read: No such file or directory; `bench capture` writes one"),
    ],
)
def test_what_is_no_trace_is_said_in_one_line(tmp_path, text, error):
    path = tmp_path / "trace.jsonl"
    if text is not None:
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
    for look in (trace.header, lambda each: list(trace.read(each))):
        with pytest.raises(StartError) as refused:
            look(path)
        assert error in str(refused.value)
        assert "\n" not in str(refused.value)
