"""The name of a worker: what it is known by in the rows of what it held, long after it is gone."""

from __future__ import annotations

from scheduler import config
from scheduler.handlers import REGISTRY
from scheduler.worker import identity


def test_no_two_workers_share_a_name():
    """Not even two of one host and process id, as they come again when a container is started again."""
    settings, _ = config.load({})
    first, second = (identity(settings, REGISTRY) for _ in range(2))
    assert (first.host, first.pid) == (second.host, second.pid)
    assert first.id != second.id
