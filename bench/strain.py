"""Strain: what a system does when there is too much work, and what its loops cost when there is none.

Each function returns its figures; the system that it is given has the default settings, and Postgres what
`meter.py` asks for.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Final

import psycopg

from bench import index, load, meter
from bench.audit import audit
from bench.burst import Burst, open_tasks, send
from bench.figure import Figure
from bench.stats import spread
from bench.system import System
from bench.watch import until
from bench.workload import Body, Mix, deck

SPREAD: Final = 3.0
SHARE: Final = 100 * 1 / (8 + 4 + 2 + 1)
"""The weight of `low`, in percent of all weights."""
MOST_CPU: Final = 1.0
MOST_STATEMENTS: Final = 8.0
"""An idle pass of reconcile asks for the lead, the epochs, the horizon, two pages of open rows and one of
dead letters, and mirrors the epoch. Two statements were aimed at; each of these is one look-up by an index,
and what they cost, CPU and scans, is bounded beside this."""

_DRAINED_S: Final = 180.0


# Thousands of tasks that fail and are tried again.

_FAILS: Final = Mix(fail=100, max_retries=3)
_CRITICAL: Final[Body] = {"type": "noop", "priority": "critical"}
_CRITICAL_RATE: Final = 50
_IDLE_S: Final = 3
_STORM_S: Final = 5
_STARTS: Final = """
SELECT count(*) FROM task_runs
WHERE task_id = ANY (%(ids)s::uuid[]) AND outcome IN ('succeeded', 'failed', 'timed_out', 'lost')
"""
_WAITS: Final = """
SELECT percentile_cont(0.95) WITHIN GROUP (ORDER BY extract(epoch FROM r.started_at - t.due_at))
FROM tasks AS t JOIN task_runs AS r ON r.task_id = t.id
WHERE t.id = ANY (%(ids)s::uuid[])
GROUP BY floor(extract(epoch FROM t.created_at))
"""
_DUES_TABLE: Final = """
CREATE TABLE bench_dues (id uuid, attempt integer, due_at timestamptz, PRIMARY KEY (id, attempt))
"""
_NOTE_DUES: Final = """
INSERT INTO bench_dues
SELECT id, attempts, due_at FROM tasks WHERE finished_at IS NULL AND status = 'retrying'
ON CONFLICT DO NOTHING
"""
_DUES: Final = """
SELECT max(n) / (sum(n) / (max(second) - min(second) + 1)) FROM (
    SELECT floor(extract(epoch FROM due_at)) AS second, count(*) AS n FROM bench_dues GROUP BY 1
) AS x
"""


def storms(me: System, rounds: int, n: int) -> list[Figure]:
    """`n` tasks that always fail, each tried four times, `rounds` times; what do critical tasks feel of it?

    A wait is the least of the rounds on both sides, for whatever else happens on the machine only adds to it.
    It may reach the work that a worker leases ahead, however short the wait on an idle system is.
    """
    me.start_fleet(2)
    critical_s(me, 1)
    found = [_storm(me, n) for _ in range(rounds)]
    busiest = _busiest(me, n)
    me.stop_fleet()
    idle_s, stormy_s, starts, dead = zip(*found, strict=True)
    ahead_s = me.settings.lease_ahead_ms / 1000
    return [
        Figure("storm.starts", f"{n:,} tasks always fail, 3 retries: runs started", "", starts, "=", 4 * n),
        Figure("storm.dead", "... ids in the DLQ", "", dead, "=", n),
        Figure(
            "storm.busiest", "... the busiest second of due times, by the mean", "×", (busiest,), "≤", SPREAD
        ),
        Figure(
            "storm.idle", "p95 wait of critical tasks on an idle system, the best round", "s", (min(idle_s),)
        ),
        Figure(
            "storm.wait",
            f"... and amid the failing ones: twice that, or the {ahead_s * 1000:g} ms leased ahead",
            "s",
            (min(stormy_s),),
            "≤",
            max(2 * min(idle_s), ahead_s),
        ),
    ]


def _storm(me: System, n: int) -> tuple[float, float, int, int]:
    """p95 of critical waits before and amid a storm, in seconds; starts and dead letters."""
    idle_s = critical_s(me, _IDLE_S)
    burst = send(me, deck(_FAILS, n), _silent)
    stormy_s = critical_s(me, _STORM_S)
    _drained(me)
    return idle_s, stormy_s, int(str(me.query(_STARTS, {"ids": burst.ids})[0][0])), _letters(me, burst)


def _letters(me: System, burst: Burst) -> int:
    """How many of a burst's ids are in the DLQ, once it has as many as it will get."""
    ids = set(burst.ids)
    with index.connected(me.redis_url) as client:

        def there() -> int:
            return len(ids.intersection(index.look(client, me.settings.redis_prefix).letters))

        until(lambda: there() == len(ids), "every dead letter is in the DLQ", within_s=10)
        return there()


