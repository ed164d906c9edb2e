"""Who is answered: without API keys, only this machine."""

from __future__ import annotations

from functools import lru_cache
from ipaddress import IPv6Address, ip_address
from typing import Final

from starlette.types import Scope

from scheduler.api.problems import FORBIDDEN, Problem

REASON: Final = (
    "This API has no keys configured, so it answers only clients on its own machine (127.0.0.1 or ::1)."
)


def admit(scope: Scope) -> None:
    """Let a request pass if its peer is this machine.

    The peer is the other end of the connection; forwarding headers are not read, as anyone can write them.

    Raises:
        Problem: 403 for every other peer.
    """
    client = scope.get("client")
    local = _is_unix_socket(scope) if client is None else _is_loopback(client[0])
    if not local:
        raise Problem(FORBIDDEN, REASON)


def _is_unix_socket(scope: Scope) -> bool:
    """Whether the server listens on a unix socket, whose peers have no address.

    A TCP peer has none either once it has reset the connection, and what it had sent is still read: so the
    absence of an address proves nothing by itself.
    """
    server = scope.get("server")
    return server is None or server[1] is None


@lru_cache(maxsize=1024)
def _is_loopback(host: str) -> bool:
    try:
        address = ip_address(host.partition("%")[0])
    except ValueError:
        return False
    if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
        return address.ipv4_mapped.is_loopback
    return address.is_loopback
