"""A script opens with its contract, and the wrapper keeps it."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

import scheduler
from scheduler.fairness import Policy
from scheduler.keys import NAMES, RANK, position, shard_keys
from scheduler.model import PRIORITIES, Move
from scheduler.shard import Shard

PACKAGE = Path(scheduler.__file__).parent
FILES = sorted((PACKAGE / "lua").glob("*.lua"))
TEXTS = {path.stem: path.read_text(encoding="utf-8") for path in FILES}
KEY_NAMES = shard_keys("sched1", "default")

CALLS: dict[str, Callable[[Shard], Awaitable[Any]]] = {
    "push": lambda shard: shard.push([("a", "high", 5), ("b", "low", 0)]),
    "adopt": lambda shard: shard.adopt([("a", "high", "t1", 5), ("b", "low", "t2", 6)]),
    "lease": lambda shard: shard.lease(5, "t1", 1000, Policy()),
    "place": lambda shard: shard.place(
        [Move("a", "t1", "gone"), Move("b", "t1", "gone"), Move("c", "t1", "held", "low", 5, "t2")]
    ),
    "expired": lambda shard: shard.expired(5),
    "pump": lambda shard: shard.pump(5),
    "forget": lambda shard: shard.forget([("a", "high"), ("b", "low")]),
    "dlq_add": lambda shard: shard.dlq_add([("a", "high", 5), ("b", "low", 6)]),
    "dlq_del": lambda shard: shard.dlq_del([("a", "high"), ("b", "low")]),
    "census": lambda shard: shard.census(),
    "set_epoch": lambda shard: shard.set_epoch(None, "1"),
    "nudge": lambda shard: shard.nudge([("a", "high"), ("b", "low")]),
    "depths": lambda shard: shard.depths(),
}
ANSWERS = {"lease": [], "expired": [], "census": [1, None], "depths": [0] * 13}


class Recorder:
    """Stands where the connections are, and remembers what would have been sent."""

    def __init__(self) -> None:
        self.sent: list[tuple[str, tuple[Any, ...], list[Any]]] = []

    async def call(self, *args: Any) -> Any:
        raise AssertionError(f"{args[0]} is sent without a script")

    async def run(self, name: str, shard: tuple[Any, ...], args: Iterable[Any]) -> Any:
        self.sent.append((name, shard, list(args)))
        return ANSWERS.get(name, 0)


def header(name: str) -> str:
    """The comment that a script opens with, without its dashes."""
    lines = TEXTS[name].splitlines()
    end = next(i for i, line in enumerate(lines) if not line.startswith("--"))
    return "\n".join(line.removeprefix("--").removeprefix(" ") for line in lines[:end])


def documented_arguments(name: str) -> str:
    """The line of ARGV: names, `(…)*` around what repeats, `id{count}` for as many as `count` says."""
    found = re.search(r"^ARGV +(.+)$", header(name), re.MULTILINE)
    assert found, f"{name}.lua does not document ARGV"
    return "" if found[1] == "none" else found[1]


def unread(documented: str, args: list[Any]) -> list[Any]:
    """What is left of `args` once they are read as documented; raises IndexError if some are missing."""
    left = list(args)
    repeated = re.fullmatch(r"\((.+)\)\*", documented)
    names = (repeated[1] if repeated else documented).split()
    while left or not repeated:
        values: dict[str, Any] = {}
        for each in names:
            if each == "id{count}":
                del left[: values["count"]]
            else:
                values[each] = left.pop(0)
        if not repeated:
            break
    return left


@pytest.mark.parametrize("name", TEXTS)
def test_a_script_says_what_it_is_for_and_what_each_guard_is_for(name: str) -> None:
    text = header(name)
    assert text.startswith(f"{name}: ")
    for part in ("KEYS ", "ARGV ", "RETURN ", "Guards: "):
        assert re.search(rf"^{part}", text, re.MULTILINE), f"{name}.lua has no part {part}"


@pytest.mark.parametrize("name", TEXTS)
def test_the_keys_are_those_of_a_shard_in_their_order(name: str) -> None:
    block = re.search(r"^KEYS .+\n.+$", header(name), re.MULTILINE)
    assert block
    for first, last, kind in re.findall(r"(\d+)-(\d+) (\w+)", block[0]):
        numbers = [position(kind, priority) + 1 for priority in PRIORITIES]
        assert numbers == list(range(int(first), int(last) + 1))
    singles = {kind: int(number) for number, kind in re.findall(r"(?<!-)\b(\d+) ([a-z]+)", block[0])}
    for kind in NAMES[12:]:
        assert singles[kind] == position(kind) + 1


@pytest.mark.parametrize("name", TEXTS)
def test_a_key_is_named_as_what_it_is(name: str) -> None:
    """`local live = KEYS[14]`, and never another number under that name."""
    body = TEXTS[name][len(header(name)) :]
    for names, values in re.findall(r"local ([\w, ]+) = ((?:KEYS\[\d+\](?:, )?)+)", body):
        numbers = [int(number) for number in re.findall(r"\d+", values)]
        assert names.split(", ") == [NAMES[number - 1] for number in numbers]
    computed = set(re.findall(r"KEYS\[([^\]\d][^\]]*|\d+ \+ [^\]]+)\]", body))
    assert all(re.fullmatch(r"(4 \+ |8 \+ )?(p|tonumber\(ARGV\[i - 1)", each) for each in computed), computed


@pytest.mark.parametrize("name", TEXTS)
async def test_the_wrapper_sends_what_the_header_says(name: str) -> None:
    recorder = Recorder()
    await CALLS[name](Shard(recorder, KEY_NAMES))
    ((sent, shard, args),) = recorder.sent
    assert sent == name
    assert shard == (18, *(key.encode() for key in KEY_NAMES))
    assert unread(documented_arguments(name), args) == []


async def test_a_missing_argument_would_be_seen() -> None:
    with pytest.raises(IndexError):
        unread("(priority id)*", [1, "a", 2])
    with pytest.raises(IndexError):
        unread("expected new", ["1"])
    assert unread("n", [1, 2]) == [2]


def test_every_script_has_a_method_and_every_method_a_script() -> None:
    methods = {name for name in vars(Shard) if not name.startswith("_")}
    assert set(TEXTS) == set(CALLS)
    assert methods - set(TEXTS) == {"key", "known", "dlq_page"}  # a name and two plain readings


@pytest.mark.parametrize("name", TEXTS)
def test_time_is_the_servers_and_payloads_are_not_read(name: str) -> None:
    assert not re.search(r"cjson|cmsgpack|os\.|ARGV\[\d+\] *-- now", TEXTS[name])
    assert not re.search(r"'(KEYS|SCAN|LRANGE|LREM|SMEMBERS|HGETALL)'", TEXTS[name]), "linear in the backlog"


def test_ranks_count_from_one_in_the_order_of_the_keys() -> None:
    for priority in PRIORITIES:
        assert KEY_NAMES[RANK[priority] - 1].endswith(f":q:{priority}")
        assert KEY_NAMES[4 + RANK[priority] - 1].endswith(f":retry:{priority}")
        assert KEY_NAMES[8 + RANK[priority] - 1].endswith(f":dlq:{priority}")
    assert len({re.search(r"\{.+?\}", key)[0] for key in KEY_NAMES}) == 1


def test_keys_are_named_in_one_place() -> None:
    for path in PACKAGE.rglob("*.py"):
        if path.name != "keys.py":
            assert not re.search(r"""["'{:](q|retry|dlq):""", path.read_text(encoding="utf-8")), path
