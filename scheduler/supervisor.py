"""One server process under supervision: started on loopback, watched, stopped, never left behind.

A server ends with the process that started it, however that dies: a watcher holds the other end of a pipe
and stops the server when the pipe closes. It listens on 127.0.0.1 alone and keeps everything in one data
directory: `data/` is the server's own, and `server.log` stays locked for as long as any of the server's
processes lives, so a second start on the same directory is refused. `embedded.py` has the two servers.
"""

from __future__ import annotations

import errno
import fcntl
import os
import random
import re
import signal
import socket
import subprocess
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cached_property
from itertools import chain
from pathlib import Path
from types import TracebackType
from typing import IO, ClassVar, Final, Self
from weakref import WeakSet

from scheduler.clock import monotonic
from scheduler.errors import StartError

HOST: Final = "127.0.0.1"

_CLAIM_S: Final = 5.0
"""How long a start waits for the previous server on its directory to be gone."""
_START_S: Final = 60.0
"""How long a server may take until it answers; recovery after a kill is part of it."""
_POLL_S: Final = 0.01
_PORTS: Final = range(20_000, 32_000)
"""Below the ports that systems give to outgoing connections: one of those could take the port of a server
that is down, even a client of its own that keeps trying to reach it."""

_LIFELINE: Final = """
exec 3<&0 </dev/null
( { read -r _ <&3 || { kill -s "$0" $$; kill -s CONT $$; }; } >/dev/null 2>&1 & )
exec 3<&- "$@"
"""
"""Run "$@" in this process, beside a watcher that sends it the signal $0 when our end of its input closes.

The watcher is there before the server is, so no moment is unguarded. A line on the pipe sends it home."""

_lifelines: Final[WeakSet[IO[bytes]]] = WeakSet()


def _drop_lifelines() -> None:
    for pipe in _lifelines:
        pipe.close()


os.register_at_fork(after_in_child=_drop_lifelines)  # else a forked child would keep our servers alive


def free_port(preferred: int | None = None, host: str = HOST) -> int:
    """`preferred` if a server could listen there on `host`, else some port that is free.

    Raises:
        StartError: none is.
    """
    wanted = [] if preferred is None else [preferred]
    for port in chain(wanted, random.sample(_PORTS, 200)):
        if _is_free(host, port):
            return port
    raise StartError(f"no free TCP port was found on {host} between {_PORTS.start} and {_PORTS.stop}")


def _is_free(host: str, port: int) -> bool:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe, socket.socket() as client:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            # A host that is none of ours is not the port's fault: whoever binds it says so.
            return error.errno not in {errno.EADDRINUSE, errno.EACCES}
        return client.connect_ex((HOST, port)) != 0  # on macOS the bind succeeds beside a wildcard listener


def environment() -> dict[str, str]:
    """Our environment, less what would change a server: PG* variables, and locales that it may not know."""
    return {k: v for k, v in os.environ.items() if not k.startswith(("PG", "LC_", "LANG"))} | {"LC_ALL": "C"}


