"""A TCP forwarder: one listening address, several targets, each connection to the next of them.

Written on asyncio's protocols rather than streams: half the work per byte, and a paused reader
is the whole of flow control. A half-closed connection stays half open, as TCP has it.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from typing import cast

log = logging.getLogger(__name__)
Address = tuple[str, int]

HIGH_WATER = 256 * 1024
"""Bytes that may wait for a slow receiver before its sender is paused."""
CONNECT_TIMEOUT = 2.0


class Forwarder:
    """Forwards one address; `targets` may be replaced at any time, open connections stay."""

    def __init__(self, targets: list[Address]) -> None:
        self.targets = targets
        self._turn = 0
        self._server: asyncio.Server | None = None
        self._connecting: set[asyncio.Task[None]] = set()

    async def listen(self, host: str, port: int) -> None:
        """Raises OSError when the address cannot be bound."""
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(lambda: _Front(self), host, port, backlog=1024)

    @property
    def address(self) -> Address | None:
        """Where it listens; None before `listen`."""
        if self._server is None or not self._server.sockets:
            return None
        host, port = self._server.sockets[0].getsockname()
        return host, port

    async def close(self) -> None:
        """Stop listening; connections that are open run on."""
        if self._server:
            self._server.close()

    def choose(self) -> list[Address]:
        """All targets, beginning with the one whose turn it is."""
        targets = self.targets
        self._turn += 1
        start = self._turn % len(targets)
        return targets[start:] + targets[:start]

    def connect(self, front: _Front) -> None:
        """Find the other end for a connection that has just come in."""
        task = asyncio.create_task(self._connect(front))
        self._connecting.add(task)
        task.add_done_callback(self._connecting.discard)

    async def _connect(self, front: _Front) -> None:
        loop = asyncio.get_running_loop()
        for host, port in self.choose():
            try:
                await asyncio.wait_for(
                    loop.create_connection(lambda: _Side(front), host, port), CONNECT_TIMEOUT
                )
                return
            except (OSError, TimeoutError) as error:
                # A pod that has just died; the next one gets the connection.
                log.info("connection to %s:%d failed: %s", host, port, error)
        front.abort()


class _Side(asyncio.Protocol):
    """One end of a forwarded connection; what it receives goes out at the other end."""

    def __init__(self, other: _Side | None = None) -> None:
        self.other = other
        self.transport: asyncio.Transport | None = None
        self.ended = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.transport.set_write_buffer_limits(HIGH_WATER)
        handle = self.transport.get_extra_info("socket")
        handle.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if self.other is not None:
            self.other.joined(self)

    def joined(self, other: _Side) -> None:
        """The other end is there: let the bytes flow."""
        self.other = other
        if self.transport is None or self.transport.is_closing():
            other.abort()
        else:
            self.transport.resume_reading()

    def data_received(self, data: bytes) -> None:
        if self.other and self.other.transport:
            self.other.transport.write(data)

    def eof_received(self) -> bool:
        """Pass the end on and keep the way back open; after both ends nothing is left to do."""
        self.ended = True
        other = self.other
        if other is None or other.transport is None:
            return True
        if other.ended:
            # Nobody reads from either any more, so nobody else would ever close them.
            other.transport.close()
            return False
        if other.transport.can_write_eof():
            other.transport.write_eof()
        return True

    def pause_writing(self) -> None:
        if self.other and self.other.transport:
            self.other.transport.pause_reading()

    def resume_writing(self) -> None:
        if self.other and self.other.transport and not self.other.transport.is_closing():
            self.other.transport.resume_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        other, self.other = self.other, None
        if other and other.transport:
            # A reset here is a reset there; otherwise what is buffered still goes out.
            if exc is None:
                other.transport.close()
            else:
                other.transport.abort()

    def abort(self) -> None:
        if self.transport:
            self.transport.abort()


class _Front(_Side):
    """The end that faces the client; it reads nothing before the other end is there."""

    def __init__(self, forwarder: Forwarder) -> None:
        super().__init__()
        self._forwarder = forwarder

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        assert self.transport is not None, "set just now"
        # In the loop's next turn, before it reads: Python 3.11.2, Debian 12's own, starts to read
        # after this call whatever is asked in it, and what comes too early would be lost.
        asyncio.get_running_loop().call_soon(self.transport.pause_reading)
        self._forwarder.connect(self)
