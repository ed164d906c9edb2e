"""Deals the deck to the Locust processes: each body is sent exactly once, and then the run is over.

Alone, a process deals itself the whole deck. With several, the master tells each Locust worker its seat when
a run starts: worker i of k takes the bodies i, i + k, i + 2k ... A worker whose slice is decided reports to
the master, and once all have, the master ends the run: headless it quits, under the web UI it stops.
"""

from __future__ import annotations

import json
import logging
import time
import uuid
from collections import Counter
from collections.abc import Callable
from math import ceil
from pathlib import Path
from typing import IO, Any, NamedTuple

import gevent
from endtoend import EndToEnd
from locust.env import Environment
from locust.runners import STATE_SPAWNING, MasterRunner, WorkerRunner

from bench.receipts import Receipt, line_of
from bench.workload import Body, Deck

log = logging.getLogger("scenario")


Report = dict[str, float]
"""What one process did: when it began (a reading of time.monotonic), seconds from then to its last answer,
and counts: of tasks, and of answers by their status, as `status 201`; 0 is no answer."""


class Seat(NamedTuple):
    """A process's place at the table: `index` of `of`, in the run of that name."""

    run: str
    index: int
    of: int


class Dealt(NamedTuple):
    """One body on its way, with its place in the deck and its idempotency key.

    `taken`: when a user took it up; `due`: when it is to be sent, in a run at a rate. Both are readings of
    time.monotonic. `followed`: its task belongs to the sample of end-to-end latencies.
    """

    body: Body
    place: int
    key: str
    taken: float
    due: float | None
    followed: bool


class Accepted(NamedTuple):
    """An accepted task: when the request was sent and answered that it was accepted with.

    `replay`: an earlier request had been accepted already.
    """

    id: str
    sent: float
    answered: float
    replay: bool = False


class Dealer:
    """What this process deals to its users, and how it ends; there is one in each process.

    `make_deck` builds the deck from the options when a run starts. An `endless` dealer begins again at the
    deck's end, with new keys, and leaves the end of the run to a shape or to --run-time. A receipt for each
    accepted task is added to the file `ledger`, and what came of a whole run is written to `totals`.
    """

    def __init__(
        self,
        environment: Environment,
        make_deck: Callable[[Any], Deck],
        *,
        endless: bool,
        ledger: Path | None = None,
        totals: Path | None = None,
    ) -> None:
        self.environment = environment
        self.end_to_end = EndToEnd(environment)
        self._make_deck = make_deck
        self._endless = endless
        self._seat: Seat | None = None
        self._deck: Deck | None = None
        self._next = self._step = self._under_way = self._accepted = self._refused = 0
        self._rate = self._began = self._decided = 0.0
        self._stride = 1
        self._statuses: Counter[str] = Counter()
        self._ledger = ledger
        self._receipts: IO[str] | None = None
        self.totals = totals
        environment.events.request.add_listener(self._on_request)
        environment.events.test_start.add_listener(self._on_test_start)
        environment.events.test_stop.add_listener(self._on_test_stop)
        runner = environment.runner
        if isinstance(runner, WorkerRunner):
            runner.register_message("seat", self._on_seat)

    # What users call.

    def next(self) -> Dealt | None:
        """The next body of this process's slice; None when all are dealt."""
        if self._deck is None or self._seat is None or self._exhausted:
            return None
        index = self._next
        self._next += self._step
        self._under_way += 1
        due = self._began + index / self._rate if self._rate else None
        followed = index // self._step % self._stride == 0
        body, key = self._deck[index % len(self._deck)], f"{self._seat.run}-{index}"
        return Dealt(body, index, key, time.monotonic(), due, followed)

    def decided(self, dealt: Dealt, accepted: Accepted | None, kind: str) -> None:
        """A dealt body was accepted, or refused for good. `kind` is its row of E2E."""
        self._under_way -= 1
        self._decided = time.monotonic()
        self._accepted += accepted is not None
        self._refused += accepted is None
        if accepted is not None:
            self._keep(dealt, accepted)
            if dealt.followed:
                self.end_to_end.follow(accepted.id, kind)
        self._conclude_at_the_end()

    def _keep(self, dealt: Dealt, accepted: Accepted) -> None:
        """Add a receipt to the ledger at once: whatever happens later, what was promised is on record."""
        if self._receipts is not None:
            intended = dealt.taken if dealt.due is None else dealt.due
            instants = (at - self._began for at in (intended, accepted.sent, accepted.answered))
            receipt = Receipt(accepted.id, dealt.place, *instants, accepted.replay, dealt.key)
            self._receipts.write(line_of(receipt))
            self._receipts.flush()

    def _on_request(self, response: Any = None, **_: Any) -> None:
        if response is not None:  # else it is a row of our own
            self._statuses[f"status {response.status_code}"] += 1

    # How a run begins and ends.

    @property
    def _exhausted(self) -> bool:
        return not self._endless and (self._deck is None or self._next >= len(self._deck))

    def _on_seat(self, msg: Any, **_: Any) -> None:
        self._seat = Seat(*msg.data)

    def _on_test_start(self, environment: Environment, **_: Any) -> None:
        if isinstance(environment.runner, MasterRunner):
            return
        if not isinstance(environment.runner, WorkerRunner):
            self._seat = Seat(uuid.uuid4().hex, 0, 1)
        if self._seat is None:
            log.warning("This worker joined after the run had begun: it has nothing to deal.")
            return
        options = environment.parsed_options
        self._deck = self._make_deck(options)
        self._next, self._step = self._seat.index, self._seat.of
        self._under_way = self._accepted = self._refused = 0
        self._rate, self._began = options.task_rate, time.monotonic()
        self._decided = self._began
        self._statuses.clear()
        if self._ledger is not None and self._receipts is None:
            self._receipts = self._ledger.open("a", encoding="utf-8")  # other processes add to it, too
        self._stride = ceil(options.total / max(options.e2e_sample, 1))
        self.end_to_end.begin(options.e2e_rate / self._seat.of if options.e2e_sample else 0)
        self._conclude_at_the_end()  # a slice may be empty

    def _conclude_at_the_end(self) -> None:
        if self._exhausted and not self._under_way:
            gevent.spawn(self._conclude)

    def _conclude(self) -> None:
        self.end_to_end.wait(self.environment.parsed_options.e2e_wait)
        report = self._report()
        if isinstance(self.environment.runner, WorkerRunner):
            self.environment.runner.send_message("dealt", report)
        else:
            finish(self.environment, [report])

    def _on_test_stop(self, **_: Any) -> None:
        """Without an end of its own a run has no reports: each process says what it did."""
        if self._endless and self._seat is not None:
            print(describe(self._report()), flush=True)

    def _report(self) -> Report:
        seconds = self._decided - self._began
        counts = {"accepted": self._accepted, "refused": self._refused, **self.end_to_end.counts()}
        return {"began": self._began, "seconds": seconds, **counts, **self._statuses}


