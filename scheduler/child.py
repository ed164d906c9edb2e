"""Child processes of the product: started, waited for until they are ready, and never left behind.

A child announces itself with one line on standard output, `ready KIND key=value ...`, once it serves. It
holds the reading end of a pipe, its lifeline, whose other end only its parent has: when the parent is gone,
however it went, the child reads the end of the pipe and stops. Unlike a parent-death signal that works from
any thread and on every POSIX system.

A child may be started before all of its settings are known: it imports what it needs, and reads the rest of
its environment from the lifeline before it looks at any of them.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Final

from scheduler.errors import StartError

_END_AFTER_S: Final = 5.0
_ANNOUNCEMENT: Final = re.compile(r"ready \w+( \w+=\S+)+")


def announce(kind: str, **facts: object) -> None:
    """Say on standard output that this process is ready."""
    print("ready", kind, *(f"{k}={v}" for k, v in facts.items()), flush=True)  # noqa: T201 - the announcement


def hold_lifeline(fd: int) -> None:
    """Stop this process when the other end of the pipe `fd` closes: in good order, or hard after 5 s."""

    def wait() -> None:
        with contextlib.suppress(OSError):
            while os.read(fd, 64):
                pass
        os.kill(os.getpid(), signal.SIGTERM)
        threading.Event().wait(_END_AFTER_S)
        os._exit(1)

    threading.Thread(target=wait, name="lifeline", daemon=True).start()


def hear(fd: int) -> dict[str, str]:
    """What the parent tells through the lifeline `fd`: the rest of the environment.

    Raises:
        StartError: the parent is gone.
    """
    line = b""
    while not line.endswith(b"\n"):
        part = os.read(fd, 1)  # no more than the line: what comes after it is for hold_lifeline
        if not part:
            raise StartError("the process that started this one ended before it had said all settings")
        line += part
    told: dict[str, str] = json.loads(line)
    return told


class Child:
    """A `scheduler` command in a process and session of its own.

    Args:
        args: The command line after `scheduler`, e.g. `["worker"]`; `--lifeline` is added.
        env: The whole environment of the child.
        log: Where its standard error goes; None leaves it with ours.
        early: It is started before its environment is known in full, and waits for `tell`.
    """

    def __init__(
        self, args: Sequence[str], *, env: Mapping[str, str], log: Path | None = None, early: bool = False
    ) -> None:
        self.args = list(args)
        self._env = dict(env)
        read_end, self._lifeline = os.pipe()  # neither is inherited by other children
        output: IO[bytes] | None = log.open("ab") if log is not None else None
        try:
            self._process = subprocess.Popen(
                [
                    *(sys.executable, "-m", "scheduler", *args, "--lifeline", str(read_end)),
                    *(["--early"] if early else []),
                ],
                env=self._env,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=output,
                pass_fds=[read_end],
                start_new_session=True,
                encoding="utf-8",
                errors="replace",  # what a handler prints must not end the reader
            )
        finally:
            os.close(read_end)
            if output is not None:
                output.close()
        self._log = log
        self._asked = False
        self._lines: queue.Queue[str | None] = queue.Queue()
        threading.Thread(target=self._read, name=f"output of {self.pid}", daemon=True).start()

    @property
    def pid(self) -> int:
        """The process id."""
        return self._process.pid

    @property
    def returncode(self) -> int | None:
        """The exit code, None while it runs; negative for the signal that ended it."""
        return self._process.poll()

    def tell(self, variables: Mapping[str, str]) -> None:
        """Complete the environment of a child that was started early; one that has ended need not know."""
        self._env |= variables
        with contextlib.suppress(BrokenPipeError):
            os.write(self._lifeline, json.dumps(dict(variables)).encode() + b"\n")

    def ready(self, timeout_s: float = 30.0) -> dict[str, str]:
        """Wait for the announcement; its facts.

        Raises:
            StartError: the child ended or said nothing in time. The child is ended.
        """
        try:
            line = self._lines.get(timeout=timeout_s)
        except queue.Empty:
            self.kill()
            raise StartError(f"`scheduler {self.args[0]}` was not ready after {timeout_s:.0f} s") from None
        if line is None:
            code = self._process.wait()
            raise StartError(f"`scheduler {self.args[0]}` ended with exit code {code}{self._last_words()}")
        return dict(part.split("=", 1) for part in line.split()[2:])

    def again(self) -> Child:
        """Another one of the same command line, environment and log."""
        return Child(self.args, env=self._env, log=self._log)

    def signal(self, number: int) -> None:
        """Send a signal; a child that has ended already is left in peace."""
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(number)

    def wait(self, timeout_s: float | None = None) -> int:
        """Wait for the end; the exit code.

        Raises:
            subprocess.TimeoutExpired: it has not ended in time.
        """
        code = self._process.wait(timeout_s)
        self._close()
        return code

    def ask(self) -> None:
        """Ask it to end in good order; once, for at a second signal it ends at once."""
        if not self._asked:
            self._asked = True
            self.signal(signal.SIGTERM)

    def stop(self, grace_s: float = 15.0) -> int:
        """End it in good order, or at once when the grace is over; the exit code."""
        self.ask()
        try:
            return self.wait(grace_s)
        except subprocess.TimeoutExpired:
            return self.kill()

    def kill(self) -> int:
        """End it at once, with whatever it started itself."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        return self.wait()

    def _close(self) -> None:
        lifeline, self._lifeline = self._lifeline, -1  # first: two threads may wait for one child
        if lifeline >= 0:
            os.close(lifeline)

    def _read(self) -> None:
        output = self._process.stdout
        assert output is not None
        with output:
            for line in output:
                if _ANNOUNCEMENT.fullmatch(line.rstrip("\n")):
                    self._lines.put(line)
        self._lines.put(None)

    def _last_words(self) -> str:
        """The last line of the child's log, which says why it ended."""
        if self._log is None:
            return ""
        lines = self._log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        return f": {lines[-1]}" if lines else ""
