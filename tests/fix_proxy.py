"""A TCP proxy before a server, so that a test can cut, freeze or slow the real wire: see bench/proxy.py."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from bench.proxy import Proxy

__all__ = ["Proxy"]


@pytest.fixture
def proxy() -> Iterator[Callable[[str], Proxy]]:
    """Make a running proxy before the server of a URL; all are stopped after the test."""
    with ExitStack() as stack:
        yield lambda url: stack.enter_context(Proxy(url))
