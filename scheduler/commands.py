"""What the commands do, once their arguments are read. One function a command; each returns the exit code."""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import os
import sys
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import asdict
from typing import Any

from scheduler import failpoints, log
from scheduler import migrate as migrations
from scheduler.child import announce, hear, hold_lifeline
from scheduler.config import VARS, Settings, masked
from scheduler.errors import QueueError, StartError
from scheduler.model import PRIORITIES, Depths, Task
from scheduler.queue import Index
from scheduler.store import Filter, Store
from scheduler.table import table

Args = argparse.Namespace


def run_async(main: Coroutine[Any, Any, int]) -> int:
    """Run a coroutine on the fast event loop."""
    import uvloop

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(main)


@asynccontextmanager
async def stores(settings: Settings, name: str) -> AsyncIterator[tuple[Store, Index]]:
    """Both stores, checked for what every command needs, and closed at the end."""
    async with AsyncExitStack() as stack:
        store = await Store.open(settings, name=name, max_conns=4)
        stack.push_async_callback(store.close)
        index = Index.open(settings, name=name)
        stack.push_async_callback(index.close)
        stack.push_async_callback(failpoints.landed)
        await store.check()
        yield store, index


# Processes


def prepare(args: Args) -> None:
    """Import what the process needs while the rest of its environment is not known, and wait for that."""
    if args.command == "api":
        from scheduler.api import server  # noqa: F401
    else:
        from scheduler import worker  # noqa: F401
    os.environ.update(hear(args.lifeline))


def _started() -> None:
    """Let the collector, which was off during the start, work; what the start has made it never looks at."""
    gc.freeze()
    gc.enable()


def api(settings: Settings, args: Args, env: Mapping[str, str]) -> int:
    """Serve the API: one process, or several that share its address."""
    from scheduler.api import server
    from scheduler.loop import Loop
    from scheduler.sampler import Sampler

    if args.lifeline is not None:
        hold_lifeline(args.lifeline)
    if args.workers > 1:
        from scheduler.fleet import Fleet

        with server.reserved(settings.http_addr) as address:
            env = {**env, "HTTP_ADDR": masked("http_addr", address)}
            _started()
            return Fleet(settings, args.workers, ["api", "--shared"], env).run()

    def ready(line: str) -> None:
        _started()
        print(line, flush=True)

    server.run(
        settings,
        ready=ready,
        loops=[
            lambda backend, metrics: Loop(
                "sampler",
                settings.metrics_sample_ms / 1000,
                Sampler(backend.store, backend.index, metrics).step,
                metrics,
            )
        ],
        shared=args.shared,
    )
    return 0


def worker(settings: Settings, args: Args, env: Mapping[str, str]) -> int:
    """Work: one process, or a fleet of them."""
    if args.lifeline is not None:
        hold_lifeline(args.lifeline)
    if args.processes > 1:
        from scheduler.fleet import Fleet

        command = ["worker", *(["--app", args.app] if args.app else [])]
        _started()
        return Fleet(settings, args.processes, command, env).run()
    return run_async(_worker(settings, args.app))


async def _worker(settings: Settings, app: str | None) -> int:
    from scheduler import heartbeat
    from scheduler.handlers import REGISTRY, load_app
    from scheduler.housekeeping import make_days
    from scheduler.metrics import Metrics
    from scheduler.worker import EXIT_STUCK, Worker

    if app:
        load_app(app)
    async with AsyncExitStack() as stack:
        metrics = Metrics()
        exporter, _ = metrics.serve(settings.metrics_addr)
        stack.callback(exporter.server_close)
        stack.callback(exporter.shutdown)
        mine = settings.pgpool_max_conns - heartbeat.CONNECTIONS
        store = await Store.open(settings, name="scheduler-worker", max_conns=mine)
        stack.push_async_callback(store.close)
        index = Index.open(settings, name="scheduler-worker")
        stack.push_async_callback(index.close)
        stack.push_async_callback(failpoints.landed)
        me = Worker(settings, REGISTRY, store, index, metrics, app=app)
        me.stop_on_signals()  # before the first wait: a stop may come while we start
        await store.check()
        await make_days(store)  # before the first run ends: what no day takes is dear to get rid of
        await index.check()
        await index.warm()
        _started()
        announce("worker", metrics=exporter.server_port, slots=settings.worker_pool, pid=os.getpid())
        try:
            await me.run()
        except BaseException as error:  # noqa: BLE001 - a handler may have cancelled us, or stopped the loop
            # Not to be raised: a loop that closes waits for every task, and some of them will not end.
            try:
                log.get("worker").error("the worker is broken; leaving", exc_info=error)
            finally:
                os._exit(EXIT_STUCK)
    if me.leftover:
        os._exit(0)  # the interpreter would wait for these threads, perhaps for ever
    return 0


# The schema and the settings


def migrate(settings: Settings, args: Args) -> int:
    """Bring the schema up to date, or say how it stands."""
    if args.action == "status":
        states = asyncio.run(migrations.status(settings.postgres_url))
        print(table(("version", "name", "state", "applied at"), [tuple(asdict(s).values()) for s in states]))
        return 0 if all(s.state == "applied" for s in states) else 1
    applied = asyncio.run(migrations.apply(settings.postgres_url))
    print("applied " + ", ".join(applied) if applied else "nothing to do: the schema is up to date")
    return 0


