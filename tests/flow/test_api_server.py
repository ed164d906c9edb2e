"""One API process on a real socket: how it starts, what it does with bad clients, how it stops."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from http.client import HTTPConnection
from pathlib import Path

import httpx
import pytest
from fix_api import rows

from scheduler.api.body import READ_TIMEOUT_S
from scheduler.supervisor import free_port

BODY = b'{"type":"noop"}'


def environment(settings, **more: str) -> dict[str, str]:
    return (
        os.environ
        | {
            "POSTGRES_URL": settings.postgres_url,
            "REDIS_ADDR": settings.redis_addr,
            "HTTP_ADDR": "127.0.0.1:0",
            "METRICS_ADDR": "127.0.0.1:0",
        }
        | more
    )


def start(env: dict[str, str]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "scheduler", "api"],
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


class Running:
    """A process that has said that it is ready."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        line = process.stdout.readline()
        said = re.fullmatch(r"ready api http=127\.0\.0\.1:(\d+) metrics=(\d+) pid=(\d+)\n", line)
        assert said, line + process.stderr.read()
        self.port, self.metrics_port, self.pid = map(int, said.groups())
        self.url = f"http://127.0.0.1:{self.port}"

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=10)

    def listens(self) -> bool:
        try:
            self.connect().close()
        except OSError:
            return False
        return True

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(15)


@contextmanager
def serving(settings, **more: str) -> Iterator[Running]:
    process = start(environment(settings, **more))
    deadline = threading.Timer(60, process.kill)
    deadline.start()
    try:
        yield Running(process)
    finally:
        process.kill()
        process.communicate()
        deadline.cancel()


def request(body: bytes = BODY, **headers: str) -> bytes:
    lines = {"Host": "api", "Content-Type": "application/json", "Content-Length": str(len(body))} | headers
    head = "".join(f"{name}: {value}\r\n" for name, value in lines.items() if value)
    return f"POST /v1/tasks HTTP/1.1\r\n{head}\r\n".encode() + body


def status(answer: bytes) -> int:
    return int(answer.split(b" ", 2)[1])


def test_a_process_serves_tasks_and_metrics_and_stops_when_told(settings):
    with serving(settings) as api:
        assert api.pid == api.process.pid
        assert httpx.post(
            f"{api.url}/v1/tasks", content=BODY, headers={"Content-Type": "application/json"}
        ).is_success
        answer = httpx.get(f"{api.url}/readyz")
        assert (answer.status_code, "server" in answer.headers) == (200, False)
        shown = httpx.get(f"http://127.0.0.1:{api.metrics_port}/metrics").text
        assert "tasks_enqueued_total 1.0" in shown
        assert api.stop() == 0
    assert rows(settings) == 1


def test_an_answer_leaves_in_one_piece(settings):
    """Its head and its body apart cost both sides a system call more."""
    with serving(settings) as api, api.connect() as link:
        for _ in range(30):
            link.sendall(request())
            head, _, body = link.recv(65536).partition(b"\r\n\r\n")
            assert f"content-length: {len(body)}\r\n".encode() in head + b"\r\n"


def test_a_client_that_says_no_more_is_answered_all_the_same(settings):
    with serving(settings) as api, api.connect() as client:
        client.sendall(b"GET /healthz HTTP/1.1\r\nHost: here\r\n\r\n")
        client.shutdown(socket.SHUT_WR)
        answer = b"".join(iter(lambda: client.recv(4096), b""))
    assert answer.startswith(b"HTTP/1.1 200 ")


def test_a_process_starts_without_redis_and_not_without_postgres(settings):
    with serving(settings, REDIS_ADDR=f"127.0.0.1:{free_port()}") as api:
        assert httpx.get(f"{api.url}/readyz").json()["redis"] == "down"
        assert api.stop() == 0
    process = start(environment(settings, POSTGRES_URL=f"postgres://app:hunter2@127.0.0.1:{free_port()}/app"))
    out, err = process.communicate(timeout=30)
    assert process.returncode == 2
    assert out == ""
    assert "POSTGRES_URL" in err
    assert "hunter2" not in err
    assert "Traceback" not in err


def test_an_address_that_is_taken_is_named(settings):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        process = start(environment(settings, HTTP_ADDR=address))
        _, err = process.communicate(timeout=30)
    assert process.returncode == 2
    assert f"{address} is taken; set HTTP_ADDR" in err


def test_a_request_in_hand_is_answered_before_the_process_stops(settings):
    with serving(settings) as api, api.connect() as link:
        whole = request()
        link.sendall(whole[:-5])
        httpx.get(f"{api.url}/healthz")  # the server has read what came before
        api.process.send_signal(signal.SIGTERM)
        while api.listens():
            pass
        link.sendall(whole[-5:])
        assert status(link.recv(65536)) == 201
        assert api.process.wait(15) == 0
    assert rows(settings) == 1


