"""Builds: the product as another commit has it, and broken ones, to prove that the tests would notice.

A broken build is a copy of the package with one piece of its text replaced: one guard taken out. A test that
stays green on it watches nothing. A process runs a build when it is started with the variables that `made` or
`committed` gives.
"""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from scheduler.errors import ConfigError, StartError

_ROOT: Final = Path(__file__).resolve().parents[1]


@dataclass(frozen=True, slots=True)
class Build:
    """One guard, and how it is taken out.

    Attributes:
        without: What the build does without.
        file: The file below `scheduler/`.
        old: A text that it holds exactly once.
        new: What stands there instead.
    """

    without: str
    file: str
    old: str
    new: str


BUILDS: Final[dict[str, Build]] = {
    "fence-off": Build(
        "the fence of a settle: whoever reports an outcome is believed, and the history gets one row more",
        "sql/settle.sql",
        "WHERE t.id = d.id AND t.attempts = d.attempt"
        " AND t.status = CASE WHEN d.attempt > 0 THEN 'running' END\n"
        "    RETURNING\n"
        "        t.id, d.attempt,",
        "WHERE t.id = d.id\n"
        "    RETURNING\n"
        "        t.id,"
        " (SELECT coalesce(max(attempt), 0) + 1 FROM task_runs WHERE task_id = t.id) AS attempt,",
    ),
    "reap-early": Build(
        "the look at the lease in Postgres: the reaper believes the deadline in Redis",
        "sql/reap.sql",
        " AND t.lease_expires_at <= now()",
        "",
    ),
    "reaper-off": Build(
        "the reaper",
        "worker.py",
        '            Loop("reaper", settings.reaper_scan_interval_ms / 1000, reaper.step, metrics),\n',
        "",
    ),
    "reconcile-off": Build(
        "reconcile",
        "worker.py",
        '            Loop("reconcile", settings.reconcile_interval_ms / 1000, reconciler.step, metrics),\n',
        "",
    ),
    "push-twice": Build(
        "the look into `live` before a push: an id that is known is pushed again",
        "lua/push.lua",
        "if not known[i] and not seen[id] then",
        "if not seen[id] then",
    ),
    "settle-gives-up": Build(
        "the second try of a settle whose answer was lost",
        "settle.py",
        "kept = [s for s in batch if s.lease.expires > now]",
        "kept: list[Settlement] = []",
    ),
    "enqueue-gives-up": Build(
        "the second try of an enqueue whose answer was lost",
        "enqueue.py",
        "_fail([unit for unit in units if unit.deadline < again], error)",
        "_fail(units, error)",
    ),
    "settle-whole": Build(
        "the halving of a batch of outcomes that Postgres refused",
        "settle.py",
        "        if len(batch) > 1:\n",
        "        if len(batch) > 1:\n            raise error\n",
    ),
    "enqueue-whole": Build(
        "the halving of a batch of new tasks that Postgres refused",
        "enqueue.py",
        "            if len(units) == 1:\n",
        "            if True:\n",
    ),
}


@contextmanager
def made(name: str) -> Iterator[dict[str, str]]:
    """Make the broken build `name`; the environment variables with which a process runs it.

    Raises:
        ConfigError: there is no such build, or the text that it replaces is not there exactly once.
    """
    if name not in BUILDS:
        raise ConfigError(f"there is no build {name!r}; there are {', '.join(BUILDS)}")
    build = BUILDS[name]
    with tempfile.TemporaryDirectory(prefix="scheduler-build-") as folder:
        for part in ("scheduler", "migrations"):
            shutil.copytree(_ROOT / part, Path(folder, part), ignore=shutil.ignore_patterns("__pycache__"))
        file = Path(folder, "scheduler", build.file)
        text = file.read_text(encoding="utf-8")
        if text.count(build.old) != 1:
            raise ConfigError(
                f"build {name}: scheduler/{build.file} holds {build.old!r} {text.count(build.old)} times,"
                " and it must be once; correct bench/builds.py"
            )
        file.write_text(text.replace(build.old, build.new), encoding="utf-8")
        yield environment(folder)


@contextmanager
def committed(commit: str) -> Iterator[dict[str, str]]:
    """Take the product out of a commit; the environment variables with which a process runs it.

    Raises:
        StartError: git does not know the commit, or this is no clone.
    """
    with tempfile.TemporaryDirectory(prefix="scheduler-build-") as folder:
        command = [
            "git",
            "-C",
            str(_ROOT),
            "archive",
            "--format=tar",
            commit,
            "--",
            "scheduler",
            "migrations",
        ]
        done = subprocess.run(command, capture_output=True, check=False)
        if done.returncode:
            why = done.stderr.decode(errors="replace").strip().splitlines()
            raise StartError(f"commit {commit} cannot be read: {why[0] if why else 'git failed'}")
        with tarfile.open(fileobj=io.BytesIO(done.stdout)) as files:
            files.extractall(folder, filter="data")
        yield environment(folder)


def environment(folder: str) -> dict[str, str]:
    """The variables with which Python finds its packages in `folder` before all others."""
    path = os.pathsep.join(filter(None, (folder, os.environ.get("PYTHONPATH"))))
    return {"PYTHONPATH": path, "PYTHONSAFEPATH": "1"}  # the second one: not in the working directory
