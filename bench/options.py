"""Options: the kinds of values that the command lines of the workbench take, each refused in one line."""

from __future__ import annotations

import argparse


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
    """Seconds above 0 and below a day. Raises argparse.ArgumentTypeError for others."""
    return _above_0(text, 86_400, "a number of seconds above 0")


def minutes(text: str) -> float:
    """Minutes above 0 and below a day. Raises argparse.ArgumentTypeError for others."""
    return _above_0(text, 1440, "a number of minutes above 0")


def percent(text: str) -> float:
    """A percentage above 0 and up to 1,000. Raises argparse.ArgumentTypeError for others."""
    return _above_0(text, 1000, "a percentage above 0")


def _above_0(text: str, most: float, what: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value <= most:
        raise argparse.ArgumentTypeError(f"{text!r} is not {what}")
    return value
