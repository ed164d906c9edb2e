"""docs/reliability.md tells the figures of the records and no others, and names tests that are there."""

from __future__ import annotations

import ast
import re
from dataclasses import asdict
from pathlib import Path

import pytest

from bench import record
from bench.figure import Figure
from bench.leaks import MIB, Trend
from bench.proof import COMMANDS, NOT_YET, Proofs
from docs import generate
from docs.generate import RECORDS, RELIABILITY, ROOT, promises, proven

TEXT = RELIABILITY.read_text(encoding="utf-8")
ROWS = "| Promise | Figure |\n| --- | --- |\n| It holds | {} |"
FIGURES = [
    Figure("crash.claimed", "claimed", "s", (2.0, 2.5, 3.0), "≤", 3.1),
    Figure("flush.whole", "whole", "s", (6.0,), "≤", 5.0),
    Figure("crash.ended", "ended", "s", (9.0,)),
    Figure("soak", "elsewhere", why="not here"),
]


@pytest.fixture
def kept(tmp_path):
    """A folder with a record of `reliability`."""

    def keep(*, quick: bool = False) -> Proofs:
        result = {"quick": quick, "figures": [figure.record() for figure in FIGURES]}
        record.write(tmp_path / "reliability.json", record.make(["bench reliability"], result))
        return Proofs(tmp_path)

    return keep


def cell(proofs: Proofs, named: str) -> str:
    """What the generator writes for a promise that names these figures."""
    last = promises(proofs, ROWS.format(f"<!-- {named} --> something else")).splitlines()[-1]
    return last.partition("-->")[2].strip(" |")


NAMED = re.compile(r"`(tests/\S+?)(?:::(\w+))?`")
"""A test as the document names it: its file and, if one is meant, its function."""

FAILURES = {"A": 16, "B": 20, "C": 15, "D": 14, "E": 29}
"""How many rows each part of "What goes wrong elsewhere, and here" has."""


