"""The command `chaos`: harm a working system in every way, let it come to rest, and audit it.

A run belongs to a seed: clients send without pause while the seed's faults strike; then everything is mended,
the system gets time to finish, and the audit judges every task from the clients' own list. A seed counts only
if four fifths of its planned faults landed while tasks were running.

Results are appended to a file, one JSON object a line. With `--seeds` what is in the file already is not
run again, so that a long series may be interrupted; `--record` sums it up.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from bench.builds import BUILDS
from bench.trial import run
from scheduler.errors import ConfigError

SHORTEST_S: Final = 10.0


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


def summary(records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """A series in numbers, to be kept: the runs, what was done to them, and the machine."""
    planned, landed = Counter[str](), Counter[str]()
    runs, statuses = Counter[str](), Counter[str]()
    for record in records:
        planned.update(fault["kind"] for fault in record["faults"])
        landed.update(fault["kind"] for fault in record["faults"] if fault["landed"])
        runs.update(record["runs"])
        statuses.update(record["verdict"]["statuses"])
    return {
        "runs": len(records),
        "passed": sum(record["passed"] for record in records),
        "counted": sum(record["counts"] for record in records),
        "seconds_each": records[0]["seconds"],
        "faults": {kind: {"planned": planned[kind], "landed": landed[kind]} for kind in sorted(planned)},
        "accepted": sum(record["verdict"]["accepted"] for record in records),
        "tasks": dict(sorted(statuses.items())),
        "attempts": dict(sorted(runs.items())),
        "late_answers": sum(record["late"] for record in records),
        "checks": sorted({check["name"] for record in records for check in record["verdict"]["checks"]}),
        "longest_quiet_s": max(record["quiet_s"] for record in records),
        "failed_seeds": [record["seed"] for record in records if not record["passed"]],
        "uncounted_seeds": [record["seed"] for record in records if not record["counts"]],
        "seeds": [record["seed"] for record in records],
        "machine": {
            "cpus": os.cpu_count(),
            "system": f"{platform.system()} {platform.release()}",
            "python": platform.python_version(),
        },
    }


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
    parser.add_argument("--record", type=Path, metavar="FILE", help="write a summary of these runs as JSON")


def _seeds(text: str) -> range:
    first, _, last = text.partition("-")
    if not (first.isdecimal() and last.isdecimal() and int(first) <= int(last)):
        raise argparse.ArgumentTypeError(f"{text!r} is not like 1-40")
    return range(int(first), int(last) + 1)


def main(args: argparse.Namespace) -> int:
    """0 if every audit passed, 1 if not."""
    if args.seconds < SHORTEST_S:
        raise ConfigError(f"a run of {args.seconds:g} s is too short for its faults; take {SHORTEST_S:g} s")
    seeds = args.seeds or [args.seed]
    results = list(read(args.out)) if args.seeds else []
    done = {r["seed"]: r for r in results if _same(r, args) and r["counts"]}
    for seed in seeds:
        if seed not in done:
            done[seed] = run_and_keep(seed, args.seconds, build=args.build, out=args.out)
            print(line(done[seed]), flush=True)
    records = [done[seed] for seed in seeds]
    if args.record is not None:
        args.record.parent.mkdir(parents=True, exist_ok=True)
        args.record.write_text(json.dumps(summary(records), indent=2) + "\n", encoding="utf-8")
    return 0 if all(record["passed"] for record in records) else 1


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
