"""A peer: another task queue for Python, in a virtual environment of its own, that does the work we do.

Its programs are in `peer_apps/` and use nothing but what its documentation tells: the way in that it offers
for many tasks, its own worker, its own settings. What it has finished is read from its own store, where it
has put it for good.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Protocol

from bench.stats import middle_rate
from bench.vitals import cpu_s
from scheduler.errors import StartError

APPS: Final = Path(__file__).with_name("peer_apps")
PLACE: Final = APPS.parents[1] / ".scheduler" / "peers"
WARM_UP: Final = 600
_LIFELINE: Final = """
exec 3<&0 </dev/null
setsid sh -c 'read -r _ <&3; kill -s TERM -- "-$0"; kill -s CONT -- "-$0"' $$ >/dev/null 2>&1 &
exec 3<&- "$@"
"""
"""Run "$@" in this process, beside a watcher that ends its group when our end of its input closes: a peer's
workers do not outlive us, however we end."""

_READY_S: Final = 30.0
_LOOK_S: Final = 0.01


@dataclass(frozen=True, slots=True)
class Setup:
    """One way to run a peer's workers.

    Attributes:
        name: What its arm is called.
        told: The same for a reader, in the peer's own words.
        processes: How many worker processes.
        env: The settings, as its program reads them.
        options: Words at the end of the workers' command.
    """

    name: str
    told: str
    processes: int
    env: Mapping[str, str] = field(default_factory=dict)
    options: tuple[str, ...] = ()


class Peer(Protocol):
    """What a peer must tell."""

    name: str
    durability: str
    setups: tuple[Setup, ...]
    ready: str
    """What each of its worker processes writes once it serves."""
    server_pid: int

    def enqueue(self, n: int) -> None:
        """Add n noops."""

    def commands(self, setup: Setup) -> list[list[str]]:
        """The commands that start its workers."""

    def env(self, setup: Setup) -> dict[str, str]:
        """The environment of its workers."""

    def times(self, n: int) -> list[float]:
        """Wait until n noops are done; the seconds at which each was, in their order."""

    def clear(self) -> None:
        """Forget all that is done."""


def drain(peer: Peer, setup: Setup, n: int) -> dict[str, float]:
    """Let workers of a peer drain n noops, as `peers.ours` lets ours.

    They are ready and have run some before; they are frozen while the noops come in.

    Returns:
        `rate`, tasks a second between 5 % and 95 % of them; `cpu_us`, microseconds of CPU a task of the
        workers and their server.
    """
    peer.clear()
    with running(peer, setup) as fleet:
        peer.enqueue(WARM_UP)
        peer.times(WARM_UP)
        peer.clear()
        send(fleet, signal.SIGSTOP)
        peer.enqueue(n)
        pids = [peer.server_pid, *(process.pid for process in fleet)]
        used = cpu_s(pids)
        send(fleet, signal.SIGCONT)
        times = peer.times(n)
        used = cpu_s(pids) - used
    return {"rate": middle_rate(times), "cpu_us": used * 1e6 / n}


@contextmanager
def running(peer: Peer, setup: Setup) -> Iterator[list[subprocess.Popen[bytes]]]:
    """Workers of a peer from the moment when all are ready."""
    log = PLACE / f"{peer.name}.log"
    with log.open("wb") as output:
        fleet = [
            subprocess.Popen(
                ["sh", "-c", _LIFELINE, "peer", *command],
                cwd=APPS,
                env=peer.env(setup),
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
            for command in peer.commands(setup)
        ]
    try:
        deadline = time.monotonic() + _READY_S
        while log.read_text(errors="replace").count(peer.ready) < setup.processes:
            if time.monotonic() > deadline or any(process.poll() is not None for process in fleet):
                raise StartError(f"the workers of {peer.name} did not start: see {log}")
            time.sleep(_LOOK_S)
        yield fleet
    finally:
        send(fleet, signal.SIGCONT)
        for process in fleet:
            process.terminate()
        for process in fleet:
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
            if process.stdin is not None:
                process.stdin.close()


def send(fleet: list[subprocess.Popen[bytes]], number: int) -> None:
    """Send a signal to every process of the workers."""
    for process in fleet:
        if process.poll() is None:
            os.killpg(process.pid, number)


def environment(name: str, requirements: tuple[str, ...]) -> Path:
    """The programs of a virtual environment that has these requirements, made if there is none.

    Raises:
        StartError: it could not be made.
    """
    folder = PLACE / name
    done = folder / "requirements.txt"
    wanted = "\n".join(requirements)
    if not done.exists() or done.read_text(encoding="utf-8") != wanted:
        print(f"installing {', '.join(requirements)}", flush=True)
        run([sys.executable, "-m", "venv", "--clear", str(folder)], name)
        run([str(folder / "bin/pip"), "install", "--quiet", *requirements], name)
        done.write_text(wanted, encoding="utf-8")
    return folder / "bin"


def run(command: list[str], name: str, env: Mapping[str, str] | None = None) -> None:
    """Run a command of a peer to its end.

    Raises:
        StartError: it failed.
    """
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=env)
    if done.returncode:
        raise StartError(f"{name}: `{' '.join(command)}` failed: {done.stderr.strip()[-300:]}")
