"""An arena: a system of its own that is to be harmed, with someone who starts again what dies.

Two APIs and three workers, on an embedded Postgres and an embedded Redis. One API and one worker reach both
stores through proxies, the others directly, so that a fault on the wire splits the system. Leases are short
and loops are quick: what takes minutes in production takes seconds here.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Final, Self, cast

import psycopg
from psycopg.rows import TupleRow

from bench import journal
from bench.proxy import Proxy
from bench.stand import Part, Stand
from bench.system import read_settings, settings_of
from scheduler.config import Settings
from scheduler.embedded import Postgres, Redis
from scheduler.errors import StartError

LEASE_MS: Final = 2000
STORE_TIMEOUT_MS: Final = 1000
MAX_LOSSES: Final = 2
PREFIX: Final = "chaos"

SETTINGS: Final = {
    "REDIS_PREFIX": PREFIX,
    "VIS_TIMEOUT_MS": str(LEASE_MS),
    "STORE_TIMEOUT_MS": str(STORE_TIMEOUT_MS),
    "ENQUEUE_TIMEOUT_MS": "2000",
    "MAX_LOSSES": str(MAX_LOSSES),
    "WORKER_POOL": "3",
    "LEASE_BATCH_SIZE": "20",
    "PGPOOL_MAX_CONNS": "6",
    "REDIS_MIN_IDLE": "1",
    "REAPER_SCAN_INTERVAL_MS": "300",
    "RECONCILE_INTERVAL_MS": "300",
    "RETRY_SCAN_INTERVAL_MS": "300",
    "RETRY_BASE_MS": "100",
    "RETRY_MAX_MS": "1000",
    "RETRY_JITTER_MS": "100",
    "METRICS_SAMPLE_MS": "1000",
}

FAST: Final = {"fsync": "off"}
"""Nobody cuts the power here; a process that dies loses nothing that it gave to the system."""

_KEEP_S: Final = 0.2
_ANSWER_S: Final = 20.0
"""How long an observer tries to ask a Postgres that is being harmed."""


@dataclass(frozen=True, slots=True)
class Death:
    """A process that ended though nobody killed it."""

    part: str
    code: int | None
    said: str


class Arena:
    """The system and its keeper; entering it starts both. It is one that `observation.py` can observe.

    Args:
        folder: Where the servers keep their data and the parts their logs.
        build: Variables with which the parts run another build: see `builds.py`.
        settings: What the parts are started with.
        apis: How many APIs; tasks are sent to the first one, which reaches the stores through the proxies.
        workers: How many workers; the first one is behind the proxies, too.
        postgres: Parameters of Postgres.

    Attributes:
        deaths: The processes that ended by themselves after they had been ready.
    """

    def __init__(
        self,
        folder: Path,
        build: Mapping[str, str],
        *,
        settings: Mapping[str, str] = SETTINGS,
        apis: int = 2,
        workers: int = 3,
        postgres: Mapping[str, str] = FAST,
    ) -> None:
        self._stack = ExitStack()
        self._build = build
        self._folder = folder
        self._env = dict(settings)
        self._numbers = apis, workers
        self.postgres = Postgres(folder / "postgres", settings=postgres)
        self.redis = Redis(folder / "redis")
        self.deaths: list[Death] = []
        self._locks: defaultdict[str, threading.Lock] = defaultdict(threading.Lock)
        self._over = threading.Event()

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            stack.enter_context(self.postgres)
            stack.enter_context(self.redis)
            self.postgres_wire = stack.enter_context(Proxy(self.postgres.url))
            self.redis_wire = stack.enter_context(Proxy(self.redis.url))
            self._start(stack)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self.heal()
        self._stack.close()

    def _start(self, stack: ExitStack) -> None:
        direct = {"POSTGRES_URL": self.postgres.url, "REDIS_ADDR": self.redis.url}
        wired = {"POSTGRES_URL": self.postgres_wire.url, "REDIS_ADDR": self.redis_wire.url}
        env = settings_of(os.environ, self._env | direct) | dict(self._build)
        stand = stack.enter_context(Stand(env, self._folder))
        done = stand.command("migrate")
        if done.returncode != 0:
            raise StartError(f"the schema could not be made: {done.stderr.strip()}")
        journal.install(self.postgres.url)
        apis, workers = self._numbers
        self.apis = [stand.api(f"api-{i + 1}", **({} if i else wired)) for i in range(apis)]
        self.workers = [stand.worker(f"worker-{i + 1}", **({} if i else wired)) for i in range(workers)]
        with ThreadPoolExecutor() as pool:
            for group in (self.workers[1:], [*self.apis, self.workers[0]]):  # whoever is first leads
                list(pool.map(Part.start, group))
        keeper = threading.Thread(target=self._keep, name="keeper")
        keeper.start()
        stack.callback(keeper.join)
        stack.callback(self._over.set)

    @property
    def parts(self) -> list[Part]:
        """Every process but the servers."""
        return [*self.apis, *self.workers]

    @property
    def wires(self) -> list[Proxy]:
        """Both proxies."""
        return [self.postgres_wire, self.redis_wire]

    @property
    def fleet(self) -> list[Part]:
        """The workers."""
        return self.workers

    @property
    def host(self) -> str:
        """Where tasks are sent: the first API."""
        return self.apis[0].url

    @property
    def endpoints(self) -> list[str]:
        """Every metrics endpoint, since the last start of each part."""
        return [part.metrics for part in self.parts]

    @property
    def settings(self) -> Settings:
        """What the parts were started with."""
        return read_settings(self._env)

    @property
    def lease_s(self) -> float:
        """How long a lease lasts."""
        return self.settings.vis_timeout_ms / 1000

    @property
    def postgres_url(self) -> str:
        """The database, past the proxy."""
        return self.postgres.url

    @property
    def redis_url(self) -> str:
        """Redis, past the proxy."""
        return self.redis.url

    @contextmanager
    def alone(self, what: str) -> Iterator[None]:
        """Nobody else harms or mends `what`, a server, a wire or a part, at the same time."""
        with self._locks[what]:
            yield

    def mend(self, within_s: float) -> None:
        """Undo all harm: wires let through, nobody is frozen, whoever is down is started again.

        Raises:
            StartError: a part could not be started in time.
        """
        self.heal()
        for server in (self.postgres, self.redis):
            if server.alive():
                os.kill(server.pid, signal.SIGCONT)
            server.start()
        for part in self.parts:
            part.signal(signal.SIGCONT)
        until = time.monotonic() + within_s
        while down := [part.name for part in self.parts if not (part.alive and part.ready)]:
            if time.monotonic() > until:
                raise StartError(f"{', '.join(down)} could not be started within {within_s:.0f} s")
            time.sleep(_KEEP_S)

    def heal(self) -> None:
        """Let all wires through."""
        for wire in self.wires:
            wire.heal()

    def _keep(self) -> None:
        """Start again whatever has ended, as a supervisor would, until it starts."""
        while not self._over.wait(_KEEP_S):
            for part in self.parts:
                lock = self._locks[part.name]
                if not part.alive and lock.acquire(blocking=False):
                    try:
                        self._revive(part)
                    finally:
                        lock.release()

    def _revive(self, part: Part) -> None:
        if part.ready:
            self.deaths.append(Death(part.name, part.returncode, part.said()[-500:]))
        try:
            part.start()
        except StartError:
            return  # a store is away, and the process has said so; the next look tries again

    def query(self, sql: str, params: Mapping[str, object] | None = None) -> list[tuple[object, ...]]:
        """The observer's own look: one statement, all rows; tried again while Postgres is away.

        Raises:
            psycopg.OperationalError: it is away for too long.
        """
        until = time.monotonic() + _ANSWER_S
        while True:
            try:
                with self.connect() as connection:
                    return connection.execute(sql.encode(), params).fetchall()
            except psycopg.OperationalError:
                if time.monotonic() > until:
                    raise
                time.sleep(_KEEP_S)

    def now(self) -> datetime:
        """The time by Postgres' clock."""
        return cast(datetime, self.query("SELECT clock_timestamp()")[0][0])

    def connect(self) -> psycopg.Connection[TupleRow]:
        """The observer's own connection to Postgres, past the proxy."""
        return psycopg.connect(self.postgres.url, autocommit=True, connect_timeout=2)
