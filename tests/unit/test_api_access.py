"""Access: without keys, only peers on this machine are answered."""

from __future__ import annotations

import pytest

from scheduler.api.access import admit
from scheduler.api.problems import Problem

TCP = ("0.0.0.0", 8080)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.9.10", "::1", "::ffff:127.0.0.1"])
def test_a_loopback_peer_is_admitted(host):
    admit({"client": (host, 1234), "server": TCP, "headers": []})


@pytest.mark.parametrize(
    "host", ["10.0.0.7", "0.0.0.0", "::", "::ffff:10.0.0.7", "fe80::1%lo", "2001:db8::1", "localhost", ""]
)
def test_any_other_peer_is_refused(host):
    with pytest.raises(Problem) as caught:
        admit({"client": (host, 1234), "server": TCP, "headers": []})
    assert caught.value.kind.status == 403
    assert "no keys configured" in caught.value.detail


def test_a_peer_on_a_unix_socket_is_admitted():
    admit({"client": None, "server": ("/run/scheduler.sock", None), "headers": []})


def test_a_tcp_peer_that_has_gone_before_it_could_be_named_is_refused():
    with pytest.raises(Problem):
        admit({"client": None, "server": TCP, "headers": []})


def test_forwarding_headers_are_not_believed():
    headers = [(b"x-forwarded-for", b"127.0.0.1"), (b"forwarded", b"for=127.0.0.1")]
    with pytest.raises(Problem):
        admit({"client": ("10.0.0.7", 1234), "server": TCP, "headers": headers})
