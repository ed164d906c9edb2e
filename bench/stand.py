"""A stand: the product's own processes on given servers, to be killed, frozen and started again.

Where `system.py` runs a system as a user would, a stand is for tests that do harm to its parts.
"""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from scheduler.child import Child
from scheduler.errors import StartError
from scheduler.supervisor import HOST, free_port

_READY_S: Final = 20.0
_COMMAND_S: Final = 30.0

APP: Final = ("--app", "bench.work")


class Part:
    """One process of the product, started again as often as wanted, always with one log and one address.

    Args:
        name: What its log is called.
        args: The command line after `scheduler`.
        env: Its whole environment.
        folder: Where its log goes.
    """

    def __init__(self, name: str, args: Sequence[str], env: Mapping[str, str], folder: Path) -> None:
        self.name = name
        self.args = list(args)
        self.env = dict(env)
        self.log = folder / f"{name}.log"
        self.ready = False
        """Whether the last start came to its end, and nobody has killed the process since."""
        self._child: Child | None = None
        self._facts: dict[str, str] = {}

    @property
    def alive(self) -> bool:
        """Whether it runs; a frozen process does."""
        return self._child is not None and self._child.returncode is None

    @property
    def returncode(self) -> int | None:
        """How it ended; None if it runs or never did."""
        return None if self._child is None else self._child.returncode

    @property
    def pid(self) -> int:
        """The process id of the last start."""
        if self._child is None:
            raise StartError(f"{self.name} was never started")
        return self._child.pid

    @property
    def url(self) -> str:
        """Where it serves HTTP."""
        return f"http://{self.env['HTTP_ADDR']}"

    @property
    def metrics(self) -> str:
        """Where its metrics are, since its last start."""
        return f"http://{HOST}:{self._facts['metrics']}/metrics" if self._facts else ""

    def start(self) -> Self:
        """Start it and wait until it is ready.

        Raises:
            StartError: it ended, or was not ready in time.
        """
        if not self.alive:
            if self._child is not None:
                self._child.wait()
            self.ready = False
            self._child = Child(self.args, env=self.env, log=self.log)
            self._facts = self._child.ready(_READY_S)
            self.ready = True
        return self

    def signal(self, number: int) -> None:
        """Send a signal to the process alone, if it runs."""
        if self._child is not None:
            self._child.signal(number)

    def kill(self) -> None:
        """End it as `kill -9` does, and bury it. What it started itself ends by itself."""
        self.ready = False
        self.signal(signal.SIGKILL)
        if self._child is not None:
            self._child.wait()

    def end(self) -> None:
        """End it at once with whatever it started."""
        if self._child is not None:
            self._child.kill()

    def wait(self, timeout_s: float) -> int:
        """Wait for its end; the exit code.

        Raises:
            subprocess.TimeoutExpired: it has not ended in time.
        """
        if self._child is None:
            raise StartError(f"{self.name} was never started")
        return self._child.wait(timeout_s)

    def said(self) -> str:
        """Its log so far."""
        return self.log.read_text(encoding="utf-8", errors="replace") if self.log.exists() else ""


class Stand:
    """Parts that share an environment; entering it promises that all are ended.

    Args:
        env: The environment of every part: the servers, the settings, the build.
        folder: Where the logs go.
    """

    def __init__(self, env: Mapping[str, str], folder: Path) -> None:
        self.env = dict(env) | {"METRICS_ADDR": f"{HOST}:0"}
        self.folder = folder
        self.parts: list[Part] = []

    def api(self, name: str, **env: str) -> Part:
        """An API, not started yet, on an address that it keeps."""
        return self._part(name, ["api"], {"HTTP_ADDR": f"{HOST}:{free_port()}"} | env)

    def worker(self, name: str, **env: str) -> Part:
        """A worker, not started yet, that also serves the workbench's handlers."""
        return self._part(name, ["worker", *APP], env)

    def _part(self, name: str, args: Sequence[str], env: Mapping[str, str]) -> Part:
        part = Part(name, args, self.env | dict(env), self.folder)
        self.parts.append(part)
        return part

    def command(self, *args: str, **env: str) -> subprocess.CompletedProcess[str]:
        """Run a command of the product to its end, which must come within half a minute."""
        return subprocess.run(
            [sys.executable, "-m", "scheduler", *args],
            env=self.env | env,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=_COMMAND_S,
        )

    def end(self) -> None:
        """End every part and forget it."""
        while self.parts:
            self.parts.pop().end()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.end()