def functions(path: Path) -> set[str]:
    """The tests that a file defines."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return {f.name for f in tree.body if isinstance(f, ast.FunctionDef | ast.AsyncFunctionDef)}


def test_every_test_that_is_named_is_there():
    named = set(NAMED.findall(TEXT))
    assert len(named) > 100
    files = {path: ROOT / path for path, _ in named}
    assert [path for path, file in files.items() if not file.exists()] == []
    defined = {path: functions(files[path]) for path, name in named if name}
    assert [f"{path}::{name}" for path, name in named if name and name not in defined[path]] == []


def test_every_way_to_fail_has_a_test_or_a_sentence_that_says_why_not():
    rows = re.findall(r"^\| ([A-E])(\d+) \| (.+) \| (.+) \| (.+) \|$", TEXT, re.MULTILINE)
    assert [(part, int(n)) for part, n, *_ in rows] == [
        (part, n) for part, last in FAILURES.items() for n in range(1, last + 1)
    ]
    for part, n, _, here, last in rows:
        excused = re.match(r"\*\*(by design|not promised)\*\*", last)
        tests = [name for _, name in NAMED.findall(last) if name]
        assert "not tested" not in last, f"{part}{n} is to be tested, or to say why it need not be"
        assert tests or excused, f"{part}{n} names no test, and does not say why"
        assert len(here.split()) > (8 if excused else 2), f"{part}{n} says too little"


def amiss(table: str, records: Path) -> list[str]:
    """The promises of a table that lack something: a cell, or a figure that a record has.

    What is not measured yet is excused as long as there is no record. Where there is nothing to measure, the
    cell says so in words.
    """
    rows = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in table.splitlines() if line]
    proofs, found = Proofs(records), []
    for promise, *cells, figure in rows[2:]:
        named = re.match(r"<!-- (.+?) -->", figure)
        keys = [part.rpartition(": ")[2] for part in named[1].split("; ")] if named else []
        kept = {key: records / f"{key if key in COMMANDS else 'reliability'}.json" for key in keys}
        untold = [key for key in keys if kept[key].exists() and proofs.figure(key) == NOT_YET]
        told = keys or re.fullmatch(r"yes or no, no figure: (\S+ ){8,}\S+", figure)
        if len(cells) != 2 or {"", "–", "-"} & {promise, *cells} or not told or untold:
            found.append(promise)
    return found


def test_every_promise_has_a_mechanism_a_test_and_a_figure():
    table = TEXT.partition("<!-- promises -->")[2].partition("<!-- /promises -->")[0]
    assert table.count("\n| ") > 15
    assert amiss(table, RECORDS) == []


@pytest.mark.parametrize(
    ("cells", "sound"),
    [
        ("how | test | <!-- whole: flush.whole --> 6.00 s", True),
        ("how | test | <!-- flush.whole; soak --> 6.00 s; not measured yet", True),
        ("how | test | yes or no, no figure: what a test counts must be none at all", True),
        ("how | test | yes or no, no figure: so there", False),
        ("how | test | –", False),
        ("how | test |  ", False),
        ("how | – | <!-- flush.whole --> 6.00 s", False),
        ("how |  | <!-- flush.whole --> 6.00 s", False),
        ("how | <!-- flush.whole --> 6.00 s", False),
    ],
)
def test_a_promise_without_a_cell_is_found(kept, tmp_path, cells, sound):
    kept()
    table = f"| Promise | Mechanism | Test | Figure |\n| --- | --- | --- | --- |\n| It holds | {cells} |"
    assert amiss(table, tmp_path) == ([] if sound else ["It holds"])


def test_what_was_measured_in_a_hurry_is_no_figure_of_a_promise(kept, tmp_path):
    kept(quick=True)
    table = "| a | b | c | d |\n| --- | --- | --- | --- |\n| It holds | how | test | <!-- flush.whole --> |"
    assert amiss(table, tmp_path) == ["It holds"]


def test_a_figure_tells_its_range_and_its_bound(kept):
    assert (
        cell(kept(), "claimed: crash.claimed") == "claimed: 2.50 s (2.00 s to 3.00 s, n=3; must be ≤ 3.10 s)"
    )
    assert cell(kept(), "crash.ended") == "9.00 s"


def test_a_promise_that_was_broken_is_told(kept):
    assert cell(kept(), "flush.whole") == "6.00 s (**missed**: must be ≤ 5.00 s)"


def test_what_no_record_tells_is_not_measured_yet(kept, tmp_path):
    assert cell(Proofs(tmp_path), "a: crash.claimed; b: soak") == "a: not measured yet; b: not measured yet"
    assert cell(kept(quick=True), "crash.claimed") == "not measured yet"


def test_a_figure_that_does_not_exist_is_refused(kept):
    with pytest.raises(ValueError, match=r"no figure 'crash\.typo'"):
        promises(kept(), ROWS.format("<!-- crash.typo -->"))


def test_a_cell_without_a_figure_and_a_bar_in_a_cell_stay(kept):
    rows = promises(kept(), ROWS.replace("It holds", r"a \| b").format("–"))
    assert rows.splitlines()[-1] == r"| a \| b  | –      |"
    assert promises(kept(), rows) == rows


def test_figures_come_with_where_they_come_from(kept):
    told = generate.measured(kept(), "reliability")
    assert told.startswith("`bench reliability`, ")
    assert re.search(r"^\| whole +\| 6\.00 s \| 6\.00 s +\| 1 \| ≤ 5\.00 s \| MISSED \|$", told, re.MULTILINE)
    assert (
        generate.measured(kept(), "soak")
        == "Not measured yet: run `bench soak --out docs/records/soak.json`."
    )


@pytest.mark.parametrize(
    ("holds", "words"),
    [
        (True, "all flat; memory rose by 0.50 MiB at most in 18 of 30 minutes at 800 tasks/s"),
        (False, "**failed**: API memory; memory rose by 0.50 MiB at most in 18 of 30 minutes at 800 tasks/s"),
    ],
)
def test_a_soak_is_told_in_a_few_words(tmp_path, holds, words):
    trend = asdict(Trend("API memory", 50 * MIB, 51 * MIB, MIB / 2, MIB if holds else 0)) | {"flat": holds}
    result = {"trends": [trend], "redis": {"flat": True}, "minutes": 30.0, "rate": 800.0, "holds": holds}
    record.write(tmp_path / "soak.json", record.make(["bench soak"], result))
    assert cell(Proofs(tmp_path), "soak") == words
    assert ("flat" if holds else "GROWS") in generate.measured(Proofs(tmp_path), "soak")


@pytest.mark.parametrize(
    ("found", "words"),
    [
        ({"counted": 3, "passed": 3, "failed_seeds": []}, "3 of 3 seeds counted, 3 of these passed"),
        ({"counted": 2, "passed": 2, "failed_seeds": []}, "2 of 3 seeds counted, 2 of these passed"),
        (
            {"counted": 2, "passed": 1, "failed_seeds": [2, 3]},
            "2 of 3 seeds counted, 1 of these passed, **failed**: 2, 3",
        ),
    ],
)
def test_chaos_is_told_in_a_few_words(tmp_path, found, words):
    faults = {"worker_killed": {"planned": 4, "landed": 3}, "redis_flushed": {"planned": 2, "landed": 2}}
    result = found | {"runs": 3, "faults": faults, "accepted": 3400}
    record.write(tmp_path / "chaos.json", record.make(["bench chaos"], result))
    told = f"{words}: 5 of 6 faults landed, 3,400 tasks accepted"
    assert cell(Proofs(tmp_path), "under faults: chaos") == f"under faults: {told}"
    assert "| worker_killed | 4       | 3      |" in generate.measured(Proofs(tmp_path), "chaos")


def test_the_document_is_what_the_records_say(tmp_path):
    assert proven(TEXT, Proofs(RECORDS)) == TEXT
    if any((RECORDS / f"{name}.json").exists() for name in generate.COMMANDS):
        assert proven(TEXT, Proofs(tmp_path)) != TEXT


def test_a_document_that_is_out_of_date_is_found_and_mended(tmp_path, monkeypatch, capsys):
    copy, readme = tmp_path / "reliability.md", tmp_path / "README.md"
    readme.write_text(generate.renewed(generate.README.read_text(encoding="utf-8")))
    stale = TEXT.replace("<!-- chaos -->", "<!-- chaos --> all of them passed", 1)
    copy.write_text(stale)
    monkeypatch.setattr(generate, "README", readme)
    monkeypatch.setattr(generate, "RELIABILITY", copy)
    assert generate.main(["--check"]) == 1
    assert capsys.readouterr().err == "reliability.md is out of date: run `python docs/generate.py`\n"
    assert generate.main([]) == 0
    assert copy.read_text() == TEXT
