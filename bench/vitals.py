"""Vitals: what processes hold and what CPU they have used, as Linux tells it in /proc."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from scheduler.errors import StartError

_PROC: Final = Path("/proc")
_TICK_S: Final = 1 / os.sysconf("SC_CLK_TCK")
_STATE, _PPID, _UTIME, _STIME, _CUTIME, _CSTIME = 0, 1, 11, 12, 13, 14
"""Fields of /proc/PID/stat behind the command's name."""

_LOCAL, _TCP_STATE, _INODE = 1, 3, 9
"""Fields of a line of /proc/PID/net/tcp."""

_ESTABLISHED, _LISTEN = "01", "0A"


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


def callers(pid: int) -> int:
    """Connections that others have opened to a process: their number is up to them.

    Raises:
        StartError: the process does not run, or this system has no /proc.
    """
    folder = _PROC / str(pid)
    mine, sockets = set(), []
    try:
        for link in (folder / "fd").iterdir():
            with suppress(OSError):  # it has just been closed
                mine.add(link.readlink().name)
        for family in ("tcp", "tcp6"):
            for line in (folder / "net" / family).read_text(encoding="ascii").splitlines()[1:]:
                fields = line.split()
                if f"socket:[{fields[_INODE]}]" in mine:
                    sockets.append((fields[_LOCAL].rpartition(":")[2], fields[_TCP_STATE]))
    except OSError:
        raise StartError(f"process {pid} cannot be looked at in /proc: has it ended?") from None
    served = {port for port, state in sockets if state == _LISTEN}
    return sum(port in served and state == _ESTABLISHED for port, state in sockets)


def below(*pids: int) -> list[int]:
    """Every living process that one of `pids` has started, and what those have started."""
    return _below(pids, {pid: fields for pid, fields in _stats().items() if fields[_STATE] != "Z"})


def cpu_s(pids: Collection[int]) -> float:
    """Seconds of CPU that these processes and all below them have used, also those that have ended since."""
    stats = _stats()
    counted = {*pids, *_below(pids, stats)} & stats.keys()
    used = sum(int(stats[pid][field]) for pid in counted for field in (_UTIME, _STIME, _CUTIME, _CSTIME))
    return used * _TICK_S


def _below(pids: Collection[int], stats: Mapping[int, Sequence[str]]) -> list[int]:
    children: dict[int, list[int]] = {}
    for pid, fields in stats.items():
        children.setdefault(int(fields[_PPID]), []).append(pid)
    found: list[int] = []
    line = list(pids)
    while line:
        started = children.get(line.pop(), [])
        found += started
        line += started
    return found


def _stats() -> dict[int, list[str]]:
    """What /proc/PID/stat holds of every process."""
    found = {}
    for folder in _PROC.glob("[0-9]*"):
        with suppress(OSError):  # it has just ended
            text = (folder / "stat").read_text(encoding="utf-8", errors="replace")
            found[int(folder.name)] = text.rpartition(")")[2].split()
    return found
