"""A small HTTP/1.1 client for generating load: one keep-alive connection, one request at a time.

A general client spends more on a request than the server under test does, and then measures itself. This
one writes prepared bytes and lets httptools read the answer. It follows no redirects, keeps no cookies and
asks for no compression.
"""

from __future__ import annotations

import asyncio
import ssl
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Final, NamedTuple, Self, cast
from urllib.parse import urlsplit

import httptools

TIMEOUT_S: Final = 30.0
"""Longest wait for a connection and for an answer."""


class NoAnswer(Exception):
    """The server refused the connection, broke it or was too slow. `sent`: it may have acted all the same."""

    def __init__(self, why: str, *, sent: bool) -> None:
        super().__init__(why)
        self.sent = sent


class Response(NamedTuple):
    """A complete answer. Names of headers are in lower case."""

    status: int
    headers: dict[str, str]
    body: bytes


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a server listens: the scheme, host and port of its URL."""

    scheme: str
    host: str
    port: int

    @classmethod
    def parse(cls, url: str) -> Self:
        """From `http://127.0.0.1:8080`, or without the scheme.

        Raises:
            ValueError: not an http(s) URL of a host and at most a port.
        """
        try:
            parts = urlsplit(url if "://" in url else f"http://{url}")
            port = parts.port or (443 if parts.scheme == "https" else 80)
        except ValueError as error:
            raise ValueError(f"{url!r} is not an address: {error}") from None
        extra = parts.path.strip("/") or parts.query or parts.fragment or parts.username
        if parts.scheme not in {"http", "https"} or not parts.hostname or extra:
            raise ValueError(f"{url!r} is not an address like http://127.0.0.1:8080")
        return cls(parts.scheme, parts.hostname, port)

    @property
    def authority(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"

    @property
    def loopback(self) -> bool:
        """Whether it is this machine."""
        try:
            return ip_address(self.host).is_loopback
        except ValueError:
            return self.host == "localhost"

    def __str__(self) -> str:
        return f"{self.scheme}://{self.authority}"


def post(origin: Origin, path: str, body: bytes) -> bytes:
    """A POST of JSON as it goes over the wire."""
    head = (
        f"POST {path} HTTP/1.1\r\nHost: {origin.authority}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


class Connection:
    """One connection to `origin`. It opens with the first request and again after it was closed."""

    def __init__(self, origin: Origin, *, timeout_s: float = TIMEOUT_S) -> None:
        self._origin = origin
        self._timeout_s = timeout_s
        self._wire: _Wire | None = None

    async def get(self, path: str) -> Response:
        """The answer to a GET. Raises NoAnswer."""
        return await self._exchange(f"GET {path} HTTP/1.1\r\nHost: {self._origin.authority}\r\n\r\n".encode())

    async def post(self, path: str, body: bytes) -> Response:
        """The answer to a POST of JSON. Raises NoAnswer."""
        return await self._exchange(post(self._origin, path, body))

    def close(self) -> None:
        """Closes at once. The next request opens it again."""
        if self._wire is not None:
            self._wire.close()
            self._wire = None

    async def _exchange(self, request: bytes) -> Response:
        sent = False
        try:
            async with asyncio.timeout(self._timeout_s):
                if self._wire is None or self._wire.closed:
                    self._wire = await self._open()
                sent = True
                return await self._wire.ask(request)
        except TimeoutError:
            self.close()  # the late answer must not meet the next request
            raise NoAnswer(f"no answer within {self._timeout_s:g} s", sent=sent) from None
        except asyncio.CancelledError:
            self.close()
            raise

    async def _open(self) -> _Wire:
        loop = asyncio.get_running_loop()
        secure = ssl.create_default_context() if self._origin.scheme == "https" else None
        try:
            _, wire = await loop.create_connection(_Wire, self._origin.host, self._origin.port, ssl=secure)
        except OSError as error:
            why = error.strerror or str(error)
            raise NoAnswer(f"cannot connect ({why})", sent=False) from None
        return wire


class _Wire(asyncio.Protocol):
    """One TCP connection from its opening to its end."""

    def __init__(self) -> None:
        self.closed = False
        self._transport: asyncio.Transport
        self._waiter: asyncio.Future[Response] | None = None
        self._parser = httptools.HttpResponseParser(self)
        self._headers: dict[str, str] = {}
        self._body: list[bytes] = []

    def ask(self, request: bytes) -> asyncio.Future[Response]:
        self._waiter = asyncio.get_running_loop().create_future()
        self._transport.write(request)
        return self._waiter

    def close(self) -> None:
        self.closed = True
        self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is one without saying so

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self._fail(f"not HTTP: {error}")

    def connection_lost(self, exc: Exception | None) -> None:
        self._fail(f"the connection broke ({exc})" if exc else "the server closed the connection")

    def _fail(self, why: str) -> None:
        self.close()
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_exception(NoAnswer(why, sent=True))

    # What httptools calls.

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers[name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_body(self, body: bytes) -> None:
        self._body.append(body)

    def on_message_complete(self) -> None:
        response = Response(self._parser.get_status_code(), self._headers, b"".join(self._body))
        self._headers, self._body = {}, []
        if not self._parser.should_keep_alive():
            self.close()
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(response)
