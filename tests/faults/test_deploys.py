"""A new version arrives while the old one works: nothing is lost, and no schema is used that does not fit.

The new version is a copy of the package with migrations of its own; its processes run that copy.
"""

from __future__ import annotations

import shutil
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest
from fix_process import Process, Start, until
from fix_system import Site

import scheduler
from bench import load
from bench.builds import environment
from bench.workload import Expected, Mix, deck, expected
from scheduler import migrate

MIX = Mix(flaky=10, fail=5, sleep=10, sleep_ms=200)
"""All four types. The sleepers are there so that at every moment some runs are in progress."""

ROUNDS = 10

COLUMN = """\
BEGIN;

ALTER TABLE tasks ADD COLUMN {name} text;

INSERT INTO schema_migrations (version, name) VALUES ({version}, '{name}') ON CONFLICT DO NOTHING;

COMMIT;
"""

INDEX = """\
-- No BEGIN: an index is built concurrently outside of a transaction, and half of one may be there already.
DROP INDEX CONCURRENTLY IF EXISTS {name}_index;
CREATE INDEX CONCURRENTLY {name}_index ON tasks ({name}) WHERE {name} IS NOT NULL;
INSERT INTO schema_migrations (version, name) VALUES ({version}, '{name}_index') ON CONFLICT DO NOTHING;
"""


INVALID = "SELECT indexrelid::regclass::text FROM pg_index WHERE NOT indisvalid"


