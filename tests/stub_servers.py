"""Servers that are too old to be had: each speaks as much of its protocol as is asked of it."""

from __future__ import annotations

import socketserver
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def serving(handler: type[socketserver.StreamRequestHandler]) -> Iterator[int]:
    """Answer on a free port of this machine; the port."""
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), handler) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield server.server_address[1]
        finally:
            server.shutdown()
            thread.join()


def old_postgres(version: str = "14.9", number: str = "140009") -> Any:
    """A Postgres that lets everybody in and knows nothing but its version."""

    def message(kind: bytes, body: bytes = b"") -> bytes:
        return kind + struct.pack("!I", len(body) + 4) + body

    def status(name: str, value: str) -> bytes:
        return message(b"S", f"{name}\0{value}\0".encode())

    ready = message(b"Z", b"I")
    column = b"server_version_num\0" + struct.pack("!IhIhih", 0, 0, 25, -1, -1, 0)
    answer = (
        message(b"T", struct.pack("!h", 1) + column)
        + message(b"D", struct.pack("!hi", 1, len(number)) + number.encode())
        + message(b"C", b"SHOW\0")
    )

    class Handler(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            length, code = struct.unpack("!II", self.rfile.read(8))
            while code in {80877103, 80877104}:  # TLS, GSS: no
                self.wfile.write(b"N")
                length, code = struct.unpack("!II", self.rfile.read(8))
            self.rfile.read(length - 8)
            hello = [("server_version", version), ("client_encoding", "UTF8"), ("integer_datetimes", "on")]
            self.wfile.write(
                message(b"R", struct.pack("!I", 0)) + b"".join(status(*s) for s in hello) + ready
            )
            while (kind := self.rfile.read(1)) not in {b"", b"X"}:
                (length,) = struct.unpack("!I", self.rfile.read(4))
                said = self.rfile.read(length - 4)
                assert kind == b"Q", kind
                done = answer if b"server_version_num" in said else message(b"C", b"SET\0")
                self.wfile.write(done + ready)

    return Handler


def old_redis(info: str) -> Any:
    """A Redis that agrees to everything and says this about itself."""

    class Handler(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            while header := self.rfile.readline():
                words = []
                for _ in range(int(header[1:])):
                    size = int(self.rfile.readline()[1:])
                    words.append(self.rfile.read(size + 2)[:-2])
                text = info.encode()
                asked = words[0].upper() == b"INFO"
                self.wfile.write(b"$%d\r\n%s\r\n" % (len(text), text) if asked else b"+OK\r\n")

    return Handler
