"""What is written within one turn of the event loop leaves at once."""

from __future__ import annotations

import asyncio
from typing import Any

from scheduler.api.transport import GatheringTransport


class Wire:
    """A transport that remembers what it was given, and when it was closed."""

    def __init__(self) -> None:
        self.sent: list[bytes | None] = []

    def write(self, data: bytes) -> None:
        self.sent.append(data)

    def close(self) -> None:
        self.sent.append(None)

    def is_closing(self) -> bool:
        return None in self.sent

    def get_extra_info(self, name: str) -> str:
        return name


def gathering(wire: Wire) -> Any:
    return GatheringTransport(wire, asyncio.get_running_loop().call_soon)  # type: ignore[arg-type]


async def test_head_and_body_leave_together_and_turns_apart():
    wire = Wire()
    transport = gathering(wire)
    transport.write(b"head ")
    transport.write(b"body")
    assert wire.sent == []
    await asyncio.sleep(0)
    assert wire.sent == [b"head body"]
    transport.write(b"next")
    await asyncio.sleep(0)
    assert wire.sent == [b"head body", b"next"]


async def test_what_was_written_leaves_before_the_end_and_nothing_after_it():
    wire = Wire()
    transport = gathering(wire)
    transport.write(b"last")
    transport.close()
    transport.write(b"too late")
    await asyncio.sleep(0)
    assert wire.sent == [b"last", None]


async def test_everything_else_is_that_of_the_transport_itself():
    assert gathering(Wire()).get_extra_info("peername") == "peername"
