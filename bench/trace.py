"""Trace: a window of a system's history as a file, without anything that its clients said.

JSON lines. The first is the header, each other one a task, in the order of ids, which nearly is that of time:

    {"format": "scheduler-trace", "version": 1, "from": "2026-11-24T09:00:00+00:00", "to": ..., "tasks": 2,
     "runs": 3, "commit": "8a1b20e"}
    {"at_ms": 12.5, "type": "mail", "priority": "high", "queue": "default", "max_retries": 3,
     "timeout_ms": null, "delay_ms": 0, "status": "succeeded", "runs": [["failed", 3.1], ["succeeded", 40.2]]}

`at_ms` counts from the window's begin. Of each attempt there are the outcome and the time that it ran; that
of a lost one is the time from its claim to its being found, and null is one that never began. Payloads,
idempotency keys, error texts, ids and names of workers have no place in it.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import sys
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from math import inf
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any, Final

from bench.workload import PRIORITIES
from scheduler.errors import StartError
from scheduler.lifecycle import OUTCOMES, STATUSES, RunOutcome, Status

FORMAT: Final = "scheduler-trace"
VERSION: Final = 1

Run = tuple[RunOutcome, float | None]
"""How one attempt ended, and how many milliseconds it took."""


@dataclass(frozen=True, slots=True)
class Traced:
    """One task: when it came, what it asked for, and how it went. Times are milliseconds.

    Attributes:
        at_ms: From the window's begin to its commit.
        type, priority, queue, max_retries, timeout_ms: As its client gave them.
        delay_ms: How long after its commit it was due at first; 0 as well if that is not known any more.
        status: Where it was when the trace was taken.
        runs: Its attempts in their order, but for those that were only given back.
    """

    at_ms: float
    type: str
    priority: str
    queue: str
    max_retries: int
    timeout_ms: int | None
    delay_ms: float
    status: Status
    runs: tuple[Run, ...]

    def line(self) -> str:
        """The task as a line of the file."""
        return json.dumps(asdict(self), ensure_ascii=False, separators=(",", ":"))


@dataclass(frozen=True, slots=True)
class Header:
    """What the file is of: the window [begin, end) as RFC 3339, how much is in it, and what wrote it."""

    begin: str
    end: str
    commit: str
    tasks: int = 0
    runs: int = 0

    def line(self) -> str:
        """The header as the first line of the file."""
        about = {"format": FORMAT, "version": VERSION, "from": self.begin, "to": self.end}
        return json.dumps(about | {"tasks": self.tasks, "runs": self.runs, "commit": self.commit})


def write(path: Path, begin: str, end: str, commit: str, tasks: Iterable[Traced]) -> Header:
    """Write a trace whole or not at all, one task in memory at a time; the header that it got.

    Raises:
        OSError: it cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    n = runs = 0
    with TemporaryFile("w+", dir=path.parent, encoding="utf-8") as body:
        for task in tasks:
            body.write(f"{task.line()}\n")
            n, runs = n + 1, runs + len(task.runs)
        header = Header(begin, end, commit, n, runs)
        body.seek(0)
        part = path.with_name(f"{path.name}.part")
        with part.open("w", encoding="utf-8") as whole:
            whole.write(f"{header.line()}\n")
            shutil.copyfileobj(body, whole)
    part.replace(path)
    return header


def header(path: Path) -> Header:
    """The header of a trace.

    Raises:
        StartError: one line: it cannot be read, or is none of this version.
    """
    try:
        with path.open(encoding="utf-8") as file:
            return _header(path, file.readline())
    except (OSError, UnicodeDecodeError) as error:
        raise _unreadable(path, error) from None


def read(path: Path) -> Iterator[Traced]:
    """The tasks of a trace, in its order.

    Raises:
        StartError: one line: it cannot be read, is no trace, or lacks lines.
    """
    try:
        with path.open(encoding="utf-8") as file:
            n, found = 0, _header(path, file.readline())
            for n, line in enumerate(file, 1):
                try:
                    yield _task(json.loads(line))
                except (ValueError, KeyError, TypeError) as error:
                    raise StartError(f"{path}, line {n + 1}: no task of a trace ({error!r})") from None
    except (OSError, UnicodeDecodeError) as error:
        raise _unreadable(path, error) from None
    if n != found.tasks:
        raise StartError(f"{path} has {n:,} tasks and its header says {found.tasks:,}; capture it again")


def digest(path: Path) -> str:
    """Two files with the same content have the same one: 12 hexadecimal digits.

    Raises:
        StartError: the file cannot be read.
    """
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()[:12]
    except OSError as error:
        raise _unreadable(path, error) from None


def anonymous(kind: str, name: str) -> str:
    """A name in place of another one, the same for the same: who guesses the name can check the guess."""
    return f"{kind}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"


def _unreadable(path: Path, error: OSError | UnicodeDecodeError) -> StartError:
    why = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
    return StartError(f"the trace {path} cannot be read: {why}; `bench capture` writes one")


def _header(path: Path, line: str) -> Header:
    try:
        found = json.loads(line)
        if found["format"] != FORMAT:
            raise ValueError(found["format"])
        if found["version"] != VERSION:
            raise StartError(f"{path} is a trace of version {found['version']}; this one reads {VERSION}")
        names = ("from", "to", "commit", "tasks", "runs")
        begin, end, commit, tasks, runs = (found[name] for name in names)
        return Header(_text(begin), _text(end), _text(commit), _whole(tasks), _whole(runs))
    except (ValueError, KeyError, TypeError):
        raise StartError(f"{path} is no trace: name a file that `bench capture` wrote") from None


def _task(found: dict[str, Any]) -> Traced:
    """A line as a task.

    Raises:
        ValueError, KeyError, TypeError: it is none.
    """
    timeout = found["timeout_ms"]
    return Traced(
        at_ms=_number(found["at_ms"]),
        type=_text(found["type"]),
        priority=_one_of(PRIORITIES, found["priority"]),
        queue=_text(found["queue"]),
        max_retries=_whole(found["max_retries"]),
        timeout_ms=None if timeout is None else _whole(timeout),
        delay_ms=_number(found["delay_ms"]),
        status=_one_of(STATUSES, found["status"]),
        runs=tuple(
            (_one_of(OUTCOMES, outcome), None if ms is None else _number(ms)) for outcome, ms in found["runs"]
        ),
    )


def _number(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < inf:
        raise ValueError(f"{value!r} is no number from 0 on")
    return value


def _whole(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise ValueError(f"{value!r} is no whole number from 0 on")
    return value


def _text(value: object) -> str:
    if not isinstance(value, str) or not re.fullmatch(r"\S{1,128}", value):
        raise ValueError(f"{value!r} is no name")
    return sys.intern(value)  # there are few names and many lines


def _one_of(known: tuple[Any, ...], value: object) -> Any:
    if value not in known:
        raise ValueError(f"{value!r} is none of {', '.join(known)}")
    return known[known.index(value)]
