"""The notebooks run from a clean kernel, show what they promise, and leave nothing running."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from pathlib import Path

import jupytext
import nbformat
import pytest
from marked import MARK, command, marked, needs_proc

from bench import notebooks
from bench.notebooks import LARGEST_BYTES, ROOT, SOURCES, build, chosen
from bench.report import COLUMNS
from scheduler.errors import ConfigError

EVERY = sorted(SOURCES.glob("*.py"))
CI_S = 25.0
"""What a notebook may take with its profile `ci` on two quiet cores."""

ALL_CI_S = 300.0
"""What all of them may take together, likewise; twice that where other tests run beside them."""

CROWDED = 4.0
"""So many times longer where other tests run beside it, and on a machine that is busy anyhow."""


def _eventually(condition: Callable[[], bool], timeout_s: float = 60) -> bool:
    until = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > until:
            return False
        time.sleep(0.05)
    return True


def _start(out: Path, mark: str, *names: str) -> subprocess.Popen[str]:
    """The notebooks of these names, or all."""
    return subprocess.Popen(
        [sys.executable, "-m", "bench", "notebooks", *names, "--profile", "ci", "--out", str(out)],
        cwd=ROOT,
        env=os.environ | {MARK: mark, "MAX_LOSSES": "17"},  # a stray setting that must not matter
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.fixture(scope="module")
def executed(tmp_path_factory):
    """Notebook 01 by the command: exit code, output, errors, the notebook, and what was left running."""
    out, mark = tmp_path_factory.mktemp("notebooks"), uuid.uuid4().hex
    process = _start(out, mark, "01")
    try:
        said, complained = process.communicate(timeout=110)
    finally:
        process.kill()
    left = marked(mark)
    path = out / "01_performance_snapshot.ipynb"
    return process.returncode, said, complained, path, left


def _outputs(path: Path, kind: str) -> list[str]:
    cells = json.loads(path.read_text())["cells"]
    outputs = [output for cell in cells for output in cell.get("outputs", ())]
    texts = [o.get("text") or o.get("data", {}).get(kind, "") for o in outputs]
    return ["".join(text) for text in texts]


def test_the_snapshot_runs_from_a_clean_kernel(executed):
    code, said, complained, path, _ = executed
    assert code == 0, complained
    assert complained == ""
    assert said.startswith("01_performance_snapshot.py: ")
    assert path.stat().st_size < LARGEST_BYTES
    cells = json.loads(path.read_text())["cells"]
    kinds = [output["output_type"] for cell in cells for output in cell.get("outputs", ())]
    assert "error" not in kinds
    assert [o for c in cells for o in c.get("outputs", ()) if o.get("name") == "stderr"] == []
    numbers = [cell["execution_count"] for cell in cells if cell["cell_type"] == "code"]
    assert numbers == list(range(1, len(numbers) + 1))


def test_the_snapshot_shows_the_table_and_the_audit(executed):
    path = executed[3]
    (table,) = [text for text in _outputs(path, "text/markdown") if text.startswith("| Burst")]
    head, _, noops, mixed = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()
    ]
    assert tuple(head) == COLUMNS
    assert noops[:2] == mixed[:2] == ["600", "2 × 12"]
    assert noops[-3:] == ["0.0%", "0", "0"]
    assert mixed[-3:] == ["10.0%", "210", "60"]  # 5 % always fail, 5 % are lost twice
    said = "\n".join(_outputs(path, "text/plain"))
    assert "noops: audit passed: 600 accepted, 600 succeeded" in said
    assert "demo mix: audit passed: 600 accepted, 60 dead, 540 succeeded" in said
    assert len([text for text in _outputs(path, "image/png") if text.startswith("iVBOR")]) == 7


def test_the_snapshot_tells_how_sure_it_is_and_what_limits(executed):
    texts = _outputs(executed[3], "text/plain")
    assert re.search(r"^noops: n = 1.*; one run has no interval$", "\n".join(texts), re.MULTILINE)
    (limits,) = [text for text in texts if "limited by" in text]
    assert {line.split()[-1] for line in limits.splitlines()[1:]} <= {"arrival", "slots", "cores"}


def test_the_snapshot_holds_the_original_row_against_the_laws(executed):
    ours, original = [text for text in _outputs(executed[3], "text/markdown") if text.startswith("| Law")]
    assert "| NO |" not in ours
    assert "| only if |" not in ours
    assert "| 450/s × 22.0 s = 9,900 | 10,000 tasks | yes |" in original
    assert "the tasks came over 20.1 s at least" in original


def test_the_snapshot_keeps_its_figures(executed):
    """Where the notebook says: under results/, which git does not see."""
    assert "kept: results/snapshot-ci/snapshot.json" in "\n".join(_outputs(executed[3], "text/plain"))
    folder = ROOT / "results/snapshot-ci"
    made = json.loads((folder / "snapshot.json").read_text())
    assert made["command"] == "bench notebooks 01 --profile ci"
    assert {title: len(rows) for title, rows in made["result"]["rows"].items()} == {"noops": 1, "demo mix": 1}
    assert made["result"]["rows"]["demo mix"][0]["dead"] == 60
    assert (folder / "snapshot.md").read_text().startswith("| Burst")


def test_both_sources_counted_alike(executed):
    (table,) = [text for text in _outputs(executed[3], "text/plain") if "tasks_dequeued_total" in text]
    rows = [line.split() for line in table.splitlines() if "_total" in line or "_count" in line]
    assert len(rows) == 7
    for *_, in_postgres, scraped, metric in rows:
        assert in_postgres == scraped, metric


@needs_proc
def test_the_snapshot_leaves_nothing_running(executed):
    path, left = executed[3:]
    said = "\n".join(_outputs(path, "text/plain"))
    assert "5 processes were started, and all have ended" in said
    assert not left, [command(pid) for pid in left]


@pytest.mark.slow
@needs_proc
def test_a_killed_kernel_leaves_nothing_running(tmp_path):
    mark = uuid.uuid4().hex
    process = _start(tmp_path, mark, "01")
    try:
        commands = ("postgres", "valkey", "scheduler api", "scheduler worker")

        def all_there() -> bool:
            seen = [command(pid) for pid in marked(mark)]
            return all(any(part in command for command in seen) for part in commands)

        assert _eventually(all_there)
        (kernel,) = [pid for pid in marked(mark) if "ipykernel_launcher" in command(pid)]
        os.kill(kernel, signal.SIGKILL)
        _, complained = process.communicate(timeout=30)
    finally:
        process.kill()
        process.communicate()
    assert process.returncode == 1
    assert "01_performance_snapshot.py: the kernel died (after" in complained
    assert "Traceback" not in complained
    assert _eventually(lambda: not marked(mark)), [command(pid) for pid in marked(mark)]
    assert not list(tmp_path.iterdir())


# Sources.


@pytest.mark.parametrize("source", EVERY, ids=lambda path: path.stem)
def test_a_source_survives_the_round_trip_through_jupytext(source):
    text = source.read_text(encoding="utf-8")
    notebook = jupytext.reads(text, fmt="py:percent")
    nbformat.validate(notebook)
    assert jupytext.writes(notebook, fmt="py:percent") == text


@pytest.mark.parametrize("source", EVERY, ids=lambda path: path.stem)
def test_a_source_does_not_import_locust(source):
    """In a kernel its patches stop the shell channel."""
    assert "locust" not in source.read_text(encoding="utf-8")


def _code(source: Path) -> list[str]:
    return [cell.source for cell in build(source, {}).cells if cell.cell_type == "code"]


@pytest.mark.parametrize("source", EVERY, ids=lambda path: path.stem)
def test_a_source_says_what_it_asks_and_takes_a_profile(source):
    notebook = build(source, {"profile": "ci"})
    first = notebook.cells[0]
    assert first.cell_type == "markdown"
    assert first.source.startswith("# ")
    assert len(first.source.split("\n\n")) >= 3  # a title, what it asks, what its limits are
    assert '"full"' in "\n".join(_code(source))


@pytest.mark.parametrize("source", EVERY, ids=lambda path: path.stem)
def test_a_source_ends_with_its_audit(source):
    cells = build(source, {}).cells
    assert cells[-2].source.startswith("## The audit")
    assert cells[-1].cell_type == "code"
    assert "\nassert " in cells[-1].source


@pytest.mark.parametrize("source", EVERY, ids=lambda path: path.stem)
def test_a_source_leaves_drawing_to_the_workbench(source):
    """Lines, bars and points are drawn by functions that are tested."""
    drawn = re.findall(
        r"\bax(?:es\[\d\])?\.(plot|bar|barh|scatter|hist|step|stairs)\(", "\n".join(_code(source))
    )
    assert drawn == []


@pytest.mark.slow
@needs_proc
@pytest.mark.timeout(900)
def test_every_notebook_runs_in_time_and_leaves_nothing_running(tmp_path):
    mark = uuid.uuid4().hex
    process = _start(tmp_path, mark)
    try:
        said, complained = process.communicate(timeout=800)
    finally:
        process.kill()
    assert process.returncode == 0, complained
    told = re.findall(r"^(\w+)\.py: ([\d.]+) s, profile ci", said, re.MULTILINE)
    took = {name: float(seconds) for name, seconds in told}
    assert list(took) == [source.stem for source in EVERY]
    left = marked(mark)
    assert not left, [command(pid) for pid in left]
    for source in EVERY:
        path = tmp_path / f"{source.stem}.ipynb"
        assert path.stat().st_size < LARGEST_BYTES
        assert "image/png" in path.read_text()
    print(f"{sum(took.values()):.0f} s in all: {took}")
    assert max(took.values()) < CI_S * CROWDED, took
    assert sum(took.values()) < 2 * ALL_CI_S, took


@pytest.mark.parametrize("source", EVERY, ids=lambda path: path.stem)
def test_a_published_notebook_is_its_source_executed(source):
    """What docs/notebooks shows was made by the cells of today, with the full profile, without an error."""
    published = nbformat.read(ROOT / "docs/notebooks" / f"{source.stem}.ipynb", as_version=4)
    wanted = build(source, {"profile": "full"})
    assert [cell.source for cell in published.cells] == [cell.source for cell in wanted.cells]
    outputs = [output for cell in published.cells for output in cell.get("outputs", ())]
    assert outputs
    assert not [output for output in outputs if output.output_type == "error"]
    assert (ROOT / "docs/notebooks" / f"{source.stem}.ipynb").stat().st_size < LARGEST_BYTES


# Building.

SOURCE = """\
# %% tags=["parameters"]
profile = "ci"  # or "full"
n = 3

