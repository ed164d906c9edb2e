"""A peer: another task queue, in an environment of its own, that does the work we do.

Its program is in `peer_apps/` and uses nothing but what its documentation tells: the way in that it offers
for many tasks, its own worker, its own settings. What it has finished is read from its own store, where it
has put it for good.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import distributions
from pathlib import Path
from typing import IO, Final, Protocol

from scheduler.errors import StartError

APPS: Final = Path(__file__).with_name("peer_apps")
PLACE: Final = APPS.parents[1] / ".scheduler" / "peers"
READY: Final = "worker is up"
"""What each of a peer's worker processes writes once it serves."""

_LIFELINE: Final = """
exec 3<&0 </dev/null
setsid sh -c 'read -r _ <&3; kill -s TERM -- "-$0"; kill -s CONT -- "-$0"' $$ >/dev/null 2>&1 &
exec 3<&- "$@"
"""
"""Run "$@" in this process, beside a watcher that ends its group when our end of its input closes: a peer's
workers do not outlive us, however we end."""

_READY_S: Final = 60.0
_LOOK_S: Final = 0.01
_STOP_S: Final = 10.0

Fleet = list[subprocess.Popen[bytes]]
"""The workers of a peer: one process each, with the processes that it has started in its group."""


@dataclass(frozen=True, slots=True)
class Setup:
    """One way to run a peer's workers.

    Attributes:
        name: What its arm is called.
        told: The same for a reader, in the peer's own words.
        command: What starts a worker; `{app}` is the peer's program, `{url}` its server, `{i}` the number of
            the worker.
        workers: How often it is started.
        lines: How many processes of one command say that they serve.
        env: The settings, as its program reads them.
    """

    name: str
    told: str
    command: str
    workers: int = 3
    lines: int = 1
    env: Mapping[str, str] = field(default_factory=dict)


class Store(Protocol):
    """Where a peer keeps its tasks, as an observer sees it."""

    def clear(self, url: str) -> None:
        """Forget everything; no worker may run."""

    def times(self, url: str, n: int) -> list[float]:
        """Wait until nothing is open; the seconds at which each of the last n noops was done, in order."""


@dataclass(frozen=True, slots=True)
class Peer:
    """What is told of a peer.

    Attributes:
        name: Its name as a package.
        title: Its name for a reader.
        program: Its file below `peer_apps/`.
        requirements: What is installed for it: by pip, or by npm if the program is not Python.
        durability: What survives, and what is kept of a task that is done.
        caveat: What a reader must know to judge its figures.
        server: "postgres" or "redis".
        store: How its store is read.
        setups: The ways to run it fast; the first one also serves for latency.
        safe: The way to run it where a worker dies.
        share: Of the burst, for what is slow.
        before: Its rate by pgbench's when it was first measured, by hand, on a machine like this.
    """

    name: str
    title: str
    program: str
    requirements: tuple[str, ...]
    durability: str
    caveat: str
    server: str
    store: Store
    setups: tuple[Setup, ...]
    safe: Setup
    share: float = 1.0
    before: float = 0.0

    @property
    def of_python(self) -> bool:
        """Whether pip installs it."""
        return self.program.endswith(".py")

    def version(self) -> str:
        """The version that is installed."""
        folder = PLACE / self.name
        if not self.of_python:
            package = folder / "node_modules" / self.name / "package.json"
            return str(json.loads(package.read_text(encoding="utf-8"))["version"])
        [packages] = (folder / "lib").glob("*/site-packages")
        return next(found.version for found in distributions(path=[str(packages)]) if found.name == self.name)


