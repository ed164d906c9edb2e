"""The audit: trusts nobody, starts from the client's own list, and has SQL of its own.

Every check is a query for offenders; a run passes when no check finds one. What the product says about
itself (its counters, its exit codes) is not asked. The questions are in `checks.py`; those to Redis in
`index.py`; a system that still works is judged by `drift.py`.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final, LiteralString

import psycopg

from bench import index, journal
from bench.checks import CHECKS, KEY_CHECKS, NOT_ENDED, UNEXPECTED
from bench.index import Index
from bench.workload import Dealt, Expected, expected

_SHOWN: Final = 5
_LOOK_S: Final = 0.2

_AT_WORK: Final = """
SELECT id FROM tasks WHERE finished_at IS NULL AND id NOT IN (SELECT id FROM sent) LIMIT 1
"""

Connection = psycopg.Connection[Any]


@dataclass(frozen=True, slots=True)
class Check:
    """One question, and who answered it wrongly: how many, and each of them if they have names."""

    name: str
    meaning: str
    offenders: int
    examples: tuple[str, ...] = ()

    @property
    def passed(self) -> bool:
        """True if there is no offender."""
        return self.offenders == 0

    @property
    def line(self) -> str:
        """For a person: how many offenders, and the first of them."""
        more = len(self.examples) - _SHOWN
        shown = [*self.examples[:_SHOWN], *([f"and {more:,} more"] if more > 0 else [])]
        return " ".join([f"{self.name}: {self.offenders:,} ({self.meaning})", *shown])


@dataclass(frozen=True, slots=True)
class Verdict:
    """All checks of one audit."""

    accepted: int
    statuses: Mapping[str, int]
    checks: tuple[Check, ...]

    @property
    def passed(self) -> bool:
        """True if every check passed."""
        return not self.offences

    @property
    def offences(self) -> list[Check]:
        """The checks that found an offender."""
        return [check for check in self.checks if not check.passed]

    def lines(self) -> list[str]:
        """What a person should read: one line if all is well, else a line an offence."""
        counts = ", ".join(f"{n:,} {status}" for status, n in sorted(self.statuses.items()))
        if self.passed:
            return [f"audit passed: {self.accepted:,} accepted, {counts}; {len(self.checks)} checks"]
        failed = self.offences
        head = (
            f"AUDIT FAILED: {self.accepted:,} accepted, {counts}; {len(failed)} of {len(self.checks)} checks"
        )
        return [head, *(f"  {c.line}" for c in failed)]

    def record(self) -> dict[str, Any]:
        """The verdict as JSON has it, with every offender."""
        return {"passed": self.passed} | asdict(self)


def check(name: str, meaning: str, offenders: Iterable[str]) -> Check:
    """A check with these offenders."""
    found = tuple(offenders)
    return Check(name, meaning, len(found), found)


def audit(
    postgres_url: str,
    redis_url: str,
    accepted: Sequence[str],
    *,
    prefix: str = "sched1",
    keys: Mapping[str, Collection[str]] | None = None,
    doubtful: int | None = None,
    exactly: Expected | None = None,
    max_losses: int = 3,
    slack_s: float = 5.0,
    patience_s: float = 5.0,
) -> Verdict:
    """Judge the tasks in `accepted`, the ids that the client was given.

    Of tasks that others sent, only this: once no task is open, none has an id in a retry set or a lease.

    Args:
        postgres_url: Where the tables are.
        redis_url: Where the index is.
        accepted: Task ids, each given by a 2xx; that of a key once, however often it was given.
        prefix: REDIS_PREFIX of the system.
        keys: Idempotency key → the ids of all its 2xx answers; none if it never got one.
        doubtful: If this client was the only one: how many of its requests without a key had no answer that
            says what became of them. Every task is judged then, and none may be there that nobody sent.
        exactly: What must have become of them to the unit, if nothing went wrong on the way.
        max_losses: MAX_LOSSES of the fleet.
        slack_s: STORE_TIMEOUT_MS of the fleet, in seconds: see `checks.py`.
        patience_s: How long Redis, which is told after each commit, may take to agree with Postgres.
    """
    with psycopg.connect(postgres_url) as connection:
        checks, statuses = judge_rows(
            connection,
            accepted,
            keys=keys,
            doubtful=doubtful,
            exactly=exactly,
            max_losses=max_losses,
            slack_s=slack_s,
        )
        rows = _Rows(
            None if doubtful is not None else set(accepted),
            set(_ids(connection, "SELECT id FROM sent JOIN tasks USING (id) WHERE finished_at IS NULL")),
            set(_ids(connection, "SELECT id FROM sent JOIN tasks USING (id) WHERE dead_at IS NOT NULL")),
        )
        checks += _agreement(redis_url, prefix, rows, lambda: not _ids(connection, _AT_WORK), patience_s)
    return Verdict(len(accepted), statuses, tuple(checks))


def judge_rows(
    connection: Connection,
    accepted: Sequence[str],
    *,
    keys: Mapping[str, Collection[str]] | None = None,
    doubtful: int | None = None,
    exactly: Expected | None = None,
    max_losses: int = 3,
    slack_s: float = 5.0,
    everything: bool = False,
    unfinished: bool = False,
) -> tuple[list[Check], dict[str, int]]:
    """What Postgres says of the tasks: the checks, and how many tasks are in each status.

    It is asked within a transaction, and as `audit` is. If `everything` is to be judged, it is all tasks that
    there are, whoever sent them; if they may be `unfinished`, one that has not ended is no offence.
    """
    checks = [check("given twice", "one id for two acceptances", _twice(accepted))]
    _fill(connection, accepted, keys or {})
    if doubtful is not None:
        found = _ids(connection, UNEXPECTED)
        checks.append(check("unexpected", "a task that nobody sent", found[doubtful:]))
    if everything or doubtful is not None:
        connection.execute("INSERT INTO sent SELECT id FROM tasks ON CONFLICT DO NOTHING")
    params = {"max_losses": max_losses, "most_losses": 10 * (max_losses + 1), "slack_s": slack_s}
    for name, (meaning, sql) in (CHECKS | (KEY_CHECKS if keys is not None else {})).items():
        if not (unfinished and name == NOT_ENDED):
            checks.append(check(name, meaning, _ids(connection, sql, params)))
    if _ids(connection, "SELECT 'kept' WHERE to_regclass('task_moves') IS NOT NULL"):
        found = _ids(connection, journal.AGAINST_THE_RULES)
        checks.append(check("moved against the rules", "see lifecycle: no such step", found))
    if exactly is not None:
        checks += _exactly(connection, exactly)
    statuses = "SELECT t.status, count(*) FROM sent JOIN tasks AS t USING (id) GROUP BY 1"
    return checks, _pairs(connection, statuses)


def deck_expected(dealt: Dealt, places: Iterable[int], *, max_losses: int, lease_ms: int) -> Expected:
    """What must become of the bodies of a deck that were accepted."""
    return expected(dealt, indexes=places, max_losses=max_losses, lease_ms=lease_ms)


def _fill(connection: Connection, accepted: Sequence[str], keys: Mapping[str, Collection[str]]) -> None:
    """Give Postgres the client's list."""
    connection.execute("CREATE TEMP TABLE sent (id uuid PRIMARY KEY) ON COMMIT DROP")
    connection.execute("CREATE TEMP TABLE sent_keys (key text, id uuid) ON COMMIT DROP")
    with connection.cursor().copy("COPY sent FROM STDIN") as copy:
        for id_ in dict.fromkeys(accepted):
            copy.write_row((id_,))
    with connection.cursor().copy("COPY sent_keys FROM STDIN") as copy:
        for key, ids in keys.items():
            for id_ in ids:
                copy.write_row((key, id_))
            if not ids:
                copy.write_row((key, None))
    connection.execute("ANALYZE sent")
    connection.execute("ANALYZE sent_keys")


