"""The command `chaos`: harm a working system in every way, let it come to rest, and audit it.

A run belongs to a seed: clients send without pause while the seed's faults strike an arena; then everything
is mended, the system gets time to finish, and the audit judges every task from the clients' own list. A
seed counts only if four fifths of its planned faults landed while tasks were running.

Results are appended to a file, one JSON object a line. With `--seeds` what is in the file already is not
run again, so that a long series may be interrupted.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from bench.arena import LEASE_MS, MAX_LOSSES, PREFIX, STORE_TIMEOUT_MS, Arena
from bench.audit import Verdict, audit, check
from bench.builds import BUILDS, made
from bench.faults import Blow, Fault, carry_out, plan
from bench.traffic import Book, Traffic
from bench.watch import Watch, until_quiet
from scheduler.errors import ConfigError

RATE: Final = 70.0
"""Tasks a second that the clients would send if nobody had to wait: a little more than the fleet can do, so
that there is always a queue."""

COUNTS: Final = 0.8
"""The share of planned faults that must have landed."""

SHORTEST_S: Final = 10.0
_MEND_S: Final = 30.0
_QUIET_S: Final = 90.0
_STALLED_S: Final = 12.0
_PATIENCE_S: Final = 15.0
"""How long Redis may disagree with a system at rest: a dead leader's lease is part of it."""


def run(seed: int, seconds: float, *, build: str | None = None, folder: Path) -> dict[str, Any]:
    """Harm a system of its own for `seconds` by the plan of `seed`; what became of it, as it is recorded.

    Args:
        seed: Decides the faults and what the clients send.
        seconds: How long, at least; the last fault is undone before the clients stop.
        build: A broken build to run in place of the product.
        folder: Where logs and data go; it must be there.
    """
    with ExitStack() as stack:
        arena = stack.enter_context(Arena(folder, stack.enter_context(made(build)) if build else {}))
        watch = Watch(arena.connect, arena.redis.url, PREFIX)
        traffic = Traffic(
            [api.url for api in arena.apis],
            seed=seed,
            rate=RATE,
            lease_ms=LEASE_MS,
            log=folder / "clients.jsonl",
        )
        with watch:
            with traffic:
                blows = _harm(plan(seed, seconds), seconds, arena, watch)
            arena.mend(_MEND_S)
            quiet_s = until_quiet(arena.connect, within_s=_QUIET_S, stalled_s=_STALLED_S)
        verdict = _judge(arena, traffic.book, watch)
        facts = _facts(arena)
    landed = sum(blow.landed for blow in blows)
    return {
        "seed": seed,
        "seconds": seconds,
        "build": build,
        "passed": verdict.passed,
        "counts": landed >= COUNTS * len(blows),
        "planned": len(blows),
        "landed": landed,
        "quiet_s": round(quiet_s, 1),
        "looks": watch.looks,
        "answers": {str(status): n for status, n in sorted(traffic.book.statuses.items())},
        "keys": len(traffic.book.keys),
        "doubtful": traffic.book.doubtful,
        **facts,
        "verdict": verdict.record(),
        "faults": [_fault(blow) for blow in blows],
    }


def _harm(planned: Sequence[Fault], seconds: float, arena: Arena, watch: Watch) -> list[Blow]:
    """Carry out the plan; returns when the time is over and the last fault is undone."""
    began, over = time.monotonic(), threading.Event()
    try:
        blows = carry_out(planned, arena, lambda: watch.busy, over)
        time.sleep(max(0.0, seconds - (time.monotonic() - began)))
    finally:
        over.set()
        arena.heal()
    return blows


def _judge(arena: Arena, book: Book, watch: Watch) -> Verdict:
    """The audit of everything that there is, and what could only be seen while it happened."""
    verdict = audit(
        arena.postgres.url,
        arena.redis.url,
        book.accepted,
        prefix=PREFIX,
        keys=book.keys,
        doubtful=book.doubtful,
        max_losses=MAX_LOSSES,
        slack_s=STORE_TIMEOUT_MS / 1000,
        patience_s=_PATIENCE_S,
    )
    seen = [f"{id_} {what}" for id_, what in watch.wrong.items()]
    ended = [f"{death.part} with code {death.code}" for death in arena.deaths]
    return replace(
        verdict,
        checks=(
            *verdict.checks,
            check("two places meanwhile", "an id that Redis had in no place or in two, for a moment", seen),
            check("ended by itself", "a process that nobody killed", ended),
            check("refused", "an answer that the request did not deserve", book.refused),
        ),
    )


