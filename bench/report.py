"""The performance snapshot: the table of the original README, measured, and what its columns mean."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import psycopg

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
        return (
            f"{self.tasks / 1000:g}k" if self.tasks >= 1000 else str(self.tasks),
            f"{self.workers} × {self.slots}",
            f"~{self.in_flight:.0f}",
            seconds(self.drain_s) if self.drain_s < 10 else f"{self.drain_s:.0f} s",
            f"{self.throughput:,.0f}/s",
            "-" if self.p95_run_s is None else seconds(self.p95_run_s),
            seconds(self.p95_wait_s),
            f"{self.fail_percent:.1f}%",
            f"{self.retries:,}",
            f"{self.reaped:,}",
        )


def seconds(value: float) -> str:
    """A duration with a unit that suits it."""
    if value < 0.0009995:
        return f"{value * 1e6:.0f} µs"
    return f"{value * 1000:.0f} ms" if value < 0.9995 else f"{value:.1f} s"


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


def markdown(rows: Sequence[Snapshot]) -> str:
    """The table, aligned, as Markdown that a terminal shows well, too."""
    cells = [COLUMNS, *(row.cells() for row in rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(COLUMNS))]
    lines = ["| " + " | ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)) + " |" for row in cells]
    return "\n".join([lines[0], "| " + " | ".join("-" * w for w in widths) + " |", *lines[1:]])


def meanings() -> str:
    """A line a column: what it means."""
    width = max(map(len, COLUMNS))
    return "\n".join(f"  {name.ljust(width)}  {MEANINGS[name]}" for name in COLUMNS)
