"""Vitals: what processes hold at a moment, as Linux tells it in /proc."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from scheduler.errors import StartError

_PROC: Final = Path("/proc")


@dataclass(frozen=True, slots=True)
class Vitals:
    """What one process holds: bytes of memory, open descriptors, threads."""

    rss: int
    descriptors: int
    threads: int


def there() -> bool:
    """Whether this system has a /proc to read."""
    return (_PROC / "self" / "status").exists()


def vitals(pid: int) -> Vitals:
    """The vitals of a process that runs.

    Raises:
        StartError: it does not, or this system has no /proc.
    """
    folder = _PROC / str(pid)
    try:
        status = dict(line.split(":", 1) for line in (folder / "status").read_text().splitlines())
        return Vitals(
            rss=int(status["VmRSS"].split()[0]) * 1024,
            descriptors=len(list((folder / "fd").iterdir())),
            threads=int(status["Threads"]),
        )
    except (OSError, KeyError):
        raise StartError(f"process {pid} cannot be looked at in /proc: has it ended?") from None


def below(pid: int) -> list[int]:
    """Every process that `pid` has started, and what those have started."""
    parents: dict[int, list[int]] = {}
    for folder in _PROC.glob("[0-9]*"):
        try:
            parent = int((folder / "stat").read_text(errors="replace").rpartition(")")[2].split()[1])
        except OSError:
            continue  # it has just ended
        parents.setdefault(parent, []).append(int(folder.name))
    found, line = [], [pid]
    while line:
        children = parents.get(line.pop(), [])
        found += children
        line += children
    return found
