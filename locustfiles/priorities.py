"""Four groups of users, one a priority, send more than the fleet can do. Who waits, and how long?

    locust -f locustfiles/priorities.py --headless -n 20000 --sleep-ms 50

Every task sleeps a little, so that the slots are the bottleneck whatever the generator's speed: a fleet of
36 slots does at most 720 such tasks a second. While all four lists are full, the rows E2E show what each
priority's weight buys, and that `low` still moves.
"""

from __future__ import annotations

from typing import Any

from common import TASKS, TaskUser, scenario
from dealing import Accepted

scenario(total=20_000, users=32, pct_sleep=100, sleep_ms=50)


class PriorityUser(TaskUser):
    """Sends what it is dealt with the priority of its group, and is counted by that."""

    abstract = True
    priority: str

    def send(self, body: dict[str, Any]) -> Accepted | None:
        return self.enqueue({**body, "priority": self.priority}, name=f"{TASKS} {self.priority}")

    def kind(self, body: dict[str, Any]) -> str:  # noqa: ARG002 - the group decides, not the body
        return self.priority


class CriticalUser(PriorityUser):
    priority = "critical"


class HighUser(PriorityUser):
    priority = "high"


class DefaultUser(PriorityUser):
    priority = "default"


class LowUser(PriorityUser):
    priority = "low"
