"""Capture: reads a window of a live system's history from Postgres, page by page, as tasks of a trace.

The window is of commits. Ids are ordered by time, so a page is found by the primary key; there is no index on
the commit. The statement names no column with what a client has said: no payload, no key, no error.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import Any, Final

import psycopg

from bench import trace
from bench.trace import Traced
from bench.workload import TYPES
from scheduler.errors import StartError

PAGE: Final = 1000

_SLACK: Final = timedelta(hours=1)
"""An id has the time of the API that made it, and a commit that of Postgres: so far they may be apart."""

# Only a task that was neither tried again nor lost still knows when it was due at first. A run that was lost
# or cancelled has no start: it had its slot from its claim on.
_TASKS: Final = """
SELECT
    t.id::text, 1000 * extract(epoch FROM t.created_at - %(begin)s)::float8, t.type, t.priority, t.queue,
    t.max_retries, t.timeout_ms, t.status,
    CASE
        WHEN t.redrives + t.losses + t.refusals = 0 AND t.failures <= (t.status = 'dead')::integer
        THEN 1000 * extract(epoch FROM t.due_at - t.created_at)::float8
        ELSE 0
    END,
    r.outcomes, r.ms
FROM (
    SELECT
        id, created_at, type, priority, queue, max_retries, timeout_ms, status, due_at, redrives, losses,
        refusals, failures
    FROM tasks
    WHERE id > %(after)s::uuid AND id < uuid_at(%(end)s + %(slack)s)
        AND created_at >= %(begin)s AND created_at < %(end)s
    ORDER BY id
    LIMIT %(page)s
) AS t
LEFT JOIN LATERAL (
    SELECT
        array_agg(outcome ORDER BY attempt) AS outcomes,
        array_agg(
            1000 * extract(
                epoch FROM finished_at
                    - CASE WHEN outcome IN ('lost', 'cancelled') THEN claimed_at ELSE started_at END
            )::float8
            ORDER BY attempt
        ) AS ms
    FROM task_runs
    WHERE task_id = t.id AND outcome <> 'released'
) AS r ON true
ORDER BY t.id
"""
_LAST: Final = "SELECT now() - %(span)s, now()"
_FIRST_ID: Final = "SELECT uuid_at(%(begin)s - %(slack)s)::text"


def last(connection: psycopg.Connection[Any], seconds: float) -> tuple[datetime, datetime]:
    """The window of the last `seconds`, by Postgres' clock.

    Raises:
        StartError: so long ago there was no time.
    """
    try:
        row = connection.execute(_LAST.encode(), {"span": timedelta(seconds=seconds)}).fetchone()
    except (OverflowError, psycopg.DataError):
        raise StartError(f"the last {seconds:g} s begin before time does; name fewer") from None
    assert row is not None
    return row[0], row[1]


def tasks(
    connection: psycopg.Connection[Any], begin: datetime, end: datetime, *, hide: bool = False
) -> Iterator[Traced]:
    """The tasks that were committed from `begin` on and before `end`, in the order of their ids.

    One page is in memory at a time, and each is a statement of its own: nothing holds back a vacuum.

    Args:
        connection: In autocommit.
        begin: Instants have their zones.
        end: See `begin`.
        hide: Whether queues and types get other names, but for types that the product brings itself.
    """
    params = {"begin": begin, "end": end, "slack": _SLACK, "page": PAGE}
    row = connection.execute(_FIRST_ID.encode(), params).fetchone()
    assert row is not None
    after = row[0]
    while page := connection.execute(_TASKS.encode(), params | {"after": after}).fetchall():
        for row in page:
            yield _traced(row, hide=hide)
        after = page[-1][0]


def _traced(row: tuple[Any, ...], *, hide: bool) -> Traced:
    _, at_ms, kind, priority, queue, max_retries, timeout_ms, status, delay_ms, outcomes, ms = row
    if hide:
        queue = trace.anonymous("queue", queue)
        kind = kind if kind in TYPES else trace.anonymous("type", kind)
    return Traced(
        at_ms=_rounded(at_ms),
        type=kind,
        priority=priority,
        queue=queue,
        max_retries=max_retries,
        timeout_ms=timeout_ms,
        delay_ms=_rounded(delay_ms),
        status=status,
        runs=tuple(
            (outcome, None if took is None else _rounded(took))
            for outcome, took in zip(outcomes or (), ms or (), strict=True)
        ),
    )


def _rounded(ms: float) -> float:
    """To the microsecond, as Postgres' instants are, and whole where it is whole."""
    exact = round(max(ms, 0.0), 3)
    return int(exact) if exact.is_integer() else exact
