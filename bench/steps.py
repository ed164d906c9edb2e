"""Steps: what each step on a task's way costs: in the processes of API and workers, in Postgres, in Redis.

    with Samples([pid, ...]) as samples:        # needs py-spy
        ...
    samples.shares()                            # {"settle: Postgres client": 0.31, ...}

A server tells by its clock how long it was in each statement and script. Of a Python process py-spy takes
samples of the threads that are at work; a step's share of the samples is its share of the CPU.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final, NamedTuple, Self, cast

import psycopg
import redis

from scheduler.errors import StartError

_OTHER: Final = "everything else"
_STATEMENTS: Final = {
    "enqueue": r"WITH input AS \(.*INSERT INTO tasks",
    "claim": r"UPDATE tasks AS t SET .*attempts = t\.attempts \+",
    "settle": r"WITH settled AS \(",
}
"""How each statement of the path begins, its white space taken together."""

_SPENT: Final = """
SELECT query, calls, total_exec_time * 1000 FROM pg_stat_statements
WHERE toplevel AND userid <> (SELECT oid FROM pg_roles WHERE rolname = current_user)
"""
_WHERE: Final = {
    "api": "request",
    "enqueue": "enqueue",
    "lease": "lease and claim",
    "slots": "run",
    "settle": "settle",
    "heartbeat": "heartbeat",
    "loop": "loops",
}
"""By a module of the product, or its folder: the step that whatever it calls belongs to."""

_POSTGRES: Final = re.compile(r"/psycopg\w*/|/scheduler/(?:store|connections|arrays|table)\.py")
_REDIS: Final = re.compile(r"/redis/|/scheduler/(?:queue|shard)\.py")
_MODULE: Final = re.compile(r"/scheduler/(?!api/server\.py)(\w+)(?:/|\.py)")
_EXPORTER: Final = re.compile(r"/(?:wsgiref|prometheus_client)/")
_RATE: Final = 100
_END_S: Final = 60.0


class Spent(NamedTuple):
    """What a server has done so far, or, after `since`, between two looks: calls and microseconds by step."""

    calls: Mapping[str, float]
    us: Mapping[str, float]

    def since(self, earlier: Spent) -> Spent:
        """What was added since an earlier look."""
        return Spent(*(_less(now, then) for now, then in zip(self, earlier, strict=True)))


def _less(now: Mapping[str, float], then: Mapping[str, float]) -> dict[str, float]:
    return {name: value - then.get(name, 0.0) for name, value in now.items()}


def statements(admin_url: str) -> Spent:
    """What Postgres was asked by others than its superuser; pg_stat_statements must watch it."""
    calls: Counter[str] = Counter()
    us: Counter[str] = Counter()
    with psycopg.connect(admin_url, dbname="postgres", autocommit=True) as connection:
        for query, n, spent in connection.execute(_SPENT):
            name = statement_of(query)
            calls[name] += n
            us[name] += spent
    return Spent(cast("Mapping[str, float]", calls), cast("Mapping[str, float]", us))


def statement_of(query: str) -> str:
    """The name of a statement of the path."""
    text = " ".join(query.split())
    return next((name for name, like in _STATEMENTS.items() if re.match(like, text)), _OTHER)


def scripts(url: str) -> Spent:
    """What Redis was asked to run; the commands of a script are in its time."""
    with redis.Redis.from_url(url) as client:
        stats = cast("dict[str, dict[str, float]]", client.info("commandstats"))
    row = stats.get("cmdstat_evalsha", {"calls": 0.0, "usec": 0.0})
    return Spent({"scripts": float(row["calls"])}, {"scripts": float(row["usec"])})


def step_of(stack: str) -> str:
    """The step of a sample: its frames from the outermost to the innermost, `name (file:line);...`."""
    steps = [_WHERE[module] for module in _MODULE.findall(stack) if module in _WHERE]
    if not steps:
        return "metrics page" if _EXPORTER.search(stack) else "event loop and sockets"
    step = steps[-1]
    if _POSTGRES.search(stack):
        return f"{step}: Postgres client"
    return f"{step}: Redis client" if _REDIS.search(stack) else step


class Samples:
    """Samples of processes, from entering until leaving.

    Args:
        pids: The processes; they may be stopped when it begins.

    Raises:
        StartError: py-spy is not installed, or may not look into them.
    """

    def __init__(self, pids: Sequence[int]) -> None:
        self._pids = pids
        self._found: Counter[str] = Counter()

    def shares(self) -> dict[str, float]:
        """By step, its share of all samples."""
        total = self._found.total()
        return {step: n / total for step, n in self._found.most_common()}

    def __enter__(self) -> Self:
        places = os.pathsep.join((str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)))
        program = shutil.which("py-spy", path=places)
        if program is None:
            raise StartError("this needs py-spy: run `pip install py-spy`")
        self._folder = tempfile.TemporaryDirectory(prefix="scheduler-steps-")
        how = ["--rate", str(_RATE), "--format", "raw", "--full-filenames", "--nonblocking"]
        self._spies = []
        for pid, path in zip(self._pids, self._paths(), strict=True):
            command = [program, "record", "--pid", str(pid), *how, "--output", str(path)]
            self._spies.append(subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE))
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            for spy in self._spies:
                spy.send_signal(signal.SIGINT)
            for spy, path in zip(self._spies, self._paths(), strict=True):
                said = spy.communicate(timeout=_END_S)[1]
                if path.exists():
                    self._found += counted(path.read_text(encoding="utf-8", errors="replace"))
                elif kind is None:
                    raise StartError(f"py-spy found nothing: {said.decode(errors='replace').strip()[-300:]}")
        finally:
            for spy in self._spies:
                spy.kill()
            self._folder.cleanup()

    def _paths(self) -> Iterator[Path]:
        return (Path(self._folder.name) / f"{pid}.txt" for pid in self._pids)


def counted(raw: str) -> Counter[str]:
    """Samples by step, of lines `frame;frame;frame n`."""
    found: Counter[str] = Counter()
    for line in raw.splitlines():
        stack, _, n = line.rpartition(" ")
        found[step_of(stack)] += int(n)
    return found
