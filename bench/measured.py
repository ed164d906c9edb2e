"""Measured: a real run in the shape of a simulated one and back, and what it tells of the costs."""

from __future__ import annotations

import statistics
from array import array
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from math import isnan
from typing import Any, Final

import pandas as pd

from bench.history import History
from bench.ledger import Ledger
from bench.workload import PRIORITIES, TYPES
from scheduler.lifecycle import OUTCOMES, STATUSES

_NOOP: Final = TYPES.index("noop")
_LEAST: Final = 5
"""So many values must be there for their median to tell a cost."""


def history_of(ledger: Ledger) -> History:
    """The same history in columns; times count from the first commit, and processes have numbers.

    Raises:
        ValueError: a type is not one of the four that a mix has.
    """
    tasks = ledger.tasks
    strangers = set(tasks["type"]) - set(TYPES)
    if strangers:
        raise ValueError(f"{', '.join(sorted(strangers))}: no mix has such types")
    told = History(
        types=bytes(map(TYPES.index, tasks["type"])),
        priorities=bytes(map(PRIORITIES.index, tasks["priority"])),
        enqueued=_seconds(ledger, tasks["created_at"]),
    )
    told.ended = _seconds(ledger, tasks["finished_at"])
    told.statuses = bytearray(map(STATUSES.index, tasks["status"]))
    runs = ledger.executions.sort_values("finished_at", kind="stable")
    numbers = dict(zip(tasks["task_id"], range(len(tasks)), strict=True))
    told.task.extend(numbers[id_] for id_ in runs["task_id"])
    told.attempt.extend(runs["attempt"])
    told.outcome.extend(map(OUTCOMES.index, runs["outcome"]))
    told.worker.extend(runs["worker"].cat.codes)
    for column, name in (
        (told.due, "due_at"),
        (told.claimed, "claimed_at"),
        (told.started, "started_at"),
        (told.finished, "finished_at"),
    ):
        column.extend(_seconds(ledger, runs[name]))
    return told


def ledger_of(history: History, begin: pd.Timestamp) -> Ledger:
    """The same history in frames, as plots are made of, with what a history knows of them.

    Args:
        history: A real run's or a simulated one's.
        begin: The instant from which its times count.
    """

    def instants(column: Sequence[float]) -> pd.Series[pd.Timestamp]:
        seconds = pd.to_timedelta(pd.Series(column, dtype=float), unit="s")
        return (begin + seconds).dt.round("us").dt.as_unit("us")

    def words(numbers: Iterable[int], known: Sequence[str]) -> pd.Series[Any]:
        return pd.Series([known[n] for n in numbers], dtype=pd.CategoricalDtype(list(known)))

    tasks = pd.DataFrame(
        {
            "task_id": pd.Series([str(n) for n in range(len(history.types))], dtype="string"),
            "type": words(history.types, TYPES),
            "priority": words(history.priorities, PRIORITIES),
            "status": words(history.statuses, STATUSES),
            "created_at": instants(history.enqueued),
            "finished_at": instants(history.ended),
        }
    )
    task = list(history.task)
    attempts = pd.Series(history.attempt, dtype=int)
    runs = pd.DataFrame(
        {
            "task_id": pd.Series([str(n) for n in task], dtype="string"),
            "type": words((history.types[n] for n in task), TYPES),
            "priority": words((history.priorities[n] for n in task), PRIORITIES),
            "attempt": attempts,
            "outcome": words(history.outcome, OUTCOMES),
            "worker": pd.Series([f"worker {n}" for n in history.worker], dtype="category"),
            "enqueued_at": instants([history.enqueued[n] for n in task]),
            "due_at": instants(history.due),
            "claimed_at": instants(history.claimed),
            "started_at": instants(history.started),
            "finished_at": instants(history.finished),
            "again": attempts < attempts.groupby(pd.Series(task)).transform("max"),
        }
    )
    began = runs["started_at"].mask(runs["outcome"] == "lost", runs["claimed_at"])
    runs["wait_s"] = (began - runs["due_at"]).dt.total_seconds()
    runs["run_s"] = (runs["finished_at"] - runs["started_at"]).dt.total_seconds()
    return Ledger(tasks, runs.sort_values("claimed_at", kind="stable", ignore_index=True))


