"""Growth: does everything keep its rate when millions of tasks have passed?

Two systems share one Postgres server: one with full tables, one whose tables are nearly empty. Both are
measured in each round, in turns, so what the machine does to one it does to the other, and the ratio tells
what the size of the tables costs. Then the full system alone: how soon Redis is rebuilt from all open rows,
what it costs while nothing happens, and whether autovacuum keeps up with a churn at the highest rate.

The open tasks are in a queue that no worker serves: a backlog that stays, in the same table and indexes.
"""

from __future__ import annotations

import argparse
import random
import shutil
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final

import psycopg

from bench import meter, progress, record
from bench.churn import churn
from bench.company import Company, told
from bench.filling import fill
from bench.options import count, minutes
from bench.rounds import Arms, Round, measured
from bench.rows import MUST_MISSED, Limit, Row, markdown
from bench.side import Side
from bench.system import system
from scheduler.embedded import Postgres, Redis
from scheduler.errors import ConfigError, StartError

OUT: Final = record.RESULTS / "growth.json"

BYTES_A_TASK: Final = 1500
"""What must be free on the disk: 550 stay, and the log and the churn come on top."""

_LOOPBACK: Final = {"HTTP_ADDR": "127.0.0.1:0", "METRICS_ADDR": "127.0.0.1:0", "LOG_LEVEL": "warning"}
_RATIOS: Final = {
    "tasks": {
        "enqueue": "tasks enqueued, 100 a request",
        "drain": "noops drained by a fleet of 3 × 12",
        "claim": "rows claimed a second of Postgres' time",
        "settle": "rows settled a second of Postgres' time",
    },
    "passes": {"reconcile": "passes of reconcile a second of Postgres' time"},
    "pages": {
        "newest": "the newest page of tasks",
        "older": "a page in the middle of all tasks",
        "open": "a page of open tasks",
        "dead": "a page of dead tasks",
        "lookup": "look-ups of one task",
        "runs": "look-ups of a task's runs",
    },
}
_SLICES: Final = 4
LIMITS: Final = (
    *(
        Limit(name, "growth", what, "/s", f"{arm}.full.{name}", f"{arm}.small.{name}", must=0.85, aim=0.95)
        for arm, measures in _RATIOS.items()
        for name, what in measures.items()
    ),
    Limit("rebuild", "growth", "Redis rebuilt from all open rows", "s", "index.rebuild", "", 15, 8, True),
    Limit("compare", "growth", "all open rows compared, nothing wrong", "s", "index.compare"),
    Limit("idle", "growth", "CPU of an idle worker, of a core", "%", "idle.worker", "", 2, 0.5, True),
    Limit("idle-servers", "growth", "CPU of both servers meanwhile", "%", "idle.servers"),
)
CHURN_LIMITS: Final = (
    Limit("churn", "growth", "tasks that came and went", "/s", "churn.rate"),
    Limit("dead-rows", "growth", "dead rows at most, of all rows", "%", "churn.dead", "", 20, 10, True),
    Limit("vacuums", "growth", "runs of autovacuum on `tasks`", "", "churn.vacuums", "", 1),
    Limit("dead-growth", "growth", "their peak, late to early", "×", "churn.dead_growth", "", 1.5, 1.2, True),
    Limit(
        "open-index",
        "growth",
        "peak size of `tasks_open`, late to early",
        "×",
        "churn.open",
        "",
        1.5,
        1.2,
        True,
    ),
    Limit("key-index", "growth", "`tasks_pkey` a row, late to early", "×", "churn.key", "", 1.5, 1.2, True),
)


@dataclass(frozen=True, slots=True)
class Size:
    """How much is measured: tasks, requests, rounds, and how long."""

    finished: int = 10_000_000
    open_: int = 1_000_000
    dead: int = 8_000
    small_open: int = 50_000
    noops: int = 20_000
    requests: int = 400
    rounds: int = 5
    idle_s: float = 10.0
    minutes: float = 5.0


