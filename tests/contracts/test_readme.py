"""What README.md and the map say about the code is what the code says: nothing is told twice by hand."""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import asdict

import pytest

import scheduler
from bench import company, growth, record
from bench.rows import Row, markdown
from bench.standings import Standings
from docs import generate
from docs.generate import BLOCKS, ROOT, renewed
from scheduler import lifecycle
from scheduler.config import VARS

EMPTY = "\n".join(f"# {name}\n<!-- {name} -->\n<!-- /{name} -->" for name in BLOCKS)

SEED = """
| `POSTGRES_URL`            | `postgres://app:app@localhost:5432/app?sslmode=disable` | Postgres DSN.
| `REDIS_ADDR`              | `localhost:6379` | Redis address.
| `REDIS_PASS`              | _(empty)_        | Redis password if required.
| `METRICS_ADDR` | `:2112` | Prometheus metrics bind address (set to `:2113` for the worker via Makefile).
| `WORKER_POOL`             | `12`             | Slots per worker process.
| `PGPOOL_MAX_CONNS`        | `20`             | Max Postgres connections per worker.
| `REDIS_POOL_SIZE`         | `50`             | Redis client pool size.
| `REDIS_MIN_IDLE`          | `10`             | Minimum idle Redis connections.
| `VIS_TIMEOUT_MS`          | `60000`          | Visibility timeout in milliseconds.
| `REAPER_SCAN_INTERVAL_MS` | `2000`           | Reaper cadence in milliseconds.
| `REAPER_BATCH_SIZE`       | `100`            | Reaper batch size.
| `METRICS_SAMPLE_MS`       | `500`            | Gauge sampling interval in milliseconds.
| `RETRY_BASE_MS`           | `500`            | Retry base backoff.
| `RETRY_MAX_MS`            | `30000`          | Retry max backoff.
| `RETRY_JITTER_MS`         | `500`            | Backoff jitter.
| `RETRY_SCAN_INTERVAL_MS`  | `500`            | Retry pump cadence in milliseconds.
| `RETRY_BATCH_SIZE`        | `100`            | Retry pump batch size.
"""
"""The original README's variables. It counts goroutines where we have slots; all else is verbatim."""


def cells(table: str) -> list[tuple[str, ...]]:
    """The rows of Markdown tables that name something."""
    lines = [line for line in table.splitlines() if re.search(r"\| `[^/]+` ", line)]
    return [tuple(cell.strip() for cell in line.strip("|").split(" | ")) for line in lines]


def generated(*args: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, ROOT / "docs" / "generate.py", *args]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_the_readme_says_what_the_code_says():
    done = generated("--check")
    assert (done.returncode, done.stderr) == (0, "")


def test_the_variables_of_the_original_readme_come_first_and_unchanged():
    seed = cells(SEED)
    assert len(seed) == 17
    assert cells(generate.settings())[: len(seed)] == seed
    assert len(cells(generate.settings())) == len(VARS)


def test_every_metric_is_told_with_its_labels():
    told = {name for name, *_ in cells(generate.metrics())}
    assert {
        "`tasks_enqueued_total`",
        "`tasks_dequeued_total{priority}`",
        "`tasks_succeeded_total{type,priority}`",
        "`tasks_failed_total{type,priority}`",
        "`tasks_retried_total`",
        "`tasks_reaped_total`",
        "`acks_total`",
        "`task_run_seconds{type}`",
        "`enqueue_to_start_seconds{priority}`",
        "`queue_depth{priority}`",
        "`retry_set_depth{priority}`",
        "`dlq_depth{priority}`",
        "`processing_inflight`",
    } <= told  # the original README's, to the letter


def test_the_first_handler_is_shown_as_it_is_and_works():
    text = (ROOT / "examples" / "first_handler.py").read_text(encoding="utf-8")
    shown = text[text.index("from __future__") :]
    assert f"```python\n{shown}```" in generate.README.read_text(encoding="utf-8")
    code = "import examples.first_handler, scheduler.handlers as h; h.REGISTRY.handlers['send_mail']"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_no_committed_file_is_larger_than_a_megabyte():
    listed = subprocess.run(["git", "ls-files", "-z"], capture_output=True, text=True, check=False, cwd=ROOT)
    if listed.returncode:
        pytest.skip("this is no checkout of git")
    files = [ROOT / name for name in listed.stdout.split("\0") if name]
    assert len(files) > 100
    assert [str(file) for file in files if file.is_file() and file.stat().st_size > 1_000_000] == []


@pytest.mark.parametrize("package", generate.GROUPS)
def test_every_module_is_in_one_group(package):
    grouped = [module for names in generate.GROUPS[package].values() for module in names.split()]
    assert sorted(grouped) == sorted(generate.paths(package))


def test_every_command_and_module_is_told_with_a_sentence():
    for block in (generate.commands, generate.modules):
        for *_, sentence in cells(block()):
            assert re.fullmatch(r"\S.{10,}[.?]", sentence)


def test_blocks_are_replaced_whole_and_nothing_else_is():
    once = renewed(EMPTY)
    stale = once.replace("Postgres DSN.", "Something else.").replace("| `WORKER_POOL`", "| `POOL`")
    assert stale != once
    assert renewed(stale) == once
    assert re.sub(r"(<!-- (\w+) -->).*?(<!-- /\2 -->)", r"\1\n\3", once, flags=re.DOTALL) == EMPTY


