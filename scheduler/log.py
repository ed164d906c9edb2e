"""Structured logs on standard error: one line an event, JSON or text.

Payloads are never logged. Tracebacks are, without the values of local variables: these hold payloads and
passwords.
"""

from __future__ import annotations

import contextlib
import logging
import sys
from typing import Any, TextIO, cast

# structlog imports rich where it is installed, for tracebacks with the values of local variables. We show
# none, and it would take a tenth of a second of each start, and 4 MiB.
if "rich" not in sys.modules:
    sys.modules["rich"] = cast(Any, None)
    import structlog

    del sys.modules["rich"]
else:
    import structlog

_LEVELS = {
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warning": logging.WARNING,
    "error": logging.ERROR,
}


class _Lossy:
    """A file whose failures are nobody's: a full disk, or a reader that is gone, must not end what logs."""

    def __init__(self, file: TextIO) -> None:
        self._file = file

    def write(self, text: str) -> None:
        with contextlib.suppress(OSError, ValueError):
            self._file.write(text)

    def flush(self) -> None:
        with contextlib.suppress(OSError, ValueError):
            self._file.flush()


def configure(level: str, form: str) -> None:
    """Send this process's log to standard error, at `level`, as `json` or `text`."""
    renderer: structlog.typing.Processor
    if form == "json":
        renderer = structlog.processors.JSONRenderer()
        trace: structlog.typing.Processor = structlog.processors.ExceptionRenderer(
            structlog.tracebacks.ExceptionDictTransformer(show_locals=False, max_frames=10)
        )
    else:
        renderer = structlog.dev.ConsoleRenderer(
            colors=sys.stderr.isatty(), exception_formatter=structlog.dev.plain_traceback
        )
        trace = structlog.processors.StackInfoRenderer()
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            trace,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(_LEVELS[level]),
        logger_factory=structlog.PrintLoggerFactory(cast(TextIO, _Lossy(sys.stderr))),
        cache_logger_on_first_use=True,
    )


def get(name: str, **values: Any) -> structlog.typing.FilteringBoundLogger:
    """A logger that says `component=name` and the given values in every line."""
    return cast("structlog.typing.FilteringBoundLogger", structlog.get_logger(component=name, **values))
