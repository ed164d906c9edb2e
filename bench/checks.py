"""The questions of the audit: each is a query for offenders, and its answer must be empty.

The queries know two tables that the audit fills from the client's own list: `sent` (the ids that it was
given) and `sent_keys` (key, id: one row for each 2xx to a request with an idempotency key, or one row without
an id for a key that was never answered with a 2xx). They share no text with the product's statements.

Parameters: %(max_losses)s, the fleet's MAX_LOSSES; %(most_losses)s, how many of a task may be losses with its
worker; %(slack_s)s, how far a worker's own measure of a run may
be from Postgres' clock, in seconds: at most its longest wait for an answer.
"""

from __future__ import annotations

from typing import Final, LiteralString

NOT_ENDED: Final = "not ended"

CHECKS: Final[dict[str, tuple[str, LiteralString]]] = {
    "lost": (
        "accepted, and no row is there",
        "SELECT s.id FROM sent AS s LEFT JOIN tasks AS t USING (id) WHERE t.id IS NULL",
    ),
    NOT_ENDED: (
        "accepted, and not in a terminal status",
        """
        SELECT s.id FROM sent AS s JOIN tasks AS t USING (id)
        WHERE t.status NOT IN ('succeeded', 'dead', 'cancelled')
        """,
    ),
    "succeeded twice": (
        "more than one accepted success",
        """
        SELECT r.task_id FROM task_runs AS r JOIN sent AS s ON s.id = r.task_id
        WHERE r.outcome = 'succeeded' GROUP BY 1 HAVING count(*) > 1
        """,
    ),
    "status and history disagree": (
        "succeeded without a success, or a success without succeeded",
        """
        SELECT t.id FROM sent AS s JOIN tasks AS t USING (id)
        WHERE (t.status = 'succeeded') <> EXISTS (
            SELECT FROM task_runs AS r WHERE r.task_id = t.id AND r.outcome = 'succeeded'
        )
        """,
    ),
    "attempts without trace": (
        "attempts that the history does not show one by one, from 1",
        """
        SELECT t.id FROM sent AS s JOIN tasks AS t USING (id)
        LEFT JOIN task_runs AS r ON r.task_id = t.id
        GROUP BY t.id, t.attempts, t.status
        HAVING count(r.attempt) <> t.attempts - (t.status = 'running')::int
            OR coalesce(max(r.attempt), 0) <> count(r.attempt)
        """,
    ),
    "counts and history disagree": (
        "failures or losses that are not as many as the history's, of a task that was never redriven",
        """
        SELECT t.id FROM sent AS s JOIN tasks AS t USING (id)
        LEFT JOIN task_runs AS r ON r.task_id = t.id
        WHERE t.redrives = 0
        GROUP BY t.id, t.failures, t.losses
        HAVING count(*) FILTER (WHERE r.outcome IN ('failed', 'timed_out')) <> t.failures
            OR count(*) FILTER (WHERE r.outcome = 'lost') <> t.losses
        """,
    ),
    "started after the end": (
        "a run that was claimed after its task had ended",
        """
        SELECT DISTINCT t.id FROM sent AS s JOIN tasks AS t USING (id)
        JOIN task_runs AS r ON r.task_id = t.id
        WHERE r.claimed_at > t.finished_at
        """,
    ),
    "attempts out of order": (
        "an attempt that was claimed before an earlier one",
        """
        SELECT DISTINCT task_id FROM (
            SELECT r.task_id, r.claimed_at,
                lag(r.claimed_at) OVER (PARTITION BY r.task_id ORDER BY r.attempt) AS before
            FROM task_runs AS r JOIN sent AS s ON s.id = r.task_id
        ) AS x WHERE claimed_at < before
        """,
    ),
    "accepted runs overlap": (
        "a run whose outcome counts, and which went on after the next attempt was claimed",
        """
        SELECT DISTINCT task_id FROM (
            SELECT r.task_id, r.outcome, r.finished_at,
                lead(r.claimed_at) OVER (PARTITION BY r.task_id ORDER BY r.attempt) AS after
            FROM task_runs AS r JOIN sent AS s ON s.id = r.task_id
        ) AS x
        WHERE outcome IN ('succeeded', 'failed', 'timed_out')
            AND finished_at > after + %(slack_s)s * interval '1 second'
        """,
    ),
    "budget exceeded": (
        "more failures than max_retries + 1, or losses than MAX_LOSSES + 1 (with workers: ten times that)",
        """
        SELECT t.id FROM sent AS s JOIN tasks AS t USING (id)
        LEFT JOIN task_runs AS r ON r.task_id = t.id
        GROUP BY t.id, t.failures, t.max_retries, t.losses, t.suspect, t.redrives
        HAVING t.failures > t.max_retries + 1
            OR t.losses > CASE WHEN t.suspect THEN %(most_losses)s ELSE %(max_losses)s END + 1
            OR count(*) FILTER (WHERE r.outcome IN ('failed', 'timed_out'))
                > (t.redrives + 1) * (t.max_retries + 1)
            OR count(*) FILTER (WHERE r.outcome = 'lost') > (t.redrives + 1) * (%(most_losses)s + 1)
            OR count(*) FILTER (WHERE r.outcome = 'lost' AND r.error IS DISTINCT FROM 'the worker died')
                > (t.redrives + 1) * (%(max_losses)s + 1)
        """,
    ),
}
"""Name → (what it means, the query for the ids of the offenders)."""

KEY_CHECKS: Final[dict[str, tuple[str, LiteralString]]] = {
    "key with two rows": (
        "one idempotency key, and more than one task",
        """
        SELECT k.key FROM (SELECT DISTINCT key FROM sent_keys) AS k
        JOIN tasks AS t ON t.idempotency_key = k.key
        GROUP BY 1 HAVING count(*) > 1
        """,
    ),
    "key with two answers": (
        "one idempotency key, and different ids in its answers",
        "SELECT key FROM sent_keys GROUP BY 1 HAVING count(DISTINCT id) > 1",
    ),
    "key of another task": (
        "an idempotency key that was answered with a task which does not carry it",
        """
        SELECT DISTINCT k.key FROM sent_keys AS k
        LEFT JOIN tasks AS t USING (id) LEFT JOIN idempotency_keys AS i ON i.key = k.key
        WHERE k.id IS NOT NULL AND (t.idempotency_key IS DISTINCT FROM k.key OR i.task_id <> k.id)
        """,
    ),
}
"""The same of idempotency keys: the offenders are keys."""

UNEXPECTED: Final = """
SELECT t.id FROM tasks AS t
WHERE t.id NOT IN (SELECT id FROM sent)
    AND (t.idempotency_key IS NULL OR t.idempotency_key NOT IN (SELECT key FROM sent_keys))
"""
"""Rows that no answer named, and no key: each needs a request without a key whose answer was lost."""