@pytest.mark.parametrize("broken", [EMPTY + EMPTY, EMPTY.replace("<!-- /metrics -->", ""), ""])
def test_a_readme_without_its_marks_is_refused(broken):
    with pytest.raises(ValueError, match=r"README.md must have <!-- \w+ --> and after it"):
        renewed(broken)


def test_a_readme_that_is_out_of_date_is_found_and_mended(tmp_path, monkeypatch, capsys):
    readme = tmp_path / "README.md"
    readme.write_text(EMPTY)
    for name in ("RELIABILITY", "PERFORMANCE", "BENCHMARKS"):
        copy = tmp_path / name
        copy.write_text(getattr(generate, name).read_text())
        monkeypatch.setattr(generate, name, copy)
    monkeypatch.setattr(generate, "README", readme)
    assert generate.main(["--check"]) == 1
    assert readme.read_text() == EMPTY
    assert "python docs/generate.py" in capsys.readouterr().err
    assert generate.main([]) == 0
    assert generate.main(["--check"]) == 0


@pytest.mark.parametrize(
    ("kept", "told"), [({}, True), ({"quick": True}, False), ({"only": ["rates"]}, False)]
)
def test_a_record_of_a_small_run_or_of_a_part_is_not_told(kept, told, tmp_path, monkeypatch):
    monkeypatch.setattr(generate, "RECORDS", tmp_path)
    result = {"seconds": 1, "busy_percent": 0.0, "steal_percent": 0.0, "disturbed": False}
    made = record.make(["bench limits"], {"quick": False, "only": []} | result | kept)
    never = "Not measured yet: run `bench limits --out docs/records/limits.json`."
    assert generate.recorded("limits", "bench limits", lambda made: "a table") == never
    record.write(tmp_path / "limits.json", made)
    shown = generate.recorded("limits", "bench limits", lambda made: "a table")
    assert shown == (f"a table\n\n{company.told(made)}" if told else never)


def test_the_tables_of_growth_and_of_the_peers_are_those_of_their_records(tmp_path, monkeypatch):
    monkeypatch.setattr(generate, "RECORDS", tmp_path)
    watched = {"quick": False, "seconds": 1, "busy_percent": 0.0, "steal_percent": 0.0, "disturbed": False}
    row = Row(growth.LIMITS[0], (9_000.0,), (9_500.0,))
    size = asdict(growth.Size(minutes=2.0))
    found = {
        "growth": {"size": size, "rows": [row.data()]},
        "peers": Standings({"pgqueuer": "1.6"}, {"dramatiq": "no network"}, {}, {}, {}, [], [], 90.0).data(),
    }
    for name, result in found.items():
        record.write(tmp_path / f"{name}.json", record.make([f"bench {name}"], result | watched))
    shown = generate.FIGURES["growth.json"]()
    assert "10,000,000 tasks that have ended" in shown
    assert markdown([row]) in shown
    shown = generate.EXPERIMENTS["peers.json"]()
    assert "pgqueuer 1.6." in shown
    assert "Not measured: dramatiq. no network" in shown


# --- the map ---


def test_the_map_names_every_module_and_nothing_else():
    _, _, places = (scheduler.__doc__ or "").partition("Where things are.")
    lines = re.findall(r"^    \w+ {2,}(.+)$", places, flags=re.MULTILINE)
    named = {word for line in lines for word in re.findall(r"[a-z_]+/?", re.sub(r"\(.*?\)", "", line))}
    modules = {name.partition(".")[0] for name in generate.paths("scheduler")} - {"api"}
    assert named == modules | {"api/", "lua/", "sql/"}


def test_the_map_draws_the_way_of_a_task():
    drawing = (scheduler.__doc__ or "").partition("How a task travels.")[2].partition("Where things are.")[0]
    for step in ("enqueue", "lease", "run", "settle", "pump", "reaper", "dlq"):
        assert step in drawing
    assert {word for word in lifecycle.STATUSES if word in drawing} == {"succeeded", "retrying", "dead"}


def test_what_handlers_need_is_one_import_away_and_costs_nothing_before():
    code = (
        "import sys, scheduler\n"
        "early = ('scheduler.', 'structlog', 'pydantic', 'asyncio')\n"
        "assert not [m for m in sys.modules if m.startswith(early)]\n"
        "from scheduler import *\n"
        "from scheduler import backoff, errors, handlers\n"
        "assert (handler, Context) == (handlers.handler, handlers.Context)\n"
        "assert (Reject, Retry, Backoff) == (errors.Reject, errors.Retry, backoff.Backoff)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    with pytest.raises(AttributeError, match="no attribute 'Handler'"):
        scheduler.Handler  # noqa: B018 - to look is to ask


def test_what_handlers_need_has_its_types(tmp_path):
    module = tmp_path / "shop.py"
    module.write_text(
        "from scheduler import Backoff, Context, Reject, Retry, handler\n\n\n"
        "@handler('send', timeout_ms=10, backoff=Backoff(base_ms=1))\n"
        "async def send(payload: dict[str, int], ctx: Context) -> None:\n"
        "    reveal_type(ctx.attempt)\n"
        "    raise Retry(after_ms=1) if payload else Reject('no')\n"
    )
    command = [sys.executable, "-m", "mypy", "--strict", "--config-file", ROOT / "pyproject.toml", module]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stdout
    assert 'Revealed type is "builtins.int"' in done.stdout or 'Revealed type is "int"' in done.stdout
