"""Options: the kinds of values that the command lines of the workbench take, each refused in one line."""

from __future__ import annotations

import argparse
from math import inf


def seeds(text: str) -> range:
    """The seeds from A to B, both among them, of `A-B`.

    Raises:
        argparse.ArgumentTypeError: it is not like that.
    """
    first, _, last = text.partition("-")
    if not (first.isdecimal() and last.isdecimal() and int(first) <= int(last)):
        raise argparse.ArgumentTypeError(f"{text!r} is not like 1-40")
    return range(int(first), int(last) + 1)


def count(text: str) -> int:
    """A whole number from 1. Raises argparse.ArgumentTypeError for any other."""
    if not (text.isascii() and text.isdecimal() and int(text) > 0):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1")
    return int(text)


def seconds(text: str) -> float:
    """Seconds above 0. Raises argparse.ArgumentTypeError for others."""
    return _above_0(text, "a number of seconds")


def minutes(text: str) -> float:
    """Minutes above 0. Raises argparse.ArgumentTypeError for others."""
    return _above_0(text, "a number of minutes")


def percent(text: str) -> float:
    """A percentage above 0. Raises argparse.ArgumentTypeError for others."""
    return _above_0(text, "a percentage")


def _above_0(text: str, what: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not {what} above 0")
    return value
