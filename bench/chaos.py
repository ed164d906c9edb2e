"""The command `chaos`: harm a working system in every way, let it come to rest, and audit it.

A run belongs to a seed: clients send without pause while the seed's faults strike; then everything is mended,
the system gets time to finish, and the audit judges every task from the clients' own list. A seed counts only
if four fifths of its planned faults landed while tasks were running.

Results are appended to a file, one JSON object a line. With `--seeds` what this commit has found already is
not run again, so that a long series may be interrupted; `--out` keeps a record of the whole series. A tree
with changes that are not committed has one name, `8a1b20e+`, whatever they are: after another change begin
with another file.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from bench import record
from bench.audit import Check
from bench.builds import BUILDS
from bench.options import seconds, seeds
from bench.trial import run
from scheduler.errors import ConfigError

RESULTS: Final = Path("results/chaos.jsonl")
SHORTEST_S: Final = 10.0


def line(found: Mapping[str, Any]) -> str:
    """One run in one line, and a line for each offence."""
    verdict = found["verdict"]
    counts = ", ".join(f"{n:,} {status}" for status, n in sorted(verdict["statuses"].items()))
    words = [] if found["passed"] else ["FAILED"]
    words += [] if found["counts"] else ["does not count"]
    head = (
        f"seed {found['seed']}: {', '.join(words) or 'passed'};"
        f" {found['landed']} of {found['planned']} faults landed,"
        f" {verdict['accepted']:,} accepted, {counts}, {found['runs'].get('lost', 0)} runs lost,"
        f" {found['late']} late; quiet after {found['quiet_s']} s"
    )
    offences = [f"  {Check(**each).line}" for each in verdict["checks"] if each["offenders"]]
    missed = [
        f"  not landed: {f['kind']} at {f['at_s']} s {f['what']}".rstrip()
        for f in found["faults"]
        if not f["landed"]
    ]
    return "\n".join([head, *offences, *missed])


def passed(found: Mapping[str, Any]) -> bool:
    """Whether the audit passed after enough harm: of a run that does not count, it says nothing."""
    return bool(found["passed"] and found["counts"])


def summary(series: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """A series in numbers, to be kept: the runs, what was done to them, and each seed's own line."""
    planned, landed = Counter[str](), Counter[str]()
    runs, statuses = Counter[str](), Counter[str]()
    for each in series:
        planned.update(fault["kind"] for fault in each["faults"])
        landed.update(fault["kind"] for fault in each["faults"] if fault["landed"])
        runs.update(each["runs"])
        statuses.update(each["verdict"]["statuses"])
    return {
        "runs": len(series),
        "passed": sum(map(passed, series)),
        "counted": sum(each["counts"] for each in series),
        "seconds_each": series[0]["seconds"],
        "faults": {kind: {"planned": planned[kind], "landed": landed[kind]} for kind in sorted(planned)},
        "accepted": sum(each["verdict"]["accepted"] for each in series),
        "tasks": dict(sorted(statuses.items())),
        "attempts": dict(sorted(runs.items())),
        "late_answers": sum(each["late"] for each in series),
        "checks": sorted({check["name"] for each in series for check in each["verdict"]["checks"]}),
        "longest_quiet_s": max(each["quiet_s"] for each in series),
        "failed_seeds": [each["seed"] for each in series if not each["passed"]],
        "uncounted_seeds": [each["seed"] for each in series if not each["counts"]],
        "seeds": [_seed(each) for each in series],
    }


def _seed(found: Mapping[str, Any]) -> dict[str, Any]:
    """One run in a series."""
    return {
        "seed": found["seed"],
        "commit": found.get("commit", "unknown"),
        "planned": found["planned"],
        "landed_share": round(found["landed"] / found["planned"], 3),
        "accepted": found["verdict"]["accepted"],
        "passed": found["passed"],
        "counts": found["counts"],
        "seconds": round(found["seconds"] + found["quiet_s"], 1),
    }


# The command


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `chaos` to `parser`."""
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--seed", type=int, default=1, help="the seed of one run (1)")
    which.add_argument("--seeds", type=seeds, metavar="A-B", help="several runs, those done already left out")
    parser.add_argument("--seconds", type=seconds, default=25.0, metavar="S", help="length of a run (25)")
    parser.add_argument("--build", choices=sorted(BUILDS), help="run a broken build: it must fail")
    parser.add_argument(
        "--results",
        type=Path,
        default=RESULTS,
        metavar="FILE",
        help=f"where each run is appended, and read from to go on ({RESULTS})",
    )
    parser.add_argument("--out", type=Path, metavar="FILE", help="write a record of these runs here")


def main(args: argparse.Namespace) -> int:
    """0 if every seed counts and passed its audit, 1 if not."""
    if args.seconds < SHORTEST_S:
        raise ConfigError(f"a run of {args.seconds:g} s is too short for its faults; take {SHORTEST_S:g} s")
    chosen = args.seeds or [args.seed]
    commit = record.commit()
    results = list(read(args.results)) if args.seeds else []
    done = {r["seed"]: r for r in results if _same(r, args, commit) and r["counts"]}
    for seed in chosen:
        if seed not in done:
            done[seed] = run_and_keep(seed, args.seconds, build=args.build, out=args.results)
            print(line(done[seed]), flush=True)
    runs = [done[seed] for seed in chosen]
    if args.out is not None:
        record.write(args.out, record.make(_command(args), summary(runs)) | {"commit": commit})
    return 0 if all(map(passed, runs)) else 1


def _command(args: argparse.Namespace) -> list[str]:
    """What a reader types to make the record again."""
    seeds = f"--seeds {args.seeds[0]}-{args.seeds[-1]}" if args.seeds else f"--seed {args.seed}"
    build = [f"--build {args.build}"] if args.build else []
    return ["bench chaos", seeds, f"--seconds {args.seconds:g}", *build]


def _same(found: Mapping[str, Any], args: argparse.Namespace, commit: str) -> bool:
    """Whether a run that was kept is what would be run now."""
    return (found["seconds"], found["build"], found.get("commit")) == (args.seconds, args.build, commit)


def run_and_keep(seed: int, seconds: float, *, build: str | None, out: Path) -> dict[str, Any]:
    """Run a seed and append the record to `out`; of a run that failed, the logs stay beside it."""
    commit = record.commit()  # of the code that runs; by the end of the run it may be another
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="scheduler-chaos-") as name:
        folder = Path(name)
        folder.chmod(0o711)  # where root cannot be mapped, Postgres passes through as another user
        found = run(seed, seconds, build=build, folder=folder) | {"commit": commit}
        if not found["passed"]:
            kept = out.parent / f"chaos-{build or 'seed'}-{seed}"
            shutil.rmtree(kept, ignore_errors=True)
            kept.mkdir()
            for log in (*folder.glob("*.log"), *folder.glob("*.jsonl")):
                shutil.copy(log, kept)
    with out.open("a", encoding="utf-8") as results:
        results.write(json.dumps(found) + "\n")
    return found


def read(path: Path) -> Iterator[dict[str, Any]]:
    """The records of a file of results; none if there is no such file.

    Raises:
        ConfigError: a line is not a record.
    """
    if not path.exists():
        return
    for number, text in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        try:
            found = json.loads(text)
            yield {name: found[name] for name in ("seed", "seconds", "build", "counts", "passed")} | found
        except (ValueError, KeyError) as error:
            raise ConfigError(f"{path}, line {number}: not the record of a run ({error!r})") from None
