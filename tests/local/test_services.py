"""Which pods stand behind a Service, and forwarding to them."""

from __future__ import annotations

import asyncio
from collections import Counter
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
def test_targets(
    port: dict[str, Any], spec: dict[str, Any], pods: list[Any], wanted: list[tuple[str, int]]
) -> None:
    assert targets(service(port, **spec), port, pods) == wanted


async def echo_server(name: bytes) -> tuple[asyncio.Server, tuple[str, int]]:
    """Answers its name and all it has received, once the client has finished sending."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        received = await reader.read()
        writer.write(name + received)
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    return server, server.sockets[0].getsockname()


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


async def test_connections_go_round_robin() -> None:
    servers = [await echo_server(name) for name in (b"a", b"b", b"c")]
    forwarder, address = await listening([where for _, where in servers])
    found = Counter([await ask(address) for _ in range(9)])
    assert found == {b"a": 3, b"b": 3, b"c": 3}
    await forwarder.close()


async def test_a_dead_target_is_skipped() -> None:
    server, where = await echo_server(b"alive")
    dead, gone = await echo_server(b"dead")
    dead.close()
    await dead.wait_closed()
    forwarder, address = await listening([gone, where])
    assert [await ask(address) for _ in range(4)] == [b"alive"] * 4
    await forwarder.close()


async def test_without_any_live_target_the_connection_is_reset() -> None:
    dead, gone = await echo_server(b"")
    dead.close()
    await dead.wait_closed()
    forwarder, address = await listening([gone])
    with pytest.raises(ConnectionResetError):
        await ask(address, b"x")
    await forwarder.close()


async def test_megabytes_pass_whole_and_the_senders_end_is_passed_on() -> None:
    _, where = await echo_server(b"!")
    forwarder, address = await listening([where])
    payload = bytes(range(256)) * 16_384
    assert await ask(address, payload) == b"!" + payload
    await forwarder.close()


async def test_open_connections_survive_the_end_of_listening() -> None:
    _, where = await echo_server(b"!")
    forwarder, address = await listening([where])
    reader, writer = await asyncio.open_connection(*address)
    writer.write(b"before ")
    await asyncio.sleep(0.05)
    await forwarder.close()
    writer.write(b"after")
    writer.write_eof()
    assert await reader.read() == b"!before after"
    writer.close()


async def test_a_target_that_hangs_up_hangs_up_on_the_client() -> None:
    async def hang_up(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.close()

    server = await asyncio.start_server(hang_up, "127.0.0.1", 0)
    forwarder, address = await listening([server.sockets[0].getsockname()])
    reader, writer = await asyncio.open_connection(*address)
    assert await asyncio.wait_for(reader.read(), 2) == b""
    writer.close()
    await forwarder.close()


def test_addresses_are_reused_late_and_adopted_ones_are_kept() -> None:
    from ipaddress import IPv4Network

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
