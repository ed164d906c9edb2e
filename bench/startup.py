"""Startup: how long one waits for the command line, for a worker, and for the whole embedded stack.

help     `scheduler worker --help`
worker   a worker, from the start of its process until it takes tasks
stack    `scheduler up` on data that is there already: both servers, the API and a fleet, until it says so
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Final

from bench.rounds import Arms, Size
from bench.stand import Stand
from bench.system import OWN_SERVERS, System, settings_of
from scheduler.errors import StartError

_SCHEDULER: Final = (sys.executable, "-m", "scheduler")
_UP: Final = "Ctrl-C stops everything."
_END_S: Final = 30.0


@contextmanager
def arms(me: System, size: Size) -> Iterator[Arms]:
    """The arms; the stack has been up once, so that its data is there."""
    with tempfile.TemporaryDirectory(prefix="scheduler-") as folder:
        Path(folder).chmod(0o711)  # where root cannot be mapped, Postgres passes through as another user
        _stack(Path(folder), size.workers)
        yield {
            "help": _help,
            "worker": partial(_worker, me, Path(folder)),
            "stack": partial(_stack, Path(folder), size.workers),
        }


def _help() -> dict[str, float]:
    env = settings_of(os.environ, {})
    began = time.monotonic()
    subprocess.run([*_SCHEDULER, "worker", "--help"], env=env, stdout=subprocess.DEVNULL, check=True)
    return {"s": time.monotonic() - began}


def _worker(me: System, folder: Path) -> dict[str, float]:
    with Stand(me.stack.env, folder) as stand:
        began = time.monotonic()
        stand.worker("worker").start()
        return {"s": time.monotonic() - began}


def _stack(folder: Path, workers: int) -> dict[str, float]:
    own = OWN_SERVERS | {"HTTP_ADDR": "127.0.0.1:0", "METRICS_ADDR": "127.0.0.1:0", "LOG_LEVEL": "warning"}
    command = [*_SCHEDULER, "up", "--workers", str(workers), "--data-dir", str(folder / "up")]
    began = time.monotonic()
    with subprocess.Popen(
        command, env=settings_of(os.environ, own), stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        try:
            if not any(line.strip() == _UP for line in process.stdout):
                raise StartError(f"`scheduler up` ended with code {process.wait()}")
            return {"s": time.monotonic() - began}
        finally:
            process.terminate()
            process.stdout.read()
            process.wait(_END_S)