def _twice(ids: Iterable[str]) -> list[str]:
    return [id_ for id_, n in Counter(ids).items() if n > 1]


def _pairs(connection: Connection, sql: LiteralString) -> dict[str, int]:
    return {k: int(n) for k, n in connection.execute(sql)}


def _ids(connection: Connection, sql: LiteralString, params: Mapping[str, float] | None = None) -> list[str]:
    return [str(row[0]) for row in connection.execute(sql, params)]


def _exactly(connection: Connection, want: Expected) -> list[Check]:
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


@dataclass(frozen=True, slots=True)
class _Rows:
    """What Redis must agree with: the ids in question (None: all), and which of them are open or dead."""

    sent: set[str] | None
    open: set[str]
    dead: set[str]


def _agreement(
    url: str, prefix: str, rows: _Rows, at_rest: Callable[[], bool], patience_s: float
) -> list[Check]:
    """What Redis says against the rows, asked again until it agrees or patience ends.

    While others have open tasks, what Redis holds beside ours is theirs: `at_rest` says that they have none.
    """
    until = time.monotonic() + patience_s
    with index.connected(url) as client:
        while True:
            found = index.look(client, prefix)
            checks = _compared(found, rows, everything=at_rest())
            if all(c.passed for c in checks) or time.monotonic() > until:
                return checks
            time.sleep(_LOOK_S)


def _compared(found: Index, rows: _Rows, *, everything: bool) -> list[Check]:
    def ours(ids: Iterable[str]) -> list[str]:
        return [id_ for id_ in ids if rows.sent is None or id_ in rows.sent]

    letters = ours(found.letters)
    disagreeing = [*sorted(rows.dead.symmetric_difference(letters)), *_twice(letters)]
    misplaced = rows.open & (index.disorder(found).keys() | (rows.open - found.held))
    left = {*ours(found.held), *(found.tended if everything else ())} - rows.open
    return [
        check(
            "left in Redis",
            "ended or never there, and still in a list, a lease, a retry set or `live`",
            sorted(left),
        ),
        check(
            "dead letters disagree",
            "in the DLQ and not dead, or dead and not in the DLQ, or twice",
            disagreeing,
        ),
        check("not in one place", "open, and in no place of Redis or in two", sorted(misplaced)),
    ]
