"""What the scenarios share: their options, their defaults, and a user who sends what is dealt to it.

A scenario file calls `scenario(...)` once and defines its user classes. Three kinds of rows then appear in
Locust's statistics:

    POST  from sending a request to its answer: the latency of enqueueing
    DUE   from the time a request was due to its answer; only with --task-rate. Unlike POST it shows a stall
          in full: requests that could not be sent meanwhile count with the time that they waited
    E2E   from a task's acceptance to its success, by the server's clock: a sample (see endtoend.py)

The row Aggregated adds them all up and means nothing here; the rate of sending is printed at the end.
With --ledger FILE there is also a receipt for each accepted task, which `bench audit FILE` takes.
Options have one spelling of their own and that of the `load` command (`-n`, `-w`, `-pct-flaky`). One trap:
Locust first looks for `-f` alone and takes `-flaky-attempts` for it, so beside that spelling `-f` comes last:

    locust --headless -n 10000 -w 16 -pct-flaky 10 -flaky-attempts 2 -f locustfiles/mix.py
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import gevent
from dealing import Accepted, Dealer, Master
from endtoend import fire
from lifeline import hold
from locust import FastHttpUser, events, task
from locust.argument_parser import LocustArgumentParser
from locust.env import Environment
from locust.runners import MasterRunner, WorkerRunner

from bench.workload import Deck, Mix, deck

TASKS: Final = "/v1/tasks"
TRY_AGAIN: Final = frozenset({0, 429, 503})
"""Statuses after which a body is sent again; 0 is Locust's for no answer at all."""
RETRY_AFTER_CAP_S: Final = 5.0


def scenario(
    *,
    total: int = 10_000,
    users: int | None = 16,
    task_rate: float = 0,
    pct_sleep: float = 0,
    sleep_ms: int = 80_000,
    endless: bool = False,
    options: Callable[[LocustArgumentParser], None] | None = None,
) -> None:
    """Register a scenario with Locust. The arguments are the defaults of the options of the same names.

    `endless`: the deck begins again at its end, and a shape or --run-time ends the run. `options` may add
    options of the scenario's own.
    """

    @events.init_command_line_parser.add_listener
    def _(parser: LocustArgumentParser, **_: Any) -> None:
        parser.set_defaults(
            host="http://127.0.0.1:8080",
            web_host="127.0.0.1",
            master_bind_host="127.0.0.1",
            num_users=users,
            spawn_rate=100 if users else None,  # a shape has its own
            stop_timeout="5" if endless else "0",  # a user who has to go waits for the answer under way
        )
        group = parser.add_argument_group("Scheduler", "The scenario's own options")
        group.add_argument("-n", "--total", type=int, default=total, help="Tasks to send, exactly")
        group.add_argument("-w", type=int, dest="num_users", default=users, help="Users, the same as -u")
        add_mix_options(group, pct_sleep=pct_sleep, sleep_ms=sleep_ms)
        group.add_argument(
            "--task-rate", "-task-rate", type=float, default=task_rate,
            help="Tasks a second over all users, at fixed times; 0: as fast as the answers come",
        )  # fmt: skip
        group.add_argument("--e2e-sample", type=int, default=200, help="Tasks followed for E2E; 0: none")
        group.add_argument("--e2e-rate", type=float, default=50, help="Most look-ups a second for E2E")
        group.add_argument("--e2e-wait", type=float, default=10, help="Seconds to wait for E2E at the end")
        group.add_argument("--ledger", "-ledger", default="", help="Write a receipt for each accepted task")
        group.add_argument("--totals", default="", help="Write what is printed at the end as JSON")
        group.add_argument("--lifeline", type=int, default=-1, help="End when this open pipe is closed")
        if options is not None:
            options(parser)

    @events.init.add_listener
    def _(environment: Environment, **_: Any) -> None:
        if (wrong := problem(environment.parsed_options)) is not None:
            sys.stderr.write(f"locust: error: {wrong}\n")
            sys.exit(2)
        options = environment.parsed_options
        hold(options.lifeline)
        if options.ledger and not isinstance(environment.runner, WorkerRunner):
            Path(options.ledger).write_bytes(b"")  # workers add to it
        # Files are named on the command line alone: the form of the web UI can set any option later.
        ledger, totals = (Path(name) if name else None for name in (options.ledger, options.totals))
        environment.dealer = Dealer(environment, make_deck, endless=endless, ledger=ledger, totals=totals)
        if isinstance(environment.runner, MasterRunner):
            Master(environment, endless=endless)


