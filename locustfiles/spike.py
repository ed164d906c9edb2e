"""A spike: calm, then many more users at once, then calm again. How long until E2E is what it was before?

    locust -f locustfiles/spike.py --headless --calm-users 5 --spike-users 50 --calm-s 20 --spike-s 20

Each user sends --user-rate tasks a second while it gets answers in time. The shape ends the run after
calm, spike and calm; -n and -w play no part.
"""

from __future__ import annotations

from common import TaskUser, scenario
from locust import LoadTestShape, constant_throughput
from locust.argument_parser import LocustArgumentParser


def _options(parser: LocustArgumentParser) -> None:
    for name, default, text in (
        ("calm-users", 5, "Users before and after the spike"),
        ("spike-users", 50, "Users during the spike"),
        ("calm-s", 20, "Seconds before the spike, and after it"),
        ("spike-s", 20, "Seconds of the spike"),
        ("user-rate", 5, "Tasks a second of each user"),
    ):
        parser.add_argument(f"--{name}", f"-{name}", type=int, default=default, help=text)


scenario(total=1_000, users=None, endless=True, options=_options)


class SpikeUser(TaskUser):
    """Sends at most --user-rate tasks a second."""

    def wait_time(self) -> float:
        return constant_throughput(self.environment.parsed_options.user_rate)(self)


class Spike(LoadTestShape):
    """Calm, spike, calm."""

    def tick(self) -> tuple[int, float] | None:
        options = self.runner.environment.parsed_options
        time_s = self.get_run_time()
        if time_s >= 2 * options.calm_s + options.spike_s:
            return None
        spike = options.calm_s <= time_s < options.calm_s + options.spike_s
        return (options.spike_users if spike else options.calm_users), 100
