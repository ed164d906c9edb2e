"""Clocks are wrong by hours or jump, and nothing depends on them; a rolling deploy costs no budget."""

from __future__ import annotations

import json
import os
import signal
import time
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from fix_process import Process, until
from fix_system import Site

from bench.workload import Body

TESTS = Path(__file__).parents[1]
HOUR_S = 3600

NAP: Body = {"type": "naps", "payload": {"s": 3}}
"""Runs for longer than its lease."""

BACKOFF_MS = 400
FLAKY: Body = {
    "type": "flaky",
    "payload": {"fail_times": 2},
    "backoff": {"strategy": "constant", "base_ms": BACKOFF_MS, "jitter": "none"},
}

ENDED = "SELECT count(*) FROM tasks WHERE id = ANY (%(ids)s::uuid[]) AND finished_at IS NOT NULL"

SHORTEST_WAIT = """
SELECT min(next.claimed_at - failed.finished_at)
FROM task_runs AS failed
JOIN task_runs AS next ON next.task_id = failed.task_id AND next.attempt = failed.attempt + 1
WHERE failed.outcome = 'failed'
"""
"""From the end of a failed run to the next claim of its task."""


def faked(**variables: str) -> dict[str, str]:
    """The environment of a process whose wall clock is wrong; what counts durations is left alone."""
    found = sorted(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"))
    if not found:
        stop = pytest.fail if os.environ.get("CI") else pytest.skip
        stop("libfaketime is not installed (Debian: apt-get install faketime)")
    return {
        "LD_PRELOAD": str(found[0]),
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        "NO_FAKE_STAT": "1",
        **variables,
    }


def skewed(hours: int) -> dict[str, str]:
    """The environment of a process whose wall clock is off by so many hours."""
    return faked(FAKETIME=f"{hours * HOUR_S:+d}")


def start_worker(site: Site, start, **variables: str) -> Process:
    """A worker that serves hell.py beside the site's own."""
    worker = start("worker", "--app", "hell", cwd=TESTS, **site.system.stack.env | variables)
    worker.says(r"ready worker .*")
    return worker


def offset_s(site: Site, worker: Process) -> float:
    """Stop a worker; how far its wall clock was off, by the last line of its log."""
    worker.signal(signal.SIGTERM)
    assert worker.ends() == 0
    line = json.loads(worker.logs(r'.*"event": "stopped".*')[0])
    return (datetime.fromisoformat(line["timestamp"]) - site.system.now()).total_seconds()


@pytest.mark.slow
def test_workers_with_wrong_clocks_steal_no_lease_and_retry_nothing_early(site, start, tmp_path):
    """One is an hour ahead, one an hour behind, and one jumps, with runs longer than their leases."""
    here = site(
        workers=0,
        VIS_TIMEOUT_MS=2000,
        REAPER_SCAN_INTERVAL_MS=100,
        RETRY_SCAN_INTERVAL_MS=50,
        WORKER_POOL=4,
    )
    clock = tmp_path / "clock"
    clock.write_text("+0")
    workers = [
        start_worker(here, start, **skewed(+1)),
        start_worker(here, start, **skewed(-1)),
        start_worker(here, start, **faked(FAKETIME_TIMESTAMP_FILE=str(clock), FAKETIME_NO_CACHE="1")),
    ]
    began = here.system.now()
    ids = here.send([NAP] * 6 + [FLAKY] * 60 + [{"type": "noop"}] * 200)
    for offset in (HOUR_S, -HOUR_S, 3, -3, 2 * HOUR_S):
        clock.write_text(f"{offset:+d}")
        some = here.send([FLAKY] * 10)
        until(lambda some=some: here.value(ENDED, ids=some) == len(some))
        ids += some
    here.drained()
    here.prove(ids)
    assert set(here.column("SELECT DISTINCT outcome FROM task_runs")) <= {"succeeded", "failed", "released"}
    assert here.value(SHORTEST_WAIT) >= timedelta(milliseconds=BACKOFF_MS)
    assert not here.column(
        "SELECT task_id FROM task_runs WHERE NOT (%(began)s < claimed_at AND claimed_at <= started_at"
        " AND started_at <= finished_at AND finished_at < clock_timestamp())",
        began=began,
    )
    assert here.value("SELECT count(DISTINCT worker) FROM task_runs WHERE outcome <> 'released'") == 3
    assert [round(offset_s(here, worker) / HOUR_S) for worker in workers] == [1, -1, 2]


@pytest.mark.slow
@pytest.mark.parametrize("hours", [1, -1])
def test_an_api_with_a_wrong_clock_is_served(site, hours):
    """Its ids are off, and that is all: also a task that was never pushed is found."""
    here = site(workers=0, **skewed(hours), SCHEDULER_FAILPOINT="enqueue.push:exception:2")
    here.system.start_fleet(1, env={"LD_PRELOAD": "", "SCHEDULER_FAILPOINT": ""})
    first = here.send([{"type": "noop"}])
    until(lambda: here.client.exists(here.key("epoch")))  # what was there at the start has been compared
    here.drained()
    unpushed = here.send([{"type": "noop"}])
    ids = first + unpushed + here.send([{"type": "noop"}] * 200) + here.send([FLAKY] * 20)
    here.drained(15)
    here.prove(ids)
    named_s = here.column(
        "SELECT (('x' || substr(replace(id::text, '-', ''), 1, 12))::bit(48)::bigint / 1000.0"
        " - extract(epoch FROM created_at))::float FROM tasks"
    )
    assert {round(s / HOUR_S) for s in named_s} == {hours}


GRACE_S = 2.0


def test_a_rolling_deploy_spends_no_budget_and_gives_back_in_time(site, start):
    """Old workers are told to stop while a new one takes over, under load."""
    here = site(workers=0, SHUTDOWN_GRACE_MS=round(GRACE_S * 1000), VIS_TIMEOUT_MS=2000, WORKER_POOL=6)
    old = [start_worker(here, start) for _ in range(2)]
    endless = here.send([{"type": "naps", "payload": {"s": 600}}, {"type": "hangs_in_a_thread"}])
    until(lambda: here.value("SELECT count(*) FROM tasks WHERE status = 'running'") == len(endless))
    leases = here.client.hmget(here.key("live"), endless)
    start_worker(here, start)
    ids = here.send([{"type": "naps", "payload": {"s": 0.5}}] * 40 + [{"type": "noop"}] * 300)
    until(lambda: here.value("SELECT count(*) FROM task_runs WHERE outcome = 'succeeded'"))
    told = time.monotonic()
    for worker in old:
        worker.signal(signal.SIGTERM)
    ids += here.send([{"type": "noop"}] * 300)
    given_back_s: dict[str, float] = {}

    def all_given_back() -> bool:
        for id_, lease, now in zip(
            endless, leases, here.client.hmget(here.key("live"), endless), strict=True
        ):
            if now != lease:
                given_back_s.setdefault(id_, time.monotonic() - told)
        return len(given_back_s) == len(endless)

    until(all_given_back)
    assert min(given_back_s.values()) >= GRACE_S
    assert max(given_back_s.values()) <= GRACE_S + 1
    assert [worker.ends() for worker in old] == [0, 0]
    until(lambda: here.value(ENDED, ids=ids) == len(ids))
    here.prove(ids)
    assert here.value("SELECT sum(failures + losses) FROM tasks") == 0
    assert set(here.column("SELECT DISTINCT outcome FROM task_runs")) == {"succeeded", "released"}
