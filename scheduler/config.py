"""Every setting: its name, default, meaning and check, declared once.

The names of the original README are kept verbatim; newer ones follow their pattern. The README's table,
`scheduler config` and `--help` are made from the declarations below. `cli.py` alone reads the environment
and hands a `Settings` down; nothing here looks at it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Final
from urllib.parse import quote, urlsplit, urlunsplit

from scheduler.backoff import JITTERS, STRATEGIES, Backoff, Jitter, Strategy
from scheduler.errors import ConfigError
from scheduler.model import NAME_PATTERN, PRIORITIES, Priority

MASK: Final = "***"


def _int(low: int, high: int = 2**31 - 1) -> Callable[[str], int]:
    def parse(text: str) -> int:
        if not re.fullmatch(r"-?[0-9]{1,15}", text):
            raise ValueError("must be a whole number")
        value = int(text)
        if not low <= value <= high:
            raise ValueError(f"must be between {low} and {high}")
        return value

    return parse


def _choice(*names: str) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if text not in names:
            raise ValueError(f"must be one of {', '.join(names)}")
        return text

    return parse


def _port(text: str) -> int | None:
    return int(text) if re.fullmatch(r"[0-9]{1,5}", text) and int(text) <= 65535 else None


def _address(text: str) -> tuple[str, int]:
    """`HOST:PORT` or `:PORT` (every interface). Port 0 lets the system choose."""
    host, _, number = text.rpartition(":")
    port = _port(number)
    if port is None or ":" not in text:
        raise ValueError("must be HOST:PORT or :PORT")
    host = host.strip("[]")
    _check_hosts(host)
    return host or "0.0.0.0", port  # noqa: S104 - `:PORT` means every interface


# The drivers' own parsers are lenient, and repeat the whole URL, password included, where they complain.
_HOST: Final = r"(?:\[[0-9A-Fa-f:.]+\]|[^\s:@/?#\[\],]*)(?::[0-9]{1,5})?"
_POSTGRES_URL: Final = rf"postgres(?:ql)?://(?:[^@/?#]*@)?{_HOST}(?:,{_HOST})*(?:/[^?#]*)?(?:\?[^#]*)?"
_REDIS_URL: Final = (
    rf"rediss?://(?:[^/?#]*@)?{_HOST}(?:/[0-9]*)?(?:\?[^#]*)?|unix://(?:[^/?#]*@)?/[^?#]*(?:\?[^#]*)?"
)


def _check_hosts(*hosts: str) -> None:
    """Refuse names that a resolver answers with an error that is none of the network's."""
    for host in hosts:
        try:
            host.encode("idna")
        except UnicodeError:
            raise ValueError(
                "names no possible host: a part of its name is empty or longer than 63 characters"
            ) from None


def _postgres_url(text: str) -> str:
    if not text.startswith(("postgres://", "postgresql://")):
        raise ValueError("must be a postgres:// URL")
    if not re.fullmatch(_POSTGRES_URL, text) or re.search(r"%(?!(?!00)[0-9A-Fa-f]{2})", text):
        raise ValueError(
            "must be like postgres://USER:PASSWORD@HOST:PORT/DATABASE, special characters as %XX"
        )
    hosts = (re.sub(r":[0-9]*$", "", each) for each in urlsplit(text).netloc.rpartition("@")[2].split(","))
    named = (host for host in hosts if not host.startswith(("[", "%2F", "%2f")))  # not a socket's folder
    _check_hosts(*named)
    return text


def _redis_addr(text: str) -> str:
    """`HOST:PORT`, `:PORT` or a redis://, rediss:// or unix:// URL; kept as a URL."""
    url = text
    if "://" not in text:
        host, _, port = text.rpartition(":")
        url = f"redis://{host or 'localhost'}:{port}/0" if _port(port) is not None and "@" not in host else ""
    if not re.fullmatch(_REDIS_URL, url):
        raise ValueError(
            "must be HOST:PORT, :PORT or a redis://, rediss:// or unix:// URL, special characters as %XX"
        )
    _check_hosts(urlsplit(url).hostname or "")
    return url


def _names(text: str) -> tuple[str, ...]:
    names = tuple(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))
    if not names:
        raise ValueError("must name at least one queue")
    for name in names:
        if not re.fullmatch(NAME_PATTERN, name):
            raise ValueError(f"{name!r} is not a queue name ({NAME_PATTERN})")
    return names


