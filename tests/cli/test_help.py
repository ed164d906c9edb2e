"""Every command explains itself, at once and without what it will need when it runs."""

from __future__ import annotations

import argparse
import re
import subprocess
import sys

import pytest
from fix_process import COMMAND, environment

from scheduler import cli

HEAVY = ("redis", "psycopg", "fastapi", "pydantic", "uvicorn", "structlog", "bench", "asyncio")


def parsers(parser: argparse.ArgumentParser, *words: str) -> dict[tuple[str, ...], argparse.ArgumentParser]:
    """A parser and all below it, by the words that lead there."""
    found = {words: parser}
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, below in action.choices.items():
                found |= parsers(below, *words, name)
    return found


COMMANDS = parsers(cli.parser(with_load=False))


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_help_of_a_command_is_answered_without_its_dependencies(words):
    done = subprocess.run(
        [sys.executable, "-X", "importtime", *COMMAND[1:], *words, "--help"],
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0
    assert done.stdout.startswith(f"usage: {' '.join(('scheduler', *words))} [-h]")
    imported = {line.rpartition("|")[2].strip().partition(".")[0] for line in done.stderr.splitlines()}
    assert "argparse" in imported
    assert not imported & (set(HEAVY) - ({"bench", "asyncio"} if words == ("load",) else set()))


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_help_of_a_command_teaches(words):
    parser = COMMANDS[words]
    if words != ("load",):  # its options are the workbench's, and come when it is asked for
        assert "load_cli" not in parser.format_help()
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            assert all(choice.help for choice in action._choices_actions)
        else:
            assert action.help, f"{words} {action.option_strings or action.dest}"
    assert parser.description


def test_the_options_of_load_are_shown():
    done = subprocess.run([*COMMAND, "load", "--help"], capture_output=True, text=True, check=True)
    for option in ("-n", "-w", "-pct-flaky", "-sleep-ms", "-flaky-attempts"):
        assert re.search(rf"(?<!\S){option}\b", done.stdout)


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("words", [["config"], ["--help"]])
def test_a_reader_that_has_had_enough_is_no_error(words: list[str], unbuffered: str):
    """`scheduler config | head -1`: the rest of the output has nowhere to go."""
    with subprocess.Popen(
        [*COMMAND, *words],
        env=environment(PYTHONUNBUFFERED=unbuffered),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        process.stdout.close()
        assert process.wait(30) == 0
        assert process.stderr.read() == b""
