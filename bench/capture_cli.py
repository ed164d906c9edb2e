"""The command `capture`: a window of a live system's history becomes a trace, without payloads.

It reads the Postgres that POSTGRES_URL names. A scenario whose load is `replay` sends the trace again: live,
at any speed, or in virtual time.
"""

from __future__ import annotations

import argparse
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from datetime import datetime
from pathlib import Path

import psycopg

from bench import capture, record, tape, trace
from bench.options import seconds
from bench.system import read_settings
from bench.trace import Header, Traced
from scheduler.errors import ConfigError, StartError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `capture` to `parser`."""
    parser.add_argument(
        "--from", dest="begin", type=_instant, metavar="T", help="the window's begin, RFC 3339"
    )
    parser.add_argument(
        "--to", dest="end", type=_instant, metavar="T", help="its end; a commit then is outside"
    )
    parser.add_argument("--last", type=seconds, metavar="SECONDS", help="instead: so many seconds until now")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="the trace, as JSON lines")
    parser.add_argument(
        "--anonymous",
        action="store_true",
        help="other names for queues and types, the same for the same; who guesses one can check it",
    )


def _instant(text: str) -> datetime:
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        found = None
    if found is None or found.tzinfo is None:
        raise argparse.ArgumentTypeError(f"{text!r} is no instant with its zone, like 2026-11-24T09:00:00Z")
    return found


def main(args: argparse.Namespace) -> int:
    """Write the trace and say what is in it; 0, or 1 if no task came in the window."""
    if (args.last is None) == (args.begin is None) or (args.begin is None) != (args.end is None):
        raise ConfigError("name the window: --from T --to T, or --last SECONDS")
    if args.last is None and args.begin >= args.end:
        raise ConfigError("--from is not before --to: the window would be empty")
    count = Count()
    try:
        with psycopg.connect(read_settings(os.environ).postgres_url, autocommit=True) as connection:
            begin, end = (args.begin, args.end) if args.last is None else capture.last(connection, args.last)
            found = capture.tasks(connection, begin, end, hide=args.anonymous)
            window = begin.isoformat(), end.isoformat()
            header = trace.write(args.out, *window, record.commit(), count.counted(found))
    except psycopg.Error as error:
        why = " ".join(str(error).split())
        raise StartError(f"Postgres cannot be asked ({why}); see POSTGRES_URL") from None
    except OSError as error:
        raise StartError(f"{args.out} cannot be written: {error.strerror}") from None
    print("\n".join(count.told(args.out, header)))
    return int(not header.tasks)


class Count:
    """What goes by on its way into the file, by type, outcome, and what a replay makes of it."""

    def __init__(self) -> None:
        self.types: Counter[str] = Counter()
        self.queues: Counter[str] = Counter()
        self.outcomes: Counter[str] = Counter()
        self.played: Counter[str] = Counter()
        self.missed: Counter[str] = Counter()

    def counted(self, tasks: Iterable[Traced]) -> Iterator[Traced]:
        """The same tasks."""
        for task in tasks:
            card = tape.card_of(task)
            self.types[task.type] += 1
            self.queues[task.queue] += 1
            self.outcomes.update(outcome for outcome, _ in task.runs)
            self.played[card.kind] += 1
            self.missed.update(tape.unkept(task, card))
            yield task

    def told(self, path: Path, header: Header) -> list[str]:
        """The counts for a reader."""
        lines = [
            f"{path}: {header.tasks:,} tasks and {header.runs:,} runs from {header.begin} to {header.end}",
            *(
                f"{title}: {', '.join(f'{name} {n:,}' for name, n in counts.most_common())}"
                for title, counts in (
                    ("types", self.types),
                    ("queues", self.queues),
                    ("runs", self.outcomes),
                    ("replayed as", self.played),
                )
                if counts
            ),
        ]
        return lines + [f"not kept in a replay: {note}" for note in tape.misses(self.missed)]
