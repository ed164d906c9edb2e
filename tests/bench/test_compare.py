"""A comparison finds what was planted, leaves equal things alone, and knows when nobody can tell."""

from __future__ import annotations

import copy
import json
import random
import shutil
from collections.abc import Callable
from math import exp
from pathlib import Path

import pytest

from bench import cli, compare, power, record, repeats, scenario
from bench.builds import committed
from bench.compare import CANNOT_TELL, judge
from bench.costs import Costs
from bench.repeats import Record
from bench.simulate import simulate, summary
from scheduler.errors import StartError

PLANNED = scenario.parse(
    {"mix": {"flaky": 10}, "load": {"kind": "bulk", "tasks": 200}, "fleet": {"processes": 1}}, "x", "x"
)
NOISE = 0.04
Make = Callable[..., Record]


@pytest.fixture(scope="module")
def one() -> repeats.Run:
    """A repeat as a real run would leave it, without noise."""
    history = simulate(PLANNED, Costs())
    live = {
        "cost": {"cpu_us.all": 500.0, "redis.commands": 4.0, "postgres.commits": 0.05},
        "scores": {"python": 1000.0},
        "verdict": {"passed": True},
    }
    return repeats.content(PLANNED, 0, history, summary(PLANNED, history), live=live)


@pytest.fixture
def make(one, tmp_path) -> Make:
    """A record whose CPU and drain are `times` those of the others, with noise of its own in each block."""

    def made(
        name: str,
        *,
        times: float = 1.0,
        n: int = 12,
        control: bool = True,
        session: str = "s",
        **more: object,
    ) -> Record:
        rng = random.Random(name)
        runs = []
        for block in range(n):
            for again in (False, True) if control else (False,):
                run = copy.deepcopy(one) | {"block": block, "control": again} | more
                factor = (1.0 if again else times) * exp(rng.gauss(0, NOISE))
                run["cost"]["cpu_us.all"] *= factor
                run["drain_s"] *= factor
                runs.append(run)
        kept = repeats.result("measured", PLANNED, runs, session=session)
        record.write(tmp_path / f"{name}.json", record.make(["bench run"], kept))
        return repeats.read(tmp_path / f"{name}.json")

    return made


def words(a: Record, b: Record) -> dict[str, str]:
    return {claim.measure.key: claim.word for claim in judge(a, b)}


def test_a_planted_slowdown_is_found_and_what_is_equal_is_left_alone(make):
    found = words(make("a"), make("b", times=1.2, control=False))
    assert (found["drain_s"], found["cost/cpu_us.all"]) == ("slower", "dearer")
    assert {found[key] for key in ("wait/p95_s", "cost/redis.commands", "cost/postgres.commits")} == {
        CANNOT_TELL
    }


def test_a_planted_gain_is_found(make):
    found = words(make("a"), make("b", times=0.8, control=False))
    assert (found["drain_s"], found["cost/cpu_us.all"]) == ("faster", "cheaper")


def test_a_thing_is_not_told_from_itself(make):
    assert set(words(make("a"), make("b", control=False)).values()) == {CANNOT_TELL}


def test_few_blocks_claim_nothing_and_say_what_they_could_have_found(make):
    claims = judge(make("a", n=3), make("b", times=1.5, n=3, control=False))
    drain = next(claim for claim in claims if claim.measure.key == "drain_s")
    assert drain.word == CANNOT_TELL
    assert drain.effect.rounds == 3
    assert drain.effect.detectable > 0.1


def test_a_change_within_the_floor_is_no_claim(make):
    """The control is 15 % off, always: then a difference of 10 % means nothing."""
    a = make("a")
    for run in a.controls:
        run["drain_s"] *= 1.15
    found = words(a, make("b", times=1.1, control=False))
    assert (found["drain_s"], found["cost/cpu_us.all"]) == (CANNOT_TELL, "dearer")


