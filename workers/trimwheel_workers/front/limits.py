"""What one client may use of a worker's HTTP port, in one place.

Imported by `connections` (bytes, time and number of connections) and `protocol` (what a body may
hold). Each limit has its status code, and every refusal is counted in `trimwheel_requests_total`.
"""

from __future__ import annotations

import resource
from dataclasses import dataclass

BODY_BYTES = 1 << 20
"""413 beyond. Thirty-two texts of the most that a model of 512 tokens reads fit in."""
HEAD_BYTES = 16 * 1024
"""431 beyond: request line and headers together, as nginx and Node have it."""
JSON_DEPTH = 32
"""400 beyond. A request of the protocol is five deep; parameters may bring their own."""
JSON_VALUES = 8192
"""400 beyond: brackets and commas outside strings. A thousand texts of one row each need 3,000;
a megabyte of empty lists would hold the event loop for 140 ms."""
TEXT_CHARACTERS = 65_536
"""400 beyond. What a model cannot read of a shorter one is cut before it is sent to the engine."""
ID_CHARACTERS = 256
"""400 beyond, of a request's id: it is sent back."""
KEY_CHARACTERS = 256
"""400 beyond, of a session or tenant header."""

_DESCRIPTORS_KEPT = 128
"""Files and sockets that the worker itself needs."""


@dataclass(frozen=True, slots=True)
class ConnectionLimits:
    """Time and number of connections of the HTTP port."""

    receive_seconds: float = 10.0
    """408 when a request has not arrived whole after this long; an idle connection is closed."""
    connections: int = 1000
    """At this many, the connection that has waited longest for the rest of its request is closed
    for a new one; with none of those, 503. Twice as many are closed without an answer."""

    def within(self, descriptors: int) -> int:
        """Connections that a process with so many file descriptors can hold."""
        return max(1, min(self.connections, (descriptors - _DESCRIPTORS_KEPT) // 2))


def descriptors() -> int:
    """File descriptors that this process may open."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return soft if soft != resource.RLIM_INFINITY else 1 << 20
