"""What can be wrong at the start is named in one line that says what to do; nothing is half started."""

from __future__ import annotations

import re
import socket

import pytest
from stub_servers import old_postgres, old_redis, serving

from bench.vitals import below
from scheduler import cli
from scheduler.embedded import Redis
from scheduler.supervisor import HOST, free_port


def refused(done, *words: str) -> str:
    """A command was refused in one line with these words; the line."""
    assert done.returncode == 2, done
    assert done.stdout == ""
    [line] = done.stderr.splitlines()
    assert line.startswith("scheduler: ")
    for word in words:
        assert word in line
    return line


@pytest.fixture
def taken():
    """An address where somebody else listens."""
    with socket.create_server((HOST, 0)) as listener:
        yield f"{HOST}:{listener.getsockname()[1]}"


# --- Postgres ---


@pytest.mark.parametrize("command", [("worker",), ("migrate",)])
def test_postgres_is_away(scheduler, idle, command):
    url = f"postgres://app:hunter2@{HOST}:{free_port()}/app"
    line = refused(scheduler(*command, **idle | {"POSTGRES_URL": url}), "cannot be reached", "POSTGRES_URL")
    assert "app:***@" in line
    assert "hunter2" not in line


@pytest.mark.parametrize("command", [("worker",), ("migrate", "status")])
def test_postgres_refuses_the_password(scheduler, idle, command):
    url = idle["POSTGRES_URL"].replace("app:app@", "app:hunter2@")
    line = refused(scheduler(*command, **idle | {"POSTGRES_URL": url}), "password", "correct POSTGRES_URL")
    assert "hunter2" not in line


@pytest.mark.parametrize("command", [("worker",), ("migrate",)])
def test_there_is_no_such_database(scheduler, idle, command):
    url = re.sub(r"/test_\d+\?", "/nowhere?", idle["POSTGRES_URL"])
    refused(scheduler(*command, **idle | {"POSTGRES_URL": url}), "/nowhere", "no such database", "create it")


@pytest.mark.parametrize("command", [("worker",), ("api",), ("reconcile",)])
def test_the_schema_is_too_old(scheduler, idle, make_empty_database, command):
    url = make_empty_database()
    refused(scheduler(*command, **idle | {"POSTGRES_URL": url}), "version 0", "run `scheduler migrate`")


@pytest.mark.parametrize("command", [("worker",), ("migrate",)])
def test_postgres_is_too_old(scheduler, idle, command):
    with serving(old_postgres()) as port:
        url = f"postgres://app:app@{HOST}:{port}/app"
        refused(scheduler(*command, **idle | {"POSTGRES_URL": url}), "Postgres 14", "15 or newer")


# --- Redis ---


@pytest.mark.parametrize("command", [("worker",), ("queue", "list")])
def test_redis_is_away(scheduler, idle, command):
    address = f"{HOST}:{free_port()}"
    refused(scheduler(*command, **idle | {"REDIS_ADDR": address}), "Redis", "start it", "REDIS_ADDR")


def test_redis_refuses_the_password(scheduler, idle, server_dir):
    with Redis(server_dir / "secret", password="sesame") as server:
        address = {"REDIS_ADDR": f"{HOST}:{server.port}"}
        for password in ("", "hunter2"):
            done = scheduler("worker", **idle | address, REDIS_PASS=password)
            line = refused(done, "Redis", "REDIS_PASS")
            assert "hunter2" not in line


def test_redis_may_evict_our_keys(scheduler, idle, server_dir):
    settings = {"maxmemory": "100mb", "maxmemory-policy": "allkeys-lru"}
    with Redis(server_dir / "cache", settings=settings) as server:
        refused(scheduler("worker", **idle | {"REDIS_ADDR": server.url}), "allkeys-lru", "noeviction")


@pytest.mark.parametrize(
    ("info", "name"),
    [
        ("redis_version:6.0.16", "Redis 6.0.16"),
        ("redis_version:7.2.4\r\nserver_name:valkey\r\nvalkey_version:7.2.9", "Valkey 7.2.9"),
    ],
)
def test_redis_is_too_old(scheduler, idle, info, name):
    with serving(old_redis(info)) as port:
        address = f"{HOST}:{port}"
        refused(scheduler("worker", **idle | {"REDIS_ADDR": address}), name, "upgrade it", "6.2", "Valkey 8")


# --- addresses, settings, handlers, directories ---


