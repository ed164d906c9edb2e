"""Live: a picture of a system that is drawn again and again while something else happens to it.

    figure, axes = plt.subplots(1, 2)
    handle = display(figure, display_id=True)
    seen = live.alongside(work, running, lambda samples: handle.update(live.drawn(figure, axes, samples)))

The work is in a thread of its own, and all drawing in the caller's, as matplotlib wants it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from typing import Final, TypeVar

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bench import sampling, timelines
from bench.plots import ENDED
from bench.sampling import Sampler
from bench.system import Running

T = TypeVar("T")

EVERY_S: Final = 0.5
GAUGES: Final = {
    "ready": "queue_depth",
    "in the retry set": "retry_set_depth",
    "in flight": "processing_inflight",
}
"""What is drawn on the left, and the gauges that tell it."""


def alongside(
    work: Callable[[], T],
    running: Running,
    redraw: Callable[[pd.DataFrame], object],
    every_s: float = EVERY_S,
) -> T:
    """Do `work`; meanwhile, and once after it, give all samples so far to `redraw`. What `work` returned.

    Whatever either of them raises is raised here, after the work has come to its end.
    """
    with ThreadPoolExecutor(1) as thread, Sampler(running.endpoints, now=running.now) as sampler:
        done = thread.submit(work)
        while wait([done], timeout=every_s).not_done:
            redraw(sampler.frame())
    redraw(sampler.frame())
    return done.result()


def drawn(figure: Figure, axes: Sequence[Axes], samples: pd.DataFrame) -> Figure:
    """The figure with its two axes drawn anew: where open tasks are, and how many end a second."""
    depths, rates = axes
    depths.clear()
    rates.clear()
    totals = {name: _by_second(samples, sampling.total(samples, gauge)) for name, gauge in GAUGES.items()}
    timelines.live(depths, totals, "open tasks")
    ended = _by_second(samples, sampling.rate(samples, *ENDED))
    timelines.live(rates, {"between scrapes": ended}, "tasks ended (1/s)")
    return figure


def _by_second(samples: pd.DataFrame, series: pd.Series[float]) -> pd.Series[float]:
    """A series by the time of its sample as one by seconds since the first."""
    seconds = (series.index.to_series() - samples["at"].min()).dt.total_seconds()
    return pd.Series(series.to_numpy(), index=seconds.to_numpy(), dtype=float)
