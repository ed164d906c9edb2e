"""The command `load`: a configurable mix of tasks, sent to a running API.

It takes the spelling of the Go load generator verbatim (`-n 2000 -w 8 -pct-flaky 15`), and each option with
two dashes as well. The exit code is 0 if n tasks were accepted, 1 if fewer, 2 if it could not begin, and
130 if it was interrupted.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

try:
    import rich.console
    import rich.progress
except ImportError:  # the extra [bench] is not installed: lines instead of a bar
    rich = None  # type: ignore[assignment]

from bench import load
from bench.delivery import Progress
from bench.http import NoAnswer, Origin
from bench.receipts import LoadResult, write_ledger
from bench.workload import Deck, Mix, deck

DESCRIPTION = "Send a mix of tasks to a running API, and keep a receipt for each that it accepted."
PLAIN_LINE_S = 1.0
"""Seconds between lines of progress where there is no terminal."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `load` to `parser`."""
    sizes = parser.add_argument_group("how much, and how")
    _add(sizes, "-n", "--total", type=int, default=1000, metavar="N", help="tasks (1000)")
    _add(sizes, "-w", "--senders", type=int, default=8, metavar="W", help="senders of the closed loop (8)")
    _add(sizes, "-rate", type=float, metavar="R", help="open loop instead: R tasks a second at fixed times")
    _add(sizes, "-bulk", type=int, metavar="SIZE", help="bulk requests instead, of up to 1000 tasks each")
    _add(sizes, "-connections", type=int, metavar="C", default=64, help="most connections of -rate (64)")

    mix = parser.add_argument_group("the mix, in percent")
    _add(mix, "-pct-noop", type=float, metavar="P", help="succeed at once (whatever the others leave)")
    _add(mix, "-pct-flaky", type=float, default=0, metavar="P", help="fail at first, then succeed (0)")
    _add(mix, "-pct-fail", type=float, default=0, metavar="P", help="always fail, and end in the DLQ (0)")
    _add(mix, "-pct-sleep", type=float, default=0, metavar="P", help="sleep for -sleep-ms (0)")
    _add(mix, "-sleep-ms", type=int, default=80_000, metavar="MS", help="how long sleepers sleep (80000)")
    _add(mix, "-flaky-attempts", type=int, default=2, metavar="K", help="failures before a success (2)")
    _add(mix, "-max-retries", type=int, default=3, metavar="K", help="retries of each task (3)")
    _add(mix, "-seed", type=int, default=1, metavar="S", help="decides the order of the tasks (1)")

    where = parser.add_argument_group("where to")
    _add(where, "-host", default=load.HOST, metavar="URL", help=f"the API ({load.HOST})")
    _add(where, "-allow-remote", action="store_true", help="permit a host that is not this machine")
    _add(
        where,
        "-ledger",
        type=Path,
        metavar="FILE",
        help="write a receipt for each accepted task (.csv or .jsonl)",
    )
    _add(where, "-no-keys", action="store_true", help="send no idempotency keys, and nothing twice")


def _add(group: argparse._ArgumentGroup, name: str, *more: str, **options: Any) -> None:
    """Register `-name` as Go writes it and `--name` as everyone else does."""
    long = more[0] if more else f"-{name}"
    group.add_argument(name, f"-{name}", *more, dest=long.lstrip("-").replace("-", "_"), **options)


def main(args: argparse.Namespace) -> int:
    """Run the command with parsed `args`; returns the exit code and prints errors as one line."""
    try:
        dealt = _deck(args)
        _check(args)
        load.run(load.answers(args.host))
    except ValueError as error:
        return _error(str(error))
    except NoAnswer as error:
        advice = "start one with `scheduler up`, or name another with --host"
        return _error(f"no API answers at {args.host}: {error}; {advice}")
    counts = ", ".join(f"{kind} {count:,}" for kind, count in dealt.counts.items() if count)
    print(f"{len(dealt):,} tasks to {args.host}: {counts} (seed {dealt.seed})", flush=True)
    return _send(args, dealt)


def _deck(args: argparse.Namespace) -> Deck:
    mix = Mix(
        noop=args.pct_noop,
        flaky=args.pct_flaky,
        fail=args.pct_fail,
        sleep=args.pct_sleep,
        sleep_ms=args.sleep_ms,
        flaky_attempts=args.flaky_attempts,
        max_retries=args.max_retries,
    )
    return deck(mix, args.total, args.seed)


