"""Peers: the same work by other queues, each at its best settings, in turns with ours and with pgbench.

The work is to drain noops that wait already: workers are ready and frozen, the noops are enqueued, the
workers are thawed, and the rate is that between 5 % and 95 % of the completions, as each has them in its own
store. Every peer is measured in several setups; the one with the best median stands for it.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from importlib.metadata import distributions
from pathlib import Path
from typing import Final

import psycopg

from bench import peer, record
from bench.burst import drain, metrics, send
from bench.known_peers import Dramatiq, PgQueuer
from bench.parking import emptied
from bench.peer import PLACE, WARM_UP, Peer, Setup
from bench.progress import told
from bench.rates import frozen, server_pids
from bench.rounds import SETTINGS, SLOTS, Arm, Round, measured
from bench.rows import MUST_MISSED, Limit, Row, markdown
from bench.stats import middle_rate, spread
from bench.system import System, system
from bench.vitals import cpu_s
from bench.workload import Mix, deck
from bench.yardsticks import TABLES, pgbench
from scheduler.embedded import Redis

WORKERS: Final = 3
OURS: Final = "ours"
BOUNDS: Final = {"pgqueuer": (1.5, 3.0, 9216 / 11432), "dramatiq": (2.0, 4.0, 6495 / 11432)}
"""By peer: what our rate must be of its, what it should be, and what its own was of pgbench's when the peers
were first measured, on a machine like this. It must come to 0.8 of that, or its setup is unfair to it."""

CAVEATS: Final = """\
Noops measure what a queue adds to a task and nothing else. With handlers that work, the difference shrinks
to what is left of it beside the work.

PgQueuer gets uvloop, and batches far above its default of 10. It runs as many jobs at once as its setup
says; our 12 slots have no counterpart there. What it keeps of a task is comparable to what we keep.

Dramatiq is here because it is the fastest of its kind, though its durability is another one: its Redis writes
no file, and of what is done nothing is kept. Its actors run in threads; ours and PgQueuer's are coroutines.

All of it shares the cores of one machine: workers, servers and the observer.
"""

_TOLD: Final = {
    OURS: (
        f"Scheduler, {WORKERS} × {SLOTS}, its defaults",
        "Postgres, fsync; the row and one of history a run are kept; Redis, AOF everysec, is an index",
    ),
    "pgbench": ("pgbench, 16 clients, one INSERT a commit", "Postgres, fsync"),
}
_NOOPS: Final = Mix(noop=100)
_ENDS: Final = "SELECT extract(epoch FROM finished_at)::float8 FROM tasks WHERE id = ANY (%(ids)s::uuid[])"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `peers` to `parser`."""
    parser.add_argument("--tasks", type=int, default=20_000, help="noops of each drain (20000)")
    parser.add_argument("--rounds", type=int, default=5, help="rounds, each measures everything once (5)")
    parser.add_argument("--quick", action="store_true", help="one small round, and one setup of each peer")
    parser.add_argument("--seed", type=int, default=1, help="draws the order within each round (1)")
    parser.add_argument("--out", type=Path, help="write a record here")


def main(args: argparse.Namespace) -> int:
    """0 if we are as much faster as we must be, 1 if not; always 0 with --quick, which judges nothing."""
    tasks, rounds = (2000, 1) if args.quick else (args.tasks, args.rounds)
    with peers() as (me, others):
        first = 1 if args.quick else None
        setups = {setup.name: (each, setup) for each in others for setup in each.setups[:first]}
        arms = _arms(me, setups, tasks, pgbench_s=1 if args.quick else 5)
        found = measured(arms, rounds, args.seed, title="peers")
        versions = {each.name: _version(each.name) for each in others}
    rows = judged(found, {name: each.name for name, (each, _) in setups.items()})
    arms_told = _TOLD | {name: (setup.told, each.durability) for name, (each, setup) in setups.items()}
    print(f"\n{tasks:,} noops, {rounds} rounds in turns;", *(f"{k} {v}" for k, v in versions.items()), "\n")
    print(overview(found, arms_told), "", markdown(rows), "", CAVEATS, sep="\n")
    if args.out is not None:
        command = ["bench peers", f"--tasks {tasks} --rounds {rounds}", *(["--quick"] if args.quick else [])]
        result = {
            "versions": versions,
            "arms": {name: {"setup": what, "durability": kept} for name, (what, kept) in arms_told.items()},
            "rounds": found,
            "rows": [row.data() for row in rows],
            "caveats": CAVEATS.strip().split("\n\n"),
        }
        record.write(args.out, record.make(command, result))
    return int(not args.quick and any(row.verdict == MUST_MISSED for row in rows))


