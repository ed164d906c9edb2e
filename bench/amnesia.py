"""Amnesia: Redis forgets everything amid a drain. What is lost, what runs twice, what is too much?

A seed shuffles the deck and draws the moment: when 10 to 60 % of the tasks have ended. What is true of one
such scene is told by `Scene`; the command `amnesia` plays many of them.
"""

from __future__ import annotations

import random
import time
from dataclasses import dataclass
from typing import Any, Final

import psycopg
import redis

from bench import index
from bench.audit import Verdict, audit
from bench.burst import send
from bench.system import System
from bench.watch import open_tasks, until
from bench.workload import Mix, deck, expected

MIX: Final = Mix(flaky=10, fail=5, sleep=5, sleep_ms=50)
"""All four types; the sleepers end well within their lease, so that some runs are always in progress."""
SETTINGS: Final = {"RETRY_BASE_MS": "100", "RETRY_JITTER_MS": "100"}
"""What a scene's system needs, so that retries end soon. A lease lasts as long as it does by default: what is
whole sooner was not waited for."""
WORKERS: Final = 2
DEEPEST: Final = 1.2
"""Ids in the lists, as a share of the rows that wait."""

_MOMENT: Final = (0.1, 0.6)
_FEW: Final = 1 / 20
"""Where fewer of the tasks wait, a handful of ids on their way would make a large share."""
_DRAINED_S: Final = 120.0
_READY: Final = """
SELECT count(*) FROM tasks WHERE status = 'queued' OR (status = 'retrying' AND due_at <= now())
"""
_OPEN: Final = "SELECT id::text FROM tasks WHERE finished_at IS NULL"
_RUNS: Final = """
SELECT count(*) FROM task_runs
WHERE task_id = ANY (%(ids)s::uuid[]) AND outcome IN ('succeeded', 'failed', 'timed_out', 'lost')
"""


@dataclass(frozen=True, slots=True)
class Scene:
    """What became of one drain.

    Attributes:
        seed: Of the deck and of the moment.
        tasks: How many there were.
        ended: How many of them had ended when Redis forgot everything.
        leased: How many were in flight then.
        extra: Runs more than the deck needs.
        deepest: The most ids in the lists, by the rows that waited.
        whole_s: Seconds until every open task was in Redis again.
        verdict: The audit.
    """

    seed: int
    tasks: int
    ended: int
    leased: int
    extra: int
    deepest: float
    whole_s: float
    verdict: Verdict

    @property
    def passed(self) -> bool:
        """Whether nothing was lost, nothing ran again but what was in flight, and no list was too long."""
        return self.verdict.passed and 0 <= self.extra <= self.leased and self.deepest <= DEEPEST

    def line(self) -> str:
        """The scene in one line, and what the audit has found if it did not pass."""
        told = (
            f"seed {self.seed}: {'passed' if self.passed else 'FAILED'}; {self.ended:,} of {self.tasks:,} had"
            f" ended and {self.leased:,} were in flight, {self.extra:,} extra runs, {self.deepest:.2f} ids a"
            f" waiting row at most, whole after {self.whole_s:.1f} s"
        )
        return told if self.verdict.passed else "\n".join((told, *self.verdict.lines()))


def play(me: System, n: int, seed: int) -> Scene:
    """FLUSHALL at a random moment while a fleet of its own drains `n` tasks; the system has no other tasks.

    Raises:
        Stalled: a task was not accepted.
        Overdue: they did not end.
    """
    dealt, prefix = deck(MIX, n, seed), me.settings.redis_prefix
    moment = round(random.Random(seed).uniform(*_MOMENT) * n)
    ids = send(me, dealt, _silent).ids
    with (
        index.connected(me.redis_url) as client,
        psycopg.connect(me.postgres_url, autocommit=True) as rows,
        me.with_fleet(WORKERS),
    ):
        until(lambda: n - open_tasks(rows)[1] >= moment, f"{moment} tasks have ended", within_s=_DRAINED_S)
        ended = n - open_tasks(rows)[1]
        leased = index.flush(client, prefix)
        whole_s, deepest = recovery(rows, client, prefix, n)
        verdict = audit(me.postgres_url, me.redis_url, ids, prefix=prefix)
        runs = rows.execute(_RUNS, {"ids": ids}).fetchall()[0][0]
    return Scene(seed, n, ended, leased, runs - expected(dealt).runs, deepest, whole_s, verdict)


def forget(me: System) -> None:
    """Make a system without a fleet as it was before its first task."""
    me.statement("TRUNCATE tasks, task_runs, idempotency_keys, leaders")
    with index.connected(me.redis_url) as client:
        client.flushall()


def recovery(rows: psycopg.Connection[Any], client: redis.Redis, prefix: str, n: int) -> tuple[float, float]:
    """Look at both stores from a FLUSHALL to the end of the drain of `n` tasks.

    Returns:
        The seconds until every open task was in Redis again, and the most ids in the lists by the rows that
        waited, where a twentieth of the tasks waited.

    Raises:
        Overdue: the tasks did not end.
    """
    deepest = 0.0

    def ready() -> int:
        return int(rows.execute(_READY).fetchall()[0][0])

    def note(before: int, depth: int) -> None:
        nonlocal deepest
        waiting = max(before, ready())
        if waiting >= n * _FEW:
            deepest = max(deepest, depth / waiting)

    def whole() -> bool:
        before, found = ready(), index.look(client, prefix)
        note(before, len(found.queued))
        return found.held.issuperset(id_ for (id_,) in rows.execute(_OPEN))

    def over() -> bool:
        note(ready(), index.depth(client, prefix))
        return not open_tasks(rows)[1]

    began = time.monotonic()
    until(whole, "every open task is in Redis again", within_s=_DRAINED_S)
    whole_s = time.monotonic() - began
    until(over, "every task has ended", within_s=_DRAINED_S)
    return whole_s, deepest


def _silent(what: str, n: int, of: int) -> None:
    """Progress is told scene by scene."""
