"""The ledger: what Postgres knows of a set of tasks, as data frames, and the series that plots are made of.

It starts from the ids that a client was given and has SQL of its own. All instants are Postgres' clock; a
run's start and end were measured by its worker as durations since the claim.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import pandas as pd
import psycopg

from bench.workload import PRIORITIES, TYPES

STATUSES: Final = ("queued", "running", "retrying", "succeeded", "dead", "cancelled")
OUTCOMES: Final = ("succeeded", "failed", "timed_out", "lost", "released", "cancelled")
REASONS: Final = ("failed", "timed_out", "rejected", "lost", "unknown_type")

_TASKS: Final = """
SELECT
    id::text AS task_id, type, priority, status, attempts, failures, losses, max_retries, dead_reason,
    created_at, due_at, finished_at
FROM tasks
WHERE id = ANY (%(ids)s::uuid[])
ORDER BY created_at, id
"""

# A row keeps only its newest due time. It is that of an attempt if it lies before the claim; a lost attempt
# is followed by one that is due at once; the due time of a retry that failed in its turn is gone. What was
# only claimed and given back changes nothing: the task has been waiting all along.
_EXECUTIONS: Final = """
SELECT
    t.id::text AS task_id, t.type, t.priority, r.attempt, r.outcome, r.worker, t.created_at AS enqueued_at,
    CASE
        WHEN t.due_at <= r.claimed_at THEN greatest(t.due_at, before.finished_at)
        WHEN before.outcome IS NULL THEN t.created_at
        WHEN before.outcome = 'lost' THEN before.finished_at
    END AS due_at,
    r.claimed_at, r.started_at, r.finished_at, r.attempt < t.attempts AS again
FROM tasks AS t
JOIN task_runs AS r ON r.task_id = t.id
LEFT JOIN LATERAL (
    SELECT outcome, finished_at
    FROM task_runs
    WHERE task_id = t.id AND attempt < r.attempt AND outcome <> 'released'
    ORDER BY attempt DESC
    LIMIT 1
) AS before ON true
WHERE t.id = ANY (%(ids)s::uuid[])
ORDER BY r.claimed_at, t.id, r.attempt
"""


@dataclass(frozen=True, slots=True)
class Ledger:
    """The history of a set of tasks. Instants are UTC timestamps in microseconds, NaT where there is none.

    tasks, one row a task in the order of commits:
        task_id (string), type, priority, status, dead_reason (categories; dead_reason may be missing)
        attempts, failures, losses, max_retries (int): claims so far, both spent budgets, the retries allowed
        created_at: the commit
        due_at: the newest time from which it could be claimed
        finished_at: when it ended

    executions, one row an ended attempt in the order of claims:
        task_id (string), type, priority, outcome, worker (categories), attempt (int, from 1)
        enqueued_at: the task's commit
        due_at: from when on the task had been ready for this attempt. For the first one it is the commit if
            the task was retried later (a delay that it came with is then forgotten); for a retry that failed
            in its turn it is unknown, so NaT
        claimed_at: when a worker got it
        started_at: when its handler was called; NaT if it never was, or if the run was lost
        finished_at: when the handler returned, or the run was found to be lost
        again (bool): another attempt was claimed after this one
        wait_s (float): seconds from due_at to started_at, or to the claim of a lost run; nan if the attempt
            was not started or due_at is unknown
        run_s (float): seconds that the handler ran; nan without a start
    """

    tasks: pd.DataFrame
    executions: pd.DataFrame

    @property
    def start(self) -> pd.Timestamp:
        """The first task's commit: second 0 of every series."""
        first: pd.Timestamp = self.tasks["created_at"].min()
        return first

    @property
    def arrival_s(self) -> float:
        """Seconds from the first task's commit to the last one's: how long the burst took to come."""
        return float((self.tasks["created_at"].max() - self.start).total_seconds())

    @property
    def first_starts(self) -> pd.DataFrame:
        """Each task's first execution that was started; what was claimed and given back does not count."""
        started = self.executions["started_at"].notna() | (self.executions["outcome"] == "lost")
        return self.executions[started].sort_values("attempt", kind="stable").drop_duplicates("task_id")

    @property
    def retried(self) -> pd.DataFrame:
        """The executions that failed and whose task was tried again."""
        failed = self.executions["outcome"].isin(["failed", "timed_out"])
        return self.executions[failed & self.executions["again"]]

    @property
    def reaped(self) -> pd.DataFrame:
        """The executions whose lease ran out."""
        return self.executions[self.executions["outcome"] == "lost"]

    def seconds(self, instants: pd.Series[pd.Timestamp]) -> pd.Series[float]:
        """Instants as seconds since the start."""
        return (instants - self.start).dt.total_seconds()


