"""The Makefile: its targets are there and listed, and what is set before `make` reaches the processes."""

from __future__ import annotations

import json
import re
import shutil
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import psutil
import pytest
from fix_process import environment, until
from fix_servers import missing

from scheduler.cli import parser
from scheduler.config import Settings, load
from scheduler.supervisor import free_port

ROOT = Path(__file__).parents[2]
MAKEFILE = (ROOT / "Makefile").read_text()
TARGETS = re.search(r"^\.PHONY: (.*)$", MAKEFILE, re.MULTILINE)[1].split()
SEED = {"dev", "migrate", "api", "worker"}
"""The targets of the original README."""


def make(*args: str, **variables: str) -> str:
    """What `make` printed."""
    program = shutil.which("make") or missing("make")
    command = [program, "--no-print-directory", *args]
    done = subprocess.run(
        command, cwd=ROOT, env=environment(**variables), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_target_is_listed_with_what_it_does():
    listed = dict(re.fullmatch(r"  make (\w+) +(\S.*)", line).groups() for line in make("help").splitlines())
    assert listed.keys() == set(TARGETS)
    assert listed.keys() >= SEED | {"demo", "up", "test", "prove", "lint", "load", "clean"}
    assert make() == make("help")
    assert parser(with_load=False).parse_args(["up"]).workers == 3
    assert "three workers" in listed["up"]


@pytest.mark.parametrize("target", TARGETS)
def test_every_target_can_be_planned(target):
    assert make("-n", target).strip()


@pytest.fixture
def programs(tmp_path) -> Path:
    """A directory with a `scheduler` that only tells its words and its environment."""
    script = tmp_path / "scheduler"
    script.write_text('#!/bin/sh\necho "words=$*"\nexec env\n')
    script.chmod(0o755)
    return tmp_path


def told(target: str, programs: Path, *args: str, **variables: str) -> tuple[str, Settings]:
    """What the process of a target is told: its words, and its settings."""
    out = make("-o", ".venv/.ready", target, f"BIN={programs}", *args, **variables)
    env = dict(line.partition("=")[::2] for line in out.splitlines())
    return env["words"], load(env)[0]


def test_what_is_set_before_make_reaches_the_worker(programs):
    words, settings = told("worker", programs, WORKER_POOL="24", RETRY_BATCH_SIZE="250")
    assert (words, settings.worker_pool, settings.retry_batch_size) == ("worker", 24, 250)
    assert settings.metrics_addr == ("0.0.0.0", 2113)
    _, settings = told("worker", programs, METRICS_ADDR=":9000")
    assert settings.metrics_addr == ("0.0.0.0", 9000)


def test_each_target_runs_its_command(programs):
    for target in ("api", "up", "demo", "migrate"):
        words, settings = told(target, programs, VIS_TIMEOUT_MS="1234")
        assert (words, settings.vis_timeout_ms, settings.metrics_addr[1]) == (target, 1234, 2112)
    words, _ = told("load", programs, "ARGS=-n 5 -w 2")
    assert words == "load -n 5 -w 2"


@pytest.mark.parametrize("user", [0, 1000])
def test_the_lab_is_allowed_to_run_as_root_where_it_must(tmp_path, user):
    (tmp_path / "id").write_text(f"#!/bin/sh\necho {user}\n")
    (tmp_path / "id").chmod(0o755)
    planned = make("-n", "-o", ".venv/.ready-dev", "lab", PATH=f"{tmp_path}:/usr/bin:/bin")
    assert ("--allow-root" in planned) == (user == 0)
    assert "--ip=127.0.0.1" in planned


def answer(url: str, token: str = "") -> int:
    """The status of a GET."""
    headers = {"Authorization": f"token {token}"} if token else {}
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=5) as response:
            return response.status
    except urllib.error.HTTPError as error:
        return error.code


def server_at(port: int) -> bool:
    """Whether anybody listens there."""
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0


def said(runtime: Path) -> list[dict[str, Any]]:
    """What servers say of themselves in files, once these are written whole."""
    try:
        return [json.loads(path.read_text()) for path in runtime.glob("jpserver-*.json")]
    except ValueError:
        return []


@pytest.mark.slow
@pytest.mark.skipif(find_spec("jupyterlab") is None, reason="the extra [notebooks] is not installed")
def test_the_lab_is_on_loopback_wants_its_token_and_ends_with_its_process(tmp_path):
    port, runtime = free_port(), tmp_path / "runtime"
    own = {f"JUPYTER_{name}_DIR": str(tmp_path / name.lower()) for name in ("RUNTIME", "CONFIG", "DATA")}
    words = f"ARGS=--no-browser --ServerApp.port={port} --ServerApp.port_retries=0"
    command = [shutil.which("make") or missing("make"), "-o", ".venv/.ready-dev", "lab", words]
    process = subprocess.Popen(
        [*command, f"BIN={Path(sys.executable).parent}"],
        cwd=ROOT,
        env=environment(HOME=str(tmp_path), **own),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        until(lambda: process.poll() is not None or said(runtime), 60)
        assert process.poll() is None, process.communicate()[1]
        [about] = said(runtime)
        server = psutil.Process(about["pid"])
        until(lambda: server_at(port), 30)
        url = f"http://127.0.0.1:{port}/api/contents"
        assert (answer(url), answer(url, "guessed"), answer(url, about["token"])) == (403, 403, 200)
        assert len(about["token"]) >= 32
        listening = [
            each.laddr for each in server.net_connections("tcp") if each.status == psutil.CONN_LISTEN
        ]
        assert [(address.ip, address.port) for address in listening] == [("127.0.0.1", port)]
        assert server.pid in {process.pid, *(child.pid for child in psutil.Process(process.pid).children())}
        process.terminate()
        process.communicate(timeout=30)
        until(lambda: not server.is_running(), 30)
    finally:
        for each in [*psutil.Process(process.pid).children(recursive=True)] if process.poll() is None else []:
            each.kill()
        process.kill()
        process.communicate()
