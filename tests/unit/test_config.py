"""Every setting is read strictly, checked against the others, and shown without its secrets."""

from __future__ import annotations

import traceback

import pytest

from scheduler import config
from scheduler.backoff import Backoff
from scheduler.config import VARS, Settings, load, mask_url, masked, redis_url
from scheduler.errors import ConfigError

BY_VARIABLE = {declared.name: name for name, declared in VARS.items()}
SECRET = "hunter2"

BOUNDS = {
    "WORKER_POOL": (1, 10_000),
    "PGPOOL_MAX_CONNS": (3, 1000),
    "REDIS_POOL_SIZE": (10, 10_000),
    "REDIS_MIN_IDLE": (0, 50),
    "VIS_TIMEOUT_MS": (100, 86_400_000),
    "REAPER_SCAN_INTERVAL_MS": (10, 2**31 - 1),
    "REAPER_BATCH_SIZE": (1, 1000),
    "METRICS_SAMPLE_MS": (10, 2**31 - 1),
    "RETRY_BASE_MS": (0, 30_000),
    "RETRY_MAX_MS": (500, 86_400_000),
    "RETRY_JITTER_MS": (0, 86_400_000),
    "RETRY_SCAN_INTERVAL_MS": (10, 2**31 - 1),
    "RETRY_BATCH_SIZE": (1, 1000),
    "LEASE_BATCH_SIZE": (1, 1000),
    "LEASE_AHEAD_MS": (0, 60_000),
    "SETTLE_BATCH_SIZE": (1, 1000),
    "ENQUEUE_BATCH_SIZE": (1, 1000),
    "ENQUEUE_MAX_WAITING": (1, 10_000_000),
    "ENQUEUE_TIMEOUT_MS": (100, 600_000),
    "STORE_TIMEOUT_MS": (100, 600_000),
    "PRIORITY_MAX_WAIT_MS": (0, 86_400_000),
    "MAX_RETRIES": (0, 1000),
    "MAX_LOSSES": (0, 1000),
    "TASK_TIMEOUT_MS": (1, 86_400_000),
    "UNKNOWN_TYPE_DELAY_MS": (50, 86_400_000),
    "MAX_REFUSALS": (0, 100_000),
    "SHUTDOWN_GRACE_MS": (0, 3_600_000),
    "RECONCILE_INTERVAL_MS": (50, 3_600_000),
    "RECONCILE_BATCH_SIZE": (1, 10_000),
    "HOUSEKEEPING_INTERVAL_MS": (50, 86_400_000),
    "IDEMPOTENCY_TTL_MS": (1, 604_800_000),
    "RETENTION_MS": (86_400_000, 2**42),
    "MAX_PAYLOAD_BYTES": (2, 8_388_608),
    "MAX_BODY_BYTES": (262_144, 2**30),
    "PG_PREPARE_THRESHOLD": (0, 1_000_000),
}
"""The least and the most of each number, the other settings having their defaults."""

CHOICES = {
    "PRIORITY_MODE": {"weighted", "strict"},
    "RETRY_STRATEGY": {"exponential", "linear", "constant"},
    "RETRY_JITTER": {"none", "added", "equal", "full"},
    "LOG_LEVEL": {"debug", "info", "warning", "error"},
    "LOG_FORMAT": {"json", "text"},
}


def read(**env: str) -> Settings:
    return load(env)[0]


def value(variable: str, text: str) -> object:
    return getattr(read(**{variable: text}), BY_VARIABLE[variable])


