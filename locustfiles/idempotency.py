"""Keys that are sent again: the same request is answered with the same task, another one is refused.

    locust -f locustfiles/idempotency.py --headless -n 1000

For each of n keys a user makes four requests and checks every answer; a wrong one is a failure in
Locust's statistics and makes the exit code 1.

    race      the first request, twice at the same time: one answer is 201, one 200, both with one id
    replay    the same request again: 200, the same id, `Idempotent-Replayed: true`
    conflict  the key with another payload: 409
"""

from __future__ import annotations

import time
from typing import Any

import gevent
from common import TASKS, TaskUser, scenario
from dealing import Accepted

scenario(total=1_000, users=16)

Answer = tuple[int, str | None]
"""The status, and the id of the task if one is in it."""


class IdempotencyUser(TaskUser):
    """Works through one key after the other."""

    def send(self, body: dict[str, Any]) -> Accepted | None:
        accepted = self._race(body)
        if accepted is not None:
            self._replay(body, accepted.id)
            self._conflict(body)
        return accepted

    def _race(self, body: dict[str, Any]) -> Accepted | None:
        """Both requests at once; the one task that they made, or None."""
        sent = time.monotonic()
        pair = [gevent.spawn(self._first, body) for _ in range(2)]
        gevent.joinall(pair, raise_error=True)
        answers = [greenlet.value for greenlet in pair]
        (task_id, *others) = {task_id for _, task_id in answers}
        if sorted(status for status, _ in answers) == [200, 201] and task_id and not others:
            return Accepted(task_id, sent, time.monotonic())
        self._wrong("race", f"answers were {answers}, not one 201 and one 200 with the same id")
        return None

    def _first(self, body: dict[str, Any]) -> Answer:
        with self.client.post(TASKS, json=body, name="race", catch_response=True) as response:
            accepted = response.status_code in {200, 201}
            return response.status_code, response.json()["id"] if accepted else None

    def _replay(self, body: dict[str, Any], task_id: str) -> None:
        with self.client.post(TASKS, json=body, name="replay", catch_response=True) as response:
            if response.status_code != 200:
                response.failure(f"answered {response.status_code}, not 200")
            elif response.headers.get("Idempotent-Replayed") != "true":
                response.failure("answered without Idempotent-Replayed: true")
            elif response.json()["id"] != task_id:
                response.failure("answered with another task's id")

    def _conflict(self, body: dict[str, Any]) -> None:
        other = {**body, "payload": {**body["payload"], "another": True}}
        with self.client.post(TASKS, json=other, name="conflict", catch_response=True) as response:
            if response.status_code == 409:
                response.success()
            else:
                response.failure(f"answered {response.status_code}, not 409")

    def _wrong(self, name: str, text: str) -> None:
        self.environment.events.request.fire(
            request_type="CHECK",
            name=name,
            response_time=0,
            response_length=0,
            exception=AssertionError(text),
            context={},
        )
