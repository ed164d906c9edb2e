"""The command `up`: the whole system on this machine until Ctrl-C.

It has a module of its own because what the other commands import would keep it from starting the processes.
"""

from __future__ import annotations

import argparse
import signal
import threading
from collections.abc import Mapping
from pathlib import Path

from scheduler.config import load, masked
from scheduler.stack import Stack
from scheduler.table import table


def up(args: argparse.Namespace, env: Mapping[str, str]) -> int:
    """Keep the whole system running until Ctrl-C."""
    stopping = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopping.set())
    with Stack(env, Path(args.data_dir), lambda line: print(line, flush=True)) as stack:
        http, fleet = stack.start_all(args.workers, args=["--app", args.app] if args.app else [])
        settings, _ = load(stack.env)
        rows = [
            ("Postgres", masked("postgres_url", settings.postgres_url)),
            ("Redis", masked("redis_addr", settings.redis_addr)),
            ("API", f"http://{http['http']}/v1/tasks"),
            ("API metrics", f"http://127.0.0.1:{http['metrics']}/metrics"),
            *(
                (f"worker {i} metrics", f"http://127.0.0.1:{facts['metrics']}/metrics")
                for i, facts in enumerate(fleet, 1)
            ),
            ("data and logs", str(stack.data_dir)),
        ]
        print(table(("part", "where"), rows))
        for name, server in (("POSTGRES_URL", stack.postgres), ("REDIS_ADDR", stack.redis)):
            if server is not None:
                print(f"export {name}='{server.url}'   # for `scheduler` in other terminals")
        print("Ctrl-C stops everything.", flush=True)
        while not stopping.wait(0.5):
            stack.revive_workers()
            stack.check(workers=False)
        print("stopping", flush=True)
    return 0