def judged(rounds: Sequence[Round], peer_of: Mapping[str, str]) -> list[Row]:
    """Ours against each peer at its best, and each peer at its best against pgbench.

    Args:
        rounds: `ours.rate`, `pgbench.rate` and the rates of the setups.
        peer_of: The peer of each setup.
    """
    rows = []
    for name, (must, aim, before) in BOUNDS.items():
        best = best_of(rounds, [setup for setup in peer_of if peer_of[setup] == name])
        against = f"noops drained, against {best}"
        itself = f"{best} against pgbench; {before:.2f} when first measured"
        limits = (
            Limit(name, "peers", against, "/s", f"{OURS}.rate", f"{best}.rate", must, aim),
            Limit(
                f"{name}-itself",
                "peers",
                itself,
                "/s",
                f"{best}.rate",
                "pgbench.rate",
                aim=round(0.8 * before, 2),
            ),
        )
        rows += [Row.of(limit, rounds) for limit in limits]
    return rows


def best_of(rounds: Sequence[Round], names: Sequence[str]) -> str:
    """The setup with the best median."""
    return max(names, key=lambda name: spread([each[f"{name}.rate"] for each in rounds]).median)


def overview(rounds: Sequence[Round], arms: Mapping[str, tuple[str, str]]) -> str:
    """Every arm: its rate, what that is of pgbench's, its CPU, and what it keeps of a task."""
    lines = ["| What | Tasks/s | Of pgbench | CPU a task | What survives |", "|" + " --- |" * 5]
    reference = spread([each["pgbench.rate"] for each in rounds]).median
    for name, (what, kept) in arms.items():
        middle, low, high = spread([each[f"{name}.rate"] for each in rounds])
        cpu = [each[f"{name}.cpu_us"] for each in rounds if f"{name}.cpu_us" in each]
        used = f"{spread(cpu).median:.0f} µs" if cpu else ""
        rate = f"{middle:,.0f} ({low:,.0f}..{high:,.0f})"
        lines.append(f"| {what} | {rate} | {middle / reference:.2f}× | {used} | {kept} |")
    return "\n".join(lines)


def _arms(
    me: System, setups: Mapping[str, tuple[Peer, Setup]], tasks: int, *, pgbench_s: int
) -> dict[str, Arm]:
    return {
        OURS: partial(ours, me, tasks),
        "pgbench": lambda: {"rate": pgbench(me.postgres_url, pgbench_s)},
        **{name: partial(peer.drain, *at, tasks) for name, at in setups.items()},
    }


def ours(me: System, n: int) -> dict[str, float]:
    """Let our workers drain n noops, as `peer.drain` lets those of a peer; with the same measures."""
    with emptied(me), me.with_fleet(WORKERS) as fleet, told(f"{n:,} noops") as tell:
        before = metrics(me)
        send(me, deck(_NOOPS, WARM_UP), tell)
        before = drain(me, WARM_UP, before, tell)
        with frozen(fleet):
            ids = send(me, deck(_NOOPS, n), tell).ids
            pids = [*server_pids(me), *(member.pid for member in fleet)]
            used = cpu_s(pids)
        drain(me, n, before, tell)
        used = cpu_s(pids) - used
        times = [float(str(at)) for (at,) in me.query(_ENDS, {"ids": ids})]
    return {"rate": middle_rate(times), "cpu_us": used * 1e6 / n}


@contextmanager
def peers() -> Iterator[tuple[System, list[Peer]]]:
    """Our system, and the peers on servers as each likes them best."""
    with ExitStack() as stack:
        me = stack.enter_context(system(SETTINGS, say=print))
        me.statement(TABLES)
        with psycopg.connect(me.postgres_url, autocommit=True) as connection:
            connection.execute("CREATE DATABASE pgqueuer")
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="scheduler-peers-"))
        memory = stack.enter_context(Redis(Path(folder) / "redis", settings={"appendonly": "no"}))
        PLACE.mkdir(parents=True, exist_ok=True)
        pgqueuer = PgQueuer(me.postgres_url.replace("/app?", "/pgqueuer?"), server_pids(me)[0])
        stack.callback(pgqueuer.close)
        yield me, [pgqueuer, Dramatiq(memory.url, memory.pid)]


def _version(name: str) -> str:
    """The version in a peer's environment."""
    [packages] = (PLACE / name / "lib").glob("*/site-packages")
    return next(found.version for found in distributions(path=[str(packages)]) if found.name == name)