def _weights(text: str) -> dict[Priority, int]:
    weights: dict[Priority, int] = {}
    parts = text.split(",")
    for part in parts:
        name, _, number = part.partition("=")
        name = name.strip()
        if name not in PRIORITIES or not re.fullmatch(r"\s*[0-9]{1,9}\s*", number):
            raise ValueError("must be like critical=8,high=4,default=2,low=1")
        weights[name] = int(number)
    if len(parts) != len(PRIORITIES) or set(weights) != set(PRIORITIES):
        raise ValueError(f"must name each of {', '.join(PRIORITIES)} once")
    if not all(1 <= w <= 1000 for w in weights.values()):
        raise ValueError("weights must be between 1 and 1000")
    return weights


def _prefix(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9_.-]{1,32}", text):
        raise ValueError("must be 1 to 32 letters, digits, '_', '.' or '-'")
    return text


def _prepare_threshold(text: str) -> int | None:
    return None if text == "off" else _int(0, 1_000_000)(text)


def _text(text: str) -> str:
    return text


@dataclass(frozen=True, slots=True)
class Var:
    """One setting as it is declared: the variable's name, its default as text, its meaning, its parser."""

    name: str
    default: str
    doc: str
    parse: Callable[[str], Any]
    secret: bool = False
    seed: bool = False
    """One of the original README's variables; its default and meaning are that README's."""


def var(
    name: str,
    default: str,
    doc: str,
    parse: Callable[[str], Any],
    *,
    secret: bool = False,
    seed: bool = False,
) -> Any:
    """Declare a field of Settings. The default goes through the parser too, so the two cannot differ."""
    declared = Var(name, default, doc, parse, secret, seed)
    return field(default_factory=lambda: parse(default), metadata={"var": declared})