def config(settings: Settings, sources: Mapping[str, str]) -> int:
    """Print the effective settings."""
    rows = [
        (declared.name, masked(name, getattr(settings, name)), sources[name], declared.doc)
        for name, declared in VARS.items()
    ]
    print(table(("variable", "value", "from", "meaning"), rows))
    return 0


# The desk


def task(settings: Settings, args: Args) -> int:
    """Show or cancel one task."""
    return asyncio.run(_task(settings, args))


async def _task(settings: Settings, args: Args) -> int:
    from scheduler.cancel import cancel

    async with stores(settings, "scheduler-task") as (store, index):
        if args.action == "cancel":
            found, done = await cancel(store, index, args.id)
            if found is None:
                raise StartError(f"there is no task {args.id}")
            if not done and found.status != "cancelled":
                raise StartError(f"task {args.id} is {found.status} already and cannot be cancelled")
            print(f"task {args.id} is cancelled")
            return 0
        found = await store.task(args.id)
        if found is None:
            raise StartError(f"there is no task {args.id}")
        runs = await store.runs(args.id)
    if args.json:
        print(json.dumps({"task": asdict(found), "runs": [asdict(r) for r in runs]}, default=str, indent=2))
        return 0
    print(table(("field", "value"), list(asdict(found).items())))
    print()
    columns = (
        "attempt",
        "outcome",
        "worker",
        "claimed_at",
        "started_at",
        "finished_at",
        "error",
        "late_outcome",
    )
    print(
        table(columns, [[getattr(r, c) for c in columns] for r in runs]) if runs else "no attempt has ended"
    )
    return 0


def dlq(settings: Settings, args: Args) -> int:
    """List, redrive or purge dead letters."""
    return asyncio.run(_dlq(settings, args))


async def _dlq(settings: Settings, args: Args) -> int:
    from scheduler import dlq as letters

    async with stores(settings, "scheduler-dlq") as (store, index):
        if args.action == "list":
            found = await store.tasks(
                dead=True,
                type=args.type,
                queue=args.queue,
                priority=args.priority,
                reason=args.reason,
                limit=args.limit,
            )
            return _print_dead(found, args.json)
        if not (args.ids or args.all or args.type or args.queue or args.priority or args.reason):
            raise StartError(
                f"say which: ids, --type, --queue, --priority, --reason, or --all to {args.action} every one"
            )
        which = Filter(args.ids or None, args.type, args.queue, args.priority, args.reason)
        act: Callable[..., Coroutine[Any, Any, int]] = (
            letters.redrive if args.action == "redrive" else letters.purge
        )
        n = await act(store, index, which, _progress)
    print(f"{n} dead letter{'' if n == 1 else 's'} {args.action}{'n' if args.action == 'redrive' else 'd'}")
    return 0


def _progress(n: int) -> None:
    if sys.stderr.isatty():
        print(f"\r{n}", end="", file=sys.stderr, flush=True)


def _print_dead(found: list[Task], as_json: bool) -> int:
    if as_json:
        print(json.dumps([asdict(t) for t in found], default=str, indent=2))
        return 0
    columns = (
        "id",
        "type",
        "priority",
        "queue",
        "dead_at",
        "dead_reason",
        "attempts",
        "redrives",
        "last_error",
    )
    print(table(columns, [[getattr(t, c) for c in columns] for t in found]) if found else "no dead letters")
    return 0


def queue(settings: Settings, _args: Args) -> int:
    """List the queues with their depths."""
    return asyncio.run(_queue(settings))


async def _queue(settings: Settings) -> int:
    async with stores(settings, "scheduler-queue") as (store, index):
        names = await store.queues()
        try:
            depths = {name: await index.shard(name).depths() for name in names}
        except QueueError as error:
            raise StartError(f"Redis cannot be asked ({error}); start it or correct REDIS_ADDR") from None
    rows = [
        (name, priority, *_by_priority(d, i))
        for name, d in depths.items()
        for i, priority in enumerate(PRIORITIES)
    ]
    print(table(("queue", "priority", "ready", "waiting", "dead"), rows))
    print()
    print(table(("queue", "in flight"), [(name, d.leased) for name, d in depths.items()]))
    return 0


def _by_priority(depths: Depths, i: int) -> tuple[int, int, int]:
    return depths.queued[i], depths.retry[i], depths.dead[i]


def workers(settings: Settings, _args: Args) -> int:
    """List the workers."""
    return asyncio.run(_workers(settings))


async def _workers(settings: Settings) -> int:
    async with stores(settings, "scheduler-workers") as (store, _):
        found = await store.workers()
    columns = ("id", "queues", "slots", "running", "started_at", "seen_at", "alive")
    rows = [[getattr(w, c) for c in columns] for w in found]
    for row in rows:
        row[-1] = "yes" if row[-1] else "no"
    print(table(columns, rows) if rows else "no workers are known")
    return 0


def reconcile(settings: Settings, _args: Args) -> int:
    """Compare all of Postgres with Redis once, now."""
    return asyncio.run(_reconcile(settings))


async def _reconcile(settings: Settings) -> int:
    from scheduler.metrics import Metrics
    from scheduler.reconcile import Reconciler

    async with stores(settings, "scheduler-reconcile") as (store, index):
        await index.check()
        me = Reconciler(store, index, settings, Metrics(), holder=f"cli:{os.getpid()}")
        found = await me.reconcile(everything=True)
    found.pop("rebuilt", None)
    print(", ".join(f"{n} {kind}" for kind, n in found.items()) or "Redis agrees with Postgres")
    return 0
