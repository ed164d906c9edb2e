"""What the routes work with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Request

from scheduler.config import Settings
from scheduler.enqueue import Enqueuer
from scheduler.queue import Index
from scheduler.store import Store


@dataclass(frozen=True, slots=True)
class Backend:
    """The stores, the way in, and the settings."""

    store: Store
    index: Index
    enqueuer: Enqueuer
    settings: Settings


def of_request(request: Request) -> Backend:
    """The backend of the app that serves this request."""
    backend: Backend = request.app.state.backend
    return backend


Needs = Annotated[Backend, Depends(of_request)]
"""The type of an endpoint's parameter that takes the backend."""