def test_without_controls_the_floor_is_from_block_to_block(make):
    a = make("a", control=False)
    drain = next(claim for claim in judge(a, make("b", times=1.2)) if claim.measure.key == "drain_s")
    assert drain.floor is not None
    assert drain.floor.rounds == 6
    assert drain.word == "slower"


def test_a_disturbed_run_is_left_out_with_its_block(make):
    a, b = make("a"), make("b", control=False)
    neighbours = [{"name": "neighbours", "why": "", "spoils": "times"}]
    for run in b.runs[:3]:
        run |= {"flags": neighbours, "valid": False, "drain_s": 100.0}
    claims = {claim.measure.key: claim for claim in judge(a, b)}
    assert claims["drain_s"].effect.rounds == 9
    assert claims["drain_s"].values[1] < 100
    assert claims["cost/redis.commands"].effect.rounds == 12
    assert "blocks 0, 1, 2 of B" in "\n".join(compare.told(a, b, list(claims.values())))


def test_without_a_block_that_stands_nobody_can_tell(make, capsys):
    failed = [{"name": "audit", "why": "", "spoils": "all"}]
    a, b = make("a"), make("b", flags=failed)
    assert cli.main(["compare", str(a.path), str(b.path)]) == 2
    assert "have no block in common that was not disturbed" in capsys.readouterr().err


def test_records_of_two_sessions_are_compared_only_if_the_machine_was_as_fast(make):
    a = make("a")
    slower = make("b", times=1.2, session="other", control=False)
    assert words(a, slower)["drain_s"] == "slower"
    for run in slower.runs:
        run["scores"]["python"] = 800.0
    claims = {claim.measure.key: claim for claim in judge(a, slower)}
    assert (claims["drain_s"].word, claims["drain_s"].against) == (CANNOT_TELL, "score python -20%")
    assert claims["cost/redis.commands"].against == ""
    assert "not made in turns" in "\n".join(compare.told(a, slower, list(claims.values())))


def test_the_exit_code_says_whether_b_has_lost_and_a_record_says_why(make, tmp_path, capsys):
    a, slower, equal = make("a"), make("b", times=1.2), make("c")
    out = tmp_path / "out" / "claims.json"
    assert cli.main(["compare", str(a.path), str(equal.path)]) == 0
    assert cli.main(["compare", str(a.path), str(slower.path), "--out", str(out)]) == 1
    assert "slower: drain" in capsys.readouterr().out
    kept = {claim["figure"]: claim for claim in json.loads(out.read_text())["result"]["claims"]}
    drain = kept["drain_s"]
    assert drain["word"] == "slower"
    assert 1 < drain["ratio"]["low"] < drain["ratio"]["value"] < drain["ratio"]["high"]
    assert drain["floor"]["low"] < 1 < drain["floor"]["high"]


def test_sixty_blocks_prove_that_equal_things_are_left_alone_and_ten_percent_are_found(
    make, capsys, monkeypatch, tmp_path
):
    monkeypatch.setattr(compare, "JUDGED", [m for m in compare.JUDGED if m.key == "cost/cpu_us.all"])
    a, out = make("a", n=60), tmp_path / "power.json"
    assert cli.main(["compare", str(a.path), "--planted", "10", "--out", str(out)]) == 0
    [row] = [line.split() for line in capsys.readouterr().out.splitlines() if line.startswith("CPU a task")]
    blocks, flagged, found = row[-3:]
    assert blocks == "60"
    assert float(flagged.rstrip("%")) <= 5
    assert float(found.rstrip("%")) >= 90
    made = record.read(out)
    assert made["command"] == f"bench compare {a.path} --planted 10 --repeats 24"
    kept = made["result"]
    assert kept["passed"] is True
    assert kept["from"]["command"] == "bench run"
    assert power.again(kept, "cost/cpu_us.all").cells()[1:] == (blocks, flagged, found)