def critical_s(me: System, seconds: int) -> float:
    """How long critical tasks wait, 50 of them a second: the median of the p95 of each second."""
    bodies = [_CRITICAL] * (_CRITICAL_RATE * seconds)
    sent = load.run(load.open_loop(bodies, host=me.host, rate=_CRITICAL_RATE))
    ids = [receipt.id for receipt in sent.receipts]
    open_ = "SELECT count(*) FROM tasks WHERE id = ANY (%(ids)s::uuid[]) AND finished_at IS NULL"
    until(lambda: me.query(open_, {"ids": ids}) == [(0,)], "every critical task has ended", within_s=60)
    return spread([float(str(row[0])) for row in me.query(_WAITS, {"ids": ids})]).median


def _busiest(me: System, n: int) -> float:
    """How many retries are due in the busiest second, by the mean from the first second to the last."""
    me.statement(_DUES_TABLE)
    send(me, deck(_FAILS, n), _silent)
    with psycopg.connect(me.postgres_url, autocommit=True) as rows:
        while open_tasks(me):
            rows.execute(_NOTE_DUES)
            time.sleep(0.2)  # a task that is to be tried again waits for half a second at least
    return float(str(me.query(_DUES)[0][0]))


# More critical tasks than the fleet can run.

_SLOTS: Final = 4
_WORKERS: Final = 2
_RUN_MS: Final = 50
_CAPACITY: Final = _WORKERS * _SLOTS * 1000 / _RUN_MS
_OVERLOAD: Final = 1.6
"""All that comes, by the capacity."""
_LOW_EVERY: Final = 16
"""Every 16th task is low: a tenth of the capacity, less than the ninth that `low` gets beside `critical`.
The critical ones come at 1.5 times the capacity."""
_SLACK_S: Final = 0.5
_WARM: Final = 0.2
_CLAIMS: Final = """
SELECT
    t.priority,
    extract(epoch FROM t.created_at - %(at)s)::float8,
    extract(epoch FROM r.claimed_at - %(at)s)::float8
FROM tasks AS t JOIN task_runs AS r ON r.task_id = t.id AND r.attempt = 1
WHERE t.id = ANY (%(ids)s::uuid[])
"""


def saturation(me: System, seconds: float) -> list[Figure]:
    """Critical tasks beyond the capacity for `seconds`, and low ones beside them."""
    me.start_fleet(_WORKERS, env={"WORKER_POOL": str(_SLOTS)})
    rate = _OVERLOAD * _CAPACITY
    at = me.now()
    bodies = [_body(i) for i in range(round(rate * seconds))]
    sent = load.run(load.open_loop(bodies, host=me.host, rate=rate))
    over_s = (me.now() - at).total_seconds()
    me.stop_fleet()
    me.start_fleet(_WORKERS, env={"WORKER_POOL": "200"})  # whatever waits is done quickly
    _drained(me)
    me.stop_fleet()
    ids = [receipt.id for receipt in sent.receipts]
    found = [(str(p), float(str(c)), float(str(t))) for p, c, t in me.query(_CLAIMS, {"ids": ids, "at": at})]
    share, waits, late = shares(found, over_s)
    amiss = sum(check.offenders for check in audit(me.postgres_url, me.redis_url, ids).checks)
    low = _OVERLOAD / _LOW_EVERY
    what = f"Critical tasks at {_OVERLOAD - low:g} × capacity for {seconds:g} s, low ones at {low:g} ×"
    return [
        Figure("saturation.share", f"{what}: share of low in the claims", "%", (share,), "≥", SHARE),
        Figure("saturation.wait", "... the longest wait of a low task", "s", (max(waits),)),
        Figure(
            "saturation.late",
            "... low tasks that waited longer than 15 mean services for each one ahead, and 0.5 s",
            values=(late,),
            sign="=",
        ),
        Figure(
            "saturation.amiss", "... tasks lost, succeeded twice or else amiss", values=(amiss,), sign="="
        ),
    ]


def _body(i: int) -> Body:
    priority = "low" if i % _LOW_EVERY == _LOW_EVERY - 1 else "critical"
    return {"type": "sleeper", "payload": {"sleep_ms": _RUN_MS}, "priority": priority}