def refusal(**env: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load(env)
    return str(caught.value)


# --- numbers and words ---


@pytest.mark.parametrize("variable", BOUNDS)
def test_a_number_is_taken_at_its_bounds_and_refused_beyond_them(variable):
    low, high = BOUNDS[variable]
    assert value(variable, str(low)) == low
    assert value(variable, str(high)) == high
    assert variable in refusal(**{variable: str(low - 1)})
    assert variable in refusal(**{variable: str(high + 1)})


@pytest.mark.parametrize("text", ["", "x", "1.5", "1e3", " 7", "7 ", "0x10", "٧", "1_000", "9" * 20])
@pytest.mark.parametrize("variable", ["WORKER_POOL", "PG_PREPARE_THRESHOLD"])
def test_what_is_no_whole_number_is_refused(variable, text):
    if not text:
        assert value(variable, "") == getattr(Settings(), BY_VARIABLE[variable])  # as if it were not set
    else:
        assert refusal(**{variable: text}).startswith(f"{variable}=")


@pytest.mark.parametrize("variable", CHOICES)
def test_a_word_must_be_one_of_the_list(variable):
    assert {value(variable, word) for word in CHOICES[variable]} == CHOICES[variable]
    for wrong in ("other", next(iter(CHOICES[variable])).upper()):
        said = refusal(**{variable: wrong})
        assert all(word in said for word in CHOICES[variable])


def test_every_variable_is_tried_here():
    forms = {
        "POSTGRES_URL",
        "REDIS_ADDR",
        "REDIS_PASS",
        "METRICS_ADDR",
        "HTTP_ADDR",
        "REDIS_PREFIX",
        "WORKER_QUEUES",
        "PRIORITY_WEIGHTS",
    }
    assert BOUNDS.keys() | CHOICES.keys() | forms == BY_VARIABLE.keys()


def test_prepared_statements_can_be_turned_off():
    assert value("PG_PREPARE_THRESHOLD", "off") is None


# --- addresses ---


@pytest.mark.parametrize("variable", ["METRICS_ADDR", "HTTP_ADDR"])
@pytest.mark.parametrize(
    ("text", "address"),
    [
        (":2113", ("0.0.0.0", 2113)),
        (":0", ("0.0.0.0", 0)),
        ("127.0.0.1:65535", ("127.0.0.1", 65535)),
        ("localhost:80", ("localhost", 80)),
        ("[::1]:80", ("::1", 80)),
        ("::1:80", ("::1", 80)),
    ],
)
def test_an_address_is_a_host_and_a_port(variable, text, address):
    assert value(variable, text) == address
    shown = masked(BY_VARIABLE[variable], address)
    assert value(variable, shown) == address  # what is shown can be written again


@pytest.mark.parametrize("text", ["2112", "localhost", ":", "h:", "h:x", ":65536", ":-1", ":٨٠", ":1 "])
@pytest.mark.parametrize("variable", ["METRICS_ADDR", "HTTP_ADDR"])
def test_what_is_no_address_is_refused(variable, text):
    assert refusal(**{variable: text}) == f"{variable}={text!r}: must be HOST:PORT or :PORT"


@pytest.mark.parametrize(
    ("text", "url"),
    [
        ("localhost:6379", "redis://localhost:6379/0"),
        ("[::1]:6379", "redis://[::1]:6379/0"),
        (":6380", "redis://localhost:6380/0"),
        ("redis://cache:7000/3", "redis://cache:7000/3"),
        ("redis://cache", "redis://cache"),
        ("rediss://ann:pw@cache:7000/3?ssl_cert_reqs=none", None),
        ("redis://:p@ss@cache:7000", None),
        ("unix:///run/redis.sock?db=2", None),
        ("unix://:pw@/run/redis.sock", None),
    ],
)
def test_redis_is_named_by_address_or_url(text, url):
    assert value("REDIS_ADDR", text) == (url or text)


@pytest.mark.parametrize(
    "text",
    [
        "cache",
        "cache:",
        "cache:x",
        "cache:99999",
        "::1:6379",
        "ann:pw@cache:6379",
        "http://cache:1",
        "redis://:pa#ss@cache:1",
        "redis://:pa/ss@cache:1",
        "redis://:pa?ss@cache:1",
        "redis://cache:1/x",
    ],
)
def test_what_does_not_name_a_redis_is_refused(text):
    said = refusal(REDIS_ADDR=text)
    assert said.startswith(f"REDIS_ADDR={config.MASK}: must be HOST:PORT, :PORT or a redis://")
    assert text not in said


def test_the_password_of_redis_is_put_into_its_url():
    def url(address: str) -> str:
        return redis_url(read(REDIS_ADDR=address, REDIS_PASS="p@s/s"))

    assert url("cache:1") == "redis://:p%40s%2Fs@cache:1/0"
    assert url("rediss://ann@cache:1/2") == "rediss://ann:p%40s%2Fs@cache:1/2"
    assert url("redis://ann:own@cache:1/2") == "redis://ann:own@cache:1/2"  # the URL's own password wins
    assert url("unix:///run/redis.sock") == "unix:///run/redis.sock"  # handed to the driver beside the URL
    assert redis_url(read(REDIS_ADDR="cache:1")) == "redis://cache:1/0"


@pytest.mark.parametrize(
    "text",
    [
        "postgres://app:app@localhost:5432/app?sslmode=disable",
        "postgresql://app@db/app",
        "postgres://app:p%40ss%25@db:1,other:2/app?target_session_attrs=any",
        "postgres:///app?host=/run/postgresql",
        "postgres://app:app@[::1]:5432/app",
    ],
)
def test_postgres_is_named_by_a_url(text):
    assert value("POSTGRES_URL", text) == text


@pytest.mark.parametrize(
    "text",
    [
        "localhost:5432",
        "mysql://app:hunter2@db/app",
        "host=db password=hunter2",
        "postgres://app:hunter2%zz@db/app",
        "postgres://app:hunter2%00@db/app",
        "postgres://app:hunter2@[::1]x/app",
        "postgres://app:hunter2@[::1/app",
        "postgres://app:hunter2#@db/app",
        "postgres://app:hunter2/@db/app",
        "postgres://app:hunter2?@db/app",
        "postgres://app:hunter2@2@db/app",
    ],
)
def test_what_does_not_name_a_postgres_is_refused_before_a_driver_repeats_it(text):
    said = refusal(POSTGRES_URL=text)
    assert said.startswith(f"POSTGRES_URL={config.MASK}: must be ")
    assert SECRET not in said


# --- lists ---


def test_queues_are_named_once_each_in_their_order():
    assert value("WORKER_QUEUES", "mail, default ,mail,a.b-c_9") == ("mail", "default", "a.b-c_9")


@pytest.mark.parametrize("text", [",", " , ", "Mail", "{x}", "-a", "a b", "x" * 64])
def test_what_is_no_queue_is_refused(text):
    assert "queue" in refusal(WORKER_QUEUES=text)


def test_weights_name_every_priority_once():
    weights = {"critical": 1, "high": 1000, "default": 2, "low": 3}
    assert value("PRIORITY_WEIGHTS", "low=3, critical = 1,high=1000,default=2") == weights
    assert masked("priority_weights", weights) == "critical=1,high=1000,default=2,low=3"


@pytest.mark.parametrize(
    "text",
    [
        "critical=8,high=4,default=2",
        "critical=8,high=4,default=2,low=1,low=1",
        "critical=8,high=4,default=2,low=0",
        "critical=8,high=4,default=2,low=1001",
        "critical=8,high=4,default=2,low=x",
        "critical=8,high=4,default=2,urgent=1",
        "8,4,2,1",
        "critical=8,high=4,default=2,low=" + "9" * 20,
    ],
)
def test_other_weights_are_refused(text):
    assert "PRIORITY_WEIGHTS" in refusal(PRIORITY_WEIGHTS=text)


def test_a_prefix_is_plain():
    assert value("REDIS_PREFIX", "Sched-2_x.y") == "Sched-2_x.y"
    for wrong in ("a:b", "{a}", "x" * 33, "a b"):
        assert "REDIS_PREFIX" in refusal(REDIS_PREFIX=wrong)


# --- together ---


@pytest.mark.parametrize(
    "env",
    [
        {"RETRY_BASE_MS": "2", "RETRY_MAX_MS": "1"},
        {"REDIS_MIN_IDLE": "9", "REDIS_POOL_SIZE": "8"},
        {"RETENTION_MS": "9", "IDEMPOTENCY_TTL_MS": "10"},
        {"MAX_PAYLOAD_BYTES": "2000", "MAX_BODY_BYTES": "1999"},
    ],
)
def test_settings_that_contradict_each_other_are_refused_with_both_named(env):
    said = refusal(**env)
    assert all(f"{name}={text}" in said for name, text in env.items())
    assert "\n" not in said
    same = dict.fromkeys(env, max(env.values(), key=int))
    load(same)  # equal is no contradiction


def test_every_malformed_setting_is_named_in_one_line():
    said = refusal(WORKER_POOL="x", HTTP_ADDR="y", POSTGRES_URL=SECRET, LOG_LEVEL="z\nz")
    assert [part.partition("=")[0] for part in said.split("; ")] == [
        "POSTGRES_URL",
        "WORKER_POOL",
        "HTTP_ADDR",
        "LOG_LEVEL",
    ]
    assert "\n" not in said


def test_where_each_setting_came_from_is_known():
    settings, sources = load({"WORKER_POOL": "7", "REDIS_PASS": "", "LOG_LEVEL": "", "UNKNOWN": "x"})
    assert settings == Settings(worker_pool=7)
    assert {name for name, source in sources.items() if source == "environment"} == {
        "worker_pool",
        "redis_pass",
    }
    assert sources.keys() == VARS.keys()


def test_the_defaults_are_those_of_the_declarations_and_fit_together():
    assert load({})[0] == Settings()
    assert Settings().backoff == Backoff("exponential", 500, 30_000, "added", 500)


# --- secrets ---


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("postgres://app:hunter2@db/app?sslmode=disable", "postgres://app:***@db/app?sslmode=disable"),
        ("postgres://app@db/app", "postgres://app@db/app"),
        ("postgres://db:5432/app", "postgres://db:5432/app"),
        ("postgres://app@db/app?password=hunter2&x=1", "postgres://app@db/app?password=***&x=1"),
        (
            "postgres://db/?sslpassword=hunter2&passfile=hunter2",
            "postgres://db/?sslpassword=***&passfile=***",
        ),
        ("redis://:hunter2@cache:1/0", "redis://:***@cache:1/0"),
        ("redis://:h@nter2@cache:1/0", "redis://:***@cache:1/0"),
        ("rediss://ann:hunter2@cache", "rediss://ann:***@cache"),
        ("unix://:hunter2@/run/redis.sock?PASSWORD=hunter2", "unix://:***@/run/redis.sock?PASSWORD=***"),
        ("postgres://app:hun/ter2@db/app", "postgres://app:***@db/app"),
        ("postgres://app:hun#ter2@db/app", "postgres://app:***@db/app"),
        ("postgres://app:hun?ter2@db/app", "postgres://app:***@db/app"),
    ],
)
def test_a_url_is_shown_without_its_password(url, shown):
    assert mask_url(url) == shown