QUICK: Final = Size(20_000, 5_000, 400, 1_000, 1_000, 40, 1, 2.0, 0.1)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `growth` to `parser`."""
    parser.add_argument("--finished", type=count, help="tasks that have ended (10000000)")
    parser.add_argument("--open", type=count, dest="open_", help="tasks that wait (1000000)")
    parser.add_argument("--rounds", type=count, help="rounds in which both sizes are measured (5)")
    parser.add_argument("--minutes", type=minutes, help="how long the churn lasts (5)")
    parser.add_argument("--quick", action="store_true", help="so little that it only shows that all works")
    parser.add_argument("--seed", type=int, default=1, help="draws the order within each round (1)")
    parser.add_argument("--out", type=Path, default=OUT, help=f"where the record goes ({OUT})")


def main(args: argparse.Namespace) -> int:
    """0 if every bound that must be kept is kept, 1 if not; always 0 with --quick, which judges nothing."""
    given = {name: getattr(args, name) for name in ("finished", "open_", "rounds", "minutes")}
    size = replace(QUICK if args.quick else Size(), **{n: v for n, v in given.items() if v is not None})
    if size.finished < size.dead:
        raise ConfigError(f"--finished is {size.finished:,}, and {size.dead:,} of these are to be dead")
    with Company() as company:
        rows, rounds = measure(size, args.seed)
    result = {"quick": args.quick, "size": asdict(size), "rows": [row.data() for row in rows]}
    made = record.make(_command(args), result | company.data() | {"rounds": rounds})
    record.write(args.out, made)
    print(f"\n{sizes(made)}\n\n{markdown(rows)}\n\n{told(made)}")
    if args.quick:
        print("\nso few rows and so little time are judged by no bound")
    return int(not args.quick and any(row.verdict == MUST_MISSED for row in rows))


def _command(args: argparse.Namespace) -> list[str]:
    """What a reader types to make the record again."""
    given = {"finished": args.finished, "open": args.open_, "rounds": args.rounds, "minutes": args.minutes}
    return [
        "bench growth",
        *(["--quick"] if args.quick else []),
        *(f"--{option} {value}" for option, value in given.items() if value is not None),
        f"--seed {args.seed}",
    ]


def sizes(made: Mapping[str, Any]) -> str:
    """What was compared with what, for a reader of the table."""
    size = Size(**made["result"]["size"])
    return (
        f"{size.finished:,} tasks that have ended and {size.open_:,} open ones, against {size.dead:,} and"
        f" {size.small_open:,}; the churn lasted {size.minutes:g} minutes."
    )


def measure(size: Size, seed: int) -> tuple[list[Row], list[Round]]:
    """Fill both systems and measure everything: the rows, and all measures of each round."""
    with _sides(size) as (full, small):
        with progress.told("filling") as tell:
            fill(full.url, finished=size.finished, open_=size.open_, dead=size.dead, tell=tell)
            fill(small.url, finished=size.dead, open_=size.small_open, dead=size.dead, tell=tell)
        for side in (full, small):
            side.reconcile()
            side.passed(size.noops)  # a warm-up, not counted
        rounds = measured(_arms(full, small, size, seed), size.rounds, seed, title="growth")
        last = churn(full, size.minutes)
    return [*_rows(LIMITS, rounds), *_rows(CHURN_LIMITS, [last])], rounds


def _rows(limits: Sequence[Limit], rounds: Sequence[Round]) -> list[Row]:
    return [Row.of(limit, rounds) for limit in limits]


def _arms(full: Side, small: Side, size: Size, seed: int) -> Arms:
    """What a round measures; where both sides are compared, one right after the other."""
    sides = {"full": full, "small": small}
    rng = random.Random(seed)

    def pair(measure: Callable[[Side], Mapping[str, float]]) -> dict[str, float]:
        found = {name: measure(sides[name]) for name in rng.sample(sorted(sides), 2)}
        return {f"{name}.{key}": value for name, measures in found.items() for key, value in measures.items()}

    def pages() -> dict[str, float]:
        paths = {name: side.paths(size.requests) for name, side in sides.items()}
        taken: dict[str, float] = defaultdict(float)
        for kind in paths["full"]:
            for part in range(_SLICES):
                for name in rng.sample(sorted(sides), 2):
                    taken[f"{name}.{kind}"] += sides[name].answered(paths[name][kind][part::_SLICES])
        return {
            f"{name}.{kind}": len(asked) / taken[f"{name}.{kind}"]
            for name in sides
            for kind, asked in paths[name].items()
        }

    return {
        "tasks": lambda: pair(lambda side: side.passed(size.noops)),
        "pages": pages,
        "passes": lambda: pair(lambda side: side.passes(size.idle_s / 2)),
        "idle": lambda: full.idle(size.idle_s),
        "index": lambda: {"rebuild": full.rebuild(size.open_), "compare": full.reconcile()},
    }


@contextmanager
def _sides(size: Size) -> Iterator[tuple[Side, Side]]:
    """The full and the small system, on one Postgres and a Redis each."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="scheduler-growth-")))
        folder.chmod(0o711)
        _check_room(folder, size)
        # The log of minutes fits, so that checkpoints come by time, as on a server that was set up with care.
        settings = meter.SETTINGS | {"max_wal_size": "8GB"}
        postgres = stack.enter_context(Postgres(folder / "postgres", settings=settings))
        with psycopg.connect(postgres.url, autocommit=True) as connection:
            connection.execute("CREATE DATABASE small")
        sides = []
        for name in ("app", "small"):
            redis = stack.enter_context(Redis(folder / f"redis-{name}"))
            url = postgres.url.replace("/app?", f"/{name}?")
            own = {"POSTGRES_URL": url, "REDIS_ADDR": redis.url} | _LOOPBACK
            sides.append(Side(stack.enter_context(system(own, say=print)), postgres, redis, name))
        yield sides[0], sides[1]


def _check_room(folder: Path, size: Size) -> None:
    needed = BYTES_A_TASK * (size.finished + size.open_)
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise StartError(
            f"{folder} has {free / 2**30:.0f} GiB free and {needed / 2**30:.0f} are needed:"
            " set TMPDIR, or choose a smaller --finished"
        )
