"""The peers that we are measured against, each in the settings that were found to be its best.

A setup of `setups` is for speed; `safe` is the one that takes a dead worker for dead after about five seconds
where the peer can be told so, and acknowledges a task after its end where it can. Rates "when first measured"
are of 10,000 noops, taken by hand before there was this command, over 11,432 commits a second of pgbench.
"""

from __future__ import annotations

from typing import Final

from bench.peer import Peer, Setup
from bench.peer_stores import Counted, Logged, group_left, total

LEASE: Final = {"PEER_LEASE_S": "5"}

_MEMORY: Final = "Redis in memory, no file: its crash loses what waits; nothing is kept of what is done"
_PGBENCH: Final = 11432

_SERVE: Final = "python {app} serve"
_CELERY: Final = "celery -A celery_app worker -l warning -n w{i}@%h -c 12 -P"
_THREADS: Final = f"{_CELERY} threads --without-gossip --without-mingle --without-heartbeat"
_RQ: Final = "rq worker -q -w rq_app.Worker --url {url}"
_ARQ: Final = "arq arq_app.WorkerSettings"
_SAQ: Final = "saq saq_app.settings"
_STREAQ: Final = "streaq run streaq_app:worker"
_TASKIQ: Final = (
    "taskiq worker taskiq_app:broker --workers 1 --no-parse --log-level WARNING --max-async-tasks"
)
_NODE: Final = "node {app} serve"


def _pgqueuer(processes: int, batch: int, **env: str) -> Setup:
    return Setup(
        f"pgqueuer-{processes}x{batch}",
        f"{processes} processes, batch_size={batch}, max_concurrent_tasks={2 * batch}",
        _SERVE,
        processes,
        env={"PEER_BATCH": str(batch), "PEER_CONCURRENT": str(2 * batch), **env},
    )


def _dramatiq(processes: int, threads: int, **env: str) -> Setup:
    return Setup(
        "-".join((f"dramatiq-{processes}x{threads}", *env.values())),
        ", ".join((f"-p {processes} -t {threads}", *(f"{name}={value}" for name, value in env.items()))),
        f"dramatiq dramatiq_app -p {processes} -t {threads}",
        workers=1,
        lines=processes,
        env=env,
    )


