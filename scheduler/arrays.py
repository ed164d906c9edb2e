"""Arrays: batches as texts that Postgres takes apart, made by one join and not by a dump for each element."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

_ID: Final = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


def words(values: Iterable[object]) -> str:
    """An array literal of values that need no quoting: ids, numbers, words of our own; None is NULL.

    One join in place of a dump per element: with hundreds of rows a batch this is most of the client's cost.
    """
    return "{" + ",".join(["NULL" if v is None else str(v) for v in values]) + "}"


def names(values: Iterable[str]) -> str:
    """An array literal of plain names. Each is quoted: a bare `null` would be no name but NULL."""
    return '{"' + '","'.join(values) + '"}'


def texts(values: Iterable[str | None]) -> str | list[str | None]:
    """An array of any texts: a literal, at a fraction of the price, unless one of them needs escaping."""
    listed = list(values)
    literal = "{" + ",".join(["NULL" if v is None else f'"{v}"' for v in listed]) + "}"
    plain = literal.count('"') == 2 * (len(listed) - listed.count(None)) and "\\" not in literal
    return literal if plain else listed


def lines(values: Iterable[str | None]) -> str:
    """JSON texts, one a line, which the statement takes apart; None is an empty line.

    JSON has no line breaks but between its parts, where a space says the same.
    """
    return "\n".join(["" if v is None else v.replace("\n", " ") for v in values])


def spelled(ids: Iterable[str]) -> str:
    """An array literal of those that are spelled like ids of ours; the others name no row.

    Ids come back from Redis, where somebody may have put anything. Postgres would refuse the whole statement
    for it, and take another spelling of an id for the id.
    """
    return words(id_ for id_ in ids if _ID.fullmatch(id_))
