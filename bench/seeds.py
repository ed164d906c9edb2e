"""Seeds, as a command line names several of them: `--seeds 1-40`."""

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
