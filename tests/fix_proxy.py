"""A TCP proxy before a server, so that a test can cut, freeze or slow the real wire."""

from __future__ import annotations

import asyncio
import socket
import struct
import threading
from collections.abc import Callable, Coroutine, Iterator
from contextlib import ExitStack, suppress
from typing import Any, Literal, Self
from urllib.parse import urlsplit, urlunsplit

import pytest

from scheduler.supervisor import HOST, free_port

Way = Literal["up", "down"]
"""`up` is from client to server, `down` is back."""

RESET_ON_CLOSE = struct.pack("ii", 1, 0)
"""SO_LINGER for no time at all: closing then sends RST, not FIN."""


class Proxy:
    """One listening port whose links all lead to one server; entering it starts it.

    It runs on a thread of its own, so neither a blocked event loop nor a synchronous test holds it up.

    `latency_s` may be set at any time; each chunk of bytes is held back for so long on either way.
    """

    def __init__(self, url: str) -> None:
        self._parts = urlsplit(url)
        self.port = free_port()
        self.latency_s = 0.0
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="proxy", daemon=True)
        self._listener: asyncio.Server | None = None
        self._links: dict[asyncio.Task[None], tuple[asyncio.StreamWriter, ...]] = {}
        self._clear: dict[Way, asyncio.Event] = {"up": asyncio.Event(), "down": asyncio.Event()}
        self.heal()

    @property
    def url(self) -> str:
        """The server's URL, but through the proxy."""
        userinfo, at, _ = self._parts.netloc.rpartition("@")
        return urlunsplit(self._parts._replace(netloc=f"{userinfo}{at}{HOST}:{self.port}"))

    @property
    def links(self) -> int:
        """How many connections pass through it now."""
        return len(self._links)

    def start(self) -> None:
        """Listen, on the same port as before."""
        self._call(self._start())

    def stop(self) -> None:
        """Refuse new connections and reset the ones there are, as a dead machine's successor does."""
        self._call(self._stop())

    def reset(self) -> None:
        """Reset all connections; new ones are still accepted."""
        self._call(self._reset())

    def swallow(self, *ways: Way) -> None:
        """Let nothing through on these ways any more. No end is told; what is sent waits for `heal`."""
        for way in ways:
            self._loop.call_soon_threadsafe(self._clear[way].clear)

    def heal(self) -> None:
        """Let everything through again, first what has waited."""
        for event in self._clear.values():
            self._loop.call_soon_threadsafe(event.set)

    def __enter__(self) -> Self:
        self._thread.start()
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _call(self, work: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result(10)

    async def _start(self) -> None:
        if self._listener is None:
            self._listener = await asyncio.start_server(self._link, HOST, self.port)

    async def _stop(self) -> None:
        if self._listener is not None:
            self._listener.close()
            self._listener = None
        await self._reset()

    async def _reset(self) -> None:
        tasks = list(self._links)
        for task in tasks:
            for writer in self._links[task]:
                linger = writer.get_extra_info("socket")
                linger.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
                writer.transport.abort()
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _link(self, client_reader: asyncio.StreamReader, client: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._links[task] = (client,)
        try:
            server_reader, server = await asyncio.open_connection(self._parts.hostname, self._parts.port)
            self._links[task] = (client, server)
            async with asyncio.TaskGroup() as pumps:
                pumps.create_task(self._pump(client_reader, server, "up"))
                pumps.create_task(self._pump(server_reader, client, "down"))
        except* OSError:
            pass  # one end was cut; the other is told below
        except* asyncio.CancelledError:
            pass  # reset: asyncio.Server would log it as an error
        finally:
            for writer in self._links.pop(task):
                writer.transport.abort()

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, way: Way) -> None:
        while data := await reader.read(65536):
            await asyncio.sleep(self.latency_s)
            await self._clear[way].wait()
            writer.write(data)
            await writer.drain()
        await self._clear[way].wait()
        with suppress(OSError):
            writer.write_eof()


@pytest.fixture
def proxy() -> Iterator[Callable[[str], Proxy]]:
    """Make a running proxy before the server of a URL; all are stopped after the test."""
    with ExitStack() as stack:
        yield lambda url: stack.enter_context(Proxy(url))
