"""A TCP proxy before a server, to cut, freeze or slow the real wire between it and its clients.

    with Proxy(postgres.url) as wire:
        ...                              # connect to wire.url instead
        wire.swallow("down")             # requests arrive, answers do not
        wire.heal()
        wire.cut_when(b"COMMIT")         # the next COMMIT is carried out, and nobody is told

Loopback only; it can do whatever happens between two machines but for reordering.
"""

from __future__ import annotations

import asyncio
import socket
import struct
import threading
from collections.abc import Coroutine
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final, Literal, Self
from urllib.parse import urlsplit, urlunsplit

from scheduler.supervisor import HOST, free_port

Way = Literal["up", "down"]
"""`up` is from client to server, `down` is back."""

_RESET_ON_CLOSE: Final = struct.pack("ii", 1, 0)
"""SO_LINGER for no time at all: closing then sends RST, not FIN."""

_CHUNK: Final = 65_536
_CALL_S: Final = 10.0


@dataclass(slots=True)
class _Link:
    """One client's connection and the one to the server that belongs to it."""

    ends: tuple[asyncio.StreamWriter, ...]
    doomed: bool = False
    """Its marker has gone up: the answer must not come down."""

    def break_off(self) -> None:
        """Close both ends with a reset."""
        for writer in self.ends:
            linger = writer.get_extra_info("socket")
            with suppress(OSError):  # closed already
                linger.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
            writer.transport.abort()


class _Cut(OSError):
    """The link was cut on purpose."""


class Proxy:
    """One listening port whose links all lead to one server; entering it starts it.

    It runs on a thread of its own, so neither a blocked event loop nor a synchronous caller holds it up.

    `latency_s` may be set at any time; each chunk of bytes is held back for so long on either way. `cuts`
    counts the links that `cut_when` has ended.
    """

    def __init__(self, url: str) -> None:
        self._parts = urlsplit(url)
        self.port = free_port()
        self.latency_s = 0.0
        self.cuts = 0
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="proxy", daemon=True)
        self._listener: asyncio.Server | None = None
        self._links: dict[asyncio.Task[None], _Link] = {}
        self._clear: dict[Way, asyncio.Event] = {"up": asyncio.Event(), "down": asyncio.Event()}
        self._marker: tuple[Way, bytes] | None = None
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

    def cut_when(self, marker: bytes, way: Way = "up") -> None:
        """Cut the next link on which `marker` passes, once: what was asked is done, its answer is lost.

        `up`: what carries the marker reaches the server, and the link is reset when the answer comes.
        `down`: the link is reset in place of the answer that carries it.
        """
        self._marker = (way, marker)

    def heal(self) -> None:
        """Let everything through again, first what has waited; cut nothing more, hold nothing back."""
        self._marker = None
        self.latency_s = 0.0
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
        asyncio.run_coroutine_threadsafe(work, self._loop).result(_CALL_S)

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
            self._links[task].break_off()
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _link(self, client_reader: asyncio.StreamReader, client: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        link = self._links[task] = _Link((client,))
        try:
            server_reader, server = await asyncio.open_connection(self._parts.hostname, self._parts.port)
            link.ends = (client, server)
            async with asyncio.TaskGroup() as pumps:
                pumps.create_task(self._pump(link, client_reader, server, "up"))
                pumps.create_task(self._pump(link, server_reader, client, "down"))
        except* OSError:
            pass  # one end was cut; the other is told below
        except* asyncio.CancelledError:
            pass  # reset: asyncio.Server would log it as an error
        finally:
            del self._links[task]
            for writer in link.ends:
                writer.transport.abort()

    async def _pump(
        self, link: _Link, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, way: Way
    ) -> None:
        while data := await reader.read(_CHUNK):
            await asyncio.sleep(self.latency_s)
            await self._clear[way].wait()
            if self._must_not_pass(link, way, data):
                self.cuts += 1
                link.break_off()
                raise _Cut
            writer.write(data)
            await writer.drain()
        await self._clear[way].wait()
        with suppress(OSError):
            writer.write_eof()

    def _must_not_pass(self, link: _Link, way: Way, data: bytes) -> bool:
        """Whether the link is to be cut here."""
        if link.doomed:
            return way == "down"
        if self._marker is None or self._marker[0] != way or self._marker[1] not in data:
            return False
        self._marker = None
        link.doomed = True
        return way == "down"