@dataclass(frozen=True, slots=True)
class Settings:
    """The effective configuration of one process. Times are milliseconds."""

    postgres_url: str = var(
        "POSTGRES_URL",
        "postgres://app:app@localhost:5432/app?sslmode=disable",
        "Postgres DSN.",
        _postgres_url,
        secret=True,
        seed=True,
    )
    redis_addr: str = var(
        "REDIS_ADDR", "localhost:6379", "Redis address.", _redis_addr, secret=True, seed=True
    )
    redis_pass: str = var("REDIS_PASS", "", "Redis password if required.", _text, secret=True, seed=True)
    metrics_addr: tuple[str, int] = var(
        "METRICS_ADDR",
        ":2112",
        "Prometheus metrics bind address (set to `:2113` for the worker via Makefile).",
        _address,
        seed=True,
    )
    worker_pool: int = var("WORKER_POOL", "12", "Slots per worker process.", _int(1, 10_000), seed=True)
    pgpool_max_conns: int = var(
        "PGPOOL_MAX_CONNS", "20", "Max Postgres connections per worker.", _int(3, 1000), seed=True
    )
    redis_pool_size: int = var("REDIS_POOL_SIZE", "50", "Redis client pool size.", _int(4, 10_000), seed=True)
    redis_min_idle: int = var(
        "REDIS_MIN_IDLE", "10", "Minimum idle Redis connections.", _int(0, 10_000), seed=True
    )
    vis_timeout_ms: int = var(
        "VIS_TIMEOUT_MS", "60000", "Visibility timeout in milliseconds.", _int(100, 86_400_000), seed=True
    )
    reaper_scan_interval_ms: int = var(
        "REAPER_SCAN_INTERVAL_MS", "2000", "Reaper cadence in milliseconds.", _int(10), seed=True
    )
    reaper_batch_size: int = var("REAPER_BATCH_SIZE", "100", "Reaper batch size.", _int(1, 1000), seed=True)
    metrics_sample_ms: int = var(
        "METRICS_SAMPLE_MS", "500", "Gauge sampling interval in milliseconds.", _int(10), seed=True
    )
    retry_base_ms: int = var("RETRY_BASE_MS", "500", "Retry base backoff.", _int(0, 86_400_000), seed=True)
    retry_max_ms: int = var("RETRY_MAX_MS", "30000", "Retry max backoff.", _int(0, 86_400_000), seed=True)
    retry_jitter_ms: int = var("RETRY_JITTER_MS", "500", "Backoff jitter.", _int(0, 86_400_000), seed=True)
    retry_scan_interval_ms: int = var(
        "RETRY_SCAN_INTERVAL_MS", "500", "Retry pump cadence in milliseconds.", _int(10), seed=True
    )
    retry_batch_size: int = var("RETRY_BATCH_SIZE", "100", "Retry pump batch size.", _int(1, 1000), seed=True)

    http_addr: tuple[str, int] = var("HTTP_ADDR", ":8080", "API bind address.", _address)
    redis_prefix: str = var(
        "REDIS_PREFIX", "sched1", "First part of every Redis key; its number is the keys' version.", _prefix
    )
    worker_queues: tuple[str, ...] = var(
        "WORKER_QUEUES", "default", "Queues that a worker serves, separated by commas.", _names
    )
    lease_batch_size: int = var(
        "LEASE_BATCH_SIZE", "500", "Most tasks that a worker leases at once.", _int(1, 1000)
    )
    lease_ahead_ms: int = var(
        "LEASE_AHEAD_MS",
        "50",
        "How much work, by recent run times, a worker leases beyond its free slots.",
        _int(0, 60_000),
    )
    settle_batch_size: int = var(
        "SETTLE_BATCH_SIZE", "500", "Most outcomes that one statement records.", _int(1, 1000)
    )
    enqueue_batch_size: int = var(
        "ENQUEUE_BATCH_SIZE", "500", "Most single requests that share one commit.", _int(1, 1000)
    )
    enqueue_max_waiting: int = var(
        "ENQUEUE_MAX_WAITING",
        "20000",
        "Tasks that may wait for their commit; beyond it the API answers 503.",
        _int(1, 10_000_000),
    )
    enqueue_timeout_ms: int = var(
        "ENQUEUE_TIMEOUT_MS",
        "5000",
        "How long a request waits for its commit before the API answers 503.",
        _int(100, 600_000),
    )
    store_timeout_ms: int = var(
        "STORE_TIMEOUT_MS", "5000", "Longest wait for one answer of Postgres or Redis.", _int(100, 600_000)
    )
    priority_mode: str = var(
        "PRIORITY_MODE",
        "weighted",
        "`weighted` shares by weight; `strict` always takes the highest priority first.",
        _choice("weighted", "strict"),
    )
    priority_weights: dict[Priority, int] = var(
        "PRIORITY_WEIGHTS", "critical=8,high=4,default=2,low=1", "Shares under saturation.", _weights
    )
    priority_max_wait_ms: int = var(
        "PRIORITY_MAX_WAIT_MS",
        "30000",
        "A list that has waited unserved this long is served next, in either mode; 0 turns the bound off.",
        _int(0, 86_400_000),
    )
    max_retries: int = var("MAX_RETRIES", "3", "Retries of a task that names none.", _int(0, 1000))
    max_losses: int = var(
        "MAX_LOSSES",
        "3",
        "Runs of one task that may end with their worker or lease before it is dead.",
        _int(0, 1000),
    )
    task_timeout_ms: int = var(
        "TASK_TIMEOUT_MS", "300000", "Longest run of a task that names no timeout.", _int(1, 86_400_000)
    )
    retry_strategy: Strategy = var(
        "RETRY_STRATEGY",
        "exponential",
        "Curve of the backoff: `exponential`, `linear` or `constant`.",
        _choice(*STRATEGIES),
    )
    retry_jitter: Jitter = var(
        "RETRY_JITTER",
        "added",
        "`none`, `added` (0 to RETRY_JITTER_MS on top), `equal` or `full`.",
        _choice(*JITTERS),
    )
    unknown_type_delay_ms: int = var(
        "UNKNOWN_TYPE_DELAY_MS",
        "5000",
        "How long a task waits after a worker that has no handler for its type gave it back.",
        _int(50, 86_400_000),
    )
    max_refusals: int = var(
        "MAX_REFUSALS",
        "10",
        "How often a task may be given back for its unknown type before it is dead.",
        _int(0, 100_000),
    )
    shutdown_grace_ms: int = var(
        "SHUTDOWN_GRACE_MS",
        "10000",
        "How long a stopping worker lets running handlers finish before it gives their tasks back.",
        _int(0, 3_600_000),
    )
    reconcile_interval_ms: int = var(
        "RECONCILE_INTERVAL_MS", "2000", "How often Redis is compared with Postgres.", _int(50, 3_600_000)
    )
    reconcile_batch_size: int = var(
        "RECONCILE_BATCH_SIZE", "1000", "Rows that one page of that comparison reads.", _int(1, 10_000)
    )
    housekeeping_interval_ms: int = var(
        "HOUSEKEEPING_INTERVAL_MS",
        "60000",
        "How often old rows are pruned and history partitions made.",
        _int(50, 86_400_000),
    )
    idempotency_ttl_ms: int = var(
        "IDEMPOTENCY_TTL_MS",
        "86400000",
        "How long an idempotency key is remembered; never less than its task takes to end.",
        _int(1, 2**40),
    )
    retention_ms: int = var(
        "RETENTION_MS",
        "604800000",
        "How long finished tasks and their runs are kept; dead letters stay until purged.",
        _int(1, 2**42),
    )
    max_payload_bytes: int = var(
        "MAX_PAYLOAD_BYTES", "262144", "Largest payload of one task.", _int(2, 2**28)
    )
    max_body_bytes: int = var(
        "MAX_BODY_BYTES", "8388608", "Largest body of one HTTP request.", _int(1024, 2**30)
    )
    pg_prepare_threshold: int | None = var(
        "PG_PREPARE_THRESHOLD",
        "2",
        "Executions before a statement is prepared on the server; `off` behind PgBouncer.",
        _prepare_threshold,
    )
    log_level: str = var(
        "LOG_LEVEL",
        "info",
        "`debug`, `info`, `warning` or `error`.",
        _choice("debug", "info", "warning", "error"),
    )
    log_format: str = var("LOG_FORMAT", "json", "`json` or `text`.", _choice("json", "text"))

    @property
    def backoff(self) -> Backoff:
        """The retry policy of tasks and types that bring none of their own."""
        return Backoff(
            self.retry_strategy,
            self.retry_base_ms,
            self.retry_max_ms,
            self.retry_jitter,
            self.retry_jitter_ms,
        )

    def __repr__(self) -> str:
        """As it may be shown in a log or a traceback: passwords hidden."""
        shown = ", ".join(f"{name}={masked(name, getattr(self, name))!r}" for name in VARS)
        return f"Settings({shown})"


