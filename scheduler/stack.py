"""The whole system on one machine: embedded servers where none are named, one API, a few workers.

Every part is a child with a lifeline, so nothing is left when this process ends, however it ends.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from scheduler import clock
from scheduler.child import Child
from scheduler.config import load, masked
from scheduler.embedded import Postgres, Redis
from scheduler.errors import StartError
from scheduler.supervisor import Server, free_port

Say = Callable[[str], None]

_LAST_PORT: Final = 65_535
_FIRST_PAUSE_S: Final = 0.1
_LONGEST_PAUSE_S: Final = 10.0


class Stack:
    """Starts the parts and stops them again: workers, the API, and at last the servers.

    Args:
        env: Settings, as environment variables. Where POSTGRES_URL or REDIS_ADDR is set, that server is
            used and none is started.
        data_dir: Where embedded servers keep their data, and all parts their logs.
        say: Told in one line whatever a person should know.
    """

    def __init__(self, env: Mapping[str, str], data_dir: Path, say: Say) -> None:
        self.env = dict(env)
        self.data_dir = data_dir
        self._say = say
        self._parts = ExitStack()
        self._servers = self._parts.enter_context(ExitStack())  # closed last: others need them to stop
        self.postgres: Postgres | None = None
        self.redis: Redis | None = None
        self.children: list[Child] = []
        self._pause_s = _FIRST_PAUSE_S
        self._revive_at = 0.0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def start_servers(self, *, postgres_settings: Mapping[str, str] | None = None) -> None:
        """Start Postgres and Redis unless they are named in the environment, and bring the schema up to date.

        Raises:
            ConfigError: a setting is malformed.
            StartError: a server cannot be started or reached.
        """
        load(self.env)  # nothing is started for settings that cannot work
        wanted: dict[str, tuple[Server, int]] = {}
        if not self.env.get("POSTGRES_URL"):
            self.postgres = Postgres(self.data_dir / "postgres", port=5432, settings=postgres_settings)
            wanted["POSTGRES_URL"] = (self.postgres, 5432)
        if not self.env.get("REDIS_ADDR"):
            password = self.env.get("REDIS_PASS") or None
            self.redis = Redis(self.data_dir / "redis", port=6379, password=password)
            wanted["REDIS_ADDR"] = (self.redis, 6379)
        with ThreadPoolExecutor() as threads:  # neither waits for the other
            for server, _ in wanted.values():
                self._servers.callback(server.stop)
            starting = [threads.submit(server.start) for server, _ in wanted.values()]
            # Importing it takes as long as the servers need to start, and longer than the processes may wait.
            from scheduler import migrate  # noqa: PLC0415
        for started, (name, (server, port)) in zip(starting, wanted.items(), strict=True):
            started.result()
            self.env[name] = server.url
            self._chosen(server.name, port, server.port)
        asyncio.run(migrate.apply(self.env["POSTGRES_URL"]))

    def start_all(
        self, workers: int, *, args: Sequence[str] = ()
    ) -> tuple[dict[str, str], list[dict[str, str]]]:
        """Start the servers, the API and `workers` workers and wait until all serve; what each announced.

        The processes import while the servers start, which take no longer than that.

        Raises:
            ConfigError: a setting is malformed.
            StartError: a part does not start.
        """
        api = self._launch_api(early=True)
        fleet = self._launch_workers(workers, args, None, early=True)
        self.start_servers()
        for child in (api, *fleet):
            child.tell({name: self.env[name] for name in ("POSTGRES_URL", "REDIS_ADDR")})
        return api.ready(), [child.ready() for child in fleet]

    def start_api(self) -> dict[str, str]:
        """Start the API and wait until it serves; what it announced (`http`, `metrics`, `pid`)."""
        return self._launch_api().ready()

    def start_workers(
        self, n: int, *, args: Sequence[str] = (), env: Mapping[str, str] | None = None
    ) -> list[tuple[Child, dict[str, str]]]:
        """Start `n` worker processes at once and wait until all serve; each with what it announced.

        Raises:
            StartError: one does not; then all of these are ended.
        """
        children = self._launch_workers(n, args, env)
        try:
            return [(child, child.ready()) for child in children]
        except BaseException:
            for child in children:
                self.end(child)
            raise

    def _launch_api(self, *, early: bool = False) -> Child:
        return self._start(["api"], 0, ("HTTP_ADDR", "METRICS_ADDR"), early=early)

    def _launch_workers(
        self, n: int, args: Sequence[str], env: Mapping[str, str] | None, *, early: bool = False
    ) -> list[Child]:
        return [
            self._start(["worker", *args], 1 + i, ("METRICS_ADDR",), env=env, early=early) for i in range(n)
        ]

    def end(self, child: Child, *, grace_s: float = 15.0) -> int:
        """Stop one child before the stack is stopped; its exit code."""
        self.children.remove(child)
        return child.stop(grace_s)

    def revive_workers(self) -> None:
        """Start a worker that has ended again, in its place: one that a handler took down, say.

        If it does not start, the first call after a pause tries again; the pause doubles from 0.1 s to 10 s.
        """
        for i, child in enumerate(self.children):
            if child.args[0] != "worker" or child.returncode is None or clock.monotonic() < self._revive_at:
                continue
            self._say(f"a worker ended with code {child.wait()}; starting it again")
            try:
                self.children[i] = child.again()
                self.children[i].ready()
            except (StartError, OSError) as error:  # no memory, no processes left
                self._say(f"it did not start; trying again in {self._pause_s:g} s: {error}")
                self._revive_at = clock.monotonic() + self._pause_s
                self._pause_s = min(2 * self._pause_s, _LONGEST_PAUSE_S)
            else:
                self._parts.callback(self._end, self.children[i])
                self._pause_s = _FIRST_PAUSE_S

    def check(self, *, workers: bool = True) -> None:
        """See that every part that was started still runs; workers, too, unless they are revived anyway.

        Raises:
            StartError: one has ended; where it may have said why.
        """
        for server in (self.postgres, self.redis):
            if server is not None and not server.alive():
                raise StartError(f"{server.name} has ended; see {server.log_path}")
        for child in self.children:
            if child.returncode is not None and (workers or child.args[0] != "worker"):
                what = f"`scheduler {child.args[0]}` ended with code {child.returncode}"
                raise StartError(f"{what}; see {self.data_dir / 'logs'}")

    def stop(self) -> None:
        """Stop everything: workers, the API, the servers."""
        for child in self.children:
            if child.args[0] == "worker":
                child.ask()  # all at once, or one takes what another has given back
        self._parts.close()

    def _start(
        self,
        args: list[str],
        offset: int,
        addresses: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        early: bool = False,
    ) -> Child:
        """Start a child on its addresses, counted up from those of the settings, or on free ones."""
        env = self.env | dict(env or {})
        settings, _ = load(env)
        for name in addresses:
            host, wanted = settings.metrics_addr if name == "METRICS_ADDR" else settings.http_addr
            port = 0
            if wanted:
                wanted += offset
                port = free_port(wanted if wanted <= _LAST_PORT else None, host)
                self._chosen(f"{args[0]} ({name})", wanted, port)
            env[name] = masked(name.lower(), (host, port))
        number = len(self.children)
        child = Child(args, env=env, log=self._log(f"{args[0]}-{number}.log"), early=early)
        self.children.append(child)
        self._parts.callback(self._end, child)
        return child

    def _end(self, child: Child) -> None:
        if child in self.children:
            self.end(child)

    def _log(self, name: str) -> Path:
        path = self.data_dir / "logs" / name
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"")
        except OSError as error:
            raise StartError(
                f"no logs can be kept in {path.parent} ({error.strerror}): choose another data directory"
            ) from None
        return path

    def _chosen(self, what: str, wanted: int, port: int) -> None:
        if port != wanted:
            self._say(f"port {wanted} is taken; {what} listens on {port}")