def test_a_change_that_is_too_small_to_be_found_is_a_failure(make, monkeypatch):
    monkeypatch.setattr(compare, "JUDGED", [m for m in compare.JUDGED if m.key == "cost/cpu_us.all"])
    assert cli.main(["compare", str(make("a", n=60).path), "--planted", "2"]) == 1


def test_too_few_controls_prove_nothing(make, capsys, tmp_path):
    path, out = str(make("a", n=59).path), tmp_path / "power.json"
    assert cli.main(["compare", path, "--planted", "10", "--out", str(out)]) == 2
    error = capsys.readouterr().err
    assert "has 59 undisturbed blocks with a control, and 60 are needed: make it with `bench run" in error
    assert not out.exists()


def test_without_undisturbed_blocks_of_cpu_nothing_is_proven_whatever_else_was_measured(make, capsys):
    """Counts of commands stand in a disturbed block, and CPU does not."""
    neighbours = [{"name": "neighbours", "why": "", "spoils": "times"}]
    path = str(make("a", n=60, flags=neighbours).path)
    assert cli.main(["compare", path, "--planted", "10"]) == 2
    assert "has 0 undisturbed blocks with a control" in capsys.readouterr().err


RECORDED = Path(__file__).parents[2] / "docs" / "records" / "aa.json"


def test_sixty_recorded_blocks_of_a_real_machine_prove_it_too():
    """Not drawn from a bell, but measured: what other work does to a machine is in them."""
    kept = record.read(RECORDED)["result"]
    assert kept["change"] == 0.1
    assert kept["blocks"] == 24
    assert len(kept["pairs"]["cost/cpu_us.all"]) >= 60
    assert len({a / b for a, b in kept["pairs"]["cost/cpu_us.all"]}) >= 60
    found = power.again(kept, "cost/cpu_us.all")
    assert found.flagged <= 0.05
    assert found.found >= 0.9
    [told] = [row for row in kept["figures"] if row["figure"] == found.figure]
    assert (told["flagged"], told["found"]) == (found.flagged, found.found)


@pytest.mark.parametrize("words", [["a.json"], ["a.json", "b.json", "--planted", "10"]])
def test_what_is_not_a_comparison_is_said_in_one_line(words, capsys):
    assert cli.main(["compare", *words]) == 2
    assert capsys.readouterr().err.startswith("bench: compare takes two records, two commits, or one record")


needs_clone = pytest.mark.skipif(
    shutil.which("git") is None or not (compare.record._ROOT / ".git").exists(), reason="this is no git clone"
)


@needs_clone
def test_a_commit_is_taken_out_as_it_was():
    with committed("HEAD") as env:
        folder = Path(env["PYTHONPATH"].split(":")[0])
        assert (folder / "scheduler" / "__main__.py").is_file()
        assert (folder / "migrations" / "001_init.sql").is_file()
        assert not (folder / "bench").exists()
    assert not folder.exists()


@needs_clone
def test_a_commit_that_is_not_there_is_said_in_one_line():
    with pytest.raises(StartError, match="commit nowhere cannot be read: "), committed("nowhere"):
        raise AssertionError("it was made")


@needs_clone
@pytest.mark.slow
def test_two_commits_are_run_in_turns(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("tiny.toml").write_text(
        '[mix]\n[load]\nkind = "bulk"\ntasks = 200\n[fleet]\nprocesses = 1\nslots = 4\n'
    )
    assert cli.main(["compare", "HEAD", "HEAD", "--commits", "tiny.toml", "--repeats", "1"]) in {0, 2}
    a, b = (
        repeats.read(path) for path in sorted(Path("results").glob("tiny-*.json"), key=lambda p: len(p.name))
    )
    assert a.result["build"] == b.result["build"] == record.short("HEAD")
    assert (len(a.runs), len(a.controls), len(b.runs)) == (1, 1, 1)
    assert all(run["verdict"]["passed"] for run in [*a.runs, *a.controls, *b.runs])
