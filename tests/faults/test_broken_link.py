"""A link that breaks at the worst moment is an outage like any other."""

from __future__ import annotations

import asyncio

import pytest
import uvloop
from redis.asyncio.connection import Connection

from scheduler.errors import QueueUnavailable
from scheduler.queue import Index


@pytest.mark.parametrize("loop", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_a_link_that_breaks_between_its_check_and_its_use(settings, monkeypatch, loop):
    """The pool has found the connection sound, and before anything is written the server is gone."""
    check = Connection.can_read

    async def breaks_after_the_check(connection: Connection) -> bool:
        found = await check(connection)
        connection._writer.transport.abort()
        await asyncio.sleep(0)  # the transport learns of it; the connection does not
        return found

    async def call() -> None:
        index = Index.open(settings, name="test")
        try:
            await index.ping()
            with monkeypatch.context() as broken:
                broken.setattr(Connection, "can_read", breaks_after_the_check)
                with pytest.raises(QueueUnavailable):
                    await index.ping()
            await index.ping()
        finally:
            await index.close()

    with asyncio.Runner(loop_factory=loop) as runner:
        runner.run(call())
