"""The command `notebooks`: execute the notebooks and keep what they showed.

A notebook's source is a Python file in `notebooks/` (jupytext's percent format). Its cell tagged `parameters`
assigns defaults, and the profile is one of them: `ci` is small enough for a test, `full` is published.
The kernel is a fresh one on the Python that runs this, whatever kernels are installed.
"""

from __future__ import annotations

import argparse
import base64
import io
import os
import re
import sys
import tempfile
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import jupytext  # type: ignore[import-untyped] # it ships no types
import nbformat
from ipykernel.kernelspec import get_kernel_dict
from jupyter_client.kernelspec import KernelSpec
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError
from nbformat import NotebookNode
from PIL import Image

from scheduler.errors import ConfigError

ROOT: Final = Path(__file__).resolve().parents[1]
SOURCES: Final = ROOT / "notebooks"
TAG: Final = "parameters"
LARGEST_BYTES: Final = 500_000


@dataclass(frozen=True, slots=True)
class Profile:
    """How much the notebooks run: the longest time for one cell, in seconds, and where results go."""

    cell_s: float
    out: Path


PROFILES: Final = {
    "ci": Profile(120, ROOT / "results/notebooks"),
    "full": Profile(1200, ROOT / "docs/notebooks"),
}


class OwnKernel(AsyncKernelManager):
    """Starts ipykernel on the Python that runs this; no installed kernel specification is asked.

    They talk through sockets that are files of ours: no port is open to others on the machine. Each kernel
    has names of its own for them, since by default two that start at once in one directory meet at the same.
    """

    def __init__(self, **options: Any) -> None:
        files = Path(tempfile.gettempdir()) / f"kernel-{uuid.uuid4().hex}"
        super().__init__(**{"transport": "ipc", "ip": str(files)} | options)

    @property
    def kernel_spec(self) -> KernelSpec:
        """What the kernel is started with."""
        return KernelSpec(**get_kernel_dict())


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `notebooks` to `parser`."""
    parser.add_argument("names", nargs="*", metavar="NAME", help="notebooks by the beginning of a name (all)")
    parser.add_argument("--profile", choices=tuple(PROFILES), default="full", help="how much is run (full)")
    parser.add_argument("--out", type=Path, help="where to (full: docs/notebooks; ci: results/notebooks)")


def main(args: argparse.Namespace) -> int:
    """0 if every notebook ran without an error and is small enough, 1 if not."""
    profile = PROFILES[args.profile]
    passed = True
    for source in chosen(args.names):
        began = time.monotonic()
        notebook = build(source, {"profile": args.profile})
        error = execute(notebook, timeout_s=profile.cell_s)
        target = (args.out or profile.out) / source.with_suffix(".ipynb").name
        size = 0 if error else write(slimmed(notebook), target)
        if size > LARGEST_BYTES:
            error = f"its result of {size:,} bytes is larger than {LARGEST_BYTES:,}: draw fewer points"
        took = f"{time.monotonic() - began:.1f} s"
        if error:
            print(f"{source.name}: {error} (after {took})", file=sys.stderr)
            passed = False
        else:
            print(f"{source.name}: {took}, profile {args.profile}, {size:,} bytes in {target}", flush=True)
    return 0 if passed else 1


def chosen(names: Sequence[str]) -> list[Path]:
    """The sources whose names begin like one of `names`, or all of them.

    Raises:
        ConfigError: a name fits none of them, or there are none.
    """
    every = sorted(SOURCES.glob("*.py"))
    if not every:
        raise ConfigError(f"there are no notebooks in {SOURCES}: run this in a checkout of the project")
    for name in names:
        if not any(source.name.startswith(name) for source in every):
            have = ", ".join(source.stem for source in every)
            raise ConfigError(f"no notebook begins with {name!r}; there are {have}")
    return [s for s in every if not names or any(s.name.startswith(name) for name in names)]


def build(source: Path, parameters: Mapping[str, object]) -> NotebookNode:
    """The notebook of a source, with other values for its parameters.

    Raises:
        ConfigError: it has no cell tagged `parameters`, or that cell does not assign one of them.
    """
    notebook: NotebookNode = jupytext.read(source)
    for number, cell in enumerate(notebook.cells):
        cell.id = f"cell-{number}"  # random ids would make every build differ
    tagged = [cell for cell in notebook.cells if TAG in cell.metadata.get("tags", ())]
    if len(tagged) != 1:
        raise ConfigError(f"{source}: one cell must be tagged {TAG!r}, and {len(tagged)} are")
    (cell,) = tagged
    for name, value in parameters.items():
        if len(re.findall(_assignment(name), cell.source)) != 1:
            raise ConfigError(f"{source}: the cell tagged {TAG!r} must assign {name} in one line of its own")
        cell.source = re.sub(_assignment(name), f"{name} = {value!r}", cell.source)
    return notebook


def _assignment(name: str) -> str:
    """A pattern for the line that assigns `name`, up to its comment."""
    return rf"(?m)^{re.escape(name)} = .*?(?=\s*#|$)"


def execute(notebook: NotebookNode, *, timeout_s: float) -> str | None:
    """Run all cells of `notebook`, in place, in a fresh kernel; what went wrong in one line, or None."""
    client = NotebookClient(
        notebook,
        timeout=timeout_s,
        kernel_manager_class=OwnKernel,
        record_timing=False,
        coalesce_streams=True,
        resources={"metadata": {"path": str(ROOT)}},
    )
    with tempfile.TemporaryDirectory() as profile:
        try:
            client.execute(env=_environment(profile))
        except CellExecutionError as error:
            return f"a cell failed: {error.ename}: {error.evalue}"
        except CellTimeoutError:
            return f"a cell took more than {timeout_s:g} s"
        except DeadKernelError:
            return "the kernel died"
    return None


def slimmed(notebook: NotebookNode) -> NotebookNode:
    """The notebook with 256 colours in each picture: plots need no more, and that is a third of the size."""
    for cell in notebook.cells:
        for output in cell.get("outputs", ()):
            data = output.get("data", {})
            if "image/png" in data:
                picture = Image.open(io.BytesIO(base64.b64decode(data["image/png"]))).convert("RGB")
                small = io.BytesIO()
                picture.quantize(256, dither=Image.Dither.NONE).save(small, "PNG", optimize=True)
                data["image/png"] = base64.b64encode(small.getvalue()).decode()
    return notebook


def write(notebook: NotebookNode, target: Path) -> int:
    """Write a notebook, whole or not at all; its size in bytes."""
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_suffix(".part")
    nbformat.write(notebook, part)  # type: ignore[no-untyped-call] # it is not annotated
    part.replace(target)
    return target.stat().st_size


def _environment(profile: str) -> dict[str, str]:
    """Ours, so that this checkout is imported, without what a person has configured for their own kernels."""
    personal = {"MPLBACKEND", "PYTHONSTARTUP", "IPYTHONDIR", "MATPLOTLIBRC"}
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    kept: dict[str, Any] = {k: v for k, v in os.environ.items() if k not in personal}
    return kept | {"PYTHONPATH": path, "IPYTHONDIR": profile}