def _check(args: argparse.Namespace) -> None:
    """Raise ValueError for what the mix does not know of."""
    if not Origin.parse(args.host).loopback and not args.allow_remote:
        raise ValueError(f"{args.host} is not this machine; if you may load it, add --allow-remote")
    if args.rate is not None and args.bulk is not None:
        raise ValueError("--rate and --bulk exclude each other: one keeps a timetable, the other hurries")
    if args.rate is not None and args.rate <= 0:
        raise ValueError(f"the rate is {args.rate:g} a second; it must be above 0")
    if args.bulk is not None and not 1 <= args.bulk <= load.BULK_MAX:
        raise ValueError(f"the bulk size is {args.bulk}; it must be from 1 to {load.BULK_MAX}")
    for name in ("senders", "connections"):
        if getattr(args, name) < 1:
            raise ValueError(f"{name} is {getattr(args, name)}; it must be 1 or more")
    if args.ledger is not None:
        try:
            args.ledger.touch()  # found out now, not after the load
        except OSError as error:
            raise ValueError(f"the ledger {args.ledger} cannot be written: {error.strerror}") from None


def _send(args: argparse.Namespace, dealt: Deck) -> int:
    interrupted = False
    with _progress(len(dealt)) as seen:
        try:
            load.run(_load(args, dealt, seen.update))
        except KeyboardInterrupt:
            interrupted = True
    result = seen.result
    if result.gave_up is not None and not result.accepted:
        return _error(result.gave_up)
    print("\n".join(summary(result, timetable=args.rate is not None)))
    if args.ledger is not None:
        write_ledger(result, args.ledger)
        print(f"ledger       {args.ledger}")
    if result.gave_up is not None:
        print(f"load: {result.gave_up}", file=sys.stderr)
    if interrupted:
        return 130
    return 0 if result.accepted == result.asked else 1


def _load(args: argparse.Namespace, dealt: Deck, progress: Progress) -> Coroutine[Any, Any, LoadResult]:
    keys = not args.no_keys
    if args.rate is not None:
        return load.open_loop(
            dealt, host=args.host, rate=args.rate, connections=args.connections, keys=keys, progress=progress
        )
    if args.bulk is not None:
        senders = min(args.senders, 4)  # a bulk request is heavy: a few at a time keep the API busy
        return load.bulk(dealt, host=args.host, size=args.bulk, senders=senders, keys=keys, progress=progress)
    return load.closed(dealt, host=args.host, senders=args.senders, keys=keys, progress=progress)


class _Lines:
    """Shows progress as a line a second, and keeps the newest state of the result."""

    def __init__(self, total: int) -> None:
        self.result = LoadResult(asked=total, began=time.monotonic())
        self._next_s = PLAIN_LINE_S

    def update(self, result: LoadResult) -> None:
        self.result = result
        if result.seconds >= self._next_s:
            self._next_s = result.seconds + PLAIN_LINE_S
            print(f"{result.seconds:6.1f} s  accepted {result.accepted:,}  {result.rate:,.0f}/s", flush=True)


class _Bar(_Lines):
    """Shows progress as a bar on the terminal."""

    def __init__(self, total: int, bar: rich.progress.Progress) -> None:
        super().__init__(total)
        self._bar = bar
        self._task = bar.add_task("accepted", total=total)

    def update(self, result: LoadResult) -> None:
        self.result = result
        self._bar.update(self._task, completed=result.accepted, description=f"{result.rate:,.0f}/s")


@contextmanager
def _progress(total: int) -> Iterator[_Lines]:
    if rich is None or not sys.stderr.isatty():
        yield _Lines(total)
        return
    columns = (
        rich.progress.TextColumn("{task.description}"),
        *rich.progress.Progress.get_default_columns()[1:],
    )
    with rich.progress.Progress(*columns, console=rich.console.Console(stderr=True), transient=True) as bar:
        yield _Bar(total, bar)


def summary(result: LoadResult, *, timetable: bool = False) -> list[str]:
    """The result as aligned lines. `timetable`: it was an open loop, so show how far it fell behind."""
    rows = [
        ("accepted", f"{result.accepted:,} of {result.asked:,}"),
        ("replays", f"{result.replays:,}"),
        ("refused", f"{result.refused:,}"),
        ("overloaded", f"{result.overloaded:,}"),
        ("errors", f"{result.unanswered:,}"),
        ("answers", ", ".join(f"{status}: {n:,}" for status, n in sorted(result.statuses.items())) or "none"),
        ("rate", f"{result.rate:,.0f} tasks/s over {result.seconds:.2f} s"),
    ]
    if result.accepted:
        ranks = "   ".join(f"p{p} {result.latency_s(p) * 1000:,.1f} ms" for p in (50, 95, 99))
        rows.append(("latency", ranks))
    if timetable:
        rows.append(("late", f"{result.late:,} sent over 10 ms after their time"))
        rows.append(("skipped", f"{result.skipped:,} never sent"))
        rows.append(("lag", f"p95 {result.lag_s * 1000:,.1f} ms from the intended time to the sending"))
    return [f"{name:<12} {text}" for name, text in rows]


def _error(text: str) -> int:
    print(f"load: {text}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="load", description=DESCRIPTION)
    add_arguments(parser)
    sys.exit(main(parser.parse_args()))
