"""Connections of the HTTP port: uvicorn's protocol with limits on bytes, time and number.

Given to uvicorn by `server`. What a request's body may hold is `protocol`'s; this file bounds what
a client can make the worker keep before there is a request: headers (431), time to send (408),
connections (503), bytes after a refusal; and how long answers wait for a client that does not read.
Every request it refuses is counted through `Door.refused`.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Callable
from http import HTTPStatus
from typing import Any

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from trimwheel_workers.front.error_body import error_body
from trimwheel_workers.front.limits import BODY_BYTES, HEAD_BYTES, ConnectionLimits, descriptors

_SWEEP_SECONDS = 0.5
_WASTE = 8
"""Times BODY_BYTES that a message may take on the wire: chunks of one byte take six each."""


class Door:
    """The connections of one server: who waits, since when, and how many there may be."""

    def __init__(self, limits: ConnectionLimits, refused: Callable[[int], None]) -> None:
        """`refused` gets the status code of each refusal."""
        self.limits = limits
        self.most = limits.within(descriptors())
        self.refused = refused
        self._waiting: dict[Connection, float] = {}
        """Connections that owe (the rest of) a request, and since when; the longest first."""
        self._unread: dict[Connection, float] = {}
        """Connections whose answers their clients do not read, likewise."""
        self._sweep: asyncio.TimerHandle | None = None

    def wait_for(self, connection: Connection) -> None:
        """A request is due from now on."""
        self._waiting.pop(connection, None)
        self._waiting[connection] = time.monotonic()
        self._watch()

    def forget(self, connection: Connection) -> None:
        """The request is there, or the connection is gone."""
        self._waiting.pop(connection, None)

    def must_be_read(self, connection: Connection) -> None:
        """What was written is to be read from now on; a clock that runs already goes on."""
        self._unread.setdefault(connection, time.monotonic())
        self._watch()

    def was_read(self, connection: Connection) -> None:
        """Written bytes have left, or the connection is gone."""
        self._unread.pop(connection, None)

    def make_room(self, connection: Connection) -> bool:
        """Close the connection that has waited longest, other than the new one."""
        longest = min(
            (
                (since, waiting is self._unread, one)
                for waiting in (self._waiting, self._unread)
                for one, since in itertools.islice(waiting.items(), 2)
                if one is not connection
            ),
            key=lambda found: found[:2],
            default=None,
        )
        if longest is None:
            return False
        _, unread, one = longest
        if unread:
            one.abandon()
        else:
            one.give_up()
        return True

    def _watch(self) -> None:
        if self._sweep is None:
            self._sweep = asyncio.get_running_loop().call_later(_SWEEP_SECONDS, self._expire)

    def _expire(self) -> None:
        self._sweep = None
        late = time.monotonic() - self.limits.receive_seconds
        for connection in _since(self._unread, late):
            connection.abandon()
        for connection in _since(self._waiting, late):
            connection.give_up()
        if self._waiting or self._unread:
            self._watch()


def _since(waiting: dict[Connection, float], late: float) -> list[Connection]:
    """Those that have waited since before `late`."""
    return [one for one, _ in itertools.takewhile(lambda one: one[1] <= late, waiting.items())]


class Connection(HttpToolsProtocol):
    """One connection of a client. `connection_class` binds it to its door."""

    door: Door

    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        super().__init__(*arguments, **keywords)
        self._in_head = True
        self._received = 0
        """Bytes of the request that is being received."""
        self._completed = 0
        """Requests received whole."""
        self._closed = False
        self._turned_away = False

    # ------------------------------------------------------------------ connection

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Accept, or make room, or turn away."""
        super().connection_made(transport)
        count = len(self.connections)
        if count > 2 * self.door.most:
            self._closed = True
            self.door.refused(HTTPStatus.SERVICE_UNAVAILABLE)
            transport.abort()
            return
        if count > self.door.most:
            self._turned_away = not self.door.make_room(self)
        self.door.wait_for(self)

    def connection_lost(self, exc: Exception | None) -> None:
        """Nothing is due any longer."""
        self.door.forget(self)
        self.door.was_read(self)
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        """The client does not read as fast as it asks: its clock runs."""
        super().pause_writing()
        self.door.must_be_read(self)

    def resume_writing(self) -> None:
        """It has read."""
        super().resume_writing()
        if not self.transport.is_closing():
            self.door.was_read(self)

    def abandon(self) -> None:
        """Drop a connection that is not read, with what was written for it."""
        self._closed = True
        self.door.forget(self)
        self.door.was_read(self)
        self.transport.abort()

    def give_up(self) -> None:
        """Close a connection that owes a request: 408 if it began one, in silence if not."""
        if self._received:
            seconds = f"{self.door.limits.receive_seconds:g} s"
            self.refuse(408, "request", f"must arrive whole within {seconds}")
        else:
            self._close()

    def refuse(self, code: int, field: str, rule: str) -> None:
        """Answer with an error, and close; only close when an answer is under way."""
        if not self._may_answer():
            self._close()
            return
        self.door.refused(code)
        body = error_body(field, rule)
        head = (
            f"HTTP/1.1 {code} {HTTPStatus(code).phrase}\r\ncontent-type: application/json\r\n"
            f"content-length: {len(body)}\r\nconnection: close\r\n"
        )
        retry = "retry-after: 1\r\n" if code == HTTPStatus.SERVICE_UNAVAILABLE else ""
        self.transport.write(f"{head}{retry}\r\n".encode() + body)
        self._close()

    def _may_answer(self) -> bool:
        """Whether nothing is owed or written for an earlier request, or already for this one."""
        if self.cycle is None:
            return True
        return self.cycle.response_complete if self._in_head else not self.cycle.response_started

    def _close(self) -> None:
        self._closed = True
        self.door.forget(self)
        # It stays open until what was written is read.
        self.door.must_be_read(self)
        self.transport.close()

    # ------------------------------------------------------------------ bytes

    def data_received(self, data: bytes) -> None:
        """Feed the parser within the limits."""
        if self._closed:
            return
        self._unset_keepalive_if_required()
        if not self._received:
            self.door.wait_for(self)
        completed = self._completed
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            pass  # other protocols are not spoken here; the request is answered as it is
        except httptools.HttpParserError:
            if not self._closed:
                self.refuse(400, "request", "must be HTTP/1.1")
        if not self._closed and completed == self._completed:
            self._count(len(data))

    def _count(self, size: int) -> None:
        """Bytes that did not complete a request."""
        self._received += size
        if self._in_head and self._received > HEAD_BYTES:
            self.refuse(431, "headers", f"must have at most {HEAD_BYTES} bytes")
        elif self._received > _WASTE * BODY_BYTES:
            self.refuse(413, "body", f"must have at most {BODY_BYTES} bytes")

    def on_headers_complete(self) -> None:
        """A request begins, unless its head alone is too much."""
        if self._closed:
            return
        size = len(self.url) + sum(len(name) + len(value) for name, value in self.headers)
        if size > HEAD_BYTES:
            self.refuse(431, "headers", f"must have at most {HEAD_BYTES} bytes")
        elif self._turned_away:
            self.refuse(503, "connections", f"{self.door.most} are being answered; try again")
        else:
            super().on_headers_complete()
            self._in_head = False

    def on_header(self, name: bytes, value: bytes) -> None:
        """Keep a header of the head; what comes behind the body (trailers) is not read."""
        if self._in_head:
            super().on_header(name, value)

    def on_body(self, body: bytes) -> None:
        """A part of the body."""
        if not self._closed:
            super().on_body(body)

    def on_message_complete(self) -> None:
        """The request is there."""
        if self._closed:
            return
        self._in_head = True
        self._received = 0
        self._completed += 1
        self.door.forget(self)
        super().on_message_complete()

    def on_response_complete(self) -> None:
        """The next request may come."""
        super().on_response_complete()
        if self.transport.is_closing():
            self.door.must_be_read(self)
        elif not (self._closed or self.pipeline):
            self.door.wait_for(self)

    def timeout_keep_alive_handler(self) -> None:
        """Nothing was asked for some seconds."""
        self._close()


def connection_class(door: Door) -> type[Connection]:
    """The class that uvicorn makes for each connection."""
    return type("DoorConnection", (Connection,), {"door": door})
