"""Solo: what the process that runs a suspect does to the task's result, and what it must not."""

from __future__ import annotations

import asyncio
import json
import math
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
import uvloop
from fix_store import lease_of
from waiting import eventually

from scheduler import clock
from scheduler.model import Lease, new_id
from scheduler.solo import Solo

HANDLERS = """
import asyncio
import os
import time
from pathlib import Path
from scheduler import Context, handler

@handler("waits")
async def waits() -> None:
    Path("waiting").touch()
    while not Path("go").exists():
        await asyncio.sleep(0.01)

@handler("forks")
async def forks() -> None:
    if os.fork() == 0:
        Path("forked").write_text(str(os.getpid()))
        time.sleep(60)
    await asyncio.sleep(60)
"""

LONG_MS = 60_000

LOOPS = [asyncio.new_event_loop, uvloop.new_event_loop]
"""Of a test's loop and of a worker's: they differ in what they raise, and when."""


def suspect(type_: str, **fields: Any) -> Lease:
    lease = lease_of(new_id(), type=type_, suspect=True, **fields)
    lease.claimed = clock.monotonic()
    return lease


@pytest.fixture
async def solo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Callable[..., Solo]]:
    """Make a solo whose child imports HANDLERS and the lines that are given, in the directory of the test."""
    monkeypatch.chdir(tmp_path)
    made: list[Solo] = []

    def make(*lines: str) -> Solo:
        (tmp_path / "shop.py").write_text(HANDLERS + "\n".join(lines))
        made.append(Solo("shop"))
        return made[-1]

    yield make
    for each in made:
        await each.close()


async def test_its_process_logs_as_the_worker_does(solo, monkeypatch, capfd):
    """As JSON, from the same level on, and without what local variables hold: payloads and passwords."""
    monkeypatch.setenv("LOG_LEVEL", "warning")
    child = solo(
        "@handler('tells')",
        "async def tells(payload: dict, ctx: Context) -> None:",
        "    secret = 's3cret'",
        "    ctx.log.info('not shown')",
        "    try:",
        "        1 / 0",
        "    except ZeroDivisionError:",
        "        ctx.log.exception('it failed')",
    )
    lease = suspect("tells")
    assert (await child.run(lease, LONG_MS)).kind == "succeeded"
    lines = [
        json.loads(line) for line in capfd.readouterr().err.splitlines() if '"component": "handler"' in line
    ]
    assert [(line["event"], line["task"]) for line in lines] == [("it failed", lease.id)]
    assert "s3cret" not in json.dumps(lines)


async def test_the_start_of_its_process_is_no_part_of_a_tasks_time(solo):
    result = await solo("time.sleep(1)").run(suspect("noop"), 500)
    assert (result.kind, result.error) == ("succeeded", None)
    assert result.wait_us > 1e6 > result.run_us


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("1 / 0", "its process ended with exit code 1 before it was ready"),
        ("os._exit(3)", "its process ended with exit code 3 before it was ready"),
        ("os.kill(os.getpid(), 9)", "its process was killed by SIGKILL before it was ready"),
        ("time.sleep(60)", "its process was not ready after 1 s"),
    ],
)
async def test_a_process_that_does_not_start_is_no_loss_of_the_task(solo, monkeypatch, line, why):
    monkeypatch.setattr("scheduler.solo._PAUSE_S", 0.0)
    monkeypatch.setattr("scheduler.solo._START_S", 1.0 if "sleep" in line else 30.0)
    here = solo(line)
    result = await here.run(suspect("noop"), LONG_MS)
    assert (result.kind, result.error) == ("interrupted", f"it was to run alone, and {why}")
    assert not here.started


@pytest.mark.parametrize("loop", LOOPS)
def test_a_process_can_be_ended_when_it_has_just_started(loop):
    """A worker that stood still finds at once that the child is ready and that the lease is over."""

    class Late(Solo):
        async def _ready(self) -> asyncio.subprocess.Process:
            child = await super()._ready()
            self.end("lost")
            await child.wait()
            return child

    async def late() -> str:
        here = Late(None)
        try:
            return (await here.run(suspect("noop"), LONG_MS)).kind
        finally:
            await here.close()

    with asyncio.Runner(loop_factory=loop) as runner:
        assert runner.run(late()) == "lost"