def read(postgres_url: str, ids: Sequence[str]) -> Ledger:
    """The ledger of the tasks `ids`; an id without a row is missing from it.

    Raises:
        psycopg.Error: Postgres could not be asked.
    """
    with psycopg.connect(postgres_url) as connection:
        tasks = _query(connection, _TASKS, ids)
        runs = _query(connection, _EXECUTIONS, ids)
    tasks = tasks.assign(
        type=_words(tasks["type"], TYPES),
        priority=_words(tasks["priority"], PRIORITIES),
        status=_words(tasks["status"], STATUSES),
        dead_reason=_words(tasks["dead_reason"], REASONS),
    )
    began = runs["started_at"].mask(runs["outcome"] == "lost", runs["claimed_at"])
    runs = runs.assign(
        type=_words(runs["type"], TYPES),
        priority=_words(runs["priority"], PRIORITIES),
        outcome=_words(runs["outcome"], OUTCOMES),
        worker=runs["worker"].astype("category"),
        wait_s=(began - runs["due_at"]).dt.total_seconds(),
        run_s=(runs["finished_at"] - runs["started_at"]).dt.total_seconds(),
    )
    return Ledger(tasks, runs)


def depth(ledger: Ledger) -> pd.Series[float]:
    """Open tasks over time: how many there are after each commit or end, by seconds since the start."""
    came = pd.Series(1, index=ledger.seconds(ledger.tasks["created_at"]))
    went = pd.Series(-1, index=ledger.seconds(ledger.tasks["finished_at"].dropna()))
    steps = pd.concat([came, went]).groupby(level=0).sum().sort_index()
    return steps.cumsum().astype(float).rename_axis("t_s").rename("open")


def throughput(ledger: Ledger, every_s: float) -> pd.Series[float]:
    """Tasks that ended a second, by interval: indexed by its beginning in seconds since the start."""
    number = (ledger.seconds(ledger.tasks["finished_at"].dropna()) // every_s).astype(int)
    counts = number.value_counts().reindex(range(int(number.max()) + 1 if len(number) else 0), fill_value=0)
    counts.index = counts.index * every_s
    return (counts / every_s).rename_axis("t_s").rename("ended_per_s")


def ecdf(values: pd.Series[float]) -> pd.Series[float]:
    """The empirical distribution: by value in rising order, the share of values that do not exceed it."""
    ranked = values.dropna().sort_values().reset_index(drop=True)
    share = pd.Series((ranked.index + 1) / max(len(ranked), 1), index=ranked.to_numpy(), dtype=float)
    return share.groupby(level=0).max().rename_axis("value").rename("share")


def accumulated(ledger: Ledger, instants: pd.Series[pd.Timestamp]) -> pd.Series[float]:
    """How many of `instants` have passed, by seconds since the start at each of them, from 0 at second 0."""
    at = ledger.seconds(instants.dropna()).sort_values()
    counts = pd.Series(range(len(at) + 1), index=[0.0, *at], dtype=float)
    return counts.groupby(level=0).max().rename_axis("t_s").rename("count")


_INSTANTS: Final = ("created_at", "enqueued_at", "due_at", "claimed_at", "started_at", "finished_at")


def _query(connection: psycopg.Connection[Any], sql: str, ids: Sequence[str]) -> pd.DataFrame:
    answer = connection.execute(sql.encode(), {"ids": list(ids)})
    assert answer.description is not None
    frame = pd.DataFrame(answer.fetchall(), columns=[column.name for column in answer.description])
    for name in frame.columns.intersection(list(_INSTANTS)):
        frame[name] = pd.to_datetime(frame[name], utc=True).dt.as_unit("us")
    return frame.astype({"task_id": "string"})


def _words(column: pd.Series[str], known: Sequence[str]) -> pd.Series[Any]:
    """A category column: the known words in their order, then others that occur."""
    others = sorted(set(column.dropna()) - set(known))
    return column.astype(pd.CategoricalDtype([*known, *others]))
