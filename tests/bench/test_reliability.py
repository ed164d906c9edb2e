"""The figures of recovery and strain: what counts as kept, and that the command sees a promise broken."""

from __future__ import annotations

import pytest

from bench import reliability
from bench.arena import Arena
from bench.builds import made
from bench.cli import main
from bench.figure import Figure, cells, failure, shown, table
from bench.record import read
from bench.recovery import SLOTS, crashes
from bench.strain import SHARE, shares
from bench.watch import Overdue, until

LATER = ["soak", "chaos", "amnesia"]
"""What has a command and a record of its own."""

# --- a figure ---


@pytest.mark.parametrize(
    ("sign", "bound", "values", "holds"),
    [
        ("≤", 3.0, (1.0, 3.0), True),
        ("≤", 3.0, (1.0, 1.0, 3.1), False),
        ("≥", 3.0, (3.0, 5.0), True),
        ("≥", 3.0, (2.9, 5.0), False),
        ("=", 0.0, (0, 0), True),
        ("=", 0.0, (0, 1), False),
        (None, 0.0, (99.0,), True),
    ],
)
def test_every_repetition_must_keep_the_bound(sign, bound, values, holds):
    assert Figure("key", "what", "s", values, sign, bound).holds is holds


def test_a_figure_tells_its_median_and_its_range():
    told = Figure("key", "what", "s", (2.0, 1.0, 4.0), "≤", 3.0).record()
    assert (told["median"], told["low"], told["high"], told["values"]) == (2.0, 1.0, 4.0, [2.0, 1.0, 4.0])
    assert cells(told) == ("what", "2.00 s", "1.00 s to 4.00 s", "3", "≤ 3.00 s", "MISSED")
    assert cells(Figure("key", "what", values=(20_000,)).record()) == (
        "what",
        "20,000",
        "20,000",
        "1",
        "",
        "",
    )


def test_what_was_not_measured_says_why_and_what_failed_is_missed():
    assert cells(Figure("key", "what", why="not here").record()) == ("what", "-", "not here", "0", "", "")
    assert cells(failure("key", "too late").record())[-1] == "MISSED"


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [(3, "", "3"), (12.34, "", "12.3"), (0.0321, "s", "0.03 s"), (6.67, "%", "6.67%"), (123.4, "s", "123 s")],
)
def test_a_number_is_shown_with_its_unit(value, unit, text):
    assert shown(value, unit) == text


def test_the_table_has_columns():
    lines = table(
        [Figure("a", "short", "s", (1.0,)).record(), Figure("b", "a longer one").record() | {"why": ""}]
    )
    assert (
        len(
            {
                line.index(part)
                for line, part in zip(lines.splitlines()[::2], ("Median", "1.00"), strict=False)
            }
        )
        == 1
    )


# --- who is late ---


def test_a_low_task_is_late_if_it_waits_longer_than_its_place_explains():
    """Ten claims a second; the third low task waits for 4 s though nobody is ahead of it."""
    others = [("critical", i / 10, i / 10) for i in range(94)]
    low = [("low", t, t + 0.1) for t in (3.0, 4.0, 6.0, 7.0, 8.0)]
    share, waits, late = shares([*others, *low], 10.0)
    assert (round(waits[0], 6), late) == (0.1, 0)
    assert share == pytest.approx(100 * 5 / 80, rel=0.05)
    low[2] = ("low", 6.0, 10.0)
    assert shares([*others, *low], 10.0)[2] == 1


def test_a_low_task_may_wait_its_turn():
    """Five came at once, and are served every second and a half: the last one has four ahead of it."""
    others = [("critical", i / 10, i / 10) for i in range(94)]
    low = [("low", 2.0, 3.4 + 1.4 * i) for i in range(5)]
    assert shares([*others, *low], 10.0)[2] == 0


def test_the_share_of_low_is_that_of_its_weight():
    assert pytest.approx(100 / 15) == SHARE


# --- the command ---


@pytest.mark.parametrize(
    ("figures", "code"),
    [
        ([Figure("a", "kept", "s", (1.0,), "≤", 2.0)], 0),
        ([Figure("a", "kept", "s", (1.0,), "≤", 2.0), Figure("b", "broken", "s", (3.0,), "≤", 2.0)], 1),
        ([failure("a", "not within 30 s")], 1),
    ],
)
def test_the_exit_code_is_1_if_a_promise_is_broken(monkeypatch, capsys, tmp_path, figures, code):
    monkeypatch.setattr(reliability, "measure", lambda size: figures)
    out = tmp_path / "records" / "reliability.json"
    assert main(["reliability", "--out", str(out)]) == code
    assert f"{code} broken" in capsys.readouterr().out
    kept = read(out)
    assert kept["command"] == "bench reliability"
    assert [each["key"] for each in kept["result"]["figures"]] == [f.key for f in figures] + LATER
    assert kept["result"]["quick"] is False


def test_a_measurement_that_does_not_end_is_a_promise_broken(capsys):
    def never() -> list[Figure]:
        until(lambda: False, "it happens", within_s=0.05)
        return []

    [found] = reliability.told({"crashes": never})
    assert (found.key, found.why, found.holds) == ("crashes", "it happens: not within 0.05 s", False)
    assert "1 MISSED" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_a_build_without_a_reaper_is_found_out(server_dir):
    with (
        made("reaper-off") as build,
        Arena(server_dir, SLOTS | build) as arena,
        pytest.raises(Overdue, match="that a killed worker held were claimed again"),
    ):
        crashes(arena, 1)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_quick_run_measures_everything(tmp_path):
    """How quick a busy machine is says nothing; what must be exact is exact."""
    out = tmp_path / "reliability.json"
    code = main(["reliability", "--quick", "--out", str(out)])
    result = read(out)["result"]
    missed = [each for each in result["figures"] if not each["holds"]]
    assert code == bool(missed)
    assert [each for each in missed if each.get("sign", "=") == "="] == []
    unmeasured = [each["key"] for each in result["figures"] if "median" not in each]
    assert unmeasured == LATER
    assert result["quick"] is True
