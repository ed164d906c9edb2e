"""A stand-in for the API under the tests of the load generators: it keeps tasks in a dict and can misbehave.

    with StubApi() as api:
        run(closed(deck, host=api.url))
        assert len(api.tasks) == n

It answers as the API does (201, replays, conflicts, bulk, look-ups) and, when told to, stalls, says 503, or
closes the connection after it accepted a task. It serves from a thread, on a free port of 127.0.0.1.
"""

from __future__ import annotations

import asyncio
import json
import socket
import threading
from collections import Counter
from datetime import UTC, datetime
from typing import Any, Self

import uvicorn

from scheduler import clock
from scheduler.model import new_id

Send = Any
Scope = dict[str, Any]


class StubApi:
    def __init__(self, *, settle_s: float = 0.05) -> None:
        self.tasks: dict[str, dict[str, Any]] = {}
        self.keys: dict[str, str] = {}
        self.posts = 0
        self.lookups = 0
        self.url = ""
        self._settle_s = settle_s
        self._overloaded = self._breaking = 0
        self._retry_after = ""
        self._another = self._forgetful = False
        self._stall_at = -1
        self._stall_s = 0.0
        self._stalled_until = 0.0

    # What a test may ask for.

    def pose_as_another_server(self) -> None:
        """Answer every POST with 404."""
        self._another = True

    def overload(self, times: int, retry_after: str = "0") -> None:
        """Answer the next `times` POSTs with 503."""
        self._overloaded, self._retry_after = times, retry_after

    def break_connections(self, times: int) -> None:
        """Accept the next `times` POSTs, but close their connections instead of answering."""
        self._breaking = times

    def forget_keys(self) -> None:
        """Make a new task of every request, as an API without idempotency would."""
        self._forgetful = True

    def stall(self, at: int, seconds: float) -> None:
        """From the POST number `at` on, answer nothing for `seconds`."""
        self._stall_at, self._stall_s = at, seconds

    @property
    def types(self) -> Counter[str]:
        return Counter(task["type"] for task in self.tasks.values())

    # Serving.

    def __enter__(self) -> Self:
        listener = socket.create_server(("127.0.0.1", 0), backlog=512)
        self.url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        config = uvicorn.Config(self, log_level="critical", access_log=False, lifespan="off", ws="none")
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, kwargs={"sockets": [listener]})
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.should_exit = self._server.force_exit = True  # a stall is not waited for
        self._thread.join()

    async def __call__(self, scope: Scope, receive: Any, send: Send) -> None:
        if scope["method"] == "GET":
            self.lookups += scope["path"].startswith("/v1/")
            task = self.tasks.get(scope["path"].rpartition("/")[2])
            if scope["path"] == "/readyz":
                await _answer(send, 200, {"status": "ok"})
            else:
                await _answer(send, 404 if task is None else 200, task and self._shown(task))
            return
        body = json.loads(await _read(receive))
        self.posts += 1
        if self.posts == self._stall_at:
            self._stalled_until = clock.monotonic() + self._stall_s
        if (left := self._stalled_until - clock.monotonic()) > 0:
            await asyncio.sleep(left)
        if self._another:
            await _answer(send, 404, {"title": "Not found"})
        elif self._overloaded > 0:
            self._overloaded -= 1
            await _answer(send, 503, {"title": "Overloaded"}, ("retry-after", self._retry_after))
        elif scope["path"] == "/v1/tasks/bulk":
            await _answer(send, 200, {"items": [self._item(task) for task in body["tasks"]]})
        else:
            await self._one(body, send)

    async def _one(self, body: dict[str, Any], send: Send) -> None:
        item = self._item(body)
        if self._breaking > 0:
            self._breaking -= 1
            await _break_off(send)
        elif item["result"] == "conflict":
            await _answer(send, 409, {"title": "The key is another task's"})
        elif item["result"] == "invalid":
            await _answer(send, 422, {"title": "Invalid"})
        else:
            replayed = item["result"] == "existing"
            headers = [("idempotent-replayed", "true")] if replayed else []
            await _answer(send, 200 if replayed else 201, item["task"], *headers)

    def _item(self, body: dict[str, Any]) -> dict[str, Any]:
        if body["type"] == "invalid":
            return {"result": "invalid"}
        body = {"max_retries": 3, "priority": "default", **body}
        key = body.pop("idempotency_key", None)
        if key in self.keys:
            task = self.tasks[self.keys[key]]
            same = all(task[name] == value for name, value in body.items())
            return {"result": "existing", "task": task} if same else {"result": "conflict"}
        task = {
            "id": new_id(),
            **body,
            "status": "queued",
            "created_at": clock.wall_ms(),
            "finished_at": None,
        }
        self.tasks[task["id"]] = task
        if key is not None and not self._forgetful:
            self.keys[key] = task["id"]
        return {"result": "created", "task": task}

    def _shown(self, task: dict[str, Any]) -> dict[str, Any]:
        """The task as a look-up shows it: it ends `settle_s` after its acceptance."""
        finished = task["created_at"] + round(self._settle_s * 1000)
        shown = {**task, "created_at": _rfc3339(task["created_at"])}
        if clock.wall_ms() >= finished:
            status = "dead" if task["type"] == "always_fail" else "succeeded"
            shown |= {"status": status, "finished_at": _rfc3339(finished)}
        return shown


def _rfc3339(ms: int) -> str:
    text = datetime.fromtimestamp(ms / 1000, UTC).isoformat(timespec="milliseconds")
    return text.replace("+00:00", "Z")


async def _read(receive: Any) -> bytes:
    body, more = b"", True
    while more:
        message = await receive()
        body += message.get("body", b"")
        more = message.get("more_body", False)
    return body


async def _answer(send: Send, status: int, value: Any, *headers: tuple[str, str]) -> None:
    body = json.dumps(value).encode()
    given = [("content-type", "application/json"), ("content-length", str(len(body))), *headers]
    encoded = [(name.encode(), text.encode()) for name, text in given]
    await send({"type": "http.response.start", "status": status, "headers": encoded})
    await send({"type": "http.response.body", "body": body})


async def _break_off(send: Send) -> None:
    """Begin an answer and never end it: the server then closes the connection."""
    await send({"type": "http.response.start", "status": 201, "headers": [(b"content-length", b"9")]})
