"""Schema: reads a table of JSON or TOML into a frozen dataclass, strictly.

A field without a default must be there, and no other names may be. A value must be of its field's type as it
stands: no text for a number, no 1 for true. The types known are int, float, str, Literal, unions with None,
tuples of fixed length or of any, tables of texts, and other dataclasses; what is one already is taken as it
is. What a class refuses in its
`__post_init__` with a ValueError is refused here with the place named.
"""

from __future__ import annotations

import types
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from math import isfinite
from typing import Any, Final, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from scheduler.errors import StartError

T = TypeVar("T")

_WORDS: Final = {int: "a whole number", float: "a number", str: "a text"}


def read(cls: type[T], table: object, where: str) -> T:
    """The table as a `cls`; `where` names it in errors, a whole file with a colon at the end.

    Raises:
        StartError: one line: which field of what is wrong, and what it must be.
    """
    if not isinstance(table, Mapping):
        raise StartError(f"{where} is {table!r}; it must be a table")
    hints = get_type_hints(cls)
    known = {field.name: field for field in fields(cls)}  # type: ignore[arg-type] # a dataclass, by contract
    for name in table:
        if name not in known:
            raise StartError(f"{where} has no field {name!r}; it has {', '.join(known)}")
    for name, field in known.items():
        if name not in table and field.default is MISSING and field.default_factory is MISSING:
            raise StartError(f"{where} lacks the field {name!r}")
    inside = f"{where} " if where.endswith(":") else f"{where}."
    values = {name: value(hints[name], given, f"{inside}{name}") for name, given in table.items()}
    try:
        return cls(**values)
    except ValueError as error:
        raise StartError(f"{where.rstrip(':')}: {error}") from None


def value(wanted: Any, given: object, where: str) -> Any:
    """One value as its annotation wants it.

    Raises:
        StartError: it is another's.
    """
    origin, args = get_origin(wanted), get_args(wanted)
    if is_dataclass(given):
        return given
    if origin in (Union, types.UnionType):
        if given is None and types.NoneType in args:
            return None
        [kind] = [arg for arg in args if arg is not types.NoneType]
        return value(kind, given, where)
    if origin is Literal:
        if given not in args:
            raise StartError(f"{where} is {given!r}; it must be one of {', '.join(map(str, args))}")
        return given
    if origin is tuple:
        return _tuple(args, given, where)
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return _texts(given, where)
    if is_dataclass(wanted):
        return read(wanted, given, where)  # type: ignore[arg-type] # a class, as annotations are
    return _plain(wanted, given, where)


def _plain(wanted: Any, given: object, where: str) -> Any:
    fits = (int, float) if wanted is float else wanted
    if isinstance(given, bool) or not isinstance(given, fits) or _endless(given):
        raise StartError(f"{where} is {given!r}; it must be {_WORDS[wanted]}")
    return wanted(given)


def _endless(given: object) -> bool:
    return isinstance(given, float) and not isfinite(given)


def _tuple(args: tuple[Any, ...], given: object, where: str) -> tuple[Any, ...]:
    if not isinstance(given, list):
        raise StartError(f"{where} is {given!r}; it must be a list")
    if args[-1] is Ellipsis:
        kinds = [args[0]] * len(given)
    elif len(given) == len(args):
        kinds = list(args)
    else:
        raise StartError(f"{where} has {len(given)} values; it must have {len(args)}")
    return tuple(
        value(kind, v, f"{where}[{i}]") for i, (kind, v) in enumerate(zip(kinds, given, strict=True))
    )


def _texts(given: object, where: str) -> dict[str, str]:
    """A table of texts, as an environment is one; whole numbers may be written without quotes."""
    if not isinstance(given, Mapping):
        raise StartError(f"{where} is {given!r}; it must be a table")
    for name, text in given.items():
        if isinstance(text, bool) or not isinstance(text, str | int):
            raise StartError(f"{where}.{name} is {text!r}; it must be a text or a whole number")
    return {name: str(text) for name, text in sorted(given.items())}
