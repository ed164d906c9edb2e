"""One process that serves the API: opens the stores, listens, says that it is ready, and stops in order."""

from __future__ import annotations

import asyncio
import errno
import os
import signal
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import AsyncExitStack, contextmanager
from math import ceil
from typing import Final

import uvicorn
import uvloop

from scheduler import log
from scheduler.api.app import create_app
from scheduler.api.backend import Backend
from scheduler.api.transport import HttpProtocol
from scheduler.config import Settings
from scheduler.enqueue import Enqueuer
from scheduler.errors import QueueUnavailable, StartError, Unreachable
from scheduler.loop import Loop
from scheduler.metrics import Metrics
from scheduler.queue import Index
from scheduler.store import Store

BACKLOG: Final = 2048
"""Connections that may wait to be accepted."""

KEEP_ALIVE_S: Final = 75
"""How long an idle connection is kept: longer than most clients and load balancers keep theirs (60 s). If the
server closes first, a request may meet its farewell and gets no answer."""

_NAME: Final = "scheduler-api"
_WILDCARDS: Final = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - shown as what a client can connect to

MakeLoop = Callable[[Backend, Metrics], Loop]
"""Makes a background loop of this process, such as the sampler."""


def run(
    settings: Settings,
    *,
    ready: Callable[[str], None],
    loops: Sequence[MakeLoop] = (),
    shared: bool = False,
) -> None:
    """`serve` in an event loop of its own, until SIGTERM or SIGINT."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(serve(settings, ready=ready, loops=loops, shared=shared))


async def serve(
    settings: Settings,
    *,
    ready: Callable[[str], None],
    loops: Sequence[MakeLoop] = (),
    shared: bool = False,
) -> None:
    """Serve the API until SIGTERM or SIGINT, then answer what was asked, commit what waits, and return.

    A Redis that is away does not keep it from starting, as enqueueing does not need it.

    Args:
        settings: Where to listen and what to connect to.
        ready: Called with one line once requests are answered.
        loops: The process's background loops, started and stopped with it.
        shared: Listen beside other processes, among which the system divides the connections.

    Raises:
        StartError: an address cannot be bound, Postgres cannot be used, or Redis is there but unfit.
    """
    async with AsyncExitStack() as stack:
        listener = stack.enter_context(_listen(settings.http_addr, shared=shared))
        metrics = Metrics()
        exporter, _ = metrics.serve(settings.metrics_addr)
        stack.callback(exporter.server_close)
        stack.callback(exporter.shutdown)
        store = await Store.open(settings, name=_NAME, max_conns=settings.pgpool_max_conns)
        stack.push_async_callback(store.close)
        index = Index.open(settings, name=_NAME)
        stack.push_async_callback(index.close)
        metrics.watch_polls(postgres=lambda: store.polled, redis=lambda: index.polled)
        backend = Backend(store, index, Enqueuer(store, index, settings, metrics), settings)
        http = _shown(listener)
        line = f"ready api http={http} metrics={exporter.server_port} pid={os.getpid()}"
        server = _Server(_uvicorn_config(backend), lambda: ready(line))
        stack.enter_context(_stopped_by_signals(server))  # before the first wait: a stop may come early
        await store.check()
        await _check_index(index)
        backend.enqueuer.start()
        stack.push_async_callback(backend.enqueuer.stop)
        for make in loops:
            loop = make(backend, metrics)
            loop.start()
            stack.push_async_callback(loop.stop)
        if not server.should_exit:
            await server.serve([listener])


class _Server(uvicorn.Server):
    """uvicorn, which leaves the signals to us and says when it listens."""

    def __init__(self, config: uvicorn.Config, started: Callable[[], None]) -> None:
        super().__init__(config)
        self._started = started

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._started()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    def stop(self) -> None:
        """Stop when everything is answered; asked twice, at once."""
        self.force_exit = self.should_exit
        self.should_exit = True


def _uvicorn_config(backend: Backend) -> uvicorn.Config:
    return uvicorn.Config(
        create_app(backend),
        http=HttpProtocol,
        ws="none",
        interface="asgi3",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,  # who may ask is decided by the connection, not by what it says
        backlog=BACKLOG,
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=ceil(backend.settings.shutdown_grace_ms / 1000),
    )


@contextmanager
def _stopped_by_signals(server: _Server) -> Iterator[None]:
    loop = asyncio.get_running_loop()
    signals = (signal.SIGTERM, signal.SIGINT)
    for number in signals:
        loop.add_signal_handler(number, server.stop)
    try:
        yield
    finally:
        for number in signals:
            loop.remove_signal_handler(number)


@contextmanager
def reserved(address: tuple[str, int]) -> Iterator[tuple[str, int]]:
    """Hold an address, which processes are going to share; it with its port, where any was asked for.

    Nobody else can come in while one of them is started again.

    Raises:
        StartError: it cannot be bound.
    """
    with _listen(address) as alone:  # a socket that shares would come in beside others that do
        family, where = alone.family, alone.getsockname()
    with socket.socket(family, socket.SOCK_STREAM) as holder:
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        with _binding(address):
            holder.bind(where)
        yield address[0], where[1]


def _listen(address: tuple[str, int], *, shared: bool = False) -> socket.socket:
    host, port = address
    with _binding(address):
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, _, _, _, where = found[0]
        return socket.create_server(where, family=family, backlog=BACKLOG, reuse_port=shared)


@contextmanager
def _binding(address: tuple[str, int]) -> Iterator[None]:
    """Say in one line why an address cannot be bound."""
    try:
        yield
    except OSError as error:
        what = "is taken" if error.errno == errno.EADDRINUSE else f"cannot be bound ({error.strerror})"
        raise StartError(
            f"the HTTP address {address[0]}:{address[1]} {what}; set HTTP_ADDR to another one (port 0: any)"
        ) from None


def _shown(listener: socket.socket) -> str:
    """The address of a listening socket as a client on this machine can reach it."""
    host, port = listener.getsockname()[:2]
    host = _WILDCARDS.get(host, host)
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


async def _check_index(index: Index) -> None:
    try:
        await index.check()
        await index.warm()
    except (Unreachable, QueueUnavailable) as error:
        log.get("api").warning("Redis is away; tasks are accepted and wait in Postgres", error=str(error))