class NewBuild:
    """A copy of the package and its migrations. `env` has the variables with which a process runs it."""

    def __init__(self, folder: Path) -> None:
        self._migrations = folder / "migrations"
        self.env = environment(str(folder))
        ours = Path(scheduler.__file__).parent
        shutil.copytree(ours, folder / "scheduler", ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copytree(migrate.directory(), self._migrations)

    def add(self, name: str, text: str) -> str:
        """Write one more migration; the name under which it is reported."""
        version = len(list(self._migrations.glob("*.sql"))) + 1
        file = self._migrations / f"{version:03d}_{name}.sql"
        file.write_text(text.format(version=version, name=name.removesuffix("_index")))
        return file.stem

    def expand(self, name: str) -> list[str]:
        """Add what a careful release adds: a column that may be null, and an index on it."""
        return [self.add(name, COLUMN), self.add(f"{name}_index", INDEX)]


@pytest.fixture
def new_build(tmp_path: Path) -> NewBuild:
    return NewBuild(tmp_path)


class Traffic:
    """Tasks that keep coming: what was accepted, and what must become of it."""

    def __init__(self, host: str) -> None:
        self.ids: list[str] = []
        self.exactly = Expected()
        self._host = host
        self._stopping = threading.Event()

    def _run(self) -> None:
        seed = 0
        while not self._stopping.is_set():
            dealt = deck(MIX, 100, seed)
            result = load.run(load.closed(dealt, host=self._host, senders=2))
            assert result.accepted == len(dealt), result
            self.ids += [receipt.id for receipt in result.receipts]
            self.exactly += expected(dealt)
            seed += 1

    @contextmanager
    def flowing(self) -> Iterator[None]:
        with ThreadPoolExecutor(1) as thread:
            running = thread.submit(self._run)
            try:
                yield
            finally:
                self._stopping.set()
            running.result()


def applied(migrations: list[Process]) -> list[str]:
    """What these migrations say that they have applied, once all have ended well."""
    assert [process.ends() for process in migrations] == [0] * len(migrations)
    assert [process.err for process in migrations] == [[]] * len(migrations)
    said = [line.removeprefix("applied ") for process in migrations for line in process.out]
    return sorted(name for line in said if not line.startswith("nothing to do") for name in line.split(", "))


def column(url: str, sql: str) -> list[object]:
    with psycopg.connect(url, autocommit=True) as connection:
        return [row[0] for row in connection.execute(sql.encode())]


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_old_workers_go_on_while_two_migrate_at_once_and_the_new_ones_take_over(
    site: Callable[..., Site], start: Start, new_build: NewBuild
):
    here = site(workers=2, RETRY_BASE_MS=100, RETRY_JITTER_MS=50)
    url, old = here.system.postgres_url, {member.pid for member in here.system.fleet}
    env = here.system.stack.env | new_build.env
    traffic = Traffic(here.system.host)
    with traffic.flowing():
        for number in range(ROUNDS):
            new = new_build.expand(f"round_{number}")
            began = here.system.now()
            assert applied([start("migrate", **env) for _ in range(2)]) == new
            finished = "SELECT count(*) FROM task_runs WHERE finished_at > %(began)s"
            assert here.value(finished, began=began) > 0
        here.system.stack.check()  # no process has ended
        newcomer = start("worker", **env)
        pid = int(newcomer.says(r"ready worker .*pid=(\d+)")[1])
        until(lambda: pid in workers(here))
        here.system.stop_fleet()
    here.drained()
    assert workers(here) == {pid, *old}
    here.prove(traffic.ids, traffic.exactly)
    newcomer.signal(signal.SIGTERM)
    assert newcomer.ends() == 0
    assert column(url, INVALID) == []
    assert column(url, "SELECT max(version) FROM schema_migrations") == [migrate.latest() + 2 * ROUNDS]


def workers(here: Site) -> set[int]:
    """The process ids of all workers that have run a task."""
    return {int(id_.split(":")[1]) for id_ in here.column("SELECT DISTINCT worker FROM task_runs")}


def test_a_migration_that_is_killed_is_finished_by_the_one_that_waits(
    here: dict[str, str], start: Start, new_build: NewBuild
):
    """It is killed while it builds an index, which waits for an old transaction."""
    url, env = here["POSTGRES_URL"], here | new_build.env
    _, index = new_build.expand("extra")
    migrating = "SELECT pid FROM pg_stat_activity WHERE application_name = 'scheduler migrate'"
    with psycopg.connect(url) as old:
        old.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        old.execute("SELECT 1")  # this takes its snapshot
        killed = start("migrate", **env)
        until(
            lambda: column(url, migrating + " AND query LIKE '%CREATE INDEX%' AND wait_event_type = 'Lock'")
        )
        waiting = start("migrate", **env)
        until(lambda: len(column(url, migrating)) == 2)
        killed.signal(signal.SIGKILL)
        assert killed.ends() == -signal.SIGKILL
        assert column(url, INVALID) == ["extra_index"]
    assert applied([waiting]) == [index]
    assert column(url, INVALID) == []


COMMANDS = ("worker", "api", "reconcile")
"""Two that serve, and one for all those that do one thing."""


def refusals(commands: list[Process]) -> set[str]:
    """The one line that each of these says before it ends."""
    assert [command.ends() for command in commands] == [2] * len(commands)
    assert [command.out for command in commands] == [[]] * len(commands)
    return {"\n".join(command.err).removeprefix("scheduler: ") for command in commands}


def test_a_new_build_refuses_an_old_schema(idle: dict[str, str], start: Start, new_build: NewBuild):
    new_build.expand("extra")
    known = migrate.latest()
    assert refusals([start(command, **idle | new_build.env) for command in COMMANDS]) == {
        f"the schema is at version {known} and this build needs {known + 2}; run `scheduler migrate`"
    }


@pytest.mark.slow
def test_an_old_build_refuses_a_schema_that_it_cannot_use(
    here: dict[str, str], start: Start, new_build: NewBuild
):
    """A release that cannot keep the old shape says so in the name of its migration."""
    env, known = here | new_build.env, migrate.latest()
    new = [*new_build.expand("extra"), new_build.add("breaking_names", COLUMN), *new_build.expand("more")]
    assert applied([start("migrate", **env)]) == new
    why = (
        f"the schema is at version {known + 5}, and since version {known + 3} this build, which knows"
        f" {known}, cannot use it; install a newer Scheduler"
    )
    assert refusals([start(command, **here) for command in COMMANDS]) == {why}
    assert start("worker", **env).says(r"ready worker .*")
