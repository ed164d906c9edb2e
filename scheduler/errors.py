"""Every error that Scheduler raises, and the two that a handler may raise.

    SchedulerError
    ├── ConfigError            a setting is missing, malformed or at odds with another
    ├── StartError             a process cannot start: what was wrong, and what to do
    │   └── Unreachable        ... because a store does not answer at all
    ├── StoreError             Postgres refused
    │   ├── StoreUnavailable   ... because it could not be reached or is not ready: try again
    │   │   └── StoreBusy      ... or because somebody else keeps a row or a table locked
    │   └── InputRefused       ... because of the values it was given: trying again cannot help
    ├── QueueError             Redis refused
    │   └── QueueUnavailable   ... because it could not be reached or is not ready: try again
    ├── Overloaded             too much is waiting already: try again later
    └── Outcome (control flow, raised by handlers)
        ├── Reject             this task can never succeed: dead-letter it at once
        └── Retry              try again after the time that the handler asks for

`connections.py` maps every psycopg error, and `queue.py` every redis error, to one of these; but for the
migrations, nothing above those two modules knows the drivers' own.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NoReturn


class SchedulerError(Exception):
    """The base of all of them."""


class ConfigError(SchedulerError):
    """A setting is missing, malformed, or at odds with another one."""


class StartError(SchedulerError):
    """A process cannot start. The text is one line: what was wrong and what to do about it."""


class Unreachable(StartError):
    """A store that a process wants at its start does not answer. Not every process must have it."""


class StoreError(SchedulerError):
    """Postgres answered with an error that is neither an outage nor the input's fault: a defect of ours."""


class StoreUnavailable(StoreError):
    """Postgres cannot be reached, or is starting, stopping or out of connections. Trying again may help."""


class StoreBusy(StoreUnavailable):
    """What the statement needs was locked by somebody else for too long. Nothing of it was done."""


class InputRefused(StoreError):
    """Postgres refused the values of a statement (SQLSTATE 22xxx, 54xxx). Trying again cannot help."""


class QueueError(SchedulerError):
    """Redis answered with an error that is not an outage: a defect of ours or a damaged key."""


class QueueUnavailable(QueueError):
    """Redis cannot be reached, is loading, read-only or full. Trying again may help."""


class Overloaded(SchedulerError):
    """More is waiting than this process agreed to hold. Try again later."""


class Outcome(SchedulerError):
    """The base of what a handler may raise to say how its task goes on."""


class Reject(Outcome):
    """The task can never succeed: it is dead-lettered at once, whatever its retries."""


class Retry(Outcome):
    """The run failed and is to be tried again after `after_ms` milliseconds, if its budget allows.

    Raises:
        ValueError: `after_ms` is negative.
    """

    def __init__(self, why: str = "the handler asked for a retry", *, after_ms: int) -> None:
        if after_ms < 0:
            raise ValueError(f"after_ms is {after_ms}; it must be 0 or more")
        super().__init__(why)
        self.after_ms = after_ms


class CommandLine(argparse.ArgumentParser):
    """A command line whose errors are one line, like all of ours; the parsers of its commands are so, too."""

    def error(self, message: str) -> NoReturn:
        """End with 2 and say what is wrong, without the whole usage."""
        self.exit(2, f"{self.prog}: {' '.join(message.split())}; see `{self.prog} --help`\n")


@contextmanager
def interrupted_by_signals() -> Iterator[None]:
    """SIGTERM and SIGHUP do what Ctrl-C does: whatever was started is ended, and its folders are removed.

    One that is ignored, as under nohup, stays so.
    """
    kept = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    taken = {number: handler for number, handler in kept.items() if handler != signal.SIG_IGN}
    for number in taken:
        signal.signal(number, _interrupt)
    try:
        yield
    finally:
        for number, handler in taken.items():
            signal.signal(number, handler)


def _interrupt(*_: object) -> None:
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # a shell's job in the background
        raise KeyboardInterrupt
    signal.raise_signal(signal.SIGINT)


def exit_code(program: str, command: Callable[[], int]) -> int:
    """Run a command line of ours; its exit code. Every error is one line on standard error, and 2."""
    try:
        try:
            return command()
        finally:
            sys.stdout.flush()
    except SchedulerError as error:
        sys.stderr.write(f"{program}: {' '.join(str(error).split())}\n")  # one line, whatever a driver said
        return 2
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # whoever read us has had enough
        return 0
