"""Connections to Postgres that fail fast and come back at once.

psycopg_pool is not used: after an outage it waits for pauses that double up to minutes, and a worker has
to go on within seconds. What is needed here is small: a few connections, opened when they are wanted, each
used for one statement at a time, and an end to every wait. A query on a dead link cannot be cancelled (the
cancel request waits, too), so the deadline shuts the socket down and the statement fails as lost. The server
does not notice that while it waits for a lock or computes: so it has the same deadline (`statement_timeout`).
Otherwise each try would leave a statement behind that goes on waiting and keeps what it has locked.
"""

from __future__ import annotations

import asyncio
import os
import select
import socket
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any, Final

import psycopg
from psycopg.conninfo import make_conninfo

from scheduler.config import mask_url
from scheduler.errors import InputRefused, StartError, StoreBusy, StoreError, StoreUnavailable

Connection = psycopg.AsyncConnection[tuple[Any, ...]]
Rows = list[tuple[Any, ...]]

# Every statement here names its rows by id, in id order, and means the index scan that locks them in that
# order. With statistics of a freshly filled table the planner has chosen a sequential scan instead, at three
# times the cost, and a hash join, which locks in any order. `jit` would compile the plans that these
# settings make look expensive.
_PLANNER: Final = (
    "SET enable_seqscan = off; SET enable_hashjoin = off; SET enable_mergejoin = off; SET jit = off"
)

_UNAVAILABLE: Final = ("08", "40", "53", "57", "58", "25P03", "25006")
"""SQLSTATE prefixes after which the same statement may succeed later: connection failures, serialization and
deadlock, resources, shutdown and statement timeout, system errors, idle session ended, read-only server."""

_LOCKED: Final = "55P03"
"""SQLSTATE of a lock that was not granted in time."""

_REFUSED: Final = ("22", "54")
"""SQLSTATE prefixes that blame the values: data exception, program limit exceeded."""


def translate(error: psycopg.Error) -> StoreError:
    """The error of this package that stands for one of psycopg's."""
    state = error.sqlstate or ""
    # Not `str(error)`, whose detail shows the row: a payload has no place in a log.
    text = " ".join((error.diag.message_primary or str(error)).split())[:500]
    if state.startswith(_REFUSED) or (not state and isinstance(error, psycopg.DataError)):
        return InputRefused(f"Postgres refused a value ({state or 'client side'}): {text}")
    if state == _LOCKED:
        return StoreBusy(f"Postgres gave up waiting for a lock ({state}): {text}")
    if state.startswith(_UNAVAILABLE) or (not state and isinstance(error, psycopg.OperationalError)):
        return StoreUnavailable(f"Postgres is not available ({state or 'connection'}): {text}")
    return StoreError(f"Postgres answered {state or 'an error'}: {text}")