class Server(ABC):
    """One server under supervision. It is started by `start` or by entering it as a context.

    Args:
        data_dir: made if it is missing; data that is already there is kept and served.
        port: the port to listen on; another one is chosen if it is taken. None: any free one.
        settings: the server's own settings by name; they win over the ones chosen here.
    """

    name: ClassVar[str]
    stop_signal: ClassVar[signal.Signals]
    port_taken: ClassVar[str]
    """What the server writes to its log when somebody else listens on its port."""
    diagnoses: ClassVar[Mapping[str, str]]
    """Words of its log that need more than repeating: what they mean and what to do."""

    def __init__(
        self, data_dir: str | Path, binary: Path, port: int | None, settings: Mapping[str, str] | None
    ) -> None:
        if not binary.is_file():
            raise StartError(f"there is no {self.name} at {binary}: install it, or name another place")
        self.data_dir = Path(data_dir).absolute()
        self.binary = binary
        self.settings = dict(settings or {})
        self._wanted_port = port
        self._port: int | None = None
        self._process: subprocess.Popen[bytes] | None = None

    @abstractmethod
    def _prepare(self, log: IO[bytes]) -> None:
        """Make or check what the server needs in its directory."""

    @abstractmethod
    def _command(self, port: int) -> list[str]: ...

    @abstractmethod
    def _ready(self, port: int, pid: int) -> bool:
        """Whether the process `pid` itself, and nobody else, accepts connections on the port."""

    @property
    @abstractmethod
    def url(self) -> str:
        """Where clients connect."""

    @property
    def port(self) -> int:
        """The port, known from the first start on and kept for all later ones."""
        if self._port is None:
            raise StartError(f"{self.name} was not started yet, so it has no port")
        return self._port

    @property
    def pid(self) -> int:
        """The server's main process."""
        if self._process is None:
            raise StartError(f"{self.name} is not running")
        return self._process.pid

    @property
    def data(self) -> Path:
        """What the server itself keeps."""
        return self.data_dir / "data"

    @property
    def log_path(self) -> Path:
        """Everything the server has written."""
        return self.data_dir / "server.log"

    @cached_property
    def version(self) -> str:
        """The server's version, as `18.6` or `9.1.2`."""
        try:
            done = subprocess.run([self.binary, "--version"], capture_output=True, text=True, check=False)
        except OSError as error:
            raise StartError(f"{self.binary} cannot be run ({error.strerror}): install it again") from None
        found = re.search(r"(?:v=| )(\d+(?:\.\d+)*)", done.stdout)
        if found is None:
            raise StartError(
                f"{self.binary} does not tell its version: {(done.stdout + done.stderr).strip()!r}"
            )
        return found[1]

    def alive(self) -> bool:
        """Whether the process runs. It may be stopped by a signal and still count as alive."""
        if self._process is None:
            return False
        if self._process.poll() is None:
            return True
        self._dismiss_watcher()
        return False

    def start(self) -> Self:
        """Start and wait until connections are accepted. Does nothing if it runs already.

        Raises:
            StartError: the directory, the port or the server itself stood in the way.
        """
        if self.alive():
            return self
        try:
            with self._claimed_log() as log:
                self._prepare(log)
                for _ in range(3):
                    port = self._port or free_port(self._wanted_port)
                    if self._launch(port, log):
                        self._port = port
                        return self
        except OSError as error:
            raise StartError(
                f"{self.name} cannot keep its data in {self.data_dir} ({error.strerror}): "
                "choose another data directory"
            ) from None
        raise StartError(f"port {port} of {self.name} was taken by another process: end that one first")

    def stop(self, timeout_s: float = 30.0) -> None:
        """Stop in an orderly way, by force after `timeout_s`. Does nothing if it does not run."""
        if self.alive() and self._process is not None:
            self._process.send_signal(self.stop_signal)
            self._process.send_signal(signal.SIGCONT)
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(timeout_s)
        self.kill()

    def kill(self) -> None:
        """End the main process as a crash would (SIGKILL). The next start recovers."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._dismiss_watcher()

    def restart(self) -> Self:
        """Stop and start on the same data and port."""
        self.stop()
        return self.start()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @contextmanager
    def _claimed_log(self) -> Iterator[IO[bytes]]:
        """The log, locked. The server inherits the lock with its output and holds it until it is gone."""
        self.data_dir.mkdir(parents=True, exist_ok=True)
        self.log_path.touch(mode=0o600)
        with self.log_path.open("ab") as log:
            deadline = monotonic() + _CLAIM_S
            while not _lock(log):
                if monotonic() > deadline:
                    raise StartError(
                        f"{self.data_dir} is in use by another {self.name}: stop that one, "
                        "or choose another data directory"
                    )
                time.sleep(_POLL_S)
            yield log

    def _launch(self, port: int, log: IO[bytes]) -> bool:
        """Start the process and wait until it is ready; False if it found its port taken."""
        written = os.fstat(log.fileno()).st_size
        self._process = process = subprocess.Popen(
            ["/bin/sh", "-c", _LIFELINE, self.stop_signal.name.removeprefix("SIG"), *self._command(port)],
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=log,
            cwd="/",
            env=environment(),
            bufsize=0,
            start_new_session=True,
        )
        assert process.stdin is not None
        _lifelines.add(process.stdin)
        try:
            deadline = monotonic() + _START_S
            while self.alive():
                if self._ready(port, process.pid):
                    return True
                if monotonic() > deadline:
                    raise StartError(
                        f"{self.name} did not answer within {_START_S:.0f} s: see {self.log_path}"
                    )
                time.sleep(_POLL_S)
        except BaseException:
            self.kill()
            raise
        said = self.log_since(written)
        if self.port_taken in said:
            return False
        known = (meaning for words, meaning in self.diagnoses.items() if words in said)
        why = next(known, None) or last_words(said)
        raise StartError(f"{self.name} did not start in {self.data_dir}: {why} (more in server.log there)")

    def log_since(self, position: int) -> str:
        """What was written to the log from a byte position on."""
        with self.log_path.open("rb") as log:
            log.seek(position)
            return log.read().decode(errors="replace")

    def _dismiss_watcher(self) -> None:
        """Send the watcher home, for the server has ended and its process id may be given to another."""
        if self._process is not None and self._process.stdin is not None:
            with suppress(OSError), self._process.stdin as lifeline:
                lifeline.write(b"ended\n")
        self._process = None


def _lock(file: IO[bytes]) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def last_words(said: str) -> str:
    """The line of a log that says why the server ended, without its time and process id."""
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    fatal = [found[0] for line in lines if (found := re.search(r"\b(FATAL|PANIC|ERROR|error): .*", line))]
    return (fatal or lines or ["it wrote nothing"])[-1]
