"""History: what became of each task and each run of it, in columns, as a simulation writes it.

The columns say the same as the ledger's frames do of a real run: what is unknown there is unknown here, so a
lost run has no start. Times are seconds after the beginning; nan where there is none.
"""

from __future__ import annotations

import csv
import hashlib
from array import array
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import isnan, nan
from pathlib import Path
from typing import Any, Final, Self

from bench.workload import PRIORITIES, TYPES
from scheduler.lifecycle import OUTCOMES, STATUSES, RunOutcome, Status

_COLUMNS: Final = (
    *("task", "type", "priority", "attempt", "outcome", "worker"),
    *("enqueued_s", "due_s", "claimed_s", "started_s", "finished_s"),
)
_TASK_TIMES: Final = ("enqueued", "ended")
_RUN_TIMES: Final = ("due", "claimed", "started", "finished")
_RUN_NUMBERS: Final = ("task", "attempt", "outcome", "worker")
_NONE: Final = "-"

_OUTCOME: Final = {name: number for number, name in enumerate(OUTCOMES)}
_STATUS: Final = {name: number for number, name in enumerate(STATUSES)}


def _doubles() -> array[float]:
    return array("d")


def _numbers() -> array[int]:
    return array("I")


@dataclass(slots=True)
class History:
    """Tasks by their number in the deck, and runs in the order of their ends.

    Attributes:
        types, priorities: Of each task: its place in TYPES and PRIORITIES.
        enqueued: When each task was committed.
        ended: When each was settled for good; nan while it is open.
        statuses: Its place in STATUSES.
        task: Of each run: the task's number.
        attempt: Which claim of the task it was, from 1.
        outcome: Its place in OUTCOMES.
        worker: The number of the process.
        due: From when on the task had been ready for it.
        claimed, started, finished: As in `bench/ledger.py`.
    """

    types: bytes
    priorities: bytes
    enqueued: array[float]
    ended: array[float] = field(default_factory=_doubles)
    statuses: bytearray = field(default_factory=bytearray)
    task: array[int] = field(default_factory=_numbers)
    attempt: array[int] = field(default_factory=_numbers)
    outcome: array[int] = field(default_factory=_numbers)
    worker: array[int] = field(default_factory=_numbers)
    due: array[float] = field(default_factory=_doubles)
    claimed: array[float] = field(default_factory=_doubles)
    started: array[float] = field(default_factory=_doubles)
    finished: array[float] = field(default_factory=_doubles)

    def __post_init__(self) -> None:
        self.ended = array("d", [nan]) * len(self.types)
        self.statuses = bytearray([STATUSES.index("queued")]) * len(self.types)

    def __len__(self) -> int:
        """How many runs there were."""
        return len(self.task)

    def add(
        self,
        task: int,
        attempt: int,
        outcome: RunOutcome,
        worker: int,
        due: float,
        claimed: float,
        started: float,
        finished: float,
    ) -> None:
        """One run has ended."""
        self.task.append(task)
        self.attempt.append(attempt)
        self.outcome.append(_OUTCOME[outcome])
        self.worker.append(worker)
        self.due.append(due)
        self.claimed.append(claimed)
        self.started.append(started)
        self.finished.append(finished)

    def end(self, task: int, status: Status, at: float) -> None:
        """A task has come to its last status."""
        self.statuses[task] = _STATUS[status]
        self.ended[task] = at

    def digest(self) -> str:
        """Two histories that are the same to the bit have the same one."""
        whole = hashlib.sha256(self.types + self.priorities + bytes(self.statuses))
        for column in (
            *(self.enqueued, self.ended, self.task, self.attempt, self.outcome, self.worker),
            *(self.due, self.claimed, self.started, self.finished),
        ):
            whole.update(column)
        return whole.hexdigest()

    def content(self) -> dict[str, Any]:
        """The history as JSON has it: a text a column, its values parted by blanks, times in µs; - is none.

        `types`, `priorities` and `statuses` are of the tasks, as places in TYPES, PRIORITIES and STATUSES; so
        are `enqueued` and `ended`. All others are of the runs.
        """
        of_tasks = {name: _numbered(getattr(self, name)) for name in ("types", "priorities", "statuses")}
        numbers = {name: _numbered(getattr(self, name)) for name in _RUN_NUMBERS}
        times = {f"{name}_us": _timed(getattr(self, name)) for name in _TASK_TIMES + _RUN_TIMES}
        return of_tasks | numbers | times

    @classmethod
    def of(cls, content: Mapping[str, Any]) -> Self:
        """The history that `content` made, to the microsecond.

        Raises:
            KeyError: a column is missing.
            ValueError: a value is no number.
        """
        numbers = {name: map(int, content[name].split()) for name in ("types", "priorities", "statuses")}
        made = cls(bytes(numbers["types"]), bytes(numbers["priorities"]), _times(content["enqueued_us"]))
        made.statuses = bytearray(numbers["statuses"])
        made.ended = _times(content["ended_us"])
        for name in _RUN_NUMBERS:
            setattr(made, name, array("I", map(int, content[name].split())))
        for name in _RUN_TIMES:
            setattr(made, name, _times(content[f"{name}_us"]))
        return made

    def write(self, path: Path) -> None:
        """Write the runs as CSV, one a row, times to the microsecond; empty where there is none."""

        def shown(seconds: float) -> str:
            return "" if isnan(seconds) else f"{seconds:.6f}"

        with path.open("w", encoding="utf-8", newline="") as file:
            rows = csv.writer(file)
            rows.writerow(_COLUMNS)
            for row, task in enumerate(self.task):
                words = TYPES[self.types[task]], PRIORITIES[self.priorities[task]]
                outcome = OUTCOMES[self.outcome[row]]
                seconds = (self.enqueued[task], *(c[row] for c in self._instants()))
                rows.writerow(
                    [task, *words, self.attempt[row], outcome, self.worker[row], *map(shown, seconds)]
                )

    def _instants(self) -> tuple[array[float], ...]:
        return self.due, self.claimed, self.started, self.finished


def _numbered(values: bytes | bytearray | array[int]) -> str:
    return " ".join(map(str, values))


def _timed(seconds: array[float]) -> str:
    return " ".join(_NONE if isnan(each) else str(round(each * 1e6)) for each in seconds)


def _times(text: str) -> array[float]:
    return array("d", (nan if word == _NONE else int(word) / 1e6 for word in text.split()))
