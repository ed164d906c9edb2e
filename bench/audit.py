"""The audit: trusts nobody, starts from the client's own list, and has SQL of its own.

Every check is a query for offenders; a run passes when no check finds one. What the product says about
itself (its counters, its exit codes) is not asked.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, cast

import psycopg
import redis

from bench.workload import Deck, Expected, expected

_SHOWN: Final = 5
_LOOK_S: Final = 0.2

# Each query returns the offending task ids; `sent` is the client's list.
_CHECKS: Final[dict[str, tuple[str, str]]] = {
    "lost": (
        "accepted, and no row is there",
        "SELECT s.id FROM sent AS s LEFT JOIN tasks AS t USING (id) WHERE t.id IS NULL",
    ),
    "not ended": (
        "accepted, and not in a terminal status",
        (
            "SELECT s.id FROM sent AS s JOIN tasks AS t USING (id)"
            " WHERE t.status NOT IN ('succeeded', 'dead', 'cancelled')"
        ),
    ),
    "succeeded twice": (
        "more than one accepted success",
        (
            "SELECT r.task_id FROM task_runs AS r JOIN sent AS s ON s.id = r.task_id"
            " WHERE r.outcome = 'succeeded' GROUP BY 1 HAVING count(*) > 1"
        ),
    ),
    "status and history disagree": (
        "succeeded without a success, or a success without succeeded",
        (
            "SELECT t.id FROM sent AS s JOIN tasks AS t USING (id) LEFT JOIN task_runs AS r"
            " ON r.task_id = t.id AND r.outcome = 'succeeded'"
            " WHERE (t.status = 'succeeded') <> (r.task_id IS NOT NULL)"
        ),
    ),
    "attempts without trace": (
        "attempts that the history does not show one by one, from 1",
        (
            "SELECT t.id FROM sent AS s JOIN tasks AS t USING (id)"
            " LEFT JOIN task_runs AS r ON r.task_id = t.id"
            " GROUP BY t.id, t.attempts, t.status"
            " HAVING count(r.attempt) <> t.attempts - (t.status = 'running')::int"
            " OR coalesce(max(r.attempt), 0) <> count(r.attempt)"
        ),
    ),
    "started after the end": (
        "a run that was claimed after its task had ended",
        (
            "SELECT DISTINCT t.id FROM sent AS s JOIN tasks AS t USING (id)"
            " JOIN task_runs AS r ON r.task_id = t.id"
            " WHERE r.claimed_at > t.finished_at"
        ),
    ),
    "attempts out of order": (
        "an attempt that was claimed before an earlier one",
        (
            "SELECT DISTINCT task_id FROM (SELECT r.task_id, r.claimed_at, lag(r.claimed_at)"
            " OVER (PARTITION BY r.task_id ORDER BY r.attempt) AS before"
            " FROM task_runs AS r JOIN sent AS s ON s.id = r.task_id) AS x WHERE claimed_at < before"
        ),
    ),
    "budget exceeded": (
        "more failures than max_retries + 1",
        "SELECT t.id FROM sent AS s JOIN tasks AS t USING (id) WHERE t.failures > t.max_retries + 1",
    ),
}


@dataclass(frozen=True, slots=True)
class Check:
    """One question, and who answered it wrongly."""

    name: str
    meaning: str
    offenders: int
    examples: tuple[str, ...] = ()

    @property
    def passed(self) -> bool:
        """True if there is no offender."""
        return self.offenders == 0


@dataclass(frozen=True, slots=True)
class Verdict:
    """All checks of one audit."""

    accepted: int
    statuses: Mapping[str, int]
    checks: tuple[Check, ...]

    @property
    def passed(self) -> bool:
        """True if every check passed."""
        return all(check.passed for check in self.checks)

    def lines(self) -> list[str]:
        """What a person should read: one line if all is well, else a line an offence."""
        counts = ", ".join(f"{n:,} {status}" for status, n in sorted(self.statuses.items()))
        if self.passed:
            return [f"audit passed: {self.accepted:,} accepted, {counts}; {len(self.checks)} checks"]
        failed = [c for c in self.checks if not c.passed]
        head = (
            f"AUDIT FAILED: {self.accepted:,} accepted, {counts}; {len(failed)} of {len(self.checks)} checks"
        )
        return [head, *(f"  {c.name}: {c.offenders} ({c.meaning}) {' '.join(c.examples)}" for c in failed)]


def audit(
    postgres_url: str,
    redis_url: str,
    accepted: Sequence[str],
    *,
    prefix: str = "sched1",
    exactly: Expected | None = None,
    patience_s: float = 5.0,
) -> Verdict:
    """Judge the tasks in `accepted`, the ids that the client was given.

    Args:
        postgres_url: Where the tables are.
        redis_url: Where the index is.
        accepted: Task ids, each given by a 2xx.
        prefix: REDIS_PREFIX of the system.
        exactly: What must have become of them to the unit, if nothing went wrong on the way.
        patience_s: How long Redis, which is told after each commit, may take to agree with Postgres.
    """
    checks = []
    with psycopg.connect(postgres_url) as connection:
        connection.execute("CREATE TEMP TABLE sent (id uuid) ON COMMIT DROP")
        with connection.cursor().copy("COPY sent FROM STDIN") as copy:
            for id_ in dict.fromkeys(accepted):
                copy.write_row((id_,))
        checks.append(_duplicates(accepted))
        for name, (meaning, sql) in _CHECKS.items():
            found = [str(row[0]) for row in connection.execute(sql.encode())]
            checks.append(Check(name, meaning, len(found), tuple(found[:_SHOWN])))
        statuses = _pairs(
            connection, "SELECT t.status, count(*) FROM sent JOIN tasks AS t USING (id) GROUP BY 1"
        )
        if exactly is not None:
            checks += _exactly(connection, exactly)
        open_ = _ids(connection, "SELECT id FROM sent JOIN tasks USING (id) WHERE finished_at IS NULL")
        dead = _ids(connection, "SELECT id FROM sent JOIN tasks USING (id) WHERE dead_at IS NOT NULL")
    until = time.monotonic() + patience_s
    index = _redis(redis_url, prefix, set(accepted), open_, dead)
    while not all(check.passed for check in index) and time.monotonic() < until:
        time.sleep(_LOOK_S)
        index = _redis(redis_url, prefix, set(accepted), open_, dead)
    checks += index
    return Verdict(len(accepted), statuses, tuple(checks))


def deck_expected(dealt: Deck, places: Iterable[int], *, max_losses: int, lease_ms: int) -> Expected:
    """What must become of the bodies of a deck that were accepted."""
    return expected(dealt, indexes=places, max_losses=max_losses, lease_ms=lease_ms)


def _duplicates(accepted: Sequence[str]) -> Check:
    twice = [id_ for id_, n in Counter(accepted).items() if n > 1]
    return Check("given twice", "one id for two acceptances", len(twice), tuple(twice[:_SHOWN]))


def _pairs(connection: psycopg.Connection[Any], sql: str) -> dict[str, int]:
    return {str(k): int(n) for k, n in connection.execute(sql.encode())}


def _ids(connection: psycopg.Connection[Any], sql: str) -> set[str]:
    return {str(row[0]) for row in connection.execute(sql.encode())}


def _exactly(connection: psycopg.Connection[Any], want: Expected) -> list[Check]:
    """Counts that the seeded deck fixes beforehand, compared to the unit."""
    statuses = _pairs(connection, "SELECT t.status, count(*) FROM sent JOIN tasks AS t USING (id) GROUP BY 1")
    reasons = _pairs(
        connection,
        "SELECT t.dead_reason, count(*) FROM sent JOIN tasks AS t USING (id)"
        " WHERE t.dead_reason IS NOT NULL GROUP BY 1",
    )
    runs = _pairs(
        connection,
        "SELECT r.outcome, count(*) FROM sent JOIN task_runs AS r ON r.task_id = sent.id GROUP BY 1",
    )
    pairs = (
        ("succeeded tasks", statuses.get("succeeded", 0), want.succeeded),
        ("dead by failures", reasons.get("failed", 0), want.dead_failed),
        ("dead by losses", reasons.get("lost", 0), want.dead_lost),
        ("failed runs", runs.get("failed", 0), want.failed),
        ("lost runs", runs.get("lost", 0), want.lost),
        ("runs but for released ones", sum(runs.values()) - runs.get("released", 0), want.runs),
    )
    return [
        Check(name, f"{have:,} where the deck says {due:,}", abs(have - due)) for name, have, due in pairs
    ]


def _redis(url: str, prefix: str, accepted: set[str], open_: set[str], dead: set[str]) -> list[Check]:
    """What Redis still holds of tasks that have ended, and whether its dead letters are the dead rows."""
    client = redis.Redis.from_url(url, decode_responses=True)
    left: list[str] = []
    letters: list[str] = []
    try:
        for key in client.scan_iter(f"{prefix}:*", count=1000):
            held = _members(client, key)
            if ":dlq:" in key:
                letters += [id_ for id_ in held if id_ in accepted]
            else:
                left += [id_ for id_ in held if id_ in accepted and id_ not in open_]
    finally:
        client.close()
    wrong = sorted(dead.symmetric_difference(letters))
    twice = [id_ for id_, n in Counter(letters).items() if n > 1]
    return [
        Check(
            "left in Redis",
            "ended, and still in a list, a lease, a retry set or `live`",
            len(left),
            tuple(left[:_SHOWN]),
        ),
        Check(
            "dead letters disagree",
            "in the DLQ and not dead, or dead and not in the DLQ, or twice",
            len(wrong) + len(twice),
            tuple((wrong + twice)[:_SHOWN]),
        ),
    ]


def _members(client: redis.Redis, key: str) -> list[str]:
    kind = client.type(key)
    if kind == "list":
        return cast("list[str]", client.lrange(key, 0, -1))
    if kind == "zset":
        return cast("list[str]", client.zrange(key, 0, -1))
    if kind == "hash":
        return cast("list[str]", client.hkeys(key))
    return []