def prices(history: History, cpu_s: Mapping[str, float]) -> dict[str, float]:
    """The costs that a run tells, by their names in `bench/costs.py`; those that it does not are missing.

    Args:
        history: The run's.
        cpu_s: CPU that `workers`, `postgres` and `redis` have used meanwhile, in seconds. It is shared out
            among the runs, so what an idle fleet uses counts, too: a busy run tells these best. How soon
            what comes is claimed (`wake_ms`, `bulk_ms`) is told by a fleet that keeps up with it.
    """
    named = {"workers": "worker_us", "postgres": "postgres_us", "redis": "redis_us"}
    found = {named[part]: 1e6 * used / max(len(history), 1) for part, used in cpu_s.items() if part in named}
    for name, values, unit in (
        ("call_us", _calls(history), 1e6),
        ("lease_ms", _leases(history), 1e3),
        ("settle_ms", _settles(history), 1e3),
    ):
        if len(values) >= _LEAST:
            found[name] = unit * max(statistics.median(values), 0.0)
    commits = Counter(history.enqueued)
    begin, end = min(commits), max(commits)
    if _LEAST <= len(commits) < len(history.types) / 2:  # they came in bulk
        found["bulk_us"] = 1e6 * (end - begin) / (len(history.types) - commits[begin])
        found["bulk_ms"] = 1e3 * statistics.median(_first_claims(history))
    elif len(commits) > len(history.types) / 2:  # one by one
        found["wake_ms"] = 1e3 * statistics.median(_wakes(history))
    return found


def _calls(history: History) -> list[float]:
    """How long calls of a handler took that does nothing."""
    runs = zip(history.task, history.started, history.finished, strict=True)
    return [
        finished - started
        for task, started, finished in runs
        if history.types[task] == _NOOP and not isnan(started)
    ]


def _leases(history: History) -> list[float]:
    """From a claim to the first start of what it brought, of batches that found an empty buffer.

    The start counts from the asking, so that is how long the claim took.
    """
    starts: dict[tuple[int, float], list[float]] = defaultdict(list)
    for worker, claimed, started in zip(history.worker, history.claimed, history.started, strict=True):
        if not isnan(started):
            starts[worker, claimed].append(started)
    latest: dict[int, float] = defaultdict(float)
    values = []
    for (worker, claimed), begun in sorted(starts.items()):
        if latest[worker] <= claimed:
            values.append(min(begun) - claimed)
        latest[worker] = max(latest[worker], *begun)
    return values


def _wakes(history: History) -> list[float]:
    """From each task's commit to its first claim."""
    claims = zip(history.task, history.attempt, history.claimed, strict=True)
    return [claimed - history.enqueued[task] for task, attempt, claimed in claims if attempt == 1]


def _first_claims(history: History) -> list[float]:
    """From each commit of a bulk load to the first claim of one of its tasks."""
    first: dict[float, float] = {}
    for task, claimed in zip(history.task, history.claimed, strict=True):
        committed = history.enqueued[task]
        first[committed] = min(claimed, first.get(committed, claimed))
    return [claimed - committed for committed, claimed in first.items()]


def _settles(history: History) -> list[float]:
    """From the end of each task's last call to the commit of its outcome."""
    last = {
        task: finished
        for task, started, finished in zip(history.task, history.started, history.finished, strict=True)
        if not isnan(started)
    }
    return [
        history.ended[task] - finished for task, finished in last.items() if not isnan(history.ended[task])
    ]


def _seconds(ledger: Ledger, instants: pd.Series[pd.Timestamp]) -> array[float]:
    return array("d", ledger.seconds(instants))
