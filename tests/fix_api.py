"""The API over real stores: `api` is a client on this machine, `backend` what its routes work with."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx
import psycopg
import pytest

from scheduler.api.app import create_app
from scheduler.api.backend import Backend
from scheduler.config import Settings
from scheduler.enqueue import Enqueuer
from scheduler.metrics import Metrics
from scheduler.queue import Index
from scheduler.store import Store


@asynccontextmanager
async def open_backend(settings: Settings) -> AsyncIterator[Backend]:
    """A backend on the stores that the settings name."""
    store = await Store.open(settings, name="test", max_conns=4)
    index = Index.open(settings, name="test")
    enqueuer = Enqueuer(store, index, settings, Metrics())
    enqueuer.start()
    try:
        yield Backend(store, index, enqueuer, settings)
    finally:
        await enqueuer.stop()
        await index.close()
        await store.close()


def client_of(backend: Backend, host: str = "127.0.0.1") -> httpx.AsyncClient:
    """A client at `host` of the API over `backend`."""
    transport = httpx.ASGITransport(create_app(backend), client=(host, 1234))
    return httpx.AsyncClient(transport=transport, base_url="http://api")


def rows(settings: Settings, table: str = "tasks") -> int:
    """How many rows a table has."""
    with psycopg.connect(settings.postgres_url) as connection:
        return connection.execute(f"SELECT count(*) FROM {table}").fetchone()[0]


@pytest.fixture
async def backend(settings: Settings) -> AsyncIterator[Backend]:
    async with open_backend(settings) as opened:
        yield opened


@pytest.fixture
async def api(backend: Backend) -> AsyncIterator[httpx.AsyncClient]:
    async with client_of(backend) as client:
        yield client
