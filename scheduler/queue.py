"""Redis, the index: the connections to the server. What is sent over them is in `shard.py`.

redis-py's own commands are passed by: they cost twice the CPU of the few lines in `Index.call`, and they
send a command again after an error, which a lease does not survive. A call here is sent once; whether a
call without an answer was carried out is unknown, and the caller repeats it where the protocol allows that.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import re
from collections.abc import Iterable, Sequence
from functools import cache
from importlib import resources
from typing import Any, Final, NamedTuple

import hiredis
import redis.exceptions
from redis.asyncio import BlockingConnectionPool, ConnectionPool
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from scheduler import clock, config, keys
from scheduler.config import Settings
from scheduler.errors import QueueError, QueueUnavailable, StartError, Unreachable
from scheduler.shard import Census, Shard

_OLDEST_REDIS: Final = (6, 2)
_OLDEST_VALKEY: Final = (8, 0)

_OUTAGES: Final = (
    redis.exceptions.ConnectionError,  # LOADING, a refused password, and too many clients are among them
    redis.exceptions.TimeoutError,
    redis.exceptions.ClusterDownError,  # MASTERDOWN as well
    redis.exceptions.OutOfMemoryError,
    redis.exceptions.ReadOnlyError,
    redis.exceptions.TryAgainError,
    OSError,
)
_OUTAGE_CODES: Final = frozenset({"BUSY", "MISCONF", "NOREPLICAS", "OOM", "READONLY", "UNBLOCKED"})
"""Answers that say `not now` and have no class of their own, or lose it inside a script of Redis 6.2."""

_REFUSALS: Final = (redis.exceptions.AuthenticationError, redis.exceptions.NoPermissionError)

_FOREIGN: Final = "surrogateescape"
"""How bytes that are no UTF-8 are read: somebody else's id must be taken out again by the very same bytes."""

_log = logging.getLogger(__name__)

__all__ = ["Census", "Index", "Shard"]


class Script(NamedTuple):
    """A file of `lua/`: its text, and the name under which a server that has seen it knows it."""

    text: str
    sha: str


@cache
def script(name: str) -> Script:
    """The script `lua/NAME.lua`."""
    text = resources.files("scheduler").joinpath("lua", f"{name}.lua").read_text(encoding="utf-8")
    return Script(text, hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest())


class _ScriptMissing(QueueError):
    """The server has not seen the script since it started."""


class Index:
    """The connections to one Redis, for all queues. Opened lazily; `close` it.

    Raises, in every method but `open` and `shard`:
        QueueUnavailable: Redis cannot be reached, did not answer within STORE_TIMEOUT_MS, or is loading,
            read-only or full. Whether the call was carried out is unknown.
        QueueError: any other error: a defect of ours or a damaged key.
    """

    def __init__(self, settings: Settings, pool: ConnectionPool, waiting: ConnectionPool) -> None:
        self._settings = settings
        self._timeout_s = settings.store_timeout_ms / 1000
        self._pool = pool
        self._waiting = waiting
        self._shards: dict[str, Shard] = {}
        self.polled: float | None = None
        """When Redis last answered, as a reading of clock.monotonic."""

    @classmethod
    def open(cls, settings: Settings, *, name: str) -> Index:
        """An index that connects when it is first used; `name` (no spaces) is shown by CLIENT LIST.

        Raises:
            StartError: the address cannot be read.
        """
        return cls(settings, _pool(settings, name), _pool(settings, f"{name}:wait"))

    def shard(self, queue: str) -> Shard:
        """The keys of a queue. The same object at every call."""
        if queue not in self._shards:
            self._shards[queue] = Shard(self, keys.shard_keys(self._settings.redis_prefix, queue))
        return self._shards[queue]

    async def check(self) -> str:
        """The server's name and version, once it has been found fit for use.

        Raises:
            StartError: it cannot be reached, refuses the password, is too old, or may evict our keys.
        """
        shown = config.mask_url(config.redis_url(self._settings))
        try:
            info = _fields(await self._send(self._pool, ("INFO",), self._timeout_s))
        except (RedisError, OSError) as error:
            if isinstance(error, _REFUSALS):
                raise StartError(f"Redis at {shown} refuses us ({error}): check REDIS_PASS") from None
            why = str(error) or "no answer in time"
            raise Unreachable(
                f"Redis at {shown} does not work ({why}): start it, or set REDIS_ADDR"
            ) from None
        _check_eviction(info, shown)
        return _fit_version(info, shown)

    async def warm(self) -> None:
        """Open REDIS_MIN_IDLE connections, so that the first burst does not wait for them."""
        await asyncio.gather(*(self.ping() for _ in range(self._settings.redis_min_idle)))

    async def wait(self, queues: Sequence[str], timeout_s: float) -> bool:
        """Wait until something becomes ready in one of the queues, at most `timeout_s` seconds.

        True means: lease now. It is a hint. False, and any error, mean nothing: look from time to time.
        """
        wakes = [self.shard(queue).key("wake") for queue in queues]
        args = ("BLPOP", *wakes, max(timeout_s, 0.001))  # 0 would be for ever
        return await self._call(self._waiting, args, timeout_s + self._timeout_s) is not None

    async def run_id(self) -> str:
        """The name of the server's run: it changes when the server restarts."""
        return _fields(await self.call("INFO", "server"))["run_id"]

    async def ping(self) -> None:
        """Return if the server answers."""
        await self.call("PING")

    async def close(self) -> None:
        """Close the connections, those in use included."""
        await self._pool.aclose()
        await self._waiting.aclose()

    async def call(self, *args: Any) -> Any:
        """Send one command, once, and return its answer."""
        return await self._call(self._pool, args, self._timeout_s)

    async def run(self, name: str, shard: tuple[Any, ...], args: Iterable[Any]) -> Any:
        """Run a script; `shard` is the number of keys and the keys."""
        wanted = script(name)
        try:
            return await self.call("EVALSHA", wanted.sha, *shard, *args)
        except _ScriptMissing:  # a restart or a failover: it was not run
            return await self.call("EVAL", wanted.text, *shard, *args)

    async def _call(self, pool: ConnectionPool, args: tuple[Any, ...], timeout_s: float) -> Any:
        try:
            return await self._send(pool, args, timeout_s)
        except (RedisError, OSError) as error:
            raise _translated(error) from None

    async def _send(self, pool: ConnectionPool, args: tuple[Any, ...], timeout_s: float) -> Any:
        packed = _packed(args)
        try:
            async with asyncio.timeout(timeout_s):
                connection = await pool.get_connection()  # type: ignore[no-untyped-call] # lost in a decorator
                try:
                    # Whatever interrupts these lines, the connection closes itself: no later call can
                    # read this one's answer.
                    await connection.send_packed_command(packed)
                    answer = await connection.read_response()
                    self.polled = clock.monotonic()
                    return answer
                finally:
                    await pool.release(connection)
        except RuntimeError as error:  # how uvloop says that the link broke just before this was written
            raise redis.exceptions.ConnectionError(str(error)) from None


