"""The connection of an HTTP client: what an answer consists of leaves in one piece.

uvicorn writes the head of an answer and its body one after the other, and uvloop sends each at once. Two
packets cost both sides a system call more than one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, cast

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol


class GatheringTransport:
    """A transport that sends what is written within one turn of the event loop at the end of that turn.

    Everything else is the transport's that it stands for.
    """

    __slots__ = ("_call_soon", "_parts", "_transport")

    def __init__(self, transport: asyncio.Transport, call_soon: Callable[[Callable[[], None]], Any]) -> None:
        self._transport = transport
        self._call_soon = call_soon
        self._parts: list[bytes] = []

    def write(self, data: bytes) -> None:
        """Send `data` with whatever else is written in this turn."""
        if not self._parts:
            self._call_soon(self.flush)
        self._parts.append(data)

    def close(self) -> None:
        """Send what was written, then close."""
        self.flush()
        self._transport.close()

    def flush(self) -> None:
        """Send what was written."""
        data = b"".join(self._parts)
        self._parts.clear()
        if data and not self._transport.is_closing():
            self._transport.write(data)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)


class HttpProtocol(HttpToolsProtocol):
    """uvicorn's protocol over a transport that gathers."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        gathering = GatheringTransport(transport, self.loop.call_soon)
        self._gathering = gathering
        super().connection_made(cast("asyncio.Transport", gathering))

    def eof_received(self) -> None:
        """Send what was written: who says no more may still read, and uvloop closes right after this."""
        self._gathering.flush()
