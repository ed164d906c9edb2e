"""The performance snapshot: the table of the original README, measured, and what its columns mean."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import psycopg

from bench.stats import spread

COLUMNS: Final = (
    "Burst",
    "Workers × Slots",
    "In-flight",
    "Drain Time",
    "Throughput",
    "p95 Run",
    "p95 Wait",
    "Fail %",
    "Retries",
    "Reaped",
)

MEANINGS: Final[Mapping[str, str]] = {
    "Burst": "tasks in the burst, all accepted by the API.",
    "Workers × Slots": "worker processes × places to run in each.",
    "In-flight": "claimed tasks at a time, on average over the drain: Σ (end − claim) / drain.",
    "Drain Time": "from the first task's commit to the last task's end.",
    "Throughput": "tasks that ended / drain time.",
    "p95 Run": "95 % of handler calls that came to an end took no longer.",
    "p95 Wait": "95 % of the tasks that were started first started within this time of their commit.",
    "Fail %": "tasks that ended as dead letters / tasks that ended.",
    "Retries": "failed runs after which the task was tried again.",
    "Reaped": "runs whose lease ran out.",
}

# All instants are Postgres' own; a run's start and end were sent as durations since the claim.
_SNAPSHOT: Final = """
WITH t AS (
    SELECT id, status, created_at, finished_at, attempts
    FROM tasks WHERE id = ANY (%(ids)s::uuid[])
), r AS (
    SELECT r.*, t.created_at, t.attempts
    FROM task_runs AS r JOIN t ON t.id = r.task_id
), first_start AS (
    -- A worker also claims ahead of its slots and may give back what it has not started. A lost run's start
    -- is not known; its claim is.
    SELECT DISTINCT ON (task_id) coalesce(started_at, claimed_at) - created_at AS wait
    FROM r
    WHERE started_at IS NOT NULL OR outcome = 'lost'
    ORDER BY task_id, attempt
)
SELECT
    (SELECT count(*) FROM t),
    (SELECT count(*) FROM t WHERE finished_at IS NOT NULL),
    (SELECT extract(epoch FROM max(finished_at) - min(created_at))::float8 FROM t),
    (SELECT coalesce(sum(extract(epoch FROM finished_at - claimed_at)), 0)::float8 FROM r),
    (SELECT percentile_cont(0.95) WITHIN GROUP (ORDER BY extract(epoch FROM finished_at - started_at))
        FROM r WHERE started_at IS NOT NULL)::float8,
    (SELECT percentile_cont(0.95) WITHIN GROUP (ORDER BY extract(epoch FROM wait)) FROM first_start)::float8,
    (SELECT count(*) FROM t WHERE status = 'dead'),
    (SELECT count(*) FROM r WHERE outcome IN ('failed', 'timed_out') AND attempt < attempts),
    (SELECT count(*) FROM r WHERE outcome = 'lost')
"""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """One row of the table. Times are seconds; `p95_run_s` is None if no handler call came to an end."""

    tasks: int
    workers: int
    slots: int
    ended: int
    drain_s: float
    in_flight: float
    p95_run_s: float | None
    p95_wait_s: float
    dead: int
    retries: int
    reaped: int

    @property
    def throughput(self) -> float:
        """Tasks that ended, a second."""
        return self.ended / self.drain_s

    @property
    def fail_percent(self) -> float:
        """Share of dead letters among the tasks that ended."""
        return 100 * self.dead / self.ended

    def cells(self) -> tuple[str, ...]:
        """The row as text, in the order of COLUMNS."""
        return repeated([self])


def repeated(rows: Sequence[Snapshot]) -> tuple[str, ...]:
    """The rows of one burst's repeats as one: of each figure the median, and the range if it has one."""
    first = rows[0]
    cells = [
        f"{first.tasks / 1000:g}k" if first.tasks >= 1000 else str(first.tasks),
        f"{first.workers} × {first.slots}",
    ]
    for of, words in _FIGURES:
        values = [value for value in map(of, rows) if value is not None]
        if not values:
            cells.append("-")
            continue
        middle, low, high = map(words, spread(values))
        cells.append(middle if low == high else f"{middle} ({low.strip('~')} to {high.strip('~')})")
    return tuple(cells)


def seconds(value: float) -> str:
    """A duration with a unit that suits it."""
    if value < 0.0009995:
        return f"{value * 1e6:.0f} µs"
    return f"{value * 1000:.0f} ms" if value < 0.9995 else f"{value:.1f} s"


_FIGURES: Final[Sequence[tuple[Callable[[Snapshot], float | None], Callable[[float], str]]]] = (
    (lambda row: row.in_flight, lambda value: f"~{value:.0f}"),
    (lambda row: row.drain_s, lambda value: seconds(value) if value < 10 else f"{value:.0f} s"),
    (lambda row: row.throughput, lambda value: f"{value:,.0f}/s"),
    (lambda row: row.p95_run_s, seconds),
    (lambda row: row.p95_wait_s, seconds),
    (lambda row: row.fail_percent, lambda value: f"{value:.1f}%"),
    (lambda row: row.retries, lambda value: f"{value:,.0f}"),
    (lambda row: row.reaped, lambda value: f"{value:,.0f}"),
)
"""The columns after the first two: their values, and how they are written."""


def snapshot(postgres_url: str, ids: Sequence[str], *, workers: int, slots: int) -> Snapshot:
    """Measure one burst from the history of the tasks in `ids`.

    Raises:
        ValueError: none of the tasks has ended.
    """
    with psycopg.connect(postgres_url) as connection:
        row = connection.execute(_SNAPSHOT.encode(), {"ids": list(ids)}).fetchone()
    assert row is not None
    tasks, ended, drain, held, run, wait, dead, retries, reaped = row
    if not ended:
        raise ValueError(f"of {len(ids):,} tasks none has ended, so there is nothing to measure")
    return Snapshot(tasks, workers, slots, ended, drain, held / drain, run, wait, dead, retries, reaped)


def markdown(rows: Sequence[Snapshot | Sequence[Snapshot]]) -> str:
    """The table, aligned, as Markdown that a terminal shows well, too; repeats of a burst are one row."""
    cells = [COLUMNS, *(repeated([row] if isinstance(row, Snapshot) else row) for row in rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(COLUMNS))]
    lines = ["| " + " | ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)) + " |" for row in cells]
    return "\n".join([lines[0], "| " + " | ".join("-" * w for w in widths) + " |", *lines[1:]])


def meanings() -> str:
    """A line a column: what it means."""
    width = max(map(len, COLUMNS))
    return "\n".join(f"  {name.ljust(width)}  {MEANINGS[name]}" for name in COLUMNS)
