"""Progress of long work: a bar where there is a terminal, else a line now and then."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from bench.burst import Tell

_LINE_S: Final = 5.0


@contextmanager
def told(title: str) -> Iterator[Tell]:
    """A `Tell` that shows how far `title` is."""
    if sys.stdout.isatty():
        with _bar() as progress:
            bars: dict[str, object] = {}

            def tell(what: str, n: int, of: int) -> None:
                if what not in bars:
                    bars[what] = progress.add_task(f"{title}: {what}", total=of)
                progress.update(bars[what], completed=n, total=of)  # type: ignore[arg-type] # rich's own id

            yield tell
    else:
        yield _lines(title)


def _bar() -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=Console(),
    )


def _lines(title: str) -> Tell:
    began = time.monotonic()
    last: dict[str, float] = {}

    def tell(what: str, n: int, of: int) -> None:
        now = time.monotonic()
        if n >= of and last.get(what) == float("inf"):
            return
        if n >= of or now - last.get(what, began) > _LINE_S:
            last[what] = float("inf") if n >= of else now
            print(f"{title}: {what} {n:,} of {of:,}", flush=True)

    return tell
