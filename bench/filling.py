"""Filling: tables with millions of rows, as if tasks had come evenly over a day.

Rows are made where they are kept, as those of the product: ids that carry the time of their task, every
constraint held, a run for each ended attempt, and instants that a hundred tasks share, as those of one commit
do. Open tasks are in a queue that no worker serves. One ended task in some is a dead letter, with instants of
its own.

The product's rows grow on their page, from a task that is new to one that has ended. These are born ended:
pages filled up to the table's mark would have room for one new row each, and the next tasks would go to a
page of their own, all over the table. So the mark is higher while they are made.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Final

import psycopg

from bench.parking import QUEUE

_CHUNK: Final = 100_000
_FILLED: Final = 65
"""Percent of a page; as many rows then share one as where the product has worked."""

# The ids are those of RFC 9562: 48 bits of milliseconds, and the rest drawn, here from the row's number.
_ROWS: Final = """
WITH rows AS (
    SELECT
        (lpad(to_hex((extract(epoch FROM at) * 1000)::bigint), 12, '0')
         || '7' || substr(md5(i::text), 1, 3) || '8' || substr(md5(i::text), 4, 15))::uuid AS id,
        i, at, dead
    FROM (
        SELECT
            i, dead,
            %(until)s::timestamptz
            - interval '1 day' * (1 - (CASE WHEN dead THEN i ELSE i / 100 * 100 END)::float8 / %(rows)s) AS at
        FROM (
            SELECT i, %(dead)s > 0 AND i %% (%(finished)s / greatest(%(dead)s, 1)) = 0 AS dead
            FROM generate_series(%(first)s::bigint, %(last)s::bigint) AS i
        ) AS numbers
    ) AS spread
)
"""
_ENDED: Final = """
INSERT INTO tasks (
    id, type, priority, status, attempts, failures, due_at, claimed_at, created_at, finished_at,
    max_retries, dead_at, dead_reason
)
SELECT
    id, 'noop', (ARRAY['critical', 'high', 'default', 'low'])[i %% 4 + 1],
    CASE WHEN dead THEN 'dead' ELSE 'succeeded' END, 1, dead::integer,
    at, at + interval '20 ms', at, at + interval '60 ms',
    CASE WHEN dead THEN 0 ELSE 3 END, CASE WHEN dead THEN at + interval '60 ms' END,
    CASE WHEN dead THEN 'failed' END
FROM rows
"""
_RUNS: Final = """
INSERT INTO task_runs (task_id, attempt, outcome, worker, lease_token, claimed_at, started_at, finished_at)
SELECT
    id, 1, CASE WHEN dead THEN 'failed' ELSE 'succeeded' END,
    'host:1:' || md5((i / 1000000)::text), md5((i / 1000000)::text) || ':' || i / 100,
    at + interval '20 ms', at + interval '30 ms', at + interval '60 ms'
FROM rows
"""
_OPEN: Final = """
INSERT INTO tasks (id, queue, type, priority, due_at, created_at)
SELECT id, %(queue)s, 'noop', (ARRAY['critical', 'high', 'default', 'low'])[i %% 4 + 1], at, at
FROM rows
"""
_MARK: Final = """
SELECT option_value FROM pg_class, pg_options_to_table(reloptions)
WHERE oid = 'tasks'::regclass AND option_name = 'fillfactor'
"""

Tell = Callable[[str, int, int], None]


def fill(url: str, *, finished: int, open_: int, dead: int, tell: Tell) -> None:
    """Add as many tasks, with their runs, and bring the tables to rest.

    The youngest is a minute old, so that nothing takes these rows for ones that have just come.

    Args:
        url: A migrated database of the product, as its owner.
        finished: Tasks that have ended, dead ones included.
        open_: Tasks that wait in the parked queue.
        dead: How many of the finished are dead letters; evenly spread.
        tell: Told how far each table is.
    """
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("INSERT INTO queues (name) VALUES (%s) ON CONFLICT DO NOTHING", (QUEUE,))
        [(until,)] = connection.execute("SELECT now() - interval '1 minute'").fetchall()
        [(mark,)] = connection.execute(_MARK).fetchall()
        connection.execute(f"ALTER TABLE tasks SET (fillfactor = {_FILLED})")
    numbers = {"finished": finished, "dead": dead, "until": until, "rows": finished + open_, "queue": QUEUE}

    def write(what: str, sql: str, first: int, last: int) -> None:
        with psycopg.connect(url, autocommit=True) as connection:
            for start in range(first, last + 1, _CHUNK):
                end = min(start + _CHUNK - 1, last)
                connection.execute((_ROWS + sql).encode(), numbers | {"first": start, "last": end})
                tell(what, end - first + 1, last - first + 1)

    def tasks() -> None:
        write("tasks", _ENDED, 1, finished)
        write("open tasks", _OPEN, finished + 1, finished + open_)

    with ThreadPoolExecutor(2) as threads:
        for writing in [threads.submit(tasks), threads.submit(write, "runs", _RUNS, 1, finished)]:
            writing.result()
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(f"ALTER TABLE tasks SET (fillfactor = {int(mark)})".encode())
        for statement in ("VACUUM (ANALYZE) tasks", "VACUUM (ANALYZE) task_runs", "CHECKPOINT"):
            connection.execute(statement)
