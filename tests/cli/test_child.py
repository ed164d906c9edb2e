"""A child process as its parent sees it: what it says, and what is left of it."""

from __future__ import annotations

import os
from pathlib import Path

from fix_process import environment

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