def shares(found: Sequence[tuple[str, float, float]], over_s: float) -> tuple[float, list[float], int]:
    """Low's share of the claims in percent, its waits in seconds, and how many of them were too long.

    Args:
        found: For each task: its priority, when it came and when it was claimed, in seconds.
        over_s: When the overload was over. A task that had not been claimed by then has waited until then.
    """
    claims = [priority for priority, _, claimed in found if _WARM * over_s <= claimed <= over_s]
    mean_s = (1 - _WARM) * over_s / len(claims)
    low = sorted((came, min(claimed, over_s)) for priority, came, claimed in found if priority == "low")
    late = 0
    for i, (came, claimed) in enumerate(low):
        ahead = sum(claimed_before > came for _, claimed_before in low[:i])
        late += claimed - came > (ahead + 1) * mean_s * 100 / SHARE + _SLACK_S
    return 100 * claims.count("low") / len(claims), [claimed - came for came, claimed in low], late


# Nothing to do.

_ROWS: Final = """
WITH made AS (
    SELECT i, now() - interval '1 second' * (i %% 36000 + 60) AS at FROM generate_series(1, %(n)s) AS i
), rows AS (
    INSERT INTO tasks (id, type, status, attempts, claimed_at, created_at, due_at, finished_at)
    SELECT
        (left(uuid_at(at)::text, 24) || lpad(to_hex(i), 12, '0'))::uuid,
        'noop', 'succeeded', 1, at, at, at, at
    FROM made
    RETURNING id, claimed_at
)
INSERT INTO task_runs (task_id, attempt, outcome, claimed_at, started_at, finished_at)
SELECT id, 1, 'succeeded', claimed_at, claimed_at, claimed_at FROM rows
"""
_SCANS: Final = """
SELECT coalesce(sum(s.seq_scan), 0)::bigint
FROM pg_stat_user_tables AS s JOIN pg_class AS c ON c.oid = s.relid
WHERE c.reltuples > %(n)s / 4
"""
_RARELY: Final = {"RECONCILE_INTERVAL_MS": "3600000", "REAPER_SCAN_INTERVAL_MS": "3600000"}
_SETTLED_S: Final = 3.0


def idle(me: System, rounds: int, seconds: float, n: int) -> list[Figure]:
    """What reconcile and reaper cost with `n` finished rows, no dead letters, and nothing to do.

    It is measured with and without them, in turns.
    """
    with index.connected(me.redis_url) as client:
        client.flushall()
    with psycopg.connect(me.postgres_url, autocommit=True) as rows:
        rows.execute("TRUNCATE tasks, task_runs, idempotency_keys")  # dead letters are compared page by page
        rows.execute(_ROWS, {"n": n})
        rows.execute("VACUUM ANALYZE")
    _cost(me, 1.0, {})  # not counted: what so many new rows have left to do for Postgres
    interval_s = me.settings.reconcile_interval_ms / 1000
    cpu, statements = [], []
    scans = _scans(me, n)
    for _ in range(rounds):
        rarely, as_usual = (_cost(me, seconds, env) for env in (_RARELY, {}))
        cpu.append(100 * (as_usual[0] - rarely[0]) / seconds)
        statements.append((as_usual[1] - rarely[1]) / (seconds / interval_s))
    scans = _scans(me, n) - scans
    return [
        Figure(
            "idle.cpu",
            f"Reconcile and reaper at rest, {n:,} finished rows: CPU of worker, Postgres, Redis",
            "%",
            tuple(cpu),
            "≤",
            MOST_CPU,
        ),
        Figure(
            "idle.statements",
            f"... statements in each interval of {interval_s:g} s",
            "",
            tuple(statements),
            "≤",
            MOST_STATEMENTS,
        ),
        Figure("idle.scans", "... sequential scans of these rows", "", (scans,), "="),
    ]


def _cost(me: System, seconds: float, env: dict[str, str]) -> tuple[float, int]:
    """Seconds of CPU and statements while one worker has nothing to do."""
    postgres, redis = me.stack.postgres, me.stack.redis
    assert postgres is not None
    assert redis is not None
    me.statement("DELETE FROM leaders")  # one that was stopped would lead for as long as it has said
    me.start_fleet(1, env=env)
    parts = {"worker": [me.fleet[0].pid], "postgres": [postgres.pid], "redis": [redis.pid]}
    with meter.Meter(postgres.admin_url, me.redis_url, parts) as counters:
        time.sleep(_SETTLED_S)
        before = counters.read()
        time.sleep(seconds)
        cost = counters.read().since(before)
    me.stop_fleet()
    return sum(cost.cpu_s.values()), cost.statements


def _scans(me: System, n: int) -> int:
    return int(str(me.query(_SCANS, {"n": n})[0][0]))


def _drained(me: System) -> None:
    until(lambda: not open_tasks(me), "every task has ended", within_s=_DRAINED_S)


def _silent(what: str, n: int, of: int) -> None:
    """Progress is told by the command."""
