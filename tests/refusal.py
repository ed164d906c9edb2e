"""A Postgres that refuses rows: for a value that no column can hold, or as its disk is full."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

_REFUSE = """
CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'this value is refused' USING ERRCODE = '22023';
END
$$;
CREATE TRIGGER refuse BEFORE INSERT ON {table} FOR EACH ROW WHEN ({when}) EXECUTE FUNCTION refuse();
"""

_NO_SPACE = """
CREATE SEQUENCE refusals;
CREATE FUNCTION no_space() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM nextval('refusals');  -- which no rollback takes back
    RAISE EXCEPTION 'could not extend file "base/1/2": No space left on device' USING ERRCODE = '53100';
END
$$;
"""
_FILL = "CREATE TRIGGER no_space BEFORE INSERT OR UPDATE ON {} FOR EACH ROW EXECUTE FUNCTION no_space()"
_GROW = ("idempotency_keys", "tasks", "task_runs")
"""Tables that every enqueue, claim or outcome adds to."""


@contextmanager
def refusing(query: Callable[[str], object], table: str, when: str) -> Iterator[None]:
    """Refuse to insert the rows of a table for which `when` holds."""
    query(_REFUSE.format(table=table, when=when))
    try:
        yield
    finally:
        query(f"DROP TRIGGER refuse ON {table}; DROP FUNCTION refuse()")


@contextmanager
def full_disk(query: Callable[[str], object]) -> Iterator[None]:
    """Refuse every row that would need room; `refusals`, a sequence, counts them meanwhile."""
    query(_NO_SPACE)
    try:
        for table in _GROW:  # one at a time: whoever is at work locks them in an order of its own
            query(_FILL.format(table))
        yield
    finally:
        for table in _GROW:
            query(f"DROP TRIGGER IF EXISTS no_space ON {table}")
        query("DROP FUNCTION no_space(); DROP SEQUENCE refusals")
