"""A constant rate: each task has its own time, and a slow answer delays no other task's time.

    locust -f locustfiles/steady.py --headless --task-rate 200 -n 6000

Read the row DUE. Locust's users wait for their answers, so during a stall few requests are sent and the row
POST hardly shows it; DUE counts from the time at which each request should have been sent. With more users
(`-w`) more requests can be under way at once before they queue up in the generator.
"""

from __future__ import annotations

from common import TaskUser, scenario

scenario(total=3_000, users=64, task_rate=100)


class SteadyUser(TaskUser):
    """One of the senders; whoever is free takes the next task that is due."""
