"""A worker's HTTP port on a real socket without an engine, for tests of what clients do to it."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import uvicorn

from trimwheel_api.policy import DENSE
from trimwheel_api.worker_config import WorkerConfig
from trimwheel_workers.arms import ModelShape, Snapshot, resident
from trimwheel_workers.engine.status import Status
from trimwheel_workers.front.app import make_app
from trimwheel_workers.front.connections import Door, connection_class
from trimwheel_workers.front.limits import ConnectionLimits
from trimwheel_workers.front.metrics import WorkerMetrics
from trimwheel_workers.front.worker import Worker

SHAPE = ModelShape("sha256:m", "sha256:s", 4, (1, 2, 3), 4, 2, 2, ("a", "b"))
BODY = json.dumps(
    {"inputs": [{"name": "text", "datatype": "BYTES", "shape": [1], "data": ["x"]}]}
).encode()
INFER = b"POST /v2/models/m/infer HTTP/1.1\r\nhost: w\r\n"
GOOD = INFER + b"content-length: %d\r\n\r\n" % len(BODY) + BODY


class _Server(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Any:
        yield


@dataclass
class Served:
    """A worker without an engine on a port: every text is answered at once, unless `hold`."""

    worker: Worker
    door: Door
    port: int = 0
    hold: bool = False
    server: Any = None

    @property
    def open(self) -> int:
        """Connections that the server has."""
        return len(self.server.server_state.connections)

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection("127.0.0.1", self.port)

    async def talk(self, data: bytes, *, seconds: float = 10.0) -> bytes:
        """Send bytes, then whatever comes back until the connection ends or a body is whole."""
        reader, writer = await self.connect()
        with contextlib.suppress(ConnectionError):
            writer.write(data)
            await writer.drain()
        try:
            return await asyncio.wait_for(answer_of(reader), seconds)
        finally:
            writer.close()

    def refused(self, code: int) -> float:
        text = self.worker.metrics.render().decode()
        return sum(
            float(line.rsplit(" ", 1)[1])
            for line in text.splitlines()
            if line.startswith("trimwheel_requests_total") and f'code="{code}"' in line
        )


async def answer_of(reader: asyncio.StreamReader) -> bytes:
    """One response; b"" when the connection ended without."""
    try:
        head = await reader.readuntil(b"\r\n\r\n")
        length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
        return head + await reader.readexactly(length)
    except (asyncio.IncompleteReadError, ConnectionError):
        return b""


@contextlib.asynccontextmanager
async def serving(**limits: Any) -> AsyncIterator[Served]:
    """A ready worker under ConnectionLimits, until the end of the context."""
    served = _made(**limits)
    server = _Server(uvicorn.Config(
        make_app(served.worker), http=connection_class(served.door), lifespan="off", port=0,
        log_config=None, timeout_graceful_shutdown=1,
    ))  # fmt: skip
    served.server = server
    task = asyncio.create_task(server.serve())
    while not server.started:
        await asyncio.sleep(0.01)
    served.port = server.servers[0].sockets[0].getsockname()[1]
    try:
        yield served
    finally:
        server.should_exit = True
        await task


def made_worker(**fields: Any) -> Worker:
    """A ready worker without an engine, which answers every text at once."""
    config = WorkerConfig(model="m", namespace="n", model_digest="sha256:" + "a" * 64, **fields)
    worker = Worker(config, WorkerMetrics("m", 0.25), None)
    worker.engine_ready(SHAPE)
    worker.engine.ready, worker.engine.shape = True, SHAPE
    snapshot = Snapshot(1, 1, "salt", 0, 0.0, resident(DENSE, SHAPE), None)
    worker._guards.reside("salt", {"stable": DENSE.digest})
    worker.requests.target = worker.requests.serving = snapshot

    def answer(_: Any, frame: Any) -> None:
        for row in frame[1]:
            worker.requests.settle([row[0], Status.ANSWERED, 0, 0.5, 1, 2, 0, 3], 0.0)

    worker.requests._send = answer
    return worker


def _made(**limits: Any) -> Served:
    worker = made_worker()
    served = Served(worker, Door(ConnectionLimits(**limits), worker.requests.refused))
    answer = worker.requests._send

    def unless_held(kind: Any, frame: Any) -> None:
        if not served.hold:
            answer(kind, frame)

    worker.requests._send = unless_held
    return served


def code_of(answer: bytes) -> int:
    """Status code of a response."""
    return int(answer.split(b" ", 2)[1]) if answer else 0
