"""A child process as its parent sees it: what it says, and what is left of it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from fix_process import environment, until

from scheduler.child import Child

NOISY = r"""
import sys
sys.stdout.buffer.write(b"\xff\xfe\nready to go\nready set=\nready\nready worker\n")
sys.stdout.flush()
"""


def test_what_a_handler_prints_is_neither_the_announcement_nor_the_end_of_the_output(
    here, tmp_path, monkeypatch
):
    (tmp_path / "noisy.py").write_text(NOISY)
    monkeypatch.chdir(tmp_path)
    child = Child(["worker", "--app", "noisy"], env=environment(**here), log=tmp_path / "log")
    try:
        facts = child.ready()
        assert facts.keys() == {"metrics", "slots", "pid"}
        assert int(facts["pid"]) == child.pid
    finally:
        assert child.stop() == 0


def test_a_child_that_is_started_early_waits_for_the_rest_of_its_environment(here, tmp_path):
    env = environment(**here)
    known = {name: env.pop(name) for name in ("POSTGRES_URL", "REDIS_ADDR")}
    child = Child(["worker"], env=env | {"POSTGRES_URL": "nowhere"}, log=tmp_path / "log", early=True)
    try:
        child.tell(known)
        assert int(child.ready()["pid"]) == child.pid
        child.kill()
        child = child.again()
        child.ready()
    finally:
        assert child.stop() == 0


@pytest.mark.parametrize("kind", ["api", "worker"])
def test_a_child_that_is_started_early_ends_with_its_parent(tmp_path, kind):
    log = tmp_path / "log"
    child = Child([kind], env=environment(), log=log, early=True)
    child._close()
    assert child.wait(30) == 2
    assert "ended before it had said all settings" in log.read_text()


COLLECTED = """
import gc
from scheduler import Reject, handler

@handler("how")
async def how(payload, context):
    raise Reject(f"enabled {gc.isenabled()}, frozen {gc.get_freeze_count() > 10_000}")
"""


def test_the_collector_works_again_after_the_start_and_leaves_what_that_has_made(site, tmp_path):
    (tmp_path / "how.py").write_text(COLLECTED)
    here = site(workers=0, PYTHONPATH=str(tmp_path))
    here.system.stack.start_workers(1, args=["--app", "how"])
    here.send([{"type": "how"}])
    until(lambda: here.value("SELECT finished_at FROM tasks"))
    assert "enabled True, frozen True" in here.value("SELECT last_error FROM tasks")


def test_two_that_wait_for_a_child_close_its_lifeline_once(monkeypatch):
    """The descriptor may be somebody else's by the second time."""
    child = Child(["worker"], env=environment(WORKER_POOL="none"), log=Path(os.devnull))
    closed: list[int] = []
    close = os.close

    def slowly(fd: int) -> None:
        closed.append(fd)
        if len(closed) == 1:
            child._close()  # what another thread does meanwhile
        close(fd)

    child._process.wait(30)
    with monkeypatch.context() as patch:
        patch.setattr(os, "close", slowly)
        child._close()
    assert len(closed) == 1