PEERS: Final = (
    Peer(
        "pgqueuer",
        "PgQueuer",
        "pgqueuer_app.py",
        ("pgqueuer>=1.6", "asyncpg>=0.30", "uvloop>=0.21"),
        "Postgres, fsync; all tables logged (durable); a log row a job is kept",
        "It gets uvloop, and batches far above its default of 10. It runs as many jobs at once as its setup"
        " says; our 12 slots have no counterpart there. What it keeps of a task is much like ours.",
        "postgres",
        Logged(
            "SELECT FROM pgqueuer",
            "SELECT extract(epoch FROM created)::float8 FROM pgqueuer_log WHERE status = 'successful'",
            "pgqueuer, pgqueuer_log",
        ),
        (_pgqueuer(3, 100), _pgqueuer(2, 100), _pgqueuer(2, 500)),
        Setup(
            "pgqueuer-safe",
            "3 processes, batch_size=6, heartbeat_timeout and dequeue_timeout of 5 s",
            _SERVE,
            env={"PEER_BATCH": "6", "PEER_CONCURRENT": "12", **LEASE},
        ),
        before=9216 / _PGBENCH,
    ),
    Peer(
        "procrastinate",
        "Procrastinate",
        "procrastinate_app.py",
        ("procrastinate>=3.5", "psycopg[binary]>=3.2.3"),
        "Postgres, fsync; the row of a job and one an event of it are kept",
        "It fetches and finishes each job in statements of their own, and triggers write its events. Jobs of"
        " dead workers are tried again by the periodic task that its documentation gives for that.",
        "postgres",
        Logged(
            "SELECT FROM procrastinate_jobs WHERE status IN ('todo', 'doing')",
            "SELECT extract(epoch FROM at)::float8 FROM procrastinate_events WHERE type = 'succeeded'",
            "procrastinate_jobs, procrastinate_events",
        ),
        (Setup("procrastinate-3x12", "3 processes, concurrency=12", _SERVE, env={"PEER_SLOTS": "12"}),),
        Setup(
            "procrastinate-safe",
            "3 × 12, stalled_worker_timeout=5, jobs of stalled workers tried again every 5 s",
            _SERVE,
            env={"PEER_SLOTS": "12", **LEASE},
        ),
        share=0.2,
        before=608 / _PGBENCH,
    ),
    Peer(
        "dramatiq",
        "Dramatiq",
        "dramatiq_app.py",
        ("dramatiq[redis]>=2.2", "hiredis>=3"),
        _MEMORY,
        "It prefetches in batches, and its actors run in threads; ours and those of the asyncio peers are"
        " coroutines. It finds dead workers by chance, at one command of some: `maintenance_chance`.",
        "redis",
        Counted(total("HLEN dramatiq:default.msgs")),
        (_dramatiq(3, 12), _dramatiq(2, 8), _dramatiq(2, 8, dramatiq_queue_prefetch="400")),
        Setup(
            "dramatiq-safe",
            "3 × -p 1 -t 12, heartbeat_timeout=5000, maintenance_chance=100000",
            "dramatiq dramatiq_app -p 1 -t 12",
            env=LEASE,
        ),
        before=6495 / _PGBENCH,
    ),
    Peer(
        "celery",
        "Celery",
        "celery_app.py",
        ("celery[redis]>=5.5", "hiredis>=3"),
        _MEMORY,
        "Noops suit its threads better than its default processes, which are measured, too. With late"
        " acknowledgement a task that takes longer than visibility_timeout runs twice, so 5 s is for short"
        " tasks only; its default is an hour.",
        "redis",
        Counted(total("LLEN celery", "HLEN unacked")),
        (
            Setup(
                "celery-threads",
                "3 × -P threads -c 12, prefetch multiplier 16, without gossip, mingle and heartbeat",
                _THREADS,
                env={"PEER_PREFETCH": "16"},
            ),
            Setup("celery-prefork", "3 × -P prefork -c 12", f"{_CELERY} prefork"),
        ),
        Setup(
            "celery-safe",
            "3 × -P threads -c 12, acks_late, reject_on_worker_lost, visibility_timeout=5",
            _THREADS,
            env={"PEER_PREFETCH": "1", **LEASE},
        ),
        share=0.25,
        before=1359 / _PGBENCH,
    ),
    Peer(
        "rq",
        "RQ",
        "rq_app.py",
        ("rq>=2.6", "hiredis>=3"),
        _MEMORY,
        "A worker runs one job at a time, in its own process (SimpleWorker); the default one forks for each"
        " job and is several times slower. An abandoned job is tried again a minute after its timeout.",
        "redis",
        Counted(total("LLEN rq:queue:default", "ZCARD rq:wip:default")),
        (Setup("rq-simple2", "2 SimpleWorkers", _RQ, 2),),
        Setup(
            "rq-safe",
            "12 SimpleWorkers, job_timeout=5, retry=3, --maintenance-interval 5",
            f"{_RQ} --maintenance-interval 5",
            12,
            env=LEASE,
        ),
        share=0.1,
        before=336 / _PGBENCH,
    ),
    Peer(
        "arq",
        "arq",
        "arq_app.py",
        ("arq>=0.26",),
        _MEMORY,
        "It polls: poll_delay is 0.02 s here and 0.5 s by default, which is what a task waits for. A job of a"
        " dead worker runs again ten seconds after its job_timeout.",
        "redis",
        Counted(total("ZCARD arq:queue")),
        (
            Setup(
                "arq-3x100",
                "3 processes, max_jobs=100, queue_read_limit=400, poll_delay=0.02",
                _ARQ,
                env={"PEER_SLOTS": "100", "PEER_READ": "400", "PEER_POLL_S": "0.02"},
            ),
        ),
        Setup(
            "arq-safe",
            "3 × max_jobs=12, poll_delay=0.02, job_timeout=5",
            _ARQ,
            env={"PEER_POLL_S": "0.02", **LEASE},
        ),
        share=0.2,
        before=839 / _PGBENCH,
    ),
    Peer(
        "saq",
        "SAQ",
        "saq_app.py",
        ("saq[hiredis]>=0.26", "typing-extensions>=4", "uvloop>=0.21"),
        _MEMORY,
        "A job must end within its timeout, and is tried again only if it was given retries.",
        "redis",
        Counted(total("ZCARD saq:default:incomplete")),
        (
            Setup("saq-3x12", "3 processes, concurrency=12", _SAQ),
            Setup("saq-2x50", "2 processes, concurrency=50", _SAQ, 2, env={"PEER_SLOTS": "50"}),
        ),
        Setup("saq-safe", "3 × concurrency=12, retries=5, timeout=5, sweep every 5 s", _SAQ, env=LEASE),
        share=0.5,
        before=2152 / _PGBENCH,
    ),
    Peer(
        "streaq",
        "streaQ",
        "streaq_app.py",
        ("streaq>=6", "uvloop>=0.21"),
        _MEMORY,
        "It runs on uvloop, with results switched off (ttl=0).",
        "redis",
        Counted(total("XLEN streaq:default:queues:normal")),
        (
            Setup("streaq-2x50", "2 processes, concurrency=50, uvloop", _STREAQ, 2, env={"PEER_SLOTS": "50"}),
            Setup("streaq-3x12", "3 processes, concurrency=12, uvloop", _STREAQ),
        ),
        Setup("streaq-safe", "3 × concurrency=12, idle_timeout=5, uvloop", _STREAQ, env=LEASE),
        share=0.25,
        before=1287 / _PGBENCH,
    ),
    Peer(
        "taskiq",
        "taskiq",
        "taskiq_app.py",
        ("taskiq[uv]>=0.11", "taskiq-redis>=1.1", "hiredis>=3"),
        "Redis in memory, no file: its crash loses what waits; its stream keeps the messages of what is done",
        "Its stream broker, which acknowledges; its list broker is quicker and forgets what a dead worker"
        " held. A task that takes longer than idle_timeout runs twice, so 5 s is for short tasks only."
        " A worker takes over what another one held once it has received a new message; the kill sends none.",
        "redis",
        Counted(group_left("taskiq")),
        (
            Setup(
                "taskiq-2x100",
                "2 × --max-async-tasks 100 --max-prefetch 100 --no-parse",
                f"{_TASKIQ} 100 --max-prefetch 100",
                2,
            ),
            Setup("taskiq-3x12", "3 × --max-async-tasks 12 --no-parse", f"{_TASKIQ} 12"),
        ),
        Setup(
            "taskiq-safe",
            "3 × --max-async-tasks 12, idle_timeout=5000, xread_count=12",
            f"{_TASKIQ} 12",
            env={"PEER_READ": "12", **LEASE},
        ),
        share=0.5,
        before=3950 / _PGBENCH,
    ),
    Peer(
        "bullmq",
        "BullMQ",
        "bullmq_app.cjs",
        ("bullmq@>=5", "ioredis@5"),
        _MEMORY,
        "It is JavaScript and runs on node; its handlers are coroutines there.",
        "redis",
        Counted(total("LLEN bull:peer:wait", "LLEN bull:peer:active")),
        (
            Setup(
                "bullmq-2x100",
                "2 processes, concurrency: 100, removeOnComplete",
                _NODE,
                2,
                env={"PEER_SLOTS": "100"},
            ),
            Setup(
                "bullmq-3x12",
                "3 processes, concurrency: 12, removeOnComplete",
                _NODE,
                env={"PEER_SLOTS": "12"},
            ),
        ),
        Setup(
            "bullmq-safe",
            "3 × concurrency: 12, lockDuration and stalledInterval of 5 s, maxStalledCount: 5",
            _NODE,
            env={"PEER_SLOTS": "12", **LEASE},
        ),
        before=6413 / _PGBENCH,
    ),
)
"""In the order of the tables: those on Postgres first."""