VARS: Final[dict[str, Var]] = {f.name: f.metadata["var"] for f in fields(Settings)}
"""Field name → declaration, in the order of the README's table."""


def load(env: Mapping[str, str]) -> tuple[Settings, dict[str, str]]:
    """Read the settings from `env`. An empty variable counts as not set, unless its default is empty, too.

    Returns the settings and, by field name, where each came from: `default` or `environment`.

    Raises:
        ConfigError: every malformed or contradictory value, in one message of one line each.
    """
    values: dict[str, Any] = {}
    sources: dict[str, str] = {}
    problems: list[str] = []
    for name, declared in VARS.items():
        if env.get(declared.name, "") != "" or (declared.name in env and declared.default == ""):
            text, sources[name] = env[declared.name], "environment"
        else:
            text, sources[name] = declared.default, "default"
        try:
            values[name] = declared.parse(text)
        except ValueError as error:
            shown = MASK if declared.secret else repr(text)
            problems.append(f"{declared.name}={shown}: {error}")
    if not problems:
        settings = Settings(**values)
        problems = _contradictions(settings)
    if problems:
        raise ConfigError("; ".join(problems))
    return settings, sources


def _contradictions(s: Settings) -> list[str]:
    """Rules that relate settings to each other."""
    found = []
    if s.retry_base_ms > s.retry_max_ms:
        found.append(f"RETRY_BASE_MS={s.retry_base_ms} exceeds RETRY_MAX_MS={s.retry_max_ms}")
    if s.redis_min_idle > s.redis_pool_size:
        found.append(f"REDIS_MIN_IDLE={s.redis_min_idle} exceeds REDIS_POOL_SIZE={s.redis_pool_size}")
    if s.retention_ms < s.idempotency_ttl_ms:
        found.append(
            f"RETENTION_MS={s.retention_ms} is below IDEMPOTENCY_TTL_MS={s.idempotency_ttl_ms}: "
            "a key would outlive the task that it answers with"
        )
    if s.max_payload_bytes > s.max_body_bytes:
        found.append(f"MAX_PAYLOAD_BYTES={s.max_payload_bytes} exceeds MAX_BODY_BYTES={s.max_body_bytes}")
    return found


def redis_url(settings: Settings) -> str:
    """The Redis URL with REDIS_PASS filled in where the address carries no password of its own."""
    parts = urlsplit(settings.redis_addr)
    if not settings.redis_pass or parts.password or parts.scheme == "unix":
        return settings.redis_addr
    user = quote(parts.username or "", safe="")
    netloc = f"{user}:{quote(settings.redis_pass, safe='')}@{parts.netloc.rpartition('@')[2]}"
    return urlunsplit(parts._replace(netloc=netloc))


def masked(name: str, value: Any) -> str:
    """The value of a field as it may be shown: passwords hidden, the rest as one would write it."""
    if name == "redis_pass":
        return MASK if value else ""
    if isinstance(value, str) and "://" in value:
        return mask_url(value)
    if isinstance(value, tuple) and len(value) == 2 and isinstance(value[1], int):
        return f"{'' if value[0] == '0.0.0.0' else value[0]}:{value[1]}"  # noqa: S104
    if isinstance(value, tuple):
        return ",".join(map(str, value))
    if isinstance(value, dict):
        return ",".join(f"{k}={v}" for k, v in value.items())
    return "off" if value is None else str(value)


def mask_url(url: str) -> str:
    """A URL without its password, also where that stands in the query.

    Whatever lies between the user and the last `@` is hidden: a malformed password must not show either.
    """
    url = re.sub(r"^([A-Za-z]+://[^:@/?#]*:).*@", rf"\1{MASK}@", url)
    return re.sub(r"(?i)([?&](?:ssl)?pass(?:word|file)?=)[^&]*", rf"\1{MASK}", url)
