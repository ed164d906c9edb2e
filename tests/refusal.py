"""A Postgres that refuses rows, as it refuses a value that no column can hold."""

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


@contextmanager
def refusing(query: Callable[[str], object], table: str, when: str) -> Iterator[None]:
    """Refuse to insert the rows of a table for which `when` holds."""
    query(_REFUSE.format(table=table, when=when))
    try:
        yield
    finally:
        query(f"DROP TRIGGER refuse ON {table}; DROP FUNCTION refuse()")
