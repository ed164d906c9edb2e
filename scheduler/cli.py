"""The `scheduler` command: reads arguments and the environment, and hands both down.

Nothing imports this module, and it alone looks at the environment. What a command needs is imported when it
runs, so that `--help` is quick.
"""

from __future__ import annotations

import argparse
import gc
import importlib
import os
import sys
from collections.abc import Sequence
from textwrap import dedent
from typing import Any, TypeAlias

from scheduler.errors import CommandLine, StartError, exit_code, interrupted_by_signals

Commands: TypeAlias = "argparse._SubParsersAction[CommandLine]"  # noqa: SLF001 - it has no other name

_PRIORITIES = ("critical", "high", "default", "low")
_REASONS = ("failed", "timed_out", "rejected", "lost", "unknown_type")


def _positive(text: str) -> int:
    if not text.isascii() or not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of 1 or more")
    return int(text)


def parser(*, with_load: bool = True) -> CommandLine:
    """The command line, with every command's help. The options of `load` are the workbench's."""
    root = CommandLine(
        prog="scheduler",
        description="A task scheduler with Redis speed and Postgres truth.",
        epilog=dedent("""\
            first steps:
              scheduler demo                       see it work: two bursts of 10,000 tasks, and an audit
              scheduler up                         keep the whole system running on this machine
              scheduler worker --app shop.tasks    serve your own handlers
              scheduler config                     every setting, its value and where it comes from

            Settings are environment variables. Errors are one line; exit codes: 0 done, 1 the answer is no,
            2 it could not be done."""),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = root.add_subparsers(title="commands", dest="command", metavar="COMMAND", required=True)
    _add_systems(commands)
    _add_processes(commands)
    _add(commands, "migrate", "bring the Postgres schema up to date, or show how it stands").add_argument(
        "action", nargs="?", choices=("up", "status"), default="up", help="default: up"
    )
    load = _add(
        commands, "load", "send a mix of tasks to a running API, and keep a receipt for each that it accepted"
    )
    if with_load:
        _bench("load_cli").add_arguments(load)
    _add_task(commands)
    _add_dlq(commands)
    queue = _actions(_add(commands, "queue", "show the queues"))
    _add(queue, "list", "every queue with its depths by priority")
    _add(commands, "workers", "list the workers, their slots, and when they were last seen")
    _add(commands, "reconcile", "compare all of Postgres with Redis once, now, and put Redis right")
    _add(commands, "config", "print every setting, its value, and where it comes from; secrets are masked")
    return root


def _add(commands: Commands, name: str, help_: str, description: str = "") -> CommandLine:
    return commands.add_parser(
        name,
        help=help_,
        description=f"{help_[0].upper()}{help_[1:]}.\n{description}".strip(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def _actions(command: CommandLine) -> Commands:
    return command.add_subparsers(dest="action", metavar="ACTION", required=True)


def _add_systems(commands: Commands) -> None:
    demo = _add(commands, "demo", "make two bursts of tasks on a system of its own, and audit the result")
    demo.add_argument("--tasks", type=_positive, default=10_000, help="tasks in each burst (default 10000)")
    demo.add_argument("--workers", type=_positive, default=3, help="worker processes (default 3)")
    demo.add_argument("--seed", type=int, default=1, help="seed of the decks (default 1)")
    up = _add(
        commands,
        "up",
        "run the whole system until Ctrl-C: embedded servers where none are named, the API, workers",
        "POSTGRES_URL and REDIS_ADDR name servers of your own; where they are not set, Postgres and Valkey\n"
        "are started from the wheels and keep their data in --data-dir.",
    )
    up.add_argument("--workers", type=_positive, default=3, help="worker processes (default 3)")
    up.add_argument("--app", metavar="MODULE", help="a module with @handler functions for the workers")
    up.add_argument("--data-dir", default=".scheduler", help="where data and logs go (default .scheduler)")


def _add_processes(commands: Commands) -> None:
    where = (
        "HTTP_ADDR says where, METRICS_ADDR where its metrics are. With --workers N the processes share\n"
        "HTTP_ADDR, and their metrics are on N ports from METRICS_ADDR upwards."
    )
    api = _add(commands, "api", "serve the HTTP API", where)
    api.add_argument("--workers", type=_positive, default=1, help="API processes to supervise (default 1)")
    api.add_argument("--shared", action="store_true", help=argparse.SUPPRESS)
    worker = _add(
        commands,
        "worker",
        "lease tasks, run their handlers, and do the background work",
        "SIGTERM gives back what has not started and lets running handlers finish within\n"
        "SHUTDOWN_GRACE_MS; a second one ends at once.",
    )
    worker.add_argument(
        "--app", metavar="MODULE", help="import this module: its @handler functions are served"
    )
    worker.add_argument(
        "--processes", type=_positive, default=1, help="worker processes to supervise (default 1)"
    )
    for process in (api, worker):
        process.add_argument("--lifeline", type=int, help=argparse.SUPPRESS)
        process.add_argument("--early", action="store_true", help=argparse.SUPPRESS)


def _add_task(commands: Commands) -> None:
    actions = _actions(_add(commands, "task", "show or cancel one task"))
    show = _add(actions, "show", "its row and its attempts")
    show.add_argument("--json", action="store_true", help="as JSON")
    cancel = _add(actions, "cancel", "cancel it, unless it has ended")
    for one in (show, cancel):
        one.add_argument("id", type=_task_id, help="the task's id")


def _add_dlq(commands: Commands) -> None:
    actions = _actions(_add(commands, "dlq", "list, redrive or purge dead letters"))
    listing = _add(actions, "list", "the newest first")
    listing.add_argument("--limit", type=_positive, default=50, help="at most so many (default 50)")
    listing.add_argument("--json", action="store_true", help="as JSON")
    which = "Say which: by ids, by filters that must all fit, or --all."
    redrive = _add(actions, "redrive", "queue them again, with new budgets", which)
    purge = _add(actions, "purge", "take them off for good; the tasks stay dead, as history", which)
    for some in (redrive, purge):
        some.add_argument("ids", nargs="*", type=_task_id, help="ids of tasks")
        some.add_argument("--all", action="store_true", help="every dead letter")
    for some in (listing, redrive, purge):
        some.add_argument("--type", help="only this type")
        some.add_argument("--queue", help="only this queue")
        some.add_argument("--priority", choices=_PRIORITIES, help="only this priority")
        some.add_argument("--reason", choices=_REASONS, help="only those that died of this")


def _task_id(text: str) -> str:
    import uuid

    try:
        return str(uuid.UUID(text))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a task's id (a UUID)") from None


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; its exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    return exit_code(
        "scheduler", lambda: _dispatch(parser(with_load=words[:1] == ["load"]).parse_args(words))
    )


def _dispatch(args: argparse.Namespace) -> int:
    if args.command in {"demo", "load"}:
        module = _bench("demo" if args.command == "demo" else "load_cli")
        with interrupted_by_signals():
            return int(module.main(args))
    if args.command == "up":
        from scheduler import local

        return local.up(args, os.environ)
    serves = args.command in {"api", "worker"}
    if serves:
        gc.disable()  # until the start is over: what it makes stays, and most of it is imported from here on
    from scheduler import commands, failpoints, log
    from scheduler.config import load

    if serves and args.early:
        commands.prepare(args)
    settings, sources = load(os.environ)
    failpoints.arm(os.environ.get("SCHEDULER_FAILPOINT", ""))
    log.configure(settings.log_level, settings.log_format)
    if serves:
        serve = commands.api if args.command == "api" else commands.worker
        return serve(settings, args, os.environ)
    if args.command == "config":
        return commands.config(settings, sources)
    command = {
        "migrate": commands.migrate,
        "task": commands.task,
        "dlq": commands.dlq,
        "queue": commands.queue,
        "workers": commands.workers,
        "reconcile": commands.reconcile,
    }[args.command]
    return command(settings, args)


def _bench(module: str) -> Any:
    """A module of the workbench, whose dependencies a worker's installation need not have."""
    try:
        return importlib.import_module(f"bench.{module}")
    except ModuleNotFoundError as error:
        raise StartError(
            f"this command needs {error.name}: run `pip install -e '.[embedded,bench]'`"
            " in the project's folder"
        ) from None
