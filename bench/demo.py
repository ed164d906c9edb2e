"""The demo: two bursts on a system of its own, the snapshot table, and an audit that decides how it ends."""

from __future__ import annotations

import argparse
import sys
import time
from typing import Final

from bench.audit import audit, deck_expected
from bench.burst import Burst, Stalled, drain, metrics, send
from bench.progress import told
from bench.report import Snapshot, markdown, meanings, snapshot
from bench.system import System, system
from bench.workload import Mix, deck

SLOTS: Final = 12
LEASE_MS: Final = 2000
MAX_LOSSES: Final = 1

SETTINGS: Final = {
    "VIS_TIMEOUT_MS": str(LEASE_MS),
    "MAX_LOSSES": str(MAX_LOSSES),
    "WORKER_POOL": str(SLOTS),
    "REAPER_SCAN_INTERVAL_MS": "250",
    "RETRY_BASE_MS": "200",
    "RETRY_MAX_MS": "2000",
    "RETRY_JITTER_MS": "200",
    "RETRY_SCAN_INTERVAL_MS": "100",
    "LOG_LEVEL": "warning",
}
"""Times scaled down: a sleeper sleeps past a lease of 2 s instead of one of 60 s."""

NOOPS: Final = Mix(noop=100)
DEMO: Final = Mix(noop=80, flaky=10, fail=5, sleep=5, sleep_ms=2 * LEASE_MS)


def main(args: argparse.Namespace) -> int:
    """Run the demo; 0 if the audit passes, 1 if not."""
    started = time.monotonic()
    print(f"{args.workers} workers × {SLOTS} slots, two bursts of {args.tasks:,} tasks (seed {args.seed})")
    print("starting Postgres, Redis, the API and the workers", flush=True)
    with system(SETTINGS, say=print) as me:
        me.start_fleet(args.workers)
        _where(me)
        rows: list[Snapshot] = []
        passed = True
        lines: list[str] = []
        for title, mix in (("noops", NOOPS), ("demo mix", DEMO)):
            try:
                burst = _burst(me, title, mix, args.tasks, args.seed)
            except Stalled as error:
                print(f"{title}: {error}", file=sys.stderr)
                return 1
            rows.append(snapshot(me.postgres_url, burst.ids, workers=args.workers, slots=SLOTS))
            exactly = deck_expected(burst.dealt, burst.places, max_losses=MAX_LOSSES, lease_ms=LEASE_MS)
            verdict = audit(me.postgres_url, me.redis_url, burst.ids, exactly=exactly)
            passed = passed and verdict.passed
            lines += [f"{title}: {line}" for line in verdict.lines()]
    print()
    print(markdown(rows))
    print()
    print(meanings())
    print("\nThe first row is noops; the second 80 % noop, 10 % flaky, 5 % always_fail, 5 % sleepers")
    print(f"that outlive a lease of {LEASE_MS / 1000:g} s.")
    print("The audit starts from the client's own list of accepted ids:\n")
    print("\n".join(lines))
    print(f"\nEverything is stopped; {time.monotonic() - started:.0f} s in all.")
    return 0 if passed else 1


def _burst(me: System, title: str, mix: Mix, n: int, seed: int) -> Burst:
    before = metrics(me)
    with told(title) as tell:
        burst = send(me, deck(mix, n, seed), tell)
        drain(me, n, before, tell)
    return burst


def _where(me: System) -> None:
    fleet = ", ".join(member.metrics.removesuffix("/metrics").rpartition(":")[2] for member in me.fleet)
    print(f"API at {me.host}, its metrics at {me.api_metrics}, the workers' on ports {fleet}", flush=True)