def _facts(arena: Arena) -> dict[str, Any]:
    """What the history tells of the harm: how the runs ended, and how many answers came too late."""
    with arena.connect() as connection:
        outcomes = connection.execute("SELECT outcome, count(*) FROM task_runs GROUP BY 1 ORDER BY 1")
        late = connection.execute("SELECT count(*) FROM task_runs WHERE late_outcome IS NOT NULL")
        return {"runs": dict(outcomes.fetchall()), "late": late.fetchall()[0][0]}


def _fault(blow: Blow) -> dict[str, Any]:
    fault = blow.fault
    return {
        "kind": fault.kind,
        "at_s": fault.at_s,
        "struck_s": blow.struck_s,
        "landed": blow.landed,
        "what": blow.what,
    }


def line(record: Mapping[str, Any]) -> str:
    """One run in one line, and a line for each offence."""
    verdict = record["verdict"]
    counts = ", ".join(f"{n:,} {status}" for status, n in sorted(verdict["statuses"].items()))
    word = "passed" if record["passed"] else "FAILED"
    if not record["counts"]:
        word += ", does not count"
    head = (
        f"seed {record['seed']}: {word}; {record['landed']} of {record['planned']} faults landed,"
        f" {verdict['accepted']:,} accepted, {counts}, {record['runs'].get('lost', 0)} runs lost,"
        f" {record['late']} late; quiet after {record['quiet_s']} s"
    )
    offences = [
        f"  {c['name']}: {c['offenders']} ({c['meaning']}) {' '.join(c['examples'])}"
        for c in verdict["checks"]
        if c["offenders"]
    ]
    missed = [
        f"  not landed: {f['kind']} at {f['at_s']} s {f['what']}".rstrip()
        for f in record["faults"]
        if not f["landed"]
    ]
    return "\n".join([head, *offences, *missed])


# The command


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `chaos` to `parser`."""
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--seed", type=int, default=1, help="the seed of one run (1)")
    which.add_argument(
        "--seeds", type=_seeds, metavar="A-B", help="several runs, those done already left out"
    )
    parser.add_argument("--seconds", type=float, default=25.0, metavar="S", help="length of a run (25)")
    parser.add_argument("--build", choices=sorted(BUILDS), help="run a broken build: it must fail")
    parser.add_argument(
        "--out", type=Path, default=Path("results/chaos.jsonl"), help="results (results/chaos.jsonl)"
    )


def _seeds(text: str) -> range:
    first, _, last = text.partition("-")
    if not (first.isdecimal() and last.isdecimal() and int(first) <= int(last)):
        raise argparse.ArgumentTypeError(f"{text!r} is not like 1-40")
    return range(int(first), int(last) + 1)


def main(args: argparse.Namespace) -> int:
    """0 if every audit passed, 1 if not."""
    if args.seconds < SHORTEST_S:
        raise ConfigError(f"a run of {args.seconds:g} s is too short for its faults; take {SHORTEST_S:g} s")
    results = list(read(args.out)) if args.seeds else []
    done = {r["seed"]: r for r in results if _same(r, args) and r["counts"]}
    seeds = args.seeds or [args.seed]
    passed = all(done[seed]["passed"] for seed in seeds if seed in done)
    for seed in seeds:
        if seed in done:
            continue
        record = run_and_keep(seed, args.seconds, build=args.build, out=args.out)
        print(line(record), flush=True)
        passed = passed and record["passed"]
    return 0 if passed else 1


def _same(record: Mapping[str, Any], args: argparse.Namespace) -> bool:
    return (record["seconds"], record["build"]) == (args.seconds, args.build)


def run_and_keep(seed: int, seconds: float, *, build: str | None, out: Path) -> dict[str, Any]:
    """Run a seed and append the record to `out`; of a run that failed, the logs stay beside it."""
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="scheduler-chaos-") as name:
        folder = Path(name)
        folder.chmod(0o711)  # where root cannot be mapped, Postgres passes through as another user
        record = run(seed, seconds, build=build, folder=folder)
        if not record["passed"]:
            kept = out.parent / f"chaos-{build or 'seed'}-{seed}"
            shutil.rmtree(kept, ignore_errors=True)
            kept.mkdir()
            for log in (*folder.glob("*.log"), *folder.glob("*.jsonl")):
                shutil.copy(log, kept)
    with out.open("a", encoding="utf-8") as results:
        results.write(json.dumps(record) + "\n")
    return record


def read(path: Path) -> Iterator[dict[str, Any]]:
    """The records of a file of results; none if there is no such file.

    Raises:
        ConfigError: a line is not a record.
    """
    if not path.exists():
        return
    for number, text in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        try:
            record = json.loads(text)
            yield {name: record[name] for name in ("seed", "seconds", "build", "counts", "passed")} | record
        except (ValueError, KeyError) as error:
            raise ConfigError(f"{path}, line {number}: not the record of a run ({error!r})") from None
