"""`scheduler worker`: one process, from its announcement to its end."""

from __future__ import annotations

import asyncio
import json
import re
import signal
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest
from fix_api import open_backend
from fix_process import Process, until

from scheduler import config
from scheduler.model import NewTask, new_id

READY = r"ready worker metrics=(\d+) slots=(\d+) pid=(\d+)"

APP = """
import asyncio
import time
from pathlib import Path
from scheduler import Context, Reject, handler

@handler("greet")
async def greet(payload: dict, ctx: Context) -> None:
    Path("greeting").write_text(f"hello {payload['name']}, attempt {ctx.attempt}")

@handler("wait")
async def wait(payload: dict) -> None:
    Path("waiting").touch()
    while not Path("go").exists():
        await asyncio.sleep(0.01)

@handler("block")
async def block(payload: dict, ctx: Context) -> None:
    Path("blocking").touch()
    while not Path("go").exists():
        time.sleep(payload["s"])
"""


def submit(env: dict[str, str], type_: str, **fields: Any) -> str:
    """Enqueue one task as the API would; its id."""
    task = NewTask(new_id(), type_, **fields)

    async def send() -> None:
        async with open_backend(config.load(env)[0]) as backend:
            await backend.enqueuer.submit([task])

    asyncio.run(send())
    return task.id


def row(env: dict[str, str], sql: str, *params: Any) -> tuple[Any, ...]:
    with psycopg.connect(env["POSTGRES_URL"], autocommit=True) as connection:
        [found] = connection.execute(sql, params).fetchall()
    return found


def status(env: dict[str, str], id_: str) -> str:
    return row(env, "SELECT status FROM tasks WHERE id = %s", id_)[0]


def none_pending(pid: int) -> bool:
    """Whether a process has taken every signal that it was sent."""
    return re.search(r"^ShdPnd:\s*0+$", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE) is not None


@pytest.fixture
def app(tmp_path: Path) -> Path:
    """A directory with a module of handlers, `shop`."""
    (tmp_path / "shop.py").write_text(APP)
    return tmp_path


@pytest.fixture
def busy(start, here, app) -> tuple[Process, str]:
    """A worker that runs a handler which does not end by itself, and the id of its task."""
    worker = start("worker", "--app", "shop", cwd=app, **here)
    worker.says(READY)
    id_ = submit(here, "wait")
    until((app / "waiting").exists)
    return worker, id_


def test_a_worker_says_that_it_is_ready_and_serves(start, here):
    worker = start("worker", **here, WORKER_POOL="7")
    port, slots, pid = map(int, worker.says(READY).groups())
    assert (slots, pid) == (7, worker.pid)
    id_ = submit(here, "noop")
    until(lambda: status(here, id_) == "succeeded")
    shown = httpx.get(f"http://127.0.0.1:{port}/metrics").text
    assert re.search(r'^tasks_succeeded_total\{priority="default",type="noop"\} 1.0$', shown, re.MULTILINE)
    assert row(here, "SELECT slots, pid FROM workers") == (7, worker.pid)
    worker.signal(signal.SIGINT)
    assert worker.ends() == 0
    assert worker.out == [worker.out[0]]
    assert all("Traceback" not in line for line in worker.err)


def test_a_worker_makes_the_days_of_history_before_it_takes_tasks(start, here):
    """Also if another one keeps house: what ends before its day is there can never move into it."""
    row(here, "INSERT INTO leaders VALUES ('housekeeping', 'another', now() + interval '1 h') RETURNING 1")
    ahead = row(here, "SELECT 'task_runs_' || to_char((now() AT TIME ZONE 'UTC')::date + 7, 'YYYYMMDD')")[0]
    with psycopg.connect(here["POSTGRES_URL"], autocommit=True) as connection:
        # It never was there, if midnight has passed since the migration.
        connection.execute(f"DROP TABLE IF EXISTS {ahead}")
    start("worker", **here).says(READY)
    assert row(here, "SELECT to_regclass(%s) IS NOT NULL", ahead) == (True,)