@dataclass(frozen=True, slots=True)
class Entrant:
    """A peer that is installed, with its server, the process of that, and the file of its marks."""

    peer: Peer
    url: str
    server_pid: int
    marks: Path

    def clear(self) -> None:
        """Empty its store."""
        self.peer.store.clear(self.url)

    def times(self, n: int) -> list[float]:
        """As the store tells it."""
        return self.peer.store.times(self.url, n)

    def ask(self, setup: Setup, *words: str) -> None:
        """Let its program do something under the settings of `setup`, to its end.

        Raises:
            StartError: it failed.
        """
        language = "python" if self.peer.of_python else "node"
        run([language, str(APPS / self.peer.program), *words], self.peer.name, self._env(setup))

    def _env(self, setup: Setup) -> dict[str, str]:
        folder = PLACE / self.peer.name
        path = os.pathsep.join((str(folder / "bin"), os.environ.get("PATH", os.defpath)))
        found = {"PATH": path, "NODE_PATH": str(folder / "node_modules")}
        return os.environ | found | {"PEER_URL": self.url, "PEER_MARKS": str(self.marks)} | dict(setup.env)

    @contextmanager
    def running(self, setup: Setup) -> Iterator[Fleet]:
        """Its workers from the moment when all are ready."""
        app = str(APPS / self.peer.program)
        commands = [
            [word.format(app=app, url=self.url, i=number) for word in setup.command.split()]
            for number in range(setup.workers)
        ]
        with running(self.peer.name, commands, setup.lines, self._env(setup)) as fleet:
            yield fleet


@contextmanager
def running(
    name: str, commands: Sequence[Sequence[str]], lines: int, env: Mapping[str, str]
) -> Iterator[Fleet]:
    """Commands from the moment when each has said READY `lines` times.

    Raises:
        StartError: that takes too long, or one has ended before.
    """
    PLACE.mkdir(parents=True, exist_ok=True)
    log = PLACE / f"{name}.log"
    with log.open("wb") as output:
        fleet = [_started(command, env, output) for command in commands]
    try:
        deadline = time.monotonic() + _READY_S
        while log.read_text(errors="replace").count(READY) < lines * len(fleet):
            if time.monotonic() > deadline or any(process.poll() is not None for process in fleet):
                raise StartError(f"the workers of {name} did not start: see {log}")
            time.sleep(_LOOK_S)
        yield fleet
    finally:
        send(fleet, signal.SIGCONT)
        for process in fleet:
            process.terminate()
        for process in fleet:
            _ended(process)


def _started(command: Sequence[str], env: Mapping[str, str], output: IO[bytes]) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        ["sh", "-c", _LIFELINE, "peer", *command],
        cwd=APPS,
        env=env,
        stdin=subprocess.PIPE,
        stdout=output,
        stderr=output,
        start_new_session=True,
    )


def _ended(process: subprocess.Popen[bytes]) -> None:
    try:
        process.wait(_STOP_S)
    except subprocess.TimeoutExpired:
        send([process], signal.SIGKILL)
        process.wait()
    if process.stdin is not None:
        process.stdin.close()


def send(fleet: Fleet, number: int) -> None:
    """Send a signal to every process of these workers."""
    for process in fleet:
        if process.poll() is None:
            os.killpg(process.pid, number)


def install(peer: Peer) -> None:
    """Make the environment of a peer, if there is none that has its requirements.

    Raises:
        StartError: it could not be made, and why.
    """
    folder = PLACE / peer.name
    done = folder / "requirements.txt"
    wanted = "\n".join(peer.requirements)
    if done.exists() and done.read_text(encoding="utf-8") == wanted:
        return
    print(f"installing {', '.join(peer.requirements)}", flush=True)
    if peer.of_python:
        run([sys.executable, "-m", "venv", "--clear", str(folder)], peer.name)
        run([str(folder / "bin/pip"), "install", "--quiet", *peer.requirements], peer.name)
    else:
        for program in ("node", "npm"):
            if shutil.which(program) is None:
                raise StartError(f"{program} is not found")
        folder.mkdir(parents=True, exist_ok=True)
        quiet = ("--no-audit", "--no-fund", "--loglevel", "error")
        run(["npm", "install", *quiet, "--prefix", str(folder), *peer.requirements], peer.name)
    done.write_text(wanted, encoding="utf-8")


def run(command: Sequence[str], name: str, env: Mapping[str, str] | None = None) -> None:
    """Run a command of a peer to its end.

    Raises:
        StartError: it failed.
    """
    program = shutil.which(command[0], path=env["PATH"] if env else None) or command[0]
    done = subprocess.run(
        [program, *command[1:]], cwd=APPS, capture_output=True, text=True, check=False, env=env
    )
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise StartError(f"{name}: `{' '.join(command)}` failed: {last[-300:]}")
