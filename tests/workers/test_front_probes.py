"""The probes' port beside clients that hold connections: number and time have limits."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator

import httpx
import pytest
from tests.workers.conftest import free_port

from trimwheel_workers.front.probes import CLIENT_SECONDS, CONNECTIONS, LIVE, Probes, Pulse


@pytest.fixture
def port() -> Iterator[int]:
    port = free_port()
    probes = Probes("127.0.0.1", port, pulse=Pulse(), ready=lambda: True, metrics=lambda: b"m 1\n")
    probes.start()
    yield port
    probes.stop()


def live(port: int) -> bool:
    return httpx.get(f"http://127.0.0.1:{port}{LIVE}", timeout=3.0).status_code == 200


def handlers() -> int:
    return sum("process_request_thread" in one.name for one in threading.enumerate())


def test_held_connections_make_room_for_probes(port: int) -> None:
    """Each had a thread for as long as it liked."""
    with contextlib.ExitStack() as held:
        for _ in range(3 * CONNECTIONS):
            client = held.enter_context(socket.create_connection(("127.0.0.1", port), 3))
            client.sendall(b"GET / HTTP/1.1\r\n")
        assert live(port)
        time.sleep(0.5)
        assert handlers() <= CONNECTIONS


def test_a_connection_has_one_deadline(port: int) -> None:
    """A byte now and then kept it open for ever."""
    with socket.create_connection(("127.0.0.1", port), 3) as client:
        began = time.monotonic()
        client.settimeout(0.5)
        client.sendall(b"GET / HTTP/1.1\r\nx: ")
        while time.monotonic() - began < CLIENT_SECONDS + 5:
            try:
                client.sendall(b"a")
                if not client.recv(1):
                    break
            except TimeoutError:
                continue
            except ConnectionError:
                break
        lasted = time.monotonic() - began
    assert CLIENT_SECONDS - 1 < lasted < CLIENT_SECONDS + 3
    assert live(port)