def _pool(settings: Settings, name: str) -> ConnectionPool:
    """Connections that neither send anything twice nor keep a time of their own: see Index._send."""
    url = config.redis_url(settings)
    try:
        pool = BlockingConnectionPool.from_url(
            url,
            max_connections=settings.redis_pool_size,
            timeout=None,
            socket_timeout=None,
            socket_connect_timeout=settings.store_timeout_ms / 1000,
            retry=Retry(NoBackoff(), 0),
            protocol=2,
            client_name=name,
            password=settings.redis_pass or None,
            decode_responses=True,
            encoding_errors=_FOREIGN,
        )
        # Connects to nothing, but meets every option that the URL carries.
        pool.make_connection()  # type: ignore[no-untyped-call] # redis-py forgot the annotation
    except (TypeError, ValueError) as error:
        raise StartError(f"REDIS_ADDR={config.mask_url(url)} cannot be read: {error}") from None
    return pool


def _packed(args: Any) -> bytes:
    """The command as it is sent. hiredis does in 20 µs what redis-py does in 200."""
    packed: bytes
    try:
        packed = hiredis.pack_command(args)
    except UnicodeEncodeError:  # an id that came in foreign bytes goes back in the same
        args = tuple(arg.encode("utf-8", _FOREIGN) if isinstance(arg, str) else arg for arg in args)
        packed = hiredis.pack_command(args)
    return packed


def _translated(error: RedisError | OSError) -> QueueError:
    """The error of this package that stands for one of redis-py's."""
    text = str(error)
    if isinstance(error, redis.exceptions.NoScriptError):
        return _ScriptMissing(text)
    # Redis 6.2 hides the code of an error inside a script: `Error running script (...): ... -OOM ...`.
    code = re.match(r"(?:Error running script.*? -)?([A-Z]+) ", text)
    if isinstance(error, _OUTAGES) or (code and code[1] in _OUTAGE_CODES):
        return QueueUnavailable(f"Redis is not available: {text or 'no answer in time'}")
    return QueueError(f"Redis answered an error: {text}")


def _fields(info: str) -> dict[str, str]:
    """The lines `name:value` of an answer to INFO."""
    return dict(line.split(":", 1) for line in info.splitlines() if ":" in line)


def _fit_version(info: dict[str, str], shown: str) -> str:
    if "valkey_version" in info:  # its redis_version is that of the Redis it stands in for
        name, version, oldest = "Valkey", info["valkey_version"], _OLDEST_VALKEY
    else:
        name, version, oldest = "Redis", info["redis_version"], _OLDEST_REDIS
    if tuple(map(int, version.split(".")[:2])) < oldest:
        raise StartError(
            f"Redis at {shown} is {name} {version}: upgrade it, to Redis 6.2 or Valkey 8 at least"
        )
    return f"{name} {version}"


def _check_eviction(info: dict[str, str], shown: str) -> None:
    policy = info.get("maxmemory_policy", "noeviction")
    if policy == "noeviction" or info.get("maxmemory", "0") == "0":
        return
    if not policy.startswith("volatile-"):
        raise StartError(
            f"Redis at {shown} evicts keys when it is full ({policy}): set maxmemory-policy noeviction"
        )
    _log.warning(
        "Redis at %s: maxmemory-policy %s evicts none of our keys, but say noeviction", shown, policy
    )
