"""A report holds everything that it shows: tables, pictures, and what speaks against a run."""

from __future__ import annotations

import contextlib
import io
import re
from base64 import b64decode

import pytest
from matplotlib.figure import Figure

from bench import cli, plots, record
from bench.document import Document
from bench.report import COLUMNS

SCENARIO = """
repeats = 2
[mix]
flaky = 10
fail = 5
sleep = 5
sleep_ms = 1200
[load]
kind = "bulk"
tasks = 200
[fleet]
processes = 2
slots = 4
[fleet.settings]
VIS_TIMEOUT_MS = 400
MAX_LOSSES = 1
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Two records, one of them disturbed in its first block."""
    folder = tmp_path_factory.mktemp("records")
    (folder / "mixed.toml").write_text(SCENARIO)
    for name in ("quiet", "loud"):
        assert cli.main(["simulate", str(folder / "mixed.toml"), "--out", str(folder / f"{name}.json")]) == 0
    loud = record.read(folder / "loud.json")
    flag = {"name": "neighbours", "why": "other work used 40 % of the <cores>", "spoils": "times"}
    loud["result"]["runs"][0] |= {"flags": [flag], "valid": False}
    record.write(folder / "loud.json", loud)
    return folder


@pytest.fixture(scope="module")
def reported(made):
    """What the command said, and the file that it wrote."""
    out, said = made / "folder" / "report.html", io.StringIO()
    with contextlib.redirect_stdout(said):
        words = ["report", str(made / "quiet.json"), str(made / "loud.json"), "--out", str(out)]
        assert cli.main(words) == 0
    return said.getvalue(), out


@pytest.fixture(scope="module")
def page(reported):
    return reported[1].read_text()


def test_a_report_needs_no_network(page):
    assert re.findall(r"(?:src|href)=\"(?!data:)", page) == []
    bare = re.sub(r"base64,[^\"]+", "", page)
    assert re.findall(r"//|@import|url\(|<script|<link", bare) == []
    pictures = re.findall(r'<img src="data:image/png;base64,([^"]+)" alt="[^"]+">', page)
    assert len(pictures) == 2 + 2 * 5  # side by side, and five of each record; a simulation has no costs
    assert all(b64decode(each).startswith(b"\x89PNG") for each in pictures)


def test_a_report_has_the_table_and_the_counts_of_every_repeat(page):
    assert page.count("".join(f"<th>{column}</th>" for column in COLUMNS).replace("×", "×")) == 2
    assert page.count("<td>2 × 4</td>") == 4
    assert "Counts are as theory says, to the unit." in page
    assert "<td>20 of 20</td>" in page  # ten sleepers, each lost twice


def test_what_speaks_against_a_run_is_shown_and_escaped(page):
    assert "Block 0: neighbours: other work used 40 % of the &lt;cores&gt;." in page
    assert page.count('class="against"') == 1


def test_the_terminal_is_told_the_same(reported):
    said, out = reported
    assert said.count("| Burst") == 2
    assert said.count("counts: as theory says, to the unit") == 2
    assert "block 0: neighbours: other work used 40 % of the <cores>" in said
    assert said.endswith(f"report: {out}\n")


def test_what_is_no_record_has_no_report(tmp_path, capsys):
    path = tmp_path / "none.json"
    assert cli.main(["report", str(path)]) == 2
    assert capsys.readouterr().err == f"bench: {path} cannot be read: No such file or directory\n"


def test_every_repeat_is_a_point_and_a_disturbed_one_is_hollow():
    ax = plots.repeats(
        Figure().subplots(), [("a", [(1.0, True), (3.0, True), (9.0, False)]), ("b", [])], "drain", "s"
    )
    points = {
        line.get_markerfacecolor(): list(line.get_xdata())
        for line in ax.lines
        if line.get_marker() == "o" and len(line.get_xdata())
    }
    assert points == {plots.BLUE: [1.0, 3.0], "none": [9.0]}
    [median] = [line for line in ax.lines if line.get_marker() == "|" and len(line.get_xdata())]
    assert list(median.get_xdata()) == [2.0]
    assert ax.get_xlabel() == "drain (s)"
    assert ax.get_xlim()[0] == 0


def test_the_same_document_is_the_same_file():
    def made() -> str:
        document = Document("A & B")
        document.table(("x",), [("<1>",)])
        document.picture("a line", lambda ax: ax.plot([0, 1], [0, 1]))
        return document.html()

    assert made() == made()
    assert "<title>A &amp; B</title>" in made()
    assert "<td>&lt;1&gt;</td>" in made()
