"""The seed's demo mix: an exact number of tasks in exact proportions, as fast as the answers come.

    locust -f locustfiles/mix.py
    locust -f locustfiles/mix.py --headless -n 10000 -w 16 --pct-flaky 10 --pct-fail 5 --pct-sleep 5
    locust -f locustfiles/mix.py --headless -n 10000 --processes 2

The run ends by itself when every task was accepted. Options and rows: see common.py.
"""

from __future__ import annotations

from common import TaskUser, scenario

scenario(total=10_000, users=16)


class MixUser(TaskUser):
    """One of the senders."""
