"""Processes that are found by a mark in their environment, which every child of a marked one has, too."""

from __future__ import annotations

from pathlib import Path

import pytest

MARK = "BENCH_TEST_MARK"

needs_proc = pytest.mark.skipif(
    not Path("/proc/self/environ").exists(), reason="processes are found by their environment in /proc"
)


def marked(mark: str) -> set[int]:
    """The processes that carry the mark."""
    found = set()
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if f"{MARK}={mark}".encode() in (entry / "environ").read_bytes().split(b"\0"):
                found.add(int(entry.name))
        except OSError:
            continue  # it has just ended, or is somebody else's
    return found


def command(pid: int) -> str:
    """The command line of a process; "" if it has ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")
    except OSError:
        return ""
