"""What is logged, and that nothing depends on whether it could be."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
import sys
from scheduler import log

log.configure("info", "json")
for number in range(1000):
    log.get("test").error("this cannot be written", number=number)
sys.stdout.write("went on")
"""


@pytest.mark.parametrize("full", ["/dev/full", "a pipe without a reader"])
def test_a_log_that_cannot_be_written_ends_nothing(full):
    """A full disk, or a collector that has ended."""
    command = [sys.executable, "-c", PROGRAM]
    if full == "/dev/full":
        with Path(full).open("w") as target:
            process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=target)
    else:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        process.stderr.close()
    assert process.communicate(timeout=30)[0] == b"went on"
