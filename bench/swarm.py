"""Swarm: a load that Locust sends, from processes of its own, and that comes back like any other load.

Locust deals the deck itself (`locustfiles/mix.py`) and writes a receipt for each accepted task as it goes; at
the end there are its totals, and its statistics, a row a kind of request:

    method, name           POST /v1/tasks is what was sent; E2E TYPE a sample, from acceptance to success
    requests, failures     an answer that was tried again later counts as a failure
    mean_s, min_s, max_s   seconds
    p50_s, p95_s, p99_s    the same, as Locust rounds them: to 1 ms, above 100 ms to two digits

Locust patches what it is imported into, so it is never imported here.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from array import array
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from importlib.util import find_spec
from math import nan
from pathlib import Path
from typing import Any, Final

from bench.receipts import LoadResult, receipt_of
from bench.scenario import Locust
from bench.workload import Dealt
from scheduler.errors import StartError
from scheduler.supervisor import free_port

_ROOT: Final = Path(__file__).resolve().parents[1]
_FILE: Final = _ROOT / "locustfiles/mix.py"
_LOOK_S: Final = 0.2
_PATIENCE_S: Final = 60.0
_END_S: Final = 10.0
_STATUS: Final = "status "
_PERCENTS: Final = (50, 95, 99)


def run(dealt: Dealt, how: Locust, *, host: str, progress: Callable[[LoadResult], object]) -> LoadResult:
    """Send a deck. What Locust has started ends with it, and with us.

    Args:
        dealt: What; a deck of one mix.
        how: With how many users, in how many processes.
        host: To whom.
        progress: Told now and then what was accepted so far.

    Raises:
        StartError: Locust is not installed, or its files are not there.
    """
    if find_spec("locust") is None:
        raise StartError("Locust is not installed: install the extra [locust], or choose another load")
    if not _FILE.exists():
        raise StartError(f"there is no {_FILE}: run this in a checkout of the project")
    result = LoadResult(asked=len(dealt), began=time.monotonic())
    with tempfile.TemporaryDirectory(prefix="locust-") as name:
        folder = Path(name)
        (folder / "ledger.jsonl").touch()
        code = _ended(_command(dealt, how, host, folder), folder, result, progress)
        _sum_up(result, folder, code)
    return result


def _command(dealt: Dealt, how: Locust, host: str, folder: Path) -> list[str]:
    mix = dealt.cards[0].mix
    port = str(free_port())
    options = {
        "host": host,
        "total": len(dealt),
        "users": how.users,
        "seed": dealt.seed,
        "pct-noop": mix.noop or 0,
        "pct-flaky": mix.flaky,
        "pct-fail": mix.fail,
        "pct-sleep": mix.sleep,
        "sleep-ms": mix.sleep_ms,
        "flaky-attempts": mix.flaky_attempts,
        "max-retries": mix.max_retries,
        "priorities": ",".join(map(repr, mix.priorities)),
        "e2e-sample": how.followed,
        "ledger": folder / "ledger.jsonl",
        "totals": folder / "totals.json",
        "json-file": folder / "statistics",
        "master-bind-port": port,
        "master-port": port,
    }
    if how.processes > 1:
        options["processes"] = how.processes
    words = [f"--{name}={value}" for name, value in options.items()]
    return [sys.executable, "-m", "locust", "--headless", "--only-summary", *words, "-f", str(_FILE)]


def _ended(
    command: Sequence[str], folder: Path, result: LoadResult, progress: Callable[[LoadResult], object]
) -> int:
    """Run it to its end, reading the receipts as they come; the exit code."""
    read_end, lifeline = os.pipe()
    try:
        with (folder / "log").open("wb") as log:
            process = subprocess.Popen(
                [*command, "--lifeline", str(read_end)],
                cwd=folder,
                env=_environment(folder),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=log,
                pass_fds=[read_end],
                start_new_session=True,
            )
    finally:
        os.close(read_end)
    try:
        _follow(process, folder, result, progress)
    finally:
        os.close(lifeline)
        try:
            process.wait(_END_S)
        except subprocess.TimeoutExpired:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    return process.returncode


def _environment(folder: Path) -> dict[str, str]:
    """Ours, so that this checkout is imported, without what a person has configured for their own Locust."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("LOCUST_")}
    path = os.pathsep.join(filter(None, (str(_ROOT), os.environ.get("PYTHONPATH"))))
    return kept | {"PYTHONPATH": path, "HOME": str(folder)}


def _follow(
    process: subprocess.Popen[bytes],
    folder: Path,
    result: LoadResult,
    progress: Callable[[LoadResult], object],
) -> None:
    """Read receipts until the process has ended, or nothing was accepted for too long."""
    moved, part = time.monotonic(), ""
    with (folder / "ledger.jsonl").open(encoding="utf-8") as ledger:
        while True:
            ended = process.poll() is not None  # asked before the look: the last receipts are always read
            *lines, part = (part + ledger.read()).split("\n")
            result.receipts += (receipt_of(json.loads(line)) for line in lines)
            result.seconds = time.monotonic() - result.began
            moved = time.monotonic() if lines else moved
            progress(result)
            if ended:
                return
            if time.monotonic() - moved > _PATIENCE_S:
                result.gave_up = f"{result.accepted} tasks were accepted, and none for {_PATIENCE_S:.0f} s"
                return
            time.sleep(_LOOK_S)


def _sum_up(result: LoadResult, folder: Path, code: int) -> None:
    """Add to the receipts what Locust tells of the whole."""
    result.latencies = array("d", (each.answered - each.intended for each in result.receipts))
    try:
        totals = json.loads((folder / "totals.json").read_bytes())
        rows = json.loads((folder / "statistics.json").read_bytes())
    except FileNotFoundError:
        last = (folder / "log").read_text(encoding="utf-8", errors="replace").strip().splitlines()[-1:]
        result.gave_up = result.gave_up or f"Locust ended with exit code {code}: {' '.join(last)}"
        return
    result.began, result.seconds, result.refused = totals["began"], totals["seconds"], totals["refused"]
    answers = {int(key.removeprefix(_STATUS)): n for key, n in totals.items() if key.startswith(_STATUS)}
    result.unanswered = answers.pop(0, 0)
    result.statuses.update(answers)
    result.statistics = [_row(row) for row in rows]


def _row(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row of Locust's statistics, in seconds."""
    n = row["num_requests"]
    return {
        "method": row["method"],
        "name": row["name"],
        "requests": n,
        "failures": row["num_failures"],
        "mean_s": row["total_response_time"] / n / 1000 if n else nan,
        "min_s": (row["min_response_time"] or 0.0) / 1000,
        "max_s": row["max_response_time"] / 1000,
        **{f"p{percent}_s": _percentile(row["response_times"], percent) for percent in _PERCENTS},
    }


def _percentile(times: Mapping[str, int], percent: float) -> float:
    """The shortest time that at least `percent` of 100 requests did not exceed, from a histogram in ms."""
    wanted = percent / 100 * sum(times.values())
    for ms, n in sorted((float(ms), n) for ms, n in times.items()):
        wanted -= n
        if wanted <= 0:
            return ms / 1000
    return nan
