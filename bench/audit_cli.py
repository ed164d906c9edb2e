"""The command `audit`: judge the tasks of a ledger, or a whole system, against the tables and Redis.

After a run every task must have ended. On a system that still works (`--live`) that is no offence, but
every open task must be in one place of Redis, or on its way there: see `drift.py`. `--watch` goes on looking,
and `--metrics-addr` shows Prometheus what is adrift.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Final

import psycopg
import redis

from bench.audit import Verdict, audit
from bench.drift import GAP_S, Exporter, audit_live, checks, watch
from bench.options import seconds
from bench.receipts import Receipt, promised, read_ledger
from bench.system import read_settings, redis_url_of
from scheduler.errors import ConfigError, StartError

_AGAIN_S: Final = 1.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `audit` to `parser`."""
    parser.add_argument(
        "ledger",
        type=Path,
        nargs="?",
        help="what `scheduler load -ledger FILE` has written; with --live it may be left out: every task",
    )
    parser.add_argument("--live", action="store_true", help="the system still works: open tasks are fine")
    parser.add_argument(
        "--doubtful",
        type=_count,
        metavar="N",
        help="nobody else sent tasks, and N requests without a key had no answer (the load's `errors`):"
        " judge every task, and allow N of them that the ledger does not know",
    )
    parser.add_argument(
        "--gap", type=seconds, default=GAP_S, metavar="S", help=f"seconds between two looks ({GAP_S:g})"
    )
    parser.add_argument("--json", action="store_true", help="print the verdict as JSON")
    parser.add_argument("--watch", type=seconds, metavar="S", help="look every S seconds until Ctrl-C")
    parser.add_argument(
        "--metrics-addr", type=_address, metavar="HOST:PORT", help="export scheduler_drift{kind} meanwhile"
    )


def _count(text: str) -> int:
    if not (text.isascii() and text.isdecimal()):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 0")
    return int(text)


def _address(text: str) -> tuple[str, int]:
    host, colon, port = text.rpartition(":")
    if not colon or not port.isdecimal() or int(port) > 65_535:
        raise argparse.ArgumentTypeError(f"{text!r} is not HOST:PORT or :PORT")
    return host or "127.0.0.1", int(port)


def main(args: argparse.Namespace) -> int:
    """0 if nothing is amiss, 1 if something is."""
    try:
        if args.watch is not None:
            return _watch(args)
        if args.metrics_addr is not None:
            raise ConfigError("--metrics-addr needs --watch SECONDS: one look leaves no time to be scraped")
        verdict = _judge(args)
    except (psycopg.Error, redis.RedisError) as error:
        why = " ".join(str(error).split())
        raise StartError(f"a store cannot be asked ({why}); see POSTGRES_URL and REDIS_ADDR") from None
    print(json.dumps(verdict.record(), indent=2) if args.json else "\n".join(verdict.lines()))
    return 0 if verdict.passed else 1


def _judge(args: argparse.Namespace) -> Verdict:
    settings = read_settings(os.environ)
    if args.live and args.doubtful is not None:
        raise ConfigError("--doubtful is for the time after a run: with --live leave it out")
    receipts = _receipts(args.ledger, needed=not args.live)
    ids, keys = promised(receipts or [])
    slack_s = settings.store_timeout_ms / 1000
    if args.live:
        return audit_live(
            settings.postgres_url,
            redis_url_of(settings),
            None if receipts is None else ids,
            prefix=settings.redis_prefix,
            keys=keys,
            max_losses=settings.max_losses,
            slack_s=slack_s,
            gap_s=args.gap,
            lease_s=settings.vis_timeout_ms / 1000,
        )
    return audit(
        settings.postgres_url,
        redis_url_of(settings),
        ids,
        prefix=settings.redis_prefix,
        keys=keys,
        doubtful=args.doubtful,
        max_losses=settings.max_losses,
        slack_s=slack_s,
    )


def _receipts(ledger: Path | None, *, needed: bool) -> list[Receipt] | None:
    if ledger is None:
        if needed:
            raise ConfigError("name the ledger of the load, or say --live to judge every task")
        return None
    try:
        return list(read_ledger(ledger))
    except (OSError, ValueError) as error:
        raise ConfigError(f"the ledger cannot be read: {error}") from None


def _watch(args: argparse.Namespace) -> int:
    """Look until Ctrl-C; a line whenever something is adrift."""
    settings, exporter = read_settings(os.environ), Exporter()
    with ExitStack() as stack:
        if args.metrics_addr is not None:
            try:
                port = stack.enter_context(exporter.serving(*args.metrics_addr))
            except OSError as error:
                raise StartError(f"--metrics-addr cannot be bound ({error.strerror})") from None
            print(f"metrics on port {port}", flush=True)
        while True:
            try:
                for found in watch(
                    settings.postgres_url,
                    redis_url_of(settings),
                    prefix=settings.redis_prefix,
                    every_s=args.watch,
                    lease_s=settings.vis_timeout_ms / 1000,
                ):
                    exporter.show(found)
                    for c in checks(found):
                        if not c.passed:
                            print(c.line, flush=True)
            except (psycopg.Error, redis.RedisError) as error:
                print(f"a store cannot be asked: {' '.join(str(error).split())}", file=sys.stderr, flush=True)
                time.sleep(_AGAIN_S)