def test_a_handler_of_ones_own_is_served(start, here, app):
    worker = start("worker", "--app", "shop", cwd=app, **here)
    worker.says(READY)
    id_ = submit(here, "greet", payload='{"name": "Ann"}')
    until(lambda: status(here, id_) == "succeeded")
    assert (app / "greeting").read_text() == "hello Ann, attempt 1"


def test_a_worker_that_is_told_to_stop_lets_its_handlers_finish(here, app, busy):
    worker, id_ = busy
    worker.signal(signal.SIGTERM)
    stopping = json.loads(worker.logs(r'.*"event": "stopping".*')[0])
    assert (stopping["running"], stopping["held"]) == (1, 1)
    later = submit(here, "noop")
    (app / "go").touch()
    assert worker.ends() == 0
    assert status(here, id_) == "succeeded"
    assert status(here, later) == "queued"
    assert row(here, "SELECT count(*) FROM workers") == (0,)  # signed off


def test_the_second_signal_ends_a_worker_at_once(here, busy):
    worker, id_ = busy
    worker.signal(signal.SIGTERM)
    worker.logs(r'.*"event": "stopping".*')
    assert worker.running()
    worker.signal(signal.SIGTERM)
    assert worker.ends(within_s=5) == 1
    assert status(here, id_) == "running"  # the reaper's now


def test_a_worker_that_is_told_to_stop_while_it_starts_stops_in_order(start, here, proxy):
    wire = proxy(here["POSTGRES_URL"])
    wire.swallow("down")
    worker = start("worker", **here | {"POSTGRES_URL": wire.url})
    until(lambda: wire.links)  # it asks Postgres, and gets no answer
    worker.signal(signal.SIGTERM)
    until(lambda: none_pending(worker.pid))
    wire.heal()
    assert worker.ends() == 0
    assert any('"stopped"' in line for line in worker.err)
    assert row(here, "SELECT count(*) FROM workers") == (0,)


@pytest.fixture(params=[60, 0], ids=["asleep", "at work"])
def blocked(start, here, app, request) -> tuple[Process, str]:
    """A worker whose loop a handler blocks, in one long sleep or in Python, and the id of its task."""
    worker = start("worker", "--app", "shop", cwd=app, **here)
    worker.says(READY)
    id_ = submit(here, "block", payload=f'{{"s": {request.param}}}')
    until((app / "blocking").exists)
    return worker, id_


def test_the_second_signal_ends_a_worker_at_once_whose_loop_is_blocked(here, blocked):
    worker, id_ = blocked
    worker.signal(signal.SIGINT)
    until(lambda: none_pending(worker.pid))  # else the kernel may give the second one to another thread
    assert worker.running()
    worker.signal(signal.SIGTERM)
    assert worker.ends(within_s=5) == 1
    assert status(here, id_) == "running"  # the reaper's now


@pytest.mark.parametrize("blocked", [0.01], indirect=True)
def test_a_stop_that_comes_while_the_loop_is_blocked_is_not_lost(here, app, blocked):
    worker, id_ = blocked
    worker.signal(signal.SIGTERM)
    (app / "go").touch()
    assert worker.ends() == 0
    assert status(here, id_) == "succeeded"


def test_a_worker_keeps_to_its_connections_to_postgres(start, here):
    """PGPOOL_MAX_CONNS counts the connections of the heartbeat, too."""
    worker = start("worker", **here, PGPOOL_MAX_CONNS="3", METRICS_SAMPLE_MS="10", RECONCILE_INTERVAL_MS="50")
    worker.says(READY)
    ids = [submit(here, "noop") for _ in range(5)]
    until(lambda: {status(here, id_) for id_ in ids} == {"succeeded"})
    (most,) = row(
        here,
        "SELECT count(*) FROM pg_stat_activity"
        " WHERE datname = current_database() AND application_name LIKE 'scheduler-%%'",
    )
    assert 2 <= most <= 3