# %%
{body}
"""


@pytest.fixture
def source(tmp_path):
    def write(body: str = "print(profile, n)", text: str = SOURCE) -> Path:
        path = tmp_path / "99_test.py"
        path.write_text(text.format(body=body), encoding="utf-8")
        return path

    return write


def test_parameters_replace_the_defaults_and_leave_the_rest(source):
    notebook = build(source(), {"profile": "full"})
    assert notebook.cells[0].source == "profile = 'full'  # or \"full\"\nn = 3"
    assert notebook.cells[1].source == "print(profile, n)"


def test_a_build_is_the_same_each_time(source):
    first, second = (nbformat.writes(build(source(), {"n": 4})) for _ in range(2))
    assert first == second


@pytest.mark.parametrize("text", ["# %%\nn = 3\n", 2 * '# %% tags=["parameters"]\nprofile = 1\n\n'])
def test_a_source_needs_one_cell_of_parameters(source, text):
    with pytest.raises(ConfigError, match="one cell must be tagged 'parameters'"):
        build(source(text=text), {"profile": "ci"})


def test_a_parameter_that_no_line_assigns_is_refused(source):
    with pytest.raises(ConfigError, match="must assign tasks in one line of its own"):
        build(source(), {"tasks": 1})


def test_names_choose_notebooks_by_their_beginning():
    assert [path.stem for path in chosen(["01"])] == ["01_performance_snapshot"]
    assert chosen([]) == EVERY


def test_a_name_that_fits_no_notebook_is_refused():
    with pytest.raises(
        ConfigError, match="no notebook begins with 'nope'; there are 00_quickstart, 01_performance_snapshot"
    ):
        chosen(["nope"])


@pytest.mark.parametrize(
    ("body", "why"),
    [
        ("1 / 0", "a cell failed: ZeroDivisionError: division by zero"),
        ("import time; time.sleep(60)", "a cell took more than 2 s"),
    ],
)
def test_what_goes_wrong_in_a_cell_is_one_line(source, body, why):
    script = (
        "import sys; from pathlib import Path; from bench.notebooks import build, execute;"
        "print(execute(build(Path(sys.argv[1]), {}), timeout_s=2))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(source(body))],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert done.stdout.strip() == why


def test_a_notebook_is_written_whole(tmp_path, source):
    notebook = build(source(), {})
    target = tmp_path / "new" / "99_test.ipynb"
    assert notebooks.write(notebook, target) == target.stat().st_size
    assert nbformat.read(target, as_version=4) == notebook
    assert [path.name for path in target.parent.iterdir()] == ["99_test.ipynb"]