def test_settings_are_shown_without_their_secrets():
    env = {
        "POSTGRES_URL": f"postgres://app:{SECRET}@db/app?sslpassword={SECRET}",
        "REDIS_ADDR": f"redis://ann:{SECRET}@cache:1/0",
        "REDIS_PASS": SECRET,
    }
    settings, _ = load(env)
    shown = [repr(settings), str(settings), f"{settings}", *(masked(n, getattr(settings, n)) for n in VARS)]
    assert SECRET not in "".join(shown)
    assert repr(settings).startswith("Settings(postgres_url='postgres://app:***@db/app")
    assert "worker_pool='12'" in repr(settings)
    assert masked("redis_pass", "") == ""


def test_a_refused_secret_is_not_repeated_even_by_the_traceback():
    with pytest.raises(ConfigError) as caught:
        load({"POSTGRES_URL": f"{SECRET}://", "REDIS_ADDR": SECRET, "WORKER_POOL": "x"})
    assert SECRET not in "".join(traceback.format_exception(caught.value))


def test_every_value_is_shown_as_one_would_write_it():
    settings = read(PG_PREPARE_THRESHOLD="off", WORKER_QUEUES="a,b", METRICS_ADDR=":1")
    open_names = [name for name, declared in VARS.items() if not declared.secret]
    env = {VARS[name].name: masked(name, getattr(settings, name)) for name in open_names}
    assert load(env)[0] == settings
