"""Real servers: Postgres and Redis in an old and a new version, shared by all tests, fresh for each.

`postgres_url` and `redis_url` are what most tests ask for: servers of the wheels, unless the conftest.py of a
folder gives `server_kind` both kinds. `any_postgres_url` and `any_redis_url` run a test once on the servers
of the wheels and once on those that the system's packages installed.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from itertools import count
from pathlib import Path
from typing import Any

import psycopg
import pytest
import redis

from scheduler import config, migrate
from scheduler.embedded import Postgres, Redis

TEMPLATE = "template_app"
WHEEL = "wheel"
SYSTEM = "system"
SPARE = "spare"


@contextmanager
def new_directory() -> Iterator[Path]:
    """A directory that other users may pass through, as Postgres needs it where root cannot be mapped."""
    path = Path(tempfile.mkdtemp(prefix="scheduler-test-"))
    path.chmod(0o711)
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


def missing(what: str) -> Any:
    """Skip a test whose server is not installed; in CI everything must be, so fail there."""
    if os.environ.get("CI"):
        pytest.fail(f"{what} is not installed, and in CI it must be")
    pytest.skip(f"{what} is not installed")


def system_postgres() -> Path:
    """The programs of the oldest Postgres that the system's packages installed, 15 or newer."""
    found = [path for path in Path("/usr/lib/postgresql").glob("*/bin") if int(path.parent.name) >= 15]
    return min(found, key=lambda path: int(path.parent.name)) if found else missing("a system Postgres")


def system_redis() -> Path:
    """The redis-server that the system's packages installed."""
    found = shutil.which("redis-server")
    return Path(found) if found else missing("a system redis-server")


def migrate_now(url: str) -> None:
    """Bring a database's schema up to date, from wherever this is called."""
    with ThreadPoolExecutor(1) as other_thread:  # a test's event loop may be current in this one
        other_thread.submit(lambda: asyncio.run(migrate.apply(url))).result()


