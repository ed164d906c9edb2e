"""The command `amnesia`: FLUSHALL at a random moment of a drain, seed by seed, and an audit of each.

The servers and the API are the same for all seeds; the tables and Redis are emptied before each. With `--out`
the figures are kept as a record, from which docs/reliability.md is generated.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from bench import amnesia, record
from bench.amnesia import DEEPEST, Scene
from bench.burst import Stalled
from bench.figure import Figure, table
from bench.options import count, seeds
from bench.system import OWN_SERVERS, system
from bench.watch import Overdue

TASKS: Final = 20_000

_SETTINGS: Final = {
    **OWN_SERVERS,
    **amnesia.SETTINGS,
    "LOG_LEVEL": "warning",
    "HTTP_ADDR": "127.0.0.1:0",
    "METRICS_ADDR": "127.0.0.1:0",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `amnesia` to `parser`."""
    parser.add_argument("--seeds", type=seeds, default=range(1, 4), metavar="A-B", help="which (1-3)")
    parser.add_argument(
        "--tasks", type=count, default=TASKS, metavar="N", help=f"tasks of each seed ({TASKS})"
    )
    parser.add_argument("--out", type=Path, metavar="FILE", help="write a record here")


def main(args: argparse.Namespace) -> int:
    """0 if every seed passed, 1 if one did not."""
    began, commit = time.monotonic(), record.commit()
    scenes, why = play(args.seeds, args.tasks)
    result = summary(scenes, len(args.seeds), why) | {"seconds": round(time.monotonic() - began)}
    print(f"\n{table(result['figures'])}\n" if scenes else "")
    print(f"{result['passed']} of {result['asked']} seeds passed; {result['seconds']} s in all")
    if args.out is not None:
        options = f"--seeds {args.seeds[0]}-{args.seeds[-1]}", f"--tasks {args.tasks}"
        made = record.make(["bench amnesia", *options], result)
        record.write(args.out, made | {"commit": commit})
    return int(result["passed"] < result["asked"])


def play(which: range, n: int) -> tuple[list[Scene], str]:
    """One scene after the other; and why the last one did not end, if it did not: then it was the last."""
    scenes: list[Scene] = []
    with system(_SETTINGS, say=print) as me:
        for seed in which:
            amnesia.forget(me)
            try:
                scenes.append(amnesia.play(me, n, seed))
            except (Overdue, Stalled) as error:
                print(f"seed {seed}: FAILED; {error}", flush=True)
                return scenes, f"seed {seed}: {error}"
            print(scenes[-1].line(), flush=True)
    return scenes, ""


def summary(scenes: Sequence[Scene], asked: int, why: str = "") -> dict[str, Any]:
    """Scenes in numbers, to be kept: what of them passed, the figures, and each of them.

    Args:
        scenes: Those that came to their end.
        asked: How many there were to be.
        why: Why there are not as many.
    """
    worst = max(scenes, key=lambda scene: scene.extra / max(scene.leased, 1), default=None)
    return {
        "asked": asked,
        "passed": sum(scene.passed for scene in scenes),
        "failed_seeds": [scene.seed for scene in scenes if not scene.passed],
        "why": why,
        "worst": {"extra": worst.extra, "leased": worst.leased} if worst else None,
        "figures": [figure.record() for figure in figures(scenes)] if scenes else [],
        "seeds": [
            asdict(scene) | {"passed": scene.passed, "verdict": scene.verdict.record()} for scene in scenes
        ],
    }


def figures(scenes: Sequence[Scene]) -> list[Figure]:
    """What was found, one value a seed."""
    n = scenes[0].tasks
    return [
        Figure(
            "amnesia.amiss",
            f"FLUSHALL when 10 to 60 % of {n:,} mixed tasks have ended: lost, succeeded twice or else amiss",
            values=tuple(_amiss(scene) for scene in scenes),
            sign="=",
        ),
        Figure("amnesia.leased", "... tasks in flight then", values=tuple(s.leased for s in scenes)),
        Figure("amnesia.extra", "... extra runs", values=tuple(s.extra for s in scenes)),
        Figure(
            "amnesia.beyond",
            "... extra runs beyond the tasks in flight",
            values=tuple(max(scene.extra - scene.leased, 0) for scene in scenes),
            sign="=",
        ),
        Figure(
            "amnesia.depth",
            "... most ids in the lists, as a share of the rows that wait",
            "×",
            tuple(scene.deepest for scene in scenes),
            "≤",
            DEEPEST,
        ),
        Figure(
            "amnesia.whole",
            "... until every open task is in Redis again",
            "s",
            tuple(scene.whole_s for scene in scenes),
        ),
    ]


def _amiss(scene: Scene) -> int:
    """What the audit holds against it, and runs that the deck needs and that there are not."""
    return sum(check.offenders for check in scene.verdict.checks) + max(-scene.extra, 0)
