"""Progress of long work: a bar where there is a terminal, else a line now and then."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from math import isnan, nan
from typing import Final

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from bench.burst import Tell

_LINE_S: Final = 5.0

Left = Callable[[str, int], float]
"""How many seconds are left when so many of what is counted are done; nan if nobody knows."""


@contextmanager
def told(title: str, left: Left | None = None) -> Iterator[Tell]:
    """A `Tell` that shows how far `title` is, and how long it will still take if `left` is there to say."""
    if sys.stdout.isatty():
        with _bar() as progress:
            bars: dict[str, object] = {}

            def tell(what: str, n: int, of: int) -> None:
                if what not in bars:
                    bars[what] = progress.add_task(f"{title}: {what}", total=of, left="")
                progress.update(
                    bars[what],  # type: ignore[arg-type] # rich's own id
                    completed=n,
                    total=of,
                    left=_left(left, what, n, of),
                )

            yield tell
    else:
        yield _lines(title, left)


def _left(left: Left | None, what: str, n: int, of: int) -> str:
    seconds = left(what, n) if left is not None and n < of else nan
    return "" if isnan(seconds) else f", about {seconds:,.0f} s left"


def _bar() -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[left]}"),
        console=Console(),
    )


def _lines(title: str, left: Left | None) -> Tell:
    began = time.monotonic()
    last: dict[str, float] = {}

    def tell(what: str, n: int, of: int) -> None:
        now = time.monotonic()
        if n >= of and last.get(what) == float("inf"):
            return
        if n >= of or now - last.get(what, began) > _LINE_S:
            last[what] = float("inf") if n >= of else now
            print(f"{title}: {what} {n:,} of {of:,}{_left(left, what, n, of)}", flush=True)

    return tell
