"""The API, put together."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any, Final

from fastapi import APIRouter, FastAPI
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Match
from starlette.types import ASGIApp, Receive, Scope, Send

from scheduler.api import health, queues, submissions, tasks
from scheduler.api.access import admit
from scheduler.api.backend import Backend
from scheduler.api.openapi import document
from scheduler.api.problems import METHOD, Problem, problem_of

DESCRIPTION: Final = """\
Accepts tasks, shows them, and says how the queues are.

`/tasks…` is an alias of `/v1/tasks…`. Ids are UUIDv7; instants are RFC 3339 in UTC with milliseconds;
durations are whole milliseconds in `*_ms`; integers are written without a point; errors are problem
documents (RFC 9457). A 2xx to a POST of a task means that the task is committed."""


Endpoint = Callable[[Request], Coroutine[Any, Any, Response]]


class Answering:
    """Answers with a problem document whatever the app below it raises."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await self._app(scope, receive, send)
        except ClientDisconnect:
            pass  # nobody is left to answer
        except Exception as error:  # noqa: BLE001 - whatever it is, it is answered, and logged if it is ours
            await problem_of(error).response()(scope, receive, send)


class Api(FastAPI):
    """FastAPI with a door in front, and its document of our own making.

    The door admits the peer, resolves the alias, and takes the hot routes past FastAPI's layers.
    """

    def __init__(self, backend: Backend, **options: Any) -> None:
        super().__init__(**options)
        self.state.backend = backend
        self.add_middleware(Answering)
        self._hot: dict[str, Endpoint] = {}
        self._door = Answering(self._enter)

    def add(self, router: APIRouter, *, hot: bool = False) -> None:
        """Add routes; hot ones are POST and have a plain function from request to response."""
        # Not include_router: its layer costs as much as all of the other routing.
        self.router.routes.extend(router.routes)
        if hot:
            self._hot |= {
                route.path: route.endpoint for route in router.routes if isinstance(route, APIRoute)
            }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        door = self._door if scope["type"] == "http" else super().__call__
        await door(scope, receive, send)

    async def _enter(self, scope: Scope, receive: Receive, send: Send) -> None:
        admit(scope)
        path = scope["path"]
        if path == "/tasks" or path.startswith("/tasks/"):
            path = scope["path"] = f"/v1{path}"
        endpoint = self._hot.get(path) if scope["method"] == "POST" else None
        if endpoint is None:
            await super().__call__(scope, receive, send)
            return
        scope["app"] = self
        response = await endpoint(Request(scope, receive))
        await response(scope, receive, send)

    def openapi(self) -> dict[str, Any]:
        if not self.openapi_schema:
            self.openapi_schema = document(self)
        return self.openapi_schema


def create_app(backend: Backend) -> Api:
    """The API over `backend`, as an ASGI app."""
    app = Api(
        backend,
        title="Scheduler",
        version="1",
        description=DESCRIPTION,
        docs_url=None,  # that page would load scripts from a public server
        redoc_url=None,
        redirect_slashes=False,
        exception_handlers={HTTPException: _router_refused, RequestValidationError: _pass_on},
    )
    app.add(submissions.router, hot=True)
    for part in (tasks, queues, health):
        app.add(part.router)
    return app


async def _pass_on(_: Request, error: Exception) -> Any:
    """Leave it to Answering."""
    raise error


async def _router_refused(request: Request, error: Exception) -> Any:
    """Name every method of the path, not only those of the first route that has it.

    A path that is spelled out is no id: `/v1/tasks/bulk` has no GET, though `/v1/tasks/{task_id}` has one.
    """
    if isinstance(error, HTTPException) and error.status_code == METHOD.status:
        fitting = [r for r in request.app.routes if r.matches(request.scope)[0] is not Match.NONE]
        spelled_out = [route for route in fitting if route.path == request.scope["path"]]
        allowed = {method for route in spelled_out or fitting for method in route.methods}
        raise Problem(METHOD, "See the Allow header.", headers={"Allow": ", ".join(sorted(allowed))})
    raise error
