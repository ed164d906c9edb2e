"""A stage for the walk over the crash points: a database, a Redis, an API, and whoever a scene needs.

    ids = stage.send([body("work", ms=100)] * 20)
    worker = stage.worker("lease.pop:kill")        # armed: it dies there
    stage.recover(worker, "lease.pop:kill")        # it was hit, and what died is started again
    stage.judge()                                  # everything ends, and the audit finds nothing

What comes late (`lease.pop:late`) comes before the audit: `judge` waits for it, and `happened` names it.
`judge` raises `Red` if anything is amiss: a broken build must come to that, and to nothing else.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from itertools import count
from pathlib import Path
from typing import Any

import psycopg
import pytest
import redis
from fix_servers import Servers, new_directory

from bench import index, journal, load
from bench.audit import audit
from bench.builds import made
from bench.receipts import LoadResult, promised
from bench.stand import Part, Stand
from bench.system import settings_of

LEASE_MS = 1000
MAX_LOSSES = 1
SETTINGS = {
    "VIS_TIMEOUT_MS": str(LEASE_MS),
    "MAX_LOSSES": str(MAX_LOSSES),
    "WORKER_POOL": "4",
    "LEASE_BATCH_SIZE": "8",
    "LEASE_AHEAD_MS": "0",
    "REAPER_SCAN_INTERVAL_MS": "200",
    "RECONCILE_INTERVAL_MS": "200",
    "RETRY_SCAN_INTERVAL_MS": "50",
    "RETRY_BASE_MS": "100",
    "RETRY_MAX_MS": "200",
    "RETRY_JITTER_MS": "50",
    "METRICS_SAMPLE_MS": "60000",
    "REDIS_MIN_IDLE": "1",
}
IDLE = {"RECONCILE_INTERVAL_MS": "3600000"}
"""For a worker whose reconcile makes a pass at the start and no other."""

_NUMBERS = count(1)
_HIT_S = 20.0
_QUIET_S = 25.0
SHORT_QUIET_S = 6.0
"""How long a broken build is waited for: what it has lost may never come."""
_LOOK_S = 0.03
_TABLES = "tasks, task_runs, idempotency_keys, workers, leaders, task_moves"


class Red(AssertionError):
    """The promise is broken: the audit, or what a scene expects, has failed."""


def body(kind: str, *, retries: int = 3, delay_ms: int | None = None, **payload: Any) -> dict[str, Any]:
    """One task as the API takes it."""
    delay = {} if delay_ms is None else {"delay_ms": delay_ms}
    return {"type": kind, "payload": payload, "max_retries": retries} | delay


class Stage:
    """What a scene plays on. Everything of the last scene is cleared away by `clear`."""

    def __init__(self, stand: Stand, postgres_url: str, redis_url: str) -> None:
        self.stand = stand
        self.postgres_url = postgres_url
        self.redis_url = redis_url
        self.prefix = stand.env["REDIS_PREFIX"]
        self.quiet_s = _QUIET_S
        self.api = stand.api("api").start()
        self.happened: list[str] = []
        """The late effects that had happened when the audit began."""
        self._late: dict[str, Callable[[], str]] = {}
        self._results: list[LoadResult] = []

    def clear(self) -> None:
        """End all parts but the API, and empty both stores."""
        for part in self.stand.parts:
            if part is not self.api:
                part.end()
                part.log.unlink(missing_ok=True)
        self.stand.parts[:] = [self.api]
        self._results.clear()
        self._late.clear()
        self.happened = []
        self.quiet_s = _QUIET_S
        self.query(f"TRUNCATE {_TABLES}")
        self.forget()

    # acting

    def send(
        self,
        bodies: Sequence[dict[str, Any]],
        api: Part | None = None,
        *,
        senders: int = 4,
        refused: int = 0,
    ) -> list[str]:
        """Send each body with a key until it is accepted, or `refused` of them are; the ids."""
        host = (api or self.api).url
        result = load.run(load.closed(bodies, host=host, senders=senders, patience_s=_HIT_S))
        self._results.append(result)
        if (result.accepted, result.refused) != (len(bodies) - refused, refused):
            raise Red(f"{result.accepted} of {len(bodies)} tasks were accepted: {result.statuses}")
        return [receipt.id for receipt in result.receipts]

    def cancel(self, id_: str) -> None:
        """Cancel a task by the API."""
        request = urllib.request.Request(f"{self.api.url}/v1/tasks/{id_}/cancel", method="POST")
        with urllib.request.urlopen(request, timeout=_HIT_S) as answer:
            assert answer.status == 200

    def part(self, kind: str, crash: str = "", **env: str) -> Part:
        """A running API or worker, armed with a failpoint if `crash` names one."""
        make = self.stand.api if kind == "api" else self.stand.worker
        name = f"{kind}-{len(self.stand.parts)}"
        return make(name, SCHEDULER_FAILPOINT=crash, **env).start()

    def worker(self, crash: str = "", **env: str) -> Part:
        """A running worker."""
        return self.part("worker", crash, **env)

    def hellish(self, crash: str) -> Part:
        """A running worker with the handlers of hell.py."""
        path = os.pathsep.join(filter(None, (str(Path(__file__).parent), self.stand.env.get("PYTHONPATH"))))
        env = {"SCHEDULER_FAILPOINT": crash, "PYTHONPATH": path}
        part = self.stand.worker(f"worker-{len(self.stand.parts)}", **env)
        part.args[-1] = "hell"
        return part.start()

    def recover(self, part: Part, crash: str, *, ends: int | None = None) -> None:
        """See that the part has met its failpoint; start it again, without one, if that was its end.

        Args:
            part: An API or a worker.
            crash: The failpoint that it is armed with.
            ends: With which code it ends there if it is not killed; None: it goes on.
        """
        self.hit(crash, part.said)
        killed = crash.split(":")[1] == "kill"
        if killed or ends is not None:
            assert part.wait(5) == (-9 if killed else ends)
            part.env["SCHEDULER_FAILPOINT"] = ""
            part.start()
        assert part.alive

    def command(self, crash: str, *args: str) -> None:
        """Run a command that meets its failpoint, and then once more as a person would.

        Where the effect is late, this does not wait for it: the first process stays until it has happened.
        """
        log = self.stand.folder / f"command-{next(_NUMBERS)}.log"
        with log.open("wb") as errors:
            first = subprocess.Popen(
                [sys.executable, "-m", "scheduler", *args],
                env=self.stand.env | {"SCHEDULER_FAILPOINT": crash},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=errors,
            )
        try:
            self.hit(crash, log.read_text)
            if not crash.endswith(":late"):
                first.wait(_HIT_S)
            again = self.stand.command(*args)
            code = first.wait(_HIT_S)
        finally:
            first.kill()
            first.wait()
        assert (code == -9) == crash.endswith(":kill"), log.read_text()
        if again.returncode not in {0, 2} or "Traceback" in again.stderr:
            raise Red(f"{args} could not be done: {again}")

    def hit(self, crash: str, said: Callable[[], str]) -> None:
        """See in its log that a process has met its failpoint; `judge` waits for what is late."""
        point, mode = crash.split(":")[:2]
        name = f"{point}:{mode}"
        self.until(lambda: f"failpoint {name} was hit" in said(), _HIT_S, f"{crash} was not hit")
        if mode == "late":
            self._late[name] = said

    def forget(self) -> None:
        """Let Redis lose everything."""
        with redis.Redis.from_url(self.redis_url) as client:
            client.delete(*(client.keys(f"{self.prefix}:*") or ["none"]))

    def put_off(self) -> None:
        """Let Redis keep for ever what waits in it for its time, as after its clock was far ahead."""
        with redis.Redis.from_url(self.redis_url) as client:
            for key in client.keys(f"{self.prefix}:*:retry:*"):
                client.zadd(key, dict.fromkeys(client.zrange(key, 0, -1), 10**15))

    # observing

    def query(self, sql: str) -> list[tuple[Any, ...]]:
        """A look of our own into Postgres."""
        with psycopg.connect(self.postgres_url, autocommit=True) as connection:
            cursor = connection.execute(sql.encode())
            return cursor.fetchall() if cursor.description else []

    def count(self, what: str) -> int:
        """How many rows there are: `tasks WHERE ...`."""
        return int(self.query(f"SELECT count(*) FROM {what}")[0][0])

    def until(self, holds: Callable[[], object], within_s: float, what: str) -> None:
        """Look until it holds."""
        deadline = time.monotonic() + within_s
        while not holds():
            assert time.monotonic() < deadline, what
            time.sleep(_LOOK_S)

    def reconciled(self) -> bool:
        """Whether a pass of reconcile has come to its end since Redis lost everything."""
        with redis.Redis.from_url(self.redis_url) as client:
            epochs = [client.get(key) for key in client.keys(f"{self.prefix}:*:epoch")]
        return bool(epochs) and all(epoch and epoch.isdigit() for epoch in epochs)

    @property
    def statuses(self) -> set[int]:
        """Every answer that the clients have had."""
        return {status for result in self._results for status in result.statuses}

    def judge(self, *, lost: int | None = None) -> None:
        """Wait until everything has ended and is there, with Redis in order at every moment; then audit.

        Args:
            lost: How many runs may have been lost, exactly; None: any number.

        Raises:
            Red: it did not end, was out of order, or does not pass the audit.
        """
        deadline = time.monotonic() + self.quiet_s
        with index.connected(self.redis_url) as client:
            while (left := self.count("tasks WHERE finished_at IS NULL")) or self._landed() != [*self._late]:
                if wrong := index.disorder(index.look(client, self.prefix)):
                    raise Red(f"Redis is out of order: {wrong}")
                if time.monotonic() > deadline:
                    assert left, f"{[*self._late]} never happened"
                    raise Red(f"{left} tasks do not end")
                time.sleep(_LOOK_S)
        self.happened = self._landed()
        self._audit()
        have = self.count("task_runs WHERE outcome = 'lost'")
        if lost is not None and have != lost:
            raise Red(f"{have} runs were lost and not {lost}")

    def _landed(self) -> list[str]:
        """The late effects that have happened by now."""
        return [name for name, said in self._late.items() if f"failpoint {name} happened" in said()]

    def _audit(self) -> None:
        receipts = [receipt for result in self._results for receipt in result.receipts]
        ids, keys = promised(receipts)
        verdict = audit(
            self.postgres_url,
            self.redis_url,
            ids,
            prefix=self.prefix,
            keys=keys,
            doubtful=0,
            max_losses=MAX_LOSSES,
        )
        if not verdict.passed:
            raise Red("\n".join(verdict.lines()))


@contextmanager
def staged(servers: Servers, variables: Mapping[str, str]) -> Iterator[Stage]:
    """A stage on the session's servers, whose processes have these variables, too."""
    with new_directory() as folder, servers.database() as postgres_url:
        journal.install(postgres_url)
        redis_url = servers.redis().url
        where = {
            "POSTGRES_URL": postgres_url,
            "REDIS_ADDR": redis_url,
            "REDIS_PREFIX": f"stage{next(_NUMBERS)}",
        }
        env = settings_of(os.environ, SETTINGS | where)
        with Stand(env | variables, folder) as stand:
            stage = Stage(stand, postgres_url, redis_url)
            stand.command("reconcile")  # from now on a Redis without its epoch is one that has lost it
            try:
                yield stage
            finally:
                stage.forget()


@pytest.fixture(scope="module")
def healthy_stage(servers: Servers) -> Iterator[Stage]:
    with staged(servers, {}) as stage:
        yield stage


@pytest.fixture
def stage(healthy_stage: Stage) -> Iterator[Stage]:
    """The stage with the product as it is, cleared for one scene, and after it."""
    healthy_stage.clear()
    yield healthy_stage
    healthy_stage.clear()


@pytest.fixture
def broken(servers: Servers) -> Iterator[Callable[[str], Stage]]:
    """Make a stage whose processes are a broken build, and which waits for SHORT_QUIET_S only."""
    with ExitStack() as stack:

        def make(name: str) -> Stage:
            stage = stack.enter_context(staged(servers, stack.enter_context(made(name))))
            stage.quiet_s = SHORT_QUIET_S
            return stage

        yield make
