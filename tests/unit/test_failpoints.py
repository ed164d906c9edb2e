"""A failpoint that is not armed changes nothing, and what arms one is checked before anything is done."""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
import sys
from collections.abc import Iterator

import pytest

from scheduler import failpoints
from scheduler.errors import ConfigError, QueueUnavailable


@pytest.fixture(autouse=True)
def disarmed() -> Iterator[None]:
    yield
    failpoints.arm("")


async def answer() -> str:
    return "done"


async def settle() -> str:
    return await failpoints.through("settle.place", answer())


@pytest.fixture
def harmless(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody may wait, say anything, start a task or end a process."""

    def never(*_: object, **__: object) -> None:
        pytest.fail("a failpoint did something")

    for module, name in ((asyncio, "sleep"), (asyncio, "create_task"), (os, "write"), (os, "kill")):
        monkeypatch.setattr(module, name, never)


@pytest.mark.usefixtures("harmless")
@pytest.mark.parametrize("text", ["", "settle.commit:kill", "lease.pop:late:2"])
async def test_what_is_not_armed_is_awaited_and_no_more(text):
    failpoints.arm(text)
    before = vars(failpoints).copy()
    for point in failpoints.POINTS.keys() - {text.partition(":")[0]}:
        assert await failpoints.through(point, answer()) == "done"
    await failpoints.landed()
    assert vars(failpoints) == before


def test_a_process_without_the_variable_arms_nothing():
    """Also where it is there and empty, as an environment file may have it."""
    told = (
        "from scheduler import cli, commands, failpoints\n"
        "commands.config = lambda *_: print(failpoints._armed)\n"
        "cli.main(['config'])\n"
    )
    for variables in ({}, {"SCHEDULER_FAILPOINT": ""}, {"SCHEDULER_FAILPOINT": "lease.pop:kill"}):
        env = {k: v for k, v in os.environ.items() if k != "SCHEDULER_FAILPOINT"} | variables
        done = subprocess.run(
            [sys.executable, "-c", told], env=env, capture_output=True, text=True, check=True
        )
        armed = "('lease.pop', 'kill')" if any(variables.values()) else "None"
        assert (done.stdout.strip(), done.stderr) == (armed, "")


@pytest.mark.parametrize(
    "text",
    [
        "settle.commit",
        "settle:kill",
        "settle.commit:maim",
        "settle.commit:kill:x",
        "settle.commit:kill:0",
        "settle.commit:kill:-1",
        "settle.commit:kill:1:2",
        " ",
    ],
)
def test_what_names_no_failpoint_is_refused(text):
    with pytest.raises(ConfigError, match=re.escape(f"SCHEDULER_FAILPOINT={text!r} is not POINT:MODE[:N]")):
        failpoints.arm(text)
    assert failpoints._armed is None


async def test_it_fires_once_at_its_nth_call(capfd):
    failpoints.arm("settle.place:lost:2")
    assert await settle() == "done"
    with pytest.raises(QueueUnavailable, match=r"failpoint settle\.place:lost"):
        await settle()
    assert await settle() == "done"
    assert capfd.readouterr().err == "failpoint settle.place:lost was hit\n"


async def test_what_is_late_happens_after_its_caller_knows_of_an_error(capfd, monkeypatch):
    monkeypatch.setattr(failpoints, "_LATE_S", 0.01)
    failpoints.arm("settle.place:late")
    with pytest.raises(QueueUnavailable):
        await settle()
    assert capfd.readouterr().err == "failpoint settle.place:late was hit\n"
    await failpoints.landed()
    assert capfd.readouterr().err == "failpoint settle.place:late happened\n"


async def test_a_loop_waits_for_what_is_late_in_it_and_not_for_another(capfd, monkeypatch):
    """The heartbeat has a loop of its own, and it alone can wait for what is late there."""
    monkeypatch.setattr(failpoints, "_LATE_S", 0.01)
    failpoints.arm("settle.place:late")
    with pytest.raises(QueueUnavailable):
        await settle()
    await asyncio.to_thread(asyncio.run, failpoints.landed())
    assert "happened" not in capfd.readouterr().err
    await failpoints.landed()
    assert "happened" in capfd.readouterr().err