class Master:
    """Lives in the master: gives out the seats and, unless the run is `endless`, waits for the reports."""

    def __init__(self, environment: Environment, *, endless: bool) -> None:
        self.environment = environment
        self._endless = endless
        self._reports: dict[str, Report | None] = {}
        environment.events.test_start.add_listener(self._on_test_start)
        environment.runner.register_message("dealt", self._on_dealt)
        gevent.spawn(self._watch)

    def _on_test_start(self, environment: Environment, **_: Any) -> None:
        runner = environment.runner
        workers = [client.id for client in (*runner.clients.ready, *runner.clients.running)]
        run = uuid.uuid4().hex
        for index, worker in enumerate(workers):
            runner.send_message("seat", Seat(run, index, len(workers)), worker)
        if self._endless:
            return
        if (users := runner.target_user_count) < len(workers):
            abort(environment, f"{len(workers)} processes need at least as many users (-w), not {users}.")
        else:
            self._reports = dict.fromkeys(workers)

    def _on_dealt(self, environment: Environment, msg: Any, **_: Any) -> None:
        self._reports[msg.node_id] = msg.data
        reports = [report for report in self._reports.values() if report is not None]
        if len(reports) == len(self._reports):
            self._reports = {}
            gevent.spawn(finish, environment, reports)

    def _watch(self) -> None:
        """A worker that died will never report: say so and end, instead of waiting for ever."""
        while True:
            gevent.sleep(1)
            live = {client.id for client in self.environment.runner.clients.all if client.state != "missing"}
            if any(report is None and worker not in live for worker, report in self._reports.items()):
                self._reports = {}
                abort(self.environment, "A worker died with its slice of the deck: the total is not exact.")


def finish(environment: Environment, reports: list[Report]) -> None:
    """End the run, with exit code 1 if a body was refused, and say what was accepted and sampled."""
    total = together(reports)
    print(describe(total), flush=True)
    if environment.dealer.totals is not None:
        environment.dealer.totals.write_text(json.dumps(total), encoding="utf-8")
    if any(report["refused"] for report in reports):
        environment.process_exit_code = 1
    _end(environment)


def together(reports: list[Report]) -> Report:
    """All the processes' reports as one."""
    total: Counter[str] = Counter()
    for report in reports:
        total.update(report)
    ended = max(report["began"] + report["seconds"] for report in reports)
    began = min(report["began"] for report in reports)
    return dict(total) | {"began": began, "seconds": ended - began}


def describe(total: Report) -> str:
    """A report in words."""
    seconds = total["seconds"]
    rate = total["accepted"] / seconds if seconds else 0
    return (
        f"Sent in {seconds:.2f} s: {total['accepted']:,} tasks accepted ({rate:,.0f}/s), "
        f"{total['refused']:,} refused.\n"
        f"E2E is a sample of {total['sampled']:,} of them: {total['succeeded']:,} succeeded, "
        f"{total['dead']:,} dead, {total['open']:,} still open at the end."
    )


def abort(environment: Environment, why: str) -> None:
    """End the run at once, with exit code 1."""
    log.error(why)
    environment.process_exit_code = 1
    gevent.spawn(_end, environment)


def _end(environment: Environment) -> None:
    runner = environment.runner
    while runner.state == STATE_SPAWNING:  # ending while users are being started leaves some of them behind
        gevent.sleep(0.05)
    if environment.parsed_options.headless:
        runner.quit()
    else:
        runner.stop()