def add_mix_options(group: Any, *, pct_sleep: float, sleep_ms: int) -> None:
    """The mix, as the `load` command spells it too."""
    for name, kind, default, text in (
        ("pct-noop", float, 0.0, "Percent noop; they also take what the others leave"),
        ("pct-flaky", float, 0.0, "Percent that fail at first, then succeed"),
        ("pct-fail", float, 0.0, "Percent that always fail"),
        ("pct-sleep", float, pct_sleep, "Percent that sleep for --sleep-ms"),
        ("sleep-ms", int, sleep_ms, "How long sleepers sleep, in milliseconds"),
        ("flaky-attempts", int, 2, "How often a flaky task fails first"),
        ("max-retries", int, 3, "Retries of each task"),
        ("seed", int, 1, "Decides the order of the tasks"),
        ("priorities", str, "1,1,1,1", "Shares of critical, high, default and low"),
    ):
        group.add_argument(f"--{name}", f"-{name}", type=kind, default=default, help=text)


def make_deck(options: Any) -> Deck:
    """The deck that the options describe. Raises ValueError."""
    mix = Mix(
        noop=options.pct_noop,
        flaky=options.pct_flaky,
        fail=options.pct_fail,
        sleep=options.pct_sleep,
        sleep_ms=options.sleep_ms,
        flaky_attempts=options.flaky_attempts,
        max_retries=options.max_retries,
        priorities=shares(options.priorities),
    )
    return deck(mix, options.total, options.seed)


def shares(text: str) -> tuple[float, float, float, float]:
    """Four shares, parted by commas. Raises ValueError."""
    try:
        critical, high, default, low = map(float, text.split(","))
    except ValueError:
        raise ValueError(f"--priorities is {text!r}; it must be four numbers, parted by commas") from None
    return critical, high, default, low


def problem(options: Any) -> str | None:
    """What is wrong with the options, in one line; None if nothing is."""
    try:
        make_deck(options)
        if options.ledger:
            Path(options.ledger).open("ab").close()  # found out now, not with the first receipt
    except ValueError as error:
        return str(error)
    except OSError as error:
        return f"the ledger {options.ledger} cannot be written: {error.strerror}"
    if min(options.task_rate, options.e2e_sample, options.e2e_rate, options.e2e_wait) < 0:
        return "--task-rate, --e2e-sample, --e2e-rate and --e2e-wait must be 0 or more"
    return None


class TaskUser(FastHttpUser):
    """Sends one dealt body after the other, each until it is accepted or refused; then idles."""

    abstract = True

    @task
    def send_next(self) -> None:
        dealer = self.environment.dealer
        dealt = dealer.next()
        if dealt is None:
            gevent.sleep(1)  # the run ends when the other users and processes are done
            return
        if dealt.due is not None and (ahead := dealt.due - time.monotonic()) > 0:
            gevent.sleep(ahead)
        accepted = self.send({**dealt.body, "idempotency_key": dealt.key})
        if dealt.due is not None:
            fire(self.environment, "DUE", TASKS, time.monotonic() - dealt.due)
        dealer.decided(dealt, accepted, self.kind(dealt.body))

    def send(self, body: dict[str, Any]) -> Accepted | None:
        """What to do with a dealt body: what was accepted, or None if it was refused for good."""
        return self.enqueue(body)

    def kind(self, body: dict[str, Any]) -> str:
        """Which row of E2E the task counts in."""
        return body["type"]

    def enqueue(self, body: dict[str, Any], name: str = TASKS) -> Accepted | None:
        """Send until it is accepted or refused for good, as `send`. Each request counts in the row `name`."""
        pause_s = 0.1
        while True:
            sent = time.monotonic()
            with self.client.post(TASKS, json=body, name=name, catch_response=True) as response:
                if response.status_code in {200, 201}:
                    if (task_id := id_in(response)) is not None:
                        replay = response.headers.get("Idempotent-Replayed") == "true"
                        return Accepted(task_id, sent, time.monotonic(), replay)
                    response.failure("the answer broke off")
                elif response.status_code not in TRY_AGAIN:
                    return None
                wait_s = retry_after(response, pause_s)
            gevent.sleep(wait_s)
            pause_s = min(pause_s * 2, 1.0)


def id_in(response: Any) -> str | None:
    """The id of the task that an answer shows; None if the answer is not whole."""
    try:
        return response.json()["id"]
    except (ValueError, KeyError, TypeError):
        return None


def retry_after(response: Any, otherwise_s: float) -> float:
    """Seconds to wait, by the answer's Retry-After if it gives a number, and at most the cap."""
    try:
        return min(float(response.headers["Retry-After"]), RETRY_AFTER_CAP_S)
    except (KeyError, TypeError, ValueError):  # absent, no answer at all, or the form that is a date
        return otherwise_s
