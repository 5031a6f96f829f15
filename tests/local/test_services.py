"""Which pods stand behind a Service, and forwarding to them."""

from __future__ import annotations

import asyncio
import os
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from ipaddress import IPv4Network
from typing import Any

import pytest

from trimwheel_local.node.context import Addresses
from trimwheel_local.node.forward import Forwarder
from trimwheel_local.node.services import targets


def pod(name: str, address: str, *, ready: bool = True, **metadata: Any) -> dict[str, Any]:
    return {
        "metadata": {"name": name, "namespace": "n", "labels": {"app": "web"}, **metadata},
        "spec": {"containers": [{"ports": [{"name": "http", "containerPort": 8080}]}]},
        "status": {
            "podIP": address,
            "conditions": [{"type": "Ready", "status": "True" if ready else "False"}],
        },
    }


def service(port: dict[str, Any], **spec: Any) -> dict[str, Any]:
    fields = {"selector": {"app": "web"}, "ports": [port], **spec}
    return {"metadata": {"name": "s", "namespace": "n"}, "spec": fields}


ONE, TWO = pod("a", "127.0.1.1"), pod("b", "127.0.1.2")
CASES: dict[str, tuple[dict[str, Any], dict[str, Any], list[Any], list[tuple[str, int]]]] = {
    "by number": (
        {"port": 80, "targetPort": 9},
        {},
        [TWO, ONE],
        [("127.0.1.1", 9), ("127.0.1.2", 9)],
    ),
    "by name": ({"port": 80, "targetPort": "http"}, {}, [ONE], [("127.0.1.1", 8080)]),
    "by an unknown name": ({"port": 80, "targetPort": "x"}, {}, [ONE], []),
    "same port by default": ({"port": 81}, {}, [ONE], [("127.0.1.1", 81)]),
    "not ready": ({"port": 1}, {}, [pod("c", "127.0.1.3", ready=False)], []),
    "not ready but published": (
        {"port": 1},
        {"publishNotReadyAddresses": True},
        [pod("c", "127.0.1.3", ready=False)],
        [("127.0.1.3", 1)],
    ),
    "being deleted": ({"port": 1}, {}, [pod("c", "127.0.1.3", deletionTimestamp="now")], []),
    "other namespace": ({"port": 1}, {}, [pod("c", "127.0.1.3", namespace="m")], []),
    "other labels": ({"port": 1}, {}, [pod("c", "127.0.1.3", labels={"app": "x"})], []),
    "no selector": ({"port": 1}, {"selector": None}, [ONE], []),
}


@pytest.mark.parametrize(("port", "spec", "pods", "wanted"), CASES.values(), ids=CASES.keys())
def test_targets_are_the_ready_pods_of_a_service(
    port: dict[str, Any], spec: dict[str, Any], pods: list[Any], wanted: list[tuple[str, int]]
) -> None:
    assert targets(service(port, **spec), port, pods) == wanted


class Echoes:
    """Servers that answer their name and all they got, once the client has finished sending."""

    def __init__(self) -> None:
        self.servers: list[asyncio.Server] = []

    async def start(self, name: bytes) -> tuple[str, int]:
        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            received = await reader.read()
            writer.write(name + received)
            await writer.drain()
            writer.close()

        return await self.serve(answer)

    async def serve(self, handler: Callable[..., Awaitable[None]]) -> tuple[str, int]:
        server = await asyncio.start_server(handler, "127.0.0.1", 0)
        self.servers.append(server)
        host, port = server.sockets[0].getsockname()
        return host, port

    async def dead(self) -> tuple[str, int]:
        """An address at which nobody listens any more."""
        where = await self.start(b"")
        self.servers[-1].close()
        await self.servers[-1].wait_closed()
        return where


@pytest.fixture
async def echoes() -> AsyncIterator[Echoes]:
    found = Echoes()
    yield found
    for server in found.servers:
        server.close()
    # Transports close in the turns of the loop that follow.
    await asyncio.sleep(0.05)


async def ask(address: tuple[str, int], payload: bytes = b"") -> bytes:
    reader, writer = await asyncio.open_connection(*address)
    writer.write(payload)
    writer.write_eof()
    answer = await reader.read()
    writer.close()
    return answer


async def listening(targets: list[tuple[str, int]]) -> tuple[Forwarder, tuple[str, int]]:
    forwarder = Forwarder(targets)
    await forwarder.listen("127.0.0.1", 0)
    assert forwarder.address is not None
    return forwarder, forwarder.address


async def test_connections_go_round_robin(echoes: Echoes) -> None:
    forwarder, address = await listening([await echoes.start(name) for name in (b"a", b"b", b"c")])
    found = Counter([await ask(address) for _ in range(9)])
    assert found == {b"a": 3, b"b": 3, b"c": 3}
    await forwarder.close()


async def test_a_dead_target_is_skipped(echoes: Echoes) -> None:
    forwarder, address = await listening([await echoes.dead(), await echoes.start(b"alive")])
    assert [await ask(address) for _ in range(4)] == [b"alive"] * 4
    await forwarder.close()


async def test_without_any_live_target_the_connection_is_reset(echoes: Echoes) -> None:
    forwarder, address = await listening([await echoes.dead()])
    with pytest.raises(ConnectionResetError):
        await ask(address, b"x")
    await forwarder.close()


async def test_megabytes_pass_whole_and_the_senders_end_is_passed_on(echoes: Echoes) -> None:
    forwarder, address = await listening([await echoes.start(b"!")])
    payload = bytes(range(256)) * 16_384
    assert await ask(address, payload) == b"!" + payload
    await forwarder.close()


async def test_a_connection_that_has_ended_leaves_no_descriptor_open(echoes: Echoes) -> None:
    forwarder, address = await listening([await echoes.start(b"!")])
    await ask(address)
    await asyncio.sleep(0.05)
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(5):
        assert await ask(address, b"x") == b"!x"
    await asyncio.sleep(0.05)
    assert len(os.listdir("/proc/self/fd")) == before
    await forwarder.close()


async def test_open_connections_survive_the_end_of_listening(echoes: Echoes) -> None:
    forwarder, address = await listening([await echoes.start(b"!")])
    reader, writer = await asyncio.open_connection(*address)
    writer.write(b"before ")
    await asyncio.sleep(0.05)
    await forwarder.close()
    writer.write(b"after")
    writer.write_eof()
    assert await reader.read() == b"!before after"
    writer.close()


async def test_a_target_that_hangs_up_hangs_up_on_the_client(echoes: Echoes) -> None:
    async def hang_up(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.close()

    forwarder, address = await listening([await echoes.serve(hang_up)])
    reader, writer = await asyncio.open_connection(*address)
    assert await asyncio.wait_for(reader.read(), 2) == b""
    writer.close()
    await forwarder.close()


def test_addresses_are_reused_late_and_adopted_ones_are_kept() -> None:
    addresses = Addresses(IPv4Network("127.100.0.0/29"))
    first = addresses.take()
    addresses.free(first)
    assert addresses.take() != first
    assert addresses.take("127.100.0.5") == "127.100.0.5"
    assert addresses.take("127.100.0.5") != "127.100.0.5"
    others = {addresses.take() for _ in range(3)}
    assert first in others
    with pytest.raises(RuntimeError, match="all 6 pod addresses are taken"):
        addresses.take()
