"""Fleet: one process that supervises N processes of a kind, workers or APIs, on one machine.

One that ends is started again, after a pause that doubles from 0.1 s to 10 s and is forgotten once it has
lived for half a minute. Each has a metrics port of its own, counted up from METRICS_ADDR.
"""

from __future__ import annotations

import os
import signal
import subprocess
import threading
from collections.abc import Mapping, Sequence
from typing import Final

from scheduler import clock, log
from scheduler.child import Child, announce
from scheduler.config import Settings, masked
from scheduler.errors import StartError

_FIRST_PAUSE_S: Final = 0.1
_LONGEST_PAUSE_S: Final = 10.0
_LIVED_S: Final = 30.0
_LAST_PORT: Final = 65_535
_EXPLAINED: Final = 2
"""Exit code of a child that has said what was wrong, on the standard error that it shares with us."""


class Fleet:
    """N processes and the parent that watches them.

    Args:
        args: The command line of one of them, e.g. `["worker", "--app", "shop.tasks"]`; its first word is
            the kind.
        env: Their environment; METRICS_ADDR is set for each.

    Raises:
        StartError: METRICS_ADDR is so high that the last ones would have no port.
    """

    def __init__(self, settings: Settings, size: int, args: Sequence[str], env: Mapping[str, str]) -> None:
        host, first = settings.metrics_addr
        if first and first + size - 1 > _LAST_PORT:
            raise StartError(
                f"METRICS_ADDR={masked('metrics_addr', (host, first))} leaves no ports for {size}"
                f" {args[0]} processes:"
                " they are counted up from it; choose a lower one (port 0: any)"
            )
        self._settings = settings
        self._size = size
        self._args = list(args)
        self._kind = self._args[0]
        self._env = dict(env)
        self._children: list[Child] = []
        self._signals = 0
        self._wake = threading.Event()
        self._log = log.get("fleet")

    def run(self) -> int:
        """Start them and watch them until a signal ends the fleet; the exit code.

        Raises:
            StartError: one could not be started at all; the others are stopped.
        """
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_signal)
        watchers: list[threading.Thread] = []
        try:
            self._begin()
            watchers = [
                threading.Thread(target=self._keep, args=(i,), name=f"keeper {i}") for i in range(self._size)
            ]
            for watcher in watchers:
                watcher.start()
            announce("fleet", **{f"{self._kind}s": self._size}, pid=os.getpid())
            while not self._signals:
                self._wake.wait(1.0)
        except StartError:
            if any(child.returncode == _EXPLAINED for child in self._children):
                return _EXPLAINED
            raise
        finally:
            self._signals = self._signals or 1
            self._end_all(watchers)
        return 0

    def _begin(self) -> None:
        """Start them, the first one alone: what keeps all of them from starting is said once."""
        for i in range(self._size):
            self._children.append(self._start(i))
            if i == 0:
                announce(self._kind, **self._children[0].ready())
        for child in self._children[1:]:
            announce(self._kind, **child.ready())

    def _on_signal(self, _number: int, _frame: object) -> None:
        self._signals += 1
        self._wake.set()
        if self._signals > 1:
            for child in self._children:
                child.signal(signal.SIGKILL)

    def _ending(self) -> bool:
        return self._signals > 0

    def _start(self, i: int) -> Child:
        host, port = self._settings.metrics_addr
        env = self._env | {"METRICS_ADDR": masked("metrics_addr", (host, port + i if port else 0))}
        return Child(self._args, env=env)

    def _keep(self, i: int) -> None:
        """Start number `i` again whenever it ends, until the fleet ends."""
        pause = _FIRST_PAUSE_S
        while not self._signals:
            born = clock.monotonic()
            code = self._children[i].wait()
            if self._ending():
                return
            if clock.monotonic() - born > _LIVED_S:
                pause = _FIRST_PAUSE_S
            self._log.warning(f"{self._kind} ended; starting it again", number=i, code=code, pause_s=pause)
            self._wake.wait(pause)
            pause = min(2 * pause, _LONGEST_PAUSE_S)
            if not self._ending():
                try:
                    self._children[i] = self._start(i)
                    announce(self._kind, **self._children[i].ready())
                except (
                    StartError,
                    OSError,
                ) as error:  # no memory left, or nobody reads what we say
                    self._log.warning(f"{self._kind} did not start", number=i, error=str(error))

    def _end_all(self, watchers: Sequence[threading.Thread]) -> None:
        for child in self._children:
            child.signal(signal.SIGTERM)
        grace_s = self._settings.shutdown_grace_ms / 1000 + 10
        for child in self._children:
            try:
                child.wait(grace_s)
            except subprocess.TimeoutExpired:
                child.kill()
        for watcher in watchers:
            watcher.join()
        for child in self._children:  # one may have been started while the end began
            child.stop(grace_s)
