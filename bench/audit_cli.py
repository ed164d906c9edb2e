"""The command `audit`: judge the tasks of a ledger against the tables and Redis."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from bench.audit import audit
from bench.receipts import read_ledger
from scheduler.errors import ConfigError

_POSTGRES = "postgres://app:app@localhost:5432/app?sslmode=disable"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `audit` to `parser`."""
    parser.add_argument("ledger", type=Path, help="what `scheduler load -ledger FILE` has written")


def main(args: argparse.Namespace) -> int:
    """0 if every accepted task is in exactly one terminal status and nothing is amiss, 1 if not."""
    try:
        accepted = [receipt.id for receipt in read_ledger(args.ledger)]
    except (OSError, ValueError) as error:
        raise ConfigError(f"the ledger cannot be read: {error}") from None
    address = os.environ.get("REDIS_ADDR", "localhost:6379")
    url = (
        address if "://" in address else f"redis://{address if address[0] != ':' else 'localhost' + address}"
    )
    verdict = audit(
        os.environ.get("POSTGRES_URL", _POSTGRES),
        url,
        accepted,
        prefix=os.environ.get("REDIS_PREFIX", "sched1"),
    )
    print("\n".join(verdict.lines()))
    return 0 if verdict.passed else 1
