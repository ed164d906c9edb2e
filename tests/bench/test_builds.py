"""A broken build is the product with one text replaced, and a process can be made to run it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from bench import builds
from scheduler.errors import ConfigError

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("name", builds.BUILDS)
def test_a_build_differs_from_the_product_in_its_one_text(name):
    build = builds.BUILDS[name]
    with builds.made(name) as variables:
        folder = Path(variables["PYTHONPATH"].split(os.pathsep)[0])
        copies = {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    product = {path: (ROOT / path).read_bytes() for path in copies}
    assert [path for path in copies if copies[path] != product[path]] == [Path("scheduler", build.file)]
    assert not folder.exists()


def test_a_process_runs_the_build_and_not_what_lies_in_its_working_directory():
    with builds.made("reaper-off") as variables:
        done = subprocess.run(
            [sys.executable, "-c", "import scheduler.worker as w; print(w.__file__)"],
            env=os.environ | variables,
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
        )
        assert Path(done.stdout.strip()).is_relative_to(variables["PYTHONPATH"].split(os.pathsep)[0])


def test_an_unknown_build_is_an_error():
    with pytest.raises(ConfigError, match="no build 'brakes-off'"), builds.made("brakes-off"):
        pass


@pytest.mark.parametrize("old", ["no such text", "self"])
def test_a_text_that_is_not_there_exactly_once_is_an_error(monkeypatch, old):
    monkeypatch.setitem(builds.BUILDS, "stale", builds.Build("a guard that has moved", "worker.py", old, ""))
    with pytest.raises(ConfigError, match=r"build stale: scheduler/worker\.py"), builds.made("stale"):
        pass
