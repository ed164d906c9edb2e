"""Replays one seed and prints all that happened, or runs many and prints what they broke.

    PYTHONPATH=tests .venv/bin/python -m simulation SEED
    PYTHONPATH=tests .venv/bin/python -m simulation FIRST LAST

The exit code says whether anything was broken.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from simulation.run import all_broken, simulate


def main(first: int, last: int | None = None) -> bool:
    """Run; True if something was broken."""
    if last is None:
        report = simulate(first, verbose=True)
        say((report.plan, *report.log, report))
        return bool(report.broken)
    reports, pace = all_broken(range(first, last + 1))
    say((*reports, f"{len(reports)} of {last + 1 - first} seeds broke something; {pace}"))
    return bool(reports)


def say(lines: Sequence[object]) -> None:
    sys.stdout.write("\n".join(map(str, lines)) + "\n")


if __name__ == "__main__":
    sys.exit(main(*map(int, sys.argv[1:3])))
