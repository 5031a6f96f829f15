"""Probes and /metrics on a port of their own, served by a thread of their own.

Started by `server`. A flood on the HTTP port, or a request that keeps the event loop busy, cannot
keep the kubelet or Prometheus waiting: nothing here goes through that loop. It only reports that
the loop is alive, by the age of its last beat. Clients' own health calls stay on the HTTP port.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import sys
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import orjson

from trimwheel_api.errors import SetupFailed

LIVE, READY, METRICS = "/v2/health/live", "/v2/health/ready", "/metrics"
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
BEAT_SECONDS = 1.0
DEAD_SECONDS = 30.0
"""Without a beat for this long the event loop hangs, and the worker is not live."""
CLIENT_SECONDS = 10.0
"""A connection may last this long, answer included."""
CONNECTIONS = 64
"""At this many the oldest connection is closed for a new one."""


class Pulse:
    """The event loop's sign of life, read from other threads."""

    def __init__(self) -> None:
        self._at = time.monotonic()

    async def beat(self) -> None:
        """Beat until cancelled."""
        while True:
            self._at = time.monotonic()
            await asyncio.sleep(BEAT_SECONDS)

    @property
    def alive(self) -> bool:
        """Whether the loop has beaten lately."""
        return time.monotonic() - self._at < DEAD_SECONDS


class Probes:
    """The server of one worker."""

    def __init__(
        self, bind: str, port: int, *, pulse: Pulse, ready: Callable[[], bool],
        metrics: Callable[[], bytes],
    ) -> None:  # fmt: skip
        """Raises SetupFailed when the port is taken."""
        answers: dict[str, Callable[[], tuple[int, str, bytes]]] = {
            LIVE: lambda: _state("live", pulse.alive),
            READY: lambda: _state("ready", ready()),
            METRICS: lambda: (200, CONTENT_TYPE, metrics()),
        }
        try:
            self._server = _Server((bind, port), _handler(answers))
        except OSError as error:
            raise SetupFailed(f"cannot listen on {bind}:{port}: {error}") from error

    def start(self) -> None:
        """Serve from now on."""
        threading.Thread(target=self._server.serve_forever, name="probes", daemon=True).start()

    def stop(self) -> None:
        """Refuse connections."""
        self._server.shutdown()
        self._server.server_close()


class _Server(ThreadingHTTPServer):
    """A thread a connection, within a number of connections and a time for each."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, *arguments: Any) -> None:
        self._open: dict[socket.socket, float] = {}
        """Connections, and since when; the oldest first."""
        self._lock = threading.Lock()
        super().__init__(*arguments)

    def process_request(self, request: Any, client_address: Any) -> None:
        """Answer in a thread; the oldest connection makes room."""
        with self._lock:
            while len(self._open) >= CONNECTIONS:
                self._end(next(iter(self._open)))
            self._open[request] = time.monotonic()
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        """The connection's thread is done with it."""
        with self._lock:
            self._open.pop(request, None)
        super().shutdown_request(request)

    def service_actions(self) -> None:
        """Between two polls of the listening socket, twice a second at least."""
        late = time.monotonic() - CLIENT_SECONDS
        with self._lock:
            for request in [one for one, since in self._open.items() if since < late]:
                self._end(request)

    def _end(self, request: socket.socket) -> None:
        """Wake the thread that reads or writes it: that closes it."""
        del self._open[request]
        with contextlib.suppress(OSError):
            request.shutdown(socket.SHUT_RDWR)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away, or was made to, is no news."""
        if not isinstance(sys.exception(), OSError):
            super().handle_error(request, client_address)


def _state(name: str, holds: bool) -> tuple[int, str, bytes]:
    return 200 if holds else 503, "application/json", orjson.dumps({name: holds})


def _handler(
    answers: dict[str, Callable[[], tuple[int, str, bytes]]],
) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        timeout = CLIENT_SECONDS

        def do_GET(self) -> None:
            answer = answers.get(self.path.partition("?")[0])
            unknown = 404, "text/plain", f"{', '.join(answers)}\n".encode()
            code, kind, body = answer() if answer else unknown
            self.send_response(code)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            """A line for each probe would bury the rest."""

    return Handler
