"""Records: what was measured, kept with when, where and by which command.

    {"made": "2026-11-24T10:15:00Z", "command": "bench ratios --rounds 3", "commit": "8a1b20e",
     "machine": {"cpu": ..., "cores": ..., "memory_gib": ..., "kernel": ..., "python": ..., "scheduler": ...},
     "result": ...}

A figure of the documents is generated from a record under docs/records/, so that a reader can see what made
it, and make it again.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

RESULTS: Final = Path("results")
"""Where records go that nobody gives another place; git does not see them."""

_ROOT: Final = Path(__file__).parents[1]


def machine() -> dict[str, Any]:
    """What the figures depend on, apart from the settings: processor, memory, system and Python."""
    return {
        "cpu": _cpu(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "scheduler": version("scheduler"),
    }


def commit() -> str:
    """The commit that runs, `+` behind it if files differ from it; "unknown" outside a clone."""
    found = _git("rev-parse", "--short", "HEAD")
    return f"{found}{'+' if _git('status', '--porcelain', '-uno') else ''}" if found else "unknown"


def short(name: str) -> str:
    """The abbreviated hash of a commit that is named in any way git knows; "" if there is none."""
    return _git("rev-parse", "--short", "--verify", "--quiet", f"{name}^{{commit}}")


def default_path(name: str, record: dict[str, Any], number: int = 0) -> Path:
    """`results/NAME-TIME.json`; records of one command differ in their numbers, too."""
    stamp = "".join(c for c in record["made"] if c.isdigit() or c == "T")
    return RESULTS / f"{name}-{stamp}{f'-{number + 1}' if number else ''}.json"


def make(command: Sequence[str], result: Any) -> dict[str, Any]:
    """A record of `result`, which must be made of JSON's types; `command` is what a reader types."""
    return {
        "made": f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}",  # noqa: TID251 - for people; nothing is decided by it
        "command": " ".join(command),
        "commit": commit(),
        "machine": machine(),
        "result": result,
    }


def write(path: Path, record: dict[str, Any]) -> None:
    """Write a record whole or not at all: a reader never finds half of one."""
    write_text(path, json.dumps(record, indent=2, ensure_ascii=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """The same with any text; of two who write at once, one is read."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    part.write_text(text, encoding="utf-8")
    part.replace(path)


def read(path: Path) -> dict[str, Any]:
    """The record in a file."""
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


def told(record: dict[str, Any]) -> str:
    """Where a record comes from, in one line."""
    on = record["machine"]
    return (
        f"`{record['command']}`, {record['made'][:10]}, commit {record['commit']},"
        f" {on['cpu']}, {on['cores']} cores, {on['memory_gib']:g} GiB, Python {on['python']}"
    )


def _cpu() -> str:
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _git(*arguments: str) -> str:
    done = subprocess.run(["git", "-C", _ROOT, *arguments], capture_output=True, text=True, check=False)
    return done.stdout.strip()
