"""Hostile clients on real sockets: each is refused with its code, beside one that is answered."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from tests.workers.served import GOOD, INFER, answer_of, code_of, serving

from trimwheel_workers.front.connections import Connection
from trimwheel_workers.front.limits import BODY_BYTES, HEAD_BYTES


@pytest.fixture
async def serve() -> AsyncIterator[Callable[..., Any]]:
    async with contextlib.AsyncExitStack() as stack:
        yield lambda **limits: stack.enter_async_context(serving(**limits))


def error_of(answer: bytes) -> dict[str, Any]:
    told: dict[str, Any] = json.loads(answer.partition(b"\r\n\r\n")[2])
    assert isinstance(told["error"], str)
    assert set(told["details"]) == {"field", "rule", "value"}
    return told


REFUSED = {
    "not HTTP": (b"\x16\x03\x01 hello\r\n\r\n", 400),
    "a broken header": (INFER + b"no colon\r\n\r\n", 400),
    "a path that is no address": (b"GET http:// HTTP/1.1\r\n\r\n", 400),
    "a path that is not ASCII": (b"GET /\xff\xfe HTTP/1.1\r\nhost: w\r\n\r\n", 400),
    "a header without end": (INFER + b"x-a: " + b"a" * (25 << 20), 431),
    "headers without end": (INFER + b"x-a: b\r\n" * 3_000_000, 431),
    "a path without end": (b"GET /" + b"a" * (25 << 20), 431),
    "a head just too large": (INFER + b"x-a: " + b"a" * HEAD_BYTES + b"\r\n\r\n", 431),
    "trailers without end": (
        INFER + b"transfer-encoding: chunked\r\n\r\n0\r\nx: " + b"a" * (25 << 20), 413
    ),
    "a body that is announced too large": (INFER + b"content-length: 99999999\r\n\r\n", 413),
    "a body too large": (
        INFER + b"content-length: %d\r\n\r\n" % (BODY_BYTES + 1) + b"x" * (BODY_BYTES + 1), 413
    ),
    "a body without end": (
        INFER + b"transfer-encoding: chunked\r\n\r\n" + b"10000\r\n" + b"x" * 65536 + b"\r\n" * 1
        + (b"10000\r\n" + b"x" * 65536 + b"\r\n") * 400, 413
    ),
    "two lengths": (INFER + b"content-length: 1\r\ncontent-length: 2\r\n\r\nx", 400),
    "a length and chunks": (
        INFER + b"content-length: 4\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n", 400
    ),
    "an upgrade": (
        b"GET /v3 HTTP/1.1\r\nhost: w\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n", 404
    ),
}  # fmt: skip


@pytest.mark.parametrize(("data", "code"), REFUSED.values(), ids=REFUSED.keys())
async def test_what_is_no_request_has_its_code_and_is_counted(
    serve: Callable[..., Any], data: bytes, code: int
) -> None:
    served = await serve()
    hostile = asyncio.create_task(served.talk(data))
    assert code_of(await served.talk(GOOD)) == 200, "the tiny text beside it"
    answer = await hostile
    if answer:  # a client that goes on sending may lose the answer to a reset, as TCP has it
        assert code_of(answer) == code
        error_of(answer)
    assert answer or len(data) > 1 << 20
    if code not in (404,):
        assert served.refused(code) == 1
    assert code_of(await served.talk(GOOD)) == 200
    assert not any(
        value.partition("} ")[2] not in ("0.0",)
        for value in served.worker.metrics.render().decode().splitlines()
        if value.startswith("trimwheel_guard_events_total{")
    ), "no evidence"


SLOW = {
    "nothing": (b"", b""),
    "a head": (INFER, b"x: y\r\n"),
    "one letter of a path after another": (b"GET /", b"a"),
    "a body": (INFER + b"content-length: 5000\r\n\r\n{", b" "),
    "a chunked body": (INFER + b"transfer-encoding: chunked\r\n\r\n", b"1\r\n \r\n"),
}


@pytest.mark.parametrize(("start", "drop"), SLOW.values(), ids=SLOW.keys())
async def test_a_request_has_so_long_to_arrive(
    serve: Callable[..., Any], start: bytes, drop: bytes
) -> None:
    served = await serve(receive_seconds=1.0)
    reader, writer = await served.connect()

    async def drip() -> None:
        with contextlib.suppress(ConnectionError):
            writer.write(start)
            while True:
                writer.write(drop)
                await writer.drain()
                await asyncio.sleep(0.2)

    dripping = asyncio.create_task(drip())
    answer = await asyncio.wait_for(answer_of(reader), 5)
    dripping.cancel()
    writer.close()
    if start or drop:
        assert code_of(answer) == 408 and error_of(answer)["details"]["field"] == "request"
        assert served.refused(408) == 1
    else:
        assert answer == b"", "nothing was asked"


async def test_bytes_after_a_refusal_have_a_limit_too(serve: Callable[..., Any]) -> None:
    served = await serve(receive_seconds=60.0)
    reader, writer = await served.connect()
    writer.write(INFER + b"content-length: 99999999999\r\n\r\n")
    assert code_of(await answer_of(reader)) == 413
    sent = 0
    with contextlib.suppress(ConnectionError):
        while sent < 64 * BODY_BYTES:
            writer.write(b"x" * 65536)
            await writer.drain()
            sent += 65536
    assert sent < 32 * BODY_BYTES, "the kernel's buffers and ours"
    writer.close()


async def test_who_waits_makes_room_for_who_asks(serve: Callable[..., Any]) -> None:
    served = await serve(connections=10, receive_seconds=60.0)
    held = [await served.connect() for _ in range(10)]
    for _, writer in held:
        writer.write(INFER)
    for _ in range(30):
        assert code_of(await served.talk(GOOD)) == 200
    first = await asyncio.wait_for(answer_of(held[0][0]), 5)
    assert code_of(first) == 408, "the one that waited longest"
    for _, writer in held:
        writer.close()


async def test_more_requests_than_connections_are_503(serve: Callable[..., Any]) -> None:
    served = await serve(connections=3)
    served.hold = True
    held = [await served.connect() for _ in range(3)]
    for _, writer in held:
        writer.write(GOOD)
    await asyncio.sleep(0.3)
    answer = await served.talk(GOOD)
    assert code_of(answer) == 503 and b"retry-after: 1\r\n" in answer
    assert error_of(answer)["details"]["field"] == "connections"
    assert served.refused(503) == 1
    silent = [await served.connect() for _ in range(8)]
    ends = [await asyncio.wait_for(reader.read(), 5) for reader, _ in silent[:-1]]
    assert ends == [b""] * 7, "each made room for the next"
    served.worker.requests.serving_lost()
    for _, writer in held + silent:
        writer.close()


async def test_a_connection_serves_one_request_after_another(serve: Callable[..., Any]) -> None:
    served = await serve(receive_seconds=1.0)
    reader, writer = await served.connect()
    for number in range(20):
        for part in (GOOD[:30], GOOD[30:-5], GOOD[-5:]):
            writer.write(part)
            await writer.drain()
            await asyncio.sleep(0.01)
        assert code_of(await answer_of(reader)) == 200, number
    writer.write(GOOD * 5)
    assert [code_of(await answer_of(reader)) for _ in range(5)] == [200] * 5, "pipelined"
    writer.close()


def deaf(served: Any, *data: bytes) -> socket.socket:
    """A client that asks and does not read: the kernel holds little for it."""
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
    client.settimeout(2.0)
    client.connect(("127.0.0.1", served.port))
    client.setblocking(False)
    with contextlib.suppress(BlockingIOError):
        for part in data:
            client.send(part)
    return client


LAST = GOOD.replace(b"host: w\r\n", b"host: w\r\nconnection: close\r\n")
UNREAD = {
    "answers without end": (GOOD * 20_000,),
    "answers, and the connection's end": (GOOD * 600, LAST),
}


@pytest.mark.parametrize("data", UNREAD.values(), ids=UNREAD.keys())
async def test_who_does_not_read_loses_the_connection(
    serve: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, data: tuple[bytes, ...]
) -> None:
    """Answers waited for ever, and each such connection counted for ever."""
    small_buffers(monkeypatch)
    served = await serve(receive_seconds=1.0)
    clients = [await asyncio.to_thread(deaf, served, *data) for _ in range(4)]
    await asyncio.sleep(0.3)
    assert served.open == 4
    for _ in range(300):
        await asyncio.sleep(0.1)
        if not served.open:
            break
    assert served.open == 0
    assert code_of(await served.talk(GOOD)) == 200
    for client in clients:
        client.close()


async def test_who_does_not_read_makes_room_for_who_asks(
    serve: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was 503 for everybody."""
    small_buffers(monkeypatch)
    served = await serve(connections=5, receive_seconds=60.0)
    clients = [await asyncio.to_thread(deaf, served, GOOD * 20_000) for _ in range(5)]
    connections = served.server.server_state.connections
    for _ in range(200):
        await asyncio.sleep(0.1)
        if all(one.flow.write_paused for one in connections):
            break
    assert served.open == 5
    for _ in range(20):
        assert code_of(await served.talk(GOOD)) == 200
    assert served.refused(503) == 0
    for client in clients:
        client.close()


async def test_who_reads_slowly_is_served(serve: Callable[..., Any]) -> None:
    served = await serve(receive_seconds=1.0)
    reader, writer = await served.connect()
    writer.write(GOOD * 3000)
    for number in range(3000):
        assert code_of(await answer_of(reader)) == 200, number
        if number % 100 == 0:
            await asyncio.sleep(0.1)
    writer.close()


def small_buffers(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel takes little of what the server writes."""
    made = Connection.connection_made

    def connection_made(self: Connection, transport: Any) -> None:
        sock = transport.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        made(self, transport)

    monkeypatch.setattr(Connection, "connection_made", connection_made)