@pytest.mark.parametrize("loop", LOOPS)
def test_a_process_that_ends_before_it_has_begun_is_no_loss_of_the_task(monkeypatch, loop):
    """Somebody kills an idle child, and nobody has told the worker yet."""
    monkeypatch.setattr("scheduler.solo._PAUSE_S", 0.0)

    class Killed(Solo):
        async def _ready(self) -> asyncio.subprocess.Process:
            child = await super()._ready()
            os.kill(child.pid, signal.SIGKILL)
            return child

    async def killed() -> tuple[str, str | None]:
        here = Killed(None)
        try:
            result = await here.run(suspect("noop"), LONG_MS)
            return result.kind, result.error
        finally:
            await here.close()

    with asyncio.Runner(loop_factory=loop) as runner:
        kind, error = runner.run(killed())
    assert (kind, error) == (
        "interrupted",
        "it was to run alone, and its process was killed by SIGKILL before it had begun",
    )


@pytest.mark.parametrize("loop", LOOPS)
def test_a_process_that_has_died_by_itself_can_be_ended_all_the_same(monkeypatch, loop):
    """While it was started, its lease ended, and so did it."""
    start = asyncio.create_subprocess_exec

    async def died() -> str:
        here = Solo(None)

        async def dies(*_: object, **pipes: object) -> asyncio.subprocess.Process:
            child = await start(sys.executable, "-c", "", **pipes)
            await child.wait()
            here.end("lost")
            return child

        monkeypatch.setattr("asyncio.create_subprocess_exec", dies)
        return (await here.run(suspect("noop"), LONG_MS)).kind

    with asyncio.Runner(loop_factory=loop) as runner:
        assert runner.run(died()) == "lost"


@pytest.mark.parametrize("loop", LOOPS)
def test_an_answer_that_came_in_time_counts_though_the_worker_stood_still(loop):
    async def stood_still() -> str:
        here = Solo(None)
        try:
            quick = suspect("sleeper", payload={"sleep_ms": 100})
            running = asyncio.create_task(here.run(quick, 500))
            await eventually(lambda: here.began < math.inf)
            time.sleep(1)  # noqa: ASYNC251 - the loop must stand still
            return (await running).kind
        finally:
            await here.close()

    with asyncio.Runner(loop_factory=loop) as runner:
        assert runner.run(stood_still()) == "succeeded"


async def test_a_process_whose_end_nobody_tells_keeps_no_lane(monkeypatch):
    """A handler that waits for every child of its process takes the exit codes of ours."""
    monkeypatch.setattr("scheduler.solo._BURY_S", 0.05)

    class Silent:
        pid, returncode = 1, None

        def kill(self) -> None: ...

        async def wait(self) -> None:
            await asyncio.Event().wait()

    here = Solo(None)
    here._child = Silent()
    here.end("timed_out")
    assert await asyncio.wait_for(here._bury(), 5) is None
    assert not here.started


async def test_what_a_handler_forks_is_ended_by_the_usual_signals(solo):
    here = solo(
        "import signal",
        "@handler('terminates')",
        "async def terminates() -> None:",
        "    here, there = os.pipe()",
        "    child = os.fork()",
        "    if child == 0:",
        "        os.write(there, b'.')",
        "        time.sleep(60)",
        "        os._exit(0)",
        "    os.read(here, 1)",
        "    os.kill(child, signal.SIGTERM)",
        "    assert os.waitpid(child, 0)[1] == signal.SIGTERM",
    )
    assert (await here.run(suspect("terminates"), 20_000)).kind == "succeeded"


@pytest.mark.parametrize(("cause", "kind"), [("stopping", "interrupted"), ("lost", "lost")])
async def test_a_process_that_is_starting_can_be_ended(solo, tmp_path, cause, kind):
    here = solo("Path('starting').touch()", "time.sleep(60)")
    running = asyncio.create_task(here.run(suspect("noop"), LONG_MS))
    await asyncio.sleep(0)  # there is no process yet
    here.end(cause)
    assert (await asyncio.wait_for(running, 10)).kind == kind
    running = asyncio.create_task(here.run(suspect("noop"), LONG_MS))
    await eventually((tmp_path / "starting").exists)
    here.end(cause)
    assert (await asyncio.wait_for(running, 10)).kind == kind


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_a_signal_to_all_of_a_workers_processes_does_not_end_the_run(solo, tmp_path, number):
    here = solo()
    running = asyncio.create_task(here.run(suspect("waits"), LONG_MS))
    await eventually((tmp_path / "waiting").exists)
    os.kill(here._child.pid, number)
    (tmp_path / "go").touch()
    assert (await running).kind == "succeeded"


async def test_a_process_that_a_handler_leaves_behind_does_not_keep_its_run(solo, tmp_path):
    try:
        result = await asyncio.wait_for(solo().run(suspect("forks"), 500), 10)
        assert result.kind == "timed_out"
    finally:
        os.kill(int((tmp_path / "forked").read_text()), signal.SIGKILL)