def test_a_process_that_is_told_twice_does_not_wait_for_its_clients(settings):
    with serving(settings, SHUTDOWN_GRACE_MS="60000") as api, api.connect() as link:
        link.sendall(request()[:-5])
        httpx.get(f"{api.url}/healthz")
        api.process.send_signal(signal.SIGTERM)
        while api.listens():
            pass
        api.process.send_signal(signal.SIGTERM)
        assert api.process.wait(5) == 0


def test_a_process_listens_on_ipv6(settings):
    process = start(environment(settings, HTTP_ADDR="[::1]:0"))
    try:
        url = re.search(r"http=(\[::1\]:\d+) ", process.stdout.readline())[1]
        assert httpx.get(f"http://{url}/healthz").is_success
    finally:
        process.kill()
        process.communicate()


def test_a_body_that_says_that_it_is_too_large_is_not_waited_for(settings):
    with serving(settings) as api, api.connect() as link:
        link.sendall(request(b"", **{"Content-Length": "300000000", "Expect": "100-continue"}))
        answer = link.recv(65536)
        assert status(answer) == 413
        assert b"connection: close" in answer
        while link.recv(65536):
            pass


def test_a_chunked_body_is_read_no_further_than_its_limit(settings):
    chunk = b"100000\r\n" + b" " * 0x100000 + b"\r\n"
    with serving(settings) as api, api.connect() as link:
        link.sendall(request(b"", **{"Content-Length": "", "Transfer-Encoding": "chunked"}))
        sent = 0
        with suppress(OSError):
            while sent < 300:
                link.sendall(chunk)
                sent += 1
        assert sent < 60  # what the limit and the buffers of two sockets hold, not 300 MB
        memory = Path(f"/proc/{api.pid}/status").read_text()
        assert int(re.search(r"VmHWM:\s+(\d+) kB", memory)[1]) < 150 * 1024
        assert httpx.get(f"{api.url}/healthz").is_success


@pytest.mark.slow
def test_a_body_of_a_byte_now_and_then_is_not_waited_for(settings):
    with serving(settings) as api, api.connect() as link:
        link.sendall(request(b"", **{"Content-Length": "1000"}))
        link.settimeout(0.5)
        began = time.monotonic()
        answer = b""
        while not answer and time.monotonic() - began < READ_TIMEOUT_S + 5:
            link.sendall(b" ")
            with suppress(TimeoutError):
                answer = link.recv(65536)
        assert status(answer) == 408
        assert time.monotonic() - began < READ_TIMEOUT_S + 2
        assert b"connection: close" in answer
        link.settimeout(5)
        while link.recv(65536):  # the rest of the answer, and then the end
            pass
    assert rows(settings) == 0


@pytest.mark.slow
def test_an_idle_connection_is_not_closed_under_its_client(settings):
    """Uvicorn's own 5 s are shorter than what clients and load balancers reckon with."""
    with serving(settings) as api, closing(HTTPConnection("127.0.0.1", api.port)) as client:
        client.connect()
        link = client.sock
        for idle_s in (6, 0.1):
            client.request("POST", "/v1/tasks", BODY, {"Content-Type": "application/json"})
            answer = client.getresponse()
            assert (answer.status, json.loads(answer.read())["type"]) == (201, "noop")
            link.settimeout(idle_s)
            with pytest.raises(TimeoutError):
                link.recv(1)
        assert client.sock is link
    assert rows(settings) == 2


def test_a_client_that_leaves_in_the_middle_does_no_harm(settings):
    with serving(settings) as api:
        for part in (1, 40, -5):
            with api.connect() as link:
                link.sendall(request()[:part])
        assert httpx.get(f"{api.url}/healthz").is_success
        assert api.stop() == 0
        assert api.process.stderr.read() == ""
    assert rows(settings) == 0


def test_forwarding_headers_change_nothing(settings):
    with serving(settings) as api:
        answer = httpx.get(
            f"{api.url}/healthz", headers={"X-Forwarded-For": "10.0.0.7", "Forwarded": "for=10.0.0.7"}
        )
        assert answer.status_code == 200


def test_a_peer_with_another_address_is_refused(settings):
    """The machine's own other address is a peer that is not loopback."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # sends nothing; tells which address would be used
        except OSError:
            pytest.skip("this machine has no address but loopback")
        address = probe.getsockname()[0]
    with serving(settings, HTTP_ADDR=":0") as api:
        url = f"http://{address}:{api.port}/v1/tasks"
        answer = httpx.post(
            url, content=BODY, headers={"Content-Type": "application/json", "X-Forwarded-For": "::1"}
        )
        assert answer.status_code == 403
    assert rows(settings) == 0