class Connections:
    """At most `size` connections to one database, opened when wanted.

    Args:
        url: A postgres:// URL.
        size: Most connections at once; further callers wait their turn, for as long as for an answer.
        name: Shown in pg_stat_activity.
        timeout_s: The longest wait for a connection and for the answer to one statement.
        prepare_threshold: Executions before a statement is prepared on the server; None = never, as
            PgBouncer in transaction mode needs it.
    """

    def __init__(
        self, url: str, *, size: int, name: str, timeout_s: float, prepare_threshold: int | None
    ) -> None:
        self.shown_url = mask_url(url)
        self._timeout_s = timeout_s
        # Whoever waits for a lock learns it well before the deadline: it is no outage, and others may go on.
        ms = round(timeout_s * 1000)
        self._deadline = f"SET statement_timeout = {ms}; SET lock_timeout = {max(1, ms // 2)}"
        self._prepare_threshold = prepare_threshold
        self._free: list[Connection] = []
        self._places = asyncio.Semaphore(size)
        self._closed = False
        try:
            self._conninfo = make_conninfo(
                url,
                application_name=name,
                connect_timeout=max(2, round(timeout_s)),
                keepalives_idle=5,
                keepalives_interval=2,
                keepalives_count=3,
                tcp_user_timeout=round(timeout_s * 1000),
            )
        except psycopg.Error as error:
            raise StartError(f"POSTGRES_URL={self.shown_url} cannot be read: {error}") from None

    async def run(self, sql: str, params: Mapping[str, Any] | None = None) -> Rows:
        """Run one statement, committed by itself, and return its rows ([] if it has none).

        Raises:
            StoreUnavailable: Postgres could not be reached or gave no answer in time, or no connection came
                free. Whether the statement was committed is unknown.
            StoreBusy: it had waited for a lock for half of that time.
            InputRefused: the values were refused.
            StoreError: any other answer.
        """
        async with self._connection() as connection:
            cursor = await self._execute(connection, sql, params)
            try:
                return await cursor.fetchall() if cursor.description else []
            except psycopg.Error as error:  # a value that cannot be loaded
                raise translate(error) from None

    async def close(self) -> None:
        """Close the idle connections; those in use close when they come back."""
        self._closed = True
        while self._free:
            await self._free.pop().close()

    @asynccontextmanager
    async def _connection(self) -> AsyncIterator[Connection]:
        await self._place()
        try:
            connection = await self._take() or await self._connect()
            try:
                yield connection
            except BaseException:
                # After an error or a cancellation an answer may still be on its way: never use it again,
                # unless the server itself has said what was wrong.
                if connection.info.transaction_status != psycopg.pq.TransactionStatus.IDLE:
                    await connection.close()
                raise
            finally:
                if not connection.closed:
                    if self._closed:
                        await connection.close()
                    else:
                        self._free.append(connection)
        finally:
            self._places.release()

    async def _place(self) -> None:
        try:
            async with asyncio.timeout(self._timeout_s):
                await self._places.acquire()
        except TimeoutError:
            raise StoreUnavailable(f"no connection to {self.shown_url} came free in time") from None

    async def _take(self) -> Connection | None:
        while self._free:
            connection = self._free.pop()
            if connection.closed:
                continue
            if not _has_news(connection):
                return connection
            await connection.close()
        return None

    async def _connect(self) -> Connection:
        try:
            async with asyncio.timeout(self._timeout_s):
                connection = await psycopg.AsyncConnection.connect(
                    self._conninfo, autocommit=True, prepare_threshold=self._prepare_threshold
                )
        except TimeoutError:
            raise StoreUnavailable(f"Postgres at {self.shown_url} did not answer in time") from None
        except psycopg.Error as error:
            raise translate(error) from None
        try:
            # Several statements at once cannot be prepared.
            await self._execute(connection, f"{_PLANNER}; {self._deadline}", None, prepare=False)
        except BaseException:
            await connection.close()
            raise
        return connection

    async def _execute(
        self,
        connection: Connection,
        sql: str,
        params: Mapping[str, Any] | None,
        *,
        prepare: bool | None = None,
    ) -> psycopg.AsyncCursor[tuple[Any, ...]]:
        deadline = asyncio.get_running_loop().call_later(self._timeout_s, _sever, connection)
        try:
            return await connection.execute(sql, params, prepare=prepare)
        except psycopg.Error as error:
            raise translate(error) from None
        except UnicodeEncodeError as error:  # a lone surrogate
            raise InputRefused(f"a text cannot be sent to Postgres: {error.reason}") from None
        finally:
            deadline.cancel()


def _has_news(connection: Connection) -> bool:
    """Whether an idle connection has something to read: the server's farewell, or the end of the link."""
    idle = select.poll()
    idle.register(connection.fileno(), select.POLLIN)
    return bool(idle.poll(0))


def _sever(connection: Connection) -> None:
    """Shut the socket down, so that whoever waits for its answer learns at once that it is lost."""
    if connection.closed:
        return
    with socket.socket(fileno=os.dup(connection.fileno())) as link:
        link.shutdown(socket.SHUT_RDWR)
