"""The command `peers`: the same work by other queues, each in several setups, in turns with ours.

    burst    noops that wait already are drained: workers are ready and frozen, the noops are enqueued, the
             workers are thawed; the rate is that between 5 % and 95 % of the completions, as each has them
             in its own store. The fastest setup of each stands for it, ours included; a bound that was set
             for some setups of a peer is judged by these (`standings.BOUND_TO`)
    pace     50 tasks a second, at intended times, to idle workers: from when one was due until it began
    kill     tasks of 200 ms; when 30 % are done, the busiest third of the workers is killed with `kill -9`

For the kill each peer is told to acknowledge late, and to take a worker for dead after 5 s, where it can be.

A peer that was asked for and could not be measured, but has a bound that must be reached, is a bound missed.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Final

from bench import record
from bench.company import Company, told
from bench.known_peers import PEERS
from bench.lineup import FULL, QUICK, Effort, Entries, gathered, present
from bench.options import count
from bench.rounds import Round, measured
from bench.rows import MUST_MISSED
from bench.standings import Standings

WORKS: Final = ("burst", "pace", "kill")
OUT: Final = record.RESULTS / "peers.json"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `peers` to `parser`."""
    known = [peer.name for peer in PEERS]
    only = f"this peer; repeat it for more (all: {', '.join(known)})"
    parser.add_argument("--only", action="append", choices=known, metavar="NAME", help=only)
    parser.add_argument("--work", action="append", choices=WORKS, help="this work; repeat it for more (all)")
    parser.add_argument("--tasks", type=count, default=FULL.tasks, help="noops of each drain (20000)")
    parser.add_argument("--rounds", type=count, default=FULL.rounds, help="rounds of burst and pace (5)")
    parser.add_argument("--quick", action="store_true", help="one small round, and one setup of each peer")
    parser.add_argument("--seed", type=int, default=1, help="draws the order within each round (1)")
    parser.add_argument("--out", type=Path, default=OUT, help=f"where the record goes ({OUT})")


def main(args: argparse.Namespace) -> int:
    """0 if we are as much faster as we must be, 1 if not; always 0 with --quick, which judges nothing."""
    effort = QUICK if args.quick else replace(FULL, tasks=args.tasks, rounds=args.rounds)
    with Company() as company:
        found = _found(args, effort)
    versions = ", ".join(f"{name} {version}" for name, version in found.versions.items())
    print(f"\n{effort.tasks:,} noops, {effort.rounds} rounds in turns; {versions}\n\n{found.text()}")
    named = [f"--{option} {value}" for option in ("only", "work") for value in getattr(args, option) or ()]
    much = ["--quick"] if args.quick else [f"--tasks {effort.tasks} --rounds {effort.rounds}"]
    result = {"quick": args.quick, "only": [*(args.only or ()), *(args.work or ())]}
    result |= found.data() | company.data()
    made = record.make(["bench peers", *named, *much, f"--seed {args.seed}"], result)
    record.write(args.out, made)
    print(f"\n{told(made)}")
    return int(not args.quick and any(row.verdict == MUST_MISSED for row in found.rows))


def _found(args: argparse.Namespace, effort: Effort) -> Standings:
    chosen = [peer for peer in PEERS if not args.only or peer.name in args.only]
    with gathered(chosen) as lineup:
        of = {"burst": lineup.bursts, "pace": lineup.paces, "kill": lineup.kills}
        entries = {work: make(effort) if work in (args.work or WORKS) else {} for work, make in of.items()}
        rounds = _measured(entries["burst"] | entries["pace"], effort.rounds, args.seed)
        deaths = _measured(entries["kill"], 1, args.seed)
    return Standings(
        versions={entrant.peer.name: entrant.peer.version() for entrant in lineup.entrants},
        absent=lineup.absent,
        bursts=present(entries["burst"], rounds),
        paces=present(entries["pace"], rounds),
        kills=present(entries["kill"], deaths),
        rounds=rounds,
        deaths=deaths,
        patience_s=effort.patience_s,
    )


def _measured(entries: Entries, rounds: int, seed: int) -> list[Round]:
    arms = {name: entry.arm for name, entry in entries.items()}
    return measured(arms, rounds, seed, title="peers") if arms else []
