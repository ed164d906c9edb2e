"""Scenes that lead a process to a failpoint, one for each group of arrows of the lifecycle.

A scene brings a process to one failpoint, sees in its log that it was hit, starts again what died, and waits
until all is quiet. The audit then starts from the client's own list. Beyond that, a run may only be lost
where a process died or a handler slept past its lease: an error on the way costs nothing but time.
"""

from __future__ import annotations

import signal
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from fix_stage import IDLE, LEASE_MS, MAX_LOSSES, Red, Stage, body
from refusal import refusing

from scheduler.worker import EXIT_STUCK

Scene = Callable[[Stage, str], None]


def mixed(crash: str) -> list[dict]:
    """Some of everything; where the failpoint strikes late, there must still be something left to strike."""
    n = 60 if crash.endswith(":late") else 10
    flaky = [body("flaky", fail_times=1)] * 6
    return [*[body("work", ms=80)] * n, *flaky, *[body("always_fail", retries=1)] * 2, *[body("noop")] * 6]


def no_loss(crash: str) -> int | None:
    """How many runs may be lost: none, unless a worker was killed."""
    return None if ":kill" in crash else 0


def enqueue(stage: Stage, crash: str) -> None:
    """An API fails at an arrow of its own while clients wait for their answers."""
    stage.worker()
    api = stage.part("api", crash)
    with ThreadPoolExecutor(1) as beside:
        sending = beside.submit(stage.send, mixed(crash), api)
        stage.recover(api, crash)
        sending.result()
    if not crash.endswith(":kill") and stage.statuses != {201}:
        raise Red(f"a client saw the error: {stage.statuses}")
    stage.judge(lost=0)


def work(stage: Stage, crash: str) -> None:
    """A worker fails while it works off a queue."""
    stage.send(mixed(crash))
    stage.recover(stage.worker(crash), crash)
    stage.judge(lost=no_loss(crash))


def refuse(stage: Stage, crash: str) -> None:
    """A worker fails while it puts away ids whose tasks were cancelled."""
    ids = stage.send([body("work", ms=80)] * 8)
    for id_ in ids[:4]:
        stage.cancel(id_)
    stage.recover(stage.worker(crash), crash)
    stage.judge(lost=no_loss(crash))


def beat(stage: Stage, crash: str) -> None:
    """A worker fails while it renews the leases of tasks that take longer than one."""
    stage.send([body("work", ms=1.4 * LEASE_MS)] * 3)
    stage.recover(stage.worker(crash), crash)
    stage.judge(lost=no_loss(crash))


def release(stage: Stage, crash: str) -> None:
    """A worker fails while it gives back what it had no time to finish."""
    late = crash.endswith(":late")
    stage.send([body("work", ms=600)] * (24 if late else 5))
    worker = stage.worker(crash, SHUTDOWN_GRACE_MS="0", WORKER_POOL="2")
    stage.until(lambda: stage.count("tasks WHERE status = 'running'"), 10, "nothing runs")
    if late:
        stage.worker()  # has taken up what was given back when the late effect comes
    worker.signal(signal.SIGTERM)
    stage.hit(crash, worker.said)
    assert worker.wait(10) == (-9 if crash.endswith(":kill") else 0)
    if not late:
        stage.worker()
    stage.judge(lost=no_loss(crash))


def pump(stage: Stage, crash: str) -> None:
    """A worker fails while it makes ready what has come due."""
    stage.send([body("work", delay_ms=200, ms=50)] * 12)
    stage.until(lambda: not stage.count("tasks WHERE due_at > now()"), 5, "they are not due")
    stage.recover(stage.worker(crash), crash)
    stage.judge(lost=no_loss(crash))


def reap(stage: Stage, crash: str) -> None:
    """A worker fails while it reaps leases that ran out."""
    stage.send([body("sleeper", sleep_ms=2.5 * LEASE_MS)] * 3)
    by_then_some_have_run_out = ":6" if crash.startswith("reap.expired") else ""
    stage.recover(stage.worker(crash + by_then_some_have_run_out), crash)
    stage.judge(lost=None if crash.endswith(":kill") else 3 * (MAX_LOSSES + 1))


def put_off(stage: Stage, crash: str) -> None:
    """A worker fails while it puts off leases that Postgres does not let it reap."""
    stage.send([body("sleeper", sleep_ms=2.5 * LEASE_MS)] * 3)
    with refusing(stage.query, "task_runs", "NEW.outcome = 'lost'"):
        stage.recover(stage.worker(crash), crash)
    stage.judge()


def leave(stage: Stage, crash: str) -> None:
    """A worker fails while it settles what it holds, before it leaves a handler that cannot be ended."""
    blocks = body("blocks", retries=0, s=60) | {"timeout_ms": 300}
    stage.send([body("noop"), blocks, *[body("naps", s=3)] * 2, body("noop")])
    worker = stage.hellish(crash)
    stage.recover(worker, crash, ends=EXIT_STUCK)

    def ended() -> bool:
        worker.start()  # as its supervisor would
        return not stage.count("tasks WHERE finished_at IS NULL")

    stage.until(ended, 25, "they do not end")
    stage.judge(lost=None if crash == "leave.commit:exception" else 0)
    if stage.count("task_runs WHERE outcome = 'timed_out'") != 1:
        raise Red("the handler that cannot be ended has not timed out once")
    if stage.count("task_runs WHERE error LIKE '%while the worker lived%'") and not crash.endswith(":kill"):
        raise Red("the worker did not sign off: what it held is charged")


