"""The journal: every move of every task, written down by Postgres itself while a test watches.

A trigger on `tasks` that a test installs, never production. It records what a history of runs cannot show:
a row that was ended twice, or brought back from its end by a late answer.
"""

from __future__ import annotations

from typing import Final

import psycopg

_INSTALL: Final = """
CREATE TABLE IF NOT EXISTS task_moves (
    number       bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    task_id      uuid NOT NULL,
    old_status   text NOT NULL,
    new_status   text NOT NULL,
    old_attempts integer NOT NULL,
    new_attempts integer NOT NULL,
    redriven     boolean NOT NULL
);

CREATE OR REPLACE FUNCTION note_move() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO task_moves (task_id, old_status, new_status, old_attempts, new_attempts, redriven)
    VALUES (
        OLD.id, OLD.status, NEW.status, OLD.attempts, NEW.attempts, NEW.redrives = OLD.redrives + 1
    );
    RETURN NULL;
END
$$;

CREATE OR REPLACE TRIGGER note_move AFTER UPDATE ON tasks FOR EACH ROW
WHEN (
    OLD.status <> NEW.status OR OLD.attempts <> NEW.attempts
    OR OLD.finished_at IS DISTINCT FROM NEW.finished_at
)
EXECUTE FUNCTION note_move();
"""

AGAINST_THE_RULES: Final = """
SELECT DISTINCT m.task_id FROM task_moves AS m JOIN sent AS s ON s.id = m.task_id
WHERE CASE m.old_status
        WHEN 'queued' THEN m.new_status NOT IN ('running', 'cancelled')
        WHEN 'retrying' THEN m.new_status NOT IN ('running', 'cancelled')
        WHEN 'running' THEN m.new_status NOT IN ('queued', 'retrying', 'succeeded', 'dead', 'cancelled')
        WHEN 'dead' THEN m.new_status <> 'queued' OR NOT m.redriven
        ELSE true
    END
    OR m.new_attempts <> m.old_attempts + (m.new_status = 'running')::integer
"""
"""Tasks that went where no rule leads, or whose attempts did not rise by one with each claim."""


def install(postgres_url: str) -> None:
    """Begin the journal of a database."""
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        connection.execute(_INSTALL)