class Servers:
    """The servers of a test session, each started when it is first asked for."""

    def __init__(self, root: Path, stack: ExitStack) -> None:
        self._root = root
        self._stack = stack
        self._postgres: dict[str, Postgres] = {}
        self._redis: dict[str, Redis] = {}
        self._numbers = count(1)

    def postgres(self, kind: str = WHEEL) -> Postgres:
        """The Postgres of that kind, with a template database that has been migrated."""
        if kind not in self._postgres:
            programs = system_postgres() if kind == SYSTEM else None
            # Nobody cuts the power in a test; what fsync guards against cannot be tested by it.
            server = Postgres(self._root / f"postgres-{kind}", programs, settings={"fsync": "off"})
            self._stack.enter_context(server)
            with psycopg.connect(server.url, autocommit=True) as connection:
                connection.execute(f"CREATE DATABASE {TEMPLATE}")
            migrate_now(server.url.replace("/app?", f"/{TEMPLATE}?"))
            self._postgres[kind] = server
        return self._postgres[kind]

    def redis(self, kind: str = WHEEL) -> Redis:
        """The Valkey of the wheel or the Redis of the system."""
        if kind not in self._redis:
            program = system_redis() if kind == SYSTEM else None
            self._redis[kind] = self._stack.enter_context(Redis(self._root / f"redis-{kind}", program))
        return self._redis[kind]

    @contextmanager
    def database(self, kind: str = WHEEL) -> Iterator[str]:
        """The URL of a migrated, empty database that is dropped afterwards."""
        server = self.postgres(kind)
        name = f"test_{next(self._numbers)}"
        with psycopg.connect(server.url, autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {name} TEMPLATE {TEMPLATE}")
        yield server.url.replace("/app?", f"/{name}?")
        if server.alive():
            # As the superuser: an autovacuum that is at work there is nobody else's to end.
            with psycopg.connect(server.admin_url, autocommit=True) as connection:
                connection.execute(f"DROP DATABASE {name} WITH (FORCE)")

    def empty_redis(self, kind: str = WHEEL) -> str:
        """The URL of a Redis that holds nothing."""
        url = self.redis(kind).url
        with redis.Redis.from_url(url) as client:
            client.flushall()
        return url


@pytest.fixture(scope="session")
def servers() -> Iterator[Servers]:
    with new_directory() as root, ExitStack() as stack:
        yield Servers(root, stack)


@pytest.fixture
def server_dir() -> Iterator[Path]:
    """A directory for servers of the test's own."""
    with new_directory() as path:
        yield path


@pytest.fixture
def own_postgres(servers: Servers) -> Postgres:
    """Another Postgres of the wheel with `app` migrated and empty, for one test to stop, kill and restart."""
    server = servers.postgres(SPARE).restart()
    with psycopg.connect(server.admin_url, dbname="postgres", autocommit=True) as connection:
        connection.execute("DROP DATABASE app WITH (FORCE)")
        connection.execute(f"CREATE DATABASE app TEMPLATE {TEMPLATE} OWNER app")
    return server


@pytest.fixture
def own_redis(server_dir: Path) -> Iterator[Redis]:
    """The wheel's Valkey, empty, for one test to stop, kill and restart."""
    with Redis(server_dir / "redis") as server:
        yield server


@pytest.fixture(scope="session")
def postgres_server(servers: Servers) -> Postgres:
    """The wheel's Postgres, shared: a test that stops or kills it starts its own instead."""
    return servers.postgres()


@pytest.fixture(scope="session")
def system_postgres_server(servers: Servers) -> Postgres:
    return servers.postgres(SYSTEM)


@pytest.fixture(scope="session")
def valkey_server(servers: Servers) -> Redis:
    """The wheel's Valkey, shared: a test that stops or kills it starts its own instead."""
    return servers.redis()


@pytest.fixture(scope="session")
def redis_server(servers: Servers) -> Redis:
    return servers.redis(SYSTEM)


@pytest.fixture(scope="session")
def server_kind(request: pytest.FixtureRequest) -> str:
    """Whose servers `postgres_url` and `redis_url` are: of the wheels, if no test is given other ones."""
    return getattr(request, "param", WHEEL)


@pytest.fixture
def postgres_url(servers: Servers, server_kind: str) -> Iterator[str]:
    """A migrated, empty database on the wheel's Postgres, or on the system's: see `server_kind`."""
    with servers.database(server_kind) as url:
        yield url


@pytest.fixture(params=[WHEEL, SYSTEM])
def any_postgres_url(request: pytest.FixtureRequest, servers: Servers) -> Iterator[str]:
    """A migrated, empty database, on each Postgres in turn."""
    with servers.database(request.param) as url:
        yield url


@pytest.fixture
def redis_url(servers: Servers, server_kind: str) -> str:
    """The wheel's Valkey, or the system's Redis, empty: see `server_kind`."""
    return servers.empty_redis(server_kind)


@pytest.fixture(params=[WHEEL, SYSTEM])
def any_redis_url(request: pytest.FixtureRequest, servers: Servers) -> str:
    """Valkey and Redis in turn, empty."""
    return servers.empty_redis(request.param)


@pytest.fixture
def make_settings(postgres_url: str, redis_url: str) -> Callable[..., config.Settings]:
    """Settings for the two servers of the test; variables by their names change what is asked for."""

    def make(**variables: object) -> config.Settings:
        env = {
            "POSTGRES_URL": postgres_url,
            "REDIS_ADDR": redis_url,
            "METRICS_ADDR": "127.0.0.1:0",
            "HTTP_ADDR": "127.0.0.1:0",
        }
        return config.load(env | {name: str(value) for name, value in variables.items()})[0]

    return make


@pytest.fixture
def settings(make_settings: Callable[..., config.Settings]) -> config.Settings:
    return make_settings()