def reconcile(stage: Stage, crash: str) -> None:
    """Reconcile fails while it pushes what Redis has lost: as a command, or in a worker, to be late."""
    late = crash.endswith(":late")
    stage.send([body("work", ms=100)] * (100 if late else 30))
    stage.forget()
    if late:
        no_pass_puts_right_what_comes_late = "3000"
        worker = stage.worker(crash, RECONCILE_INTERVAL_MS=no_pass_puts_right_what_comes_late)
        stage.recover(worker, crash)
    else:
        stage.command(crash, "reconcile")
        stage.worker(**IDLE)
    stage.judge(lost=0)


def adopt(stage: Stage, crash: str) -> None:
    """Reconcile fails while it makes Redis know the leases that it has lost."""
    opened = stage.stand.folder / f"{crash} is over"
    stage.send([body("gate", path=str(opened))] * 4)
    stage.worker(**IDLE)
    stage.until(lambda: stage.count("tasks WHERE status = 'running'") == 4, 10, "they do not run")
    idle_leads(stage)
    stage.forget()
    one_pass(stage, crash)
    opened.touch()
    stage.judge(lost=0)


def idle_leads(stage: Stage) -> None:
    """Wait until the idle worker has made its one pass, and depose it."""
    stage.until(stage.reconciled, 10, "nobody has made a pass")
    stage.query("DELETE FROM leaders")


def one_pass(stage: Stage, crash: str) -> None:
    """Reconcile fails as a command, or in a worker, to be late."""
    if crash.endswith(":late"):
        stage.recover(stage.worker(crash), crash)
    else:
        stage.command(crash, "reconcile")


def nudge(stage: Stage, crash: str) -> None:
    """Reconcile fails while it makes due what is due by its row and would wait in Redis for ever."""
    stage.send([body("work", delay_ms=200, ms=50)] * 6)
    stage.put_off()
    stage.recover(stage.worker(crash), crash)
    stage.judge(lost=no_loss(crash))


def show(stage: Stage, crash: str) -> None:
    """Reconcile fails while it shows the dead letters that Redis has lost."""
    letters(stage, **IDLE)
    idle_leads(stage)
    stage.forget()
    one_pass(stage, crash)
    stage.judge(lost=0)


def unshow(stage: Stage, crash: str) -> None:
    """Reconcile fails while it takes away what is no dead letter any more: a purge has died half-way."""
    letters(stage, **IDLE)
    idle_leads(stage)
    stage.stand.command("dlq", "purge", "--all", SCHEDULER_FAILPOINT="purge.commit:kill")
    assert not stage.count("tasks WHERE dead_at IS NOT NULL")
    one_pass(stage, crash)
    stage.judge(lost=0)


def cancel(stage: Stage, crash: str) -> None:
    """The command fails while it cancels a task that waits."""
    ids = stage.send([body("work", delay_ms=1000, ms=50)] * 4)
    stage.command(crash, "task", "cancel", ids[0])
    stage.worker()
    stage.judge(lost=0)
    if stage.count("tasks WHERE status = 'cancelled'") != 1:
        raise Red("the task is not cancelled")


def letters(stage: Stage, n: int = 6, **env: str) -> None:
    """Make dead letters, by a worker with these variables."""
    stage.send([body("always_fail", retries=0)] * n)
    stage.worker(**env)
    stage.until(lambda: stage.count("tasks WHERE dead_at IS NOT NULL") == n, 10, "they do not die")


def redrive(stage: Stage, crash: str) -> None:
    """The command fails while it gives dead letters a new life."""
    letters(stage)
    stage.command(crash, "dlq", "redrive", "--all")
    stage.judge(lost=0)
    if stage.count("tasks WHERE redrives = 0"):
        raise Red("some were not redriven")


def purge(stage: Stage, crash: str) -> None:
    """The command fails while it takes dead letters off the queue."""
    letters(stage)
    stage.command(crash, "dlq", "purge", "--all")
    stage.judge(lost=0)
    if stage.count("tasks WHERE dead_at IS NOT NULL"):
        raise Red("some were not purged")


SCENES: dict[str, Scene] = {
    "enqueue": enqueue,
    "lease": work,
    "lease.place": refuse,
    "heartbeat": beat,
    "settle": work,
    "release": release,
    "pump": pump,
    "reap": reap,
    "reap.put_off": put_off,
    "leave": leave,
    "reconcile": reconcile,
    "reconcile.adopt": adopt,
    "reconcile.nudge": nudge,
    "reconcile.dlq_add": show,
    "reconcile.dlq_del": unshow,
    "cancel": cancel,
    "redrive": redrive,
    "purge": purge,
}
"""By failpoint, or by the first word of it."""


def play(stage: Stage, crash: str) -> None:
    """Play the scene that leads to this failpoint."""
    point = crash.partition(":")[0]
    (SCENES.get(point) or SCENES[point.split(".")[0]])(stage, crash)


# A batch that Postgres refuses for one value in it.


def refused_tasks(stage: Stage) -> None:
    """Some tasks of a group commit are refused, and their neighbours are not."""
    bodies = [body("noop", poison=n % 4 == 0) for n in range(80)]
    with refusing(stage.query, "tasks", "(NEW.payload ->> 'poison')::boolean"):
        stage.send(bodies, senders=16, refused=20)
    stage.worker()
    stage.judge(lost=0)


def refused_outcomes(stage: Stage) -> None:
    """The error texts of some outcomes are refused: these are settled without, and their neighbours whole."""
    stage.send([*[body("always_fail", retries=0)] * 6, *[body("noop")] * 30])
    with refusing(stage.query, "task_runs", "NEW.error LIKE '%always_fail%'"):
        stage.worker()
        stage.judge(lost=0)