@pytest.mark.parametrize(
    ("command", "variable"), [("worker", "METRICS_ADDR"), ("api", "METRICS_ADDR"), ("api", "HTTP_ADDR")]
)
def test_an_address_is_taken(scheduler, idle, taken, command, variable):
    refused(scheduler(command, **idle | {variable: taken}), f"{taken} is taken", f"set {variable}")


def test_the_addresses_of_a_fleet_end_before_the_last_port(scheduler, idle):
    done = scheduler("worker", "--processes", "3", **idle | {"METRICS_ADDR": ":65534"})
    refused(done, "METRICS_ADDR=:65534", "3 worker processes", "lower")


@pytest.mark.parametrize("command", [("worker",), ("up",)])
def test_settings_are_malformed(scheduler, command):
    env = {"WORKER_POOL": "many", "POSTGRES_URL": "mysql://app:hunter2@db/app", "RETRY_JITTER": "some"}
    line = refused(scheduler(*command, **env), *env)
    assert "hunter2" not in line


@pytest.mark.parametrize(
    ("command", "variable", "value"),
    [
        ("worker", "METRICS_ADDR", "a..b:2112"),
        ("api", "HTTP_ADDR", f"{'x' * 64}.example:8080"),
        ("migrate", "POSTGRES_URL", "postgres://app:hunter2@db..internal/app"),
        ("migrate", "POSTGRES_URL", f"postgres://app:hunter2@db,{'x' * 64}:5432/app"),
        ("queue", "REDIS_ADDR", "cache..internal:6379"),
    ],
)
def test_a_host_cannot_be(scheduler, idle, command, variable, value):
    words = (command, "list") if command == "queue" else (command,)
    line = refused(scheduler(*words, **idle | {variable: value}), variable, "63 characters")
    assert "hunter2" not in line


def test_settings_contradict_each_other(scheduler, idle):
    done = scheduler("worker", **idle, REDIS_MIN_IDLE="9", REDIS_POOL_SIZE="8")
    refused(done, "REDIS_MIN_IDLE=9", "REDIS_POOL_SIZE=8")


@pytest.mark.parametrize(
    ("name", "text", "why"),
    [
        ("missing", None, "No module named 'missing'"),
        ("loud", "raise ValueError('first\\nsecond')", "ValueError: first second"),
        ("quitter", "raise SystemExit(0)", "SystemExit"),
        ("twice", "from scheduler import handler\nhandler('noop')(print)", "has a handler already"),
    ],
)
def test_the_module_of_the_handlers_does_not_import(scheduler, idle, tmp_path, name, text, why):
    if text is not None:
        (tmp_path / f"{name}.py").write_text(text)
    fleet = ("--processes", "3") if name == "loud" else ()
    done = scheduler("worker", "--app", name, *fleet, cwd=tmp_path, **idle)
    refused(done, f"--app {name}", str(tmp_path), why)


@pytest.mark.parametrize("servers_named", [False, True])
def test_the_data_directory_cannot_be_written(start, idle, tmp_path, servers_named):
    (tmp_path / "file").touch()
    env = idle if servers_named else {}
    up = start("up", "--data-dir", str(tmp_path / "file" / "data"), **env)
    assert up.ends() == 2
    assert up.err == [line for line in up.err if "choose another data directory" in line]
    assert len(up.err) == 1
    assert below(up.pid) == []


@pytest.mark.parametrize("command", [("worker",), ("api",), ("reconcile",)])
def test_there_is_no_such_failpoint(scheduler, idle, command):
    env = idle | {"SCHEDULER_FAILPOINT": "nowhere:kill"}
    refused(scheduler(*command, **env), "SCHEDULER_FAILPOINT='nowhere:kill' is not POINT:MODE[:N]")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("worker", "--processes", "0"), "'0' is not a whole number of 1 or more"),
        (("worker", "--processes", "two"), "'two' is not a whole number of 1 or more"),
        (("task", "show", "17"), "'17' is not a task's id"),
        (("dlq", "redrive", "--priority", "urgent"), "invalid choice: 'urgent'"),
        (("queues",), "invalid choice: 'queues'"),
        ((), "the following arguments are required: COMMAND"),
    ],
)
def test_the_command_line_is_malformed(capsys, words, said):
    with pytest.raises(SystemExit) as ended:
        cli.main(words)
    out, err = capsys.readouterr()
    assert (ended.value.code, out) == (2, "")
    [line] = err.splitlines()
    assert re.match(r"scheduler( \w+)*: ", line)
    assert said in line
    assert line.endswith(" --help`")
