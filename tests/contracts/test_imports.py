"""What a process imports, it pays for at every start: what none of ours needs is not imported."""

from __future__ import annotations

import subprocess
import sys

import pytest


@pytest.mark.parametrize("process", ["scheduler.worker", "scheduler.api.server", "scheduler.solo"])
def test_no_process_imports_what_it_never_uses(process: str):
    """Where rich is installed, as it is here, structlog would import it."""
    script = f"import sys, scheduler.cli, scheduler.commands, {process}; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert process in loaded
    assert not loaded & {"rich", "pandas", "matplotlib", "locust", "bench"}


def test_what_wants_rich_has_it_all_the_same():
    script = "import scheduler.log, rich.progress, structlog; print(rich.__name__, structlog.dev.rich)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["rich", "None"]
