"""The engine process as the front sees it: started, spoken to, watched, started again.

One stream socket each way carries frames. When the process dies everything in flight is reported
lost at once, and another is started after a back-off that grows while engines keep dying. What an
engine reports as permanent (a wrong digest) ends the worker: Kubernetes then shows a failing pod
instead of a worker that never becomes ready.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import sys
from typing import Any, Protocol

from trimwheel_workers.arms import ModelShape
from trimwheel_workers.engine.config import EngineConfig
from trimwheel_workers.engine.frames import BrokenFrame, Decoder, Kind, encode

_LOG = logging.getLogger(__name__)
_FIRST_RETRY = 0.5
_LAST_RETRY = 30.0
_HEALTHY_SECONDS = 60.0
"""An engine that lived this long resets the back-off."""


class EngineEvents(Protocol):
    """What the front wants to hear."""

    def engine_ready(self, shape: ModelShape) -> None:
        """A model is loaded; snapshots and requests may be sent."""

    def engine_frame(self, kind: Kind, body: Any) -> None:
        """Any other frame."""

    def engine_down(self) -> None:
        """The process is gone, with everything that was sent to it."""


class EngineFailed(Exception):
    """The engine cannot serve this model, however often it is started."""


class _Stream(asyncio.Protocol):
    """Frames from the socket to the client."""

    def __init__(self, client: EngineClient) -> None:
        self._client = client
        self._decoder = Decoder()
        self.closed = asyncio.Event()

    def connection_lost(self, exc: Exception | None) -> None:
        self.closed.set()

    def data_received(self, data: bytes) -> None:
        try:
            for kind, body in self._decoder.feed(data):
                self._client.take(kind, body)
        except BrokenFrame as error:
            _LOG.error("the engine wrote a broken frame (%s); starting another engine", error)
            self._client.kill()


class EngineClient:
    """Runs engine processes one after another until it is stopped."""

    def __init__(self, config: EngineConfig, events: EngineEvents) -> None:
        self._config = config
        self._events = events
        self._transport: asyncio.Transport | None = None
        self._process: asyncio.subprocess.Process | None = None
        self._stopping = asyncio.Event()
        self._failure = ""
        self.shape: ModelShape | None = None
        """Of the model; kept while an engine restarts."""
        self.ready = False
        self.heard_at = 0.0
        """Monotonic time of the last frame."""

    @property
    def pid(self) -> int | None:
        """Process id of the engine, if one runs."""
        return self._process.pid if self._process else None

    def send(self, kind: Kind, body: Any) -> None:
        """Write one frame; only while `ready`."""
        assert self._transport is not None, "frames are sent to a ready engine"
        self._transport.write(encode(kind, body))

    def kill(self) -> None:
        """End a process that does not do its work; `run` starts another."""
        if self._process is not None and self._process.returncode is None:
            self._process.kill()

    async def run(self) -> None:
        """Keep an engine running until `stop`. Raises EngineFailed when that is hopeless."""
        delay = _FIRST_RETRY
        loop = asyncio.get_running_loop()
        while not self._stopping.is_set():
            started = loop.time()
            try:
                ended = f"ended with code {await self._run_once()}"
            except OSError as error:
                # The machine is short of processes, memory or files: that passes.
                ended = f"could not be started ({error})"
            if self._failure:
                raise EngineFailed(self._failure)
            if self._stopping.is_set():
                return
            if loop.time() - started > _HEALTHY_SECONDS:
                delay = _FIRST_RETRY
            _LOG.error("the engine %s; another starts in %.1f s", ended, delay)
            await self._pause(delay)
            delay = min(delay * 2, _LAST_RETRY)

    async def _pause(self, seconds: float) -> None:
        """Wait before the next start; a stop ends the wait."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._stopping.wait(), seconds)

    async def stop(self, timeout: float) -> None:
        """Let the engine finish its audits, then end it."""
        self._stopping.set()
        process = self._process
        if process is None or process.returncode is not None:
            return
        if self.ready:
            self.send(Kind.STOP, None)
        else:
            process.kill()
        try:
            await asyncio.wait_for(process.wait(), timeout)
        except TimeoutError:
            _LOG.warning("the engine had work for longer than %.1f s; it was ended", timeout)
            process.kill()
            await process.wait()

    def take(self, kind: Kind, body: Any) -> None:
        """A frame arrived."""
        self.heard_at = asyncio.get_running_loop().time()
        if kind is Kind.READY:
            self.shape = ModelShape.from_wire(body)
            self.ready = True
            self._events.engine_ready(self.shape)
        elif kind is Kind.FAILED:
            self._failure = body["error"]
        else:
            self._events.engine_frame(kind, body)

    async def _run_once(self) -> int:
        """One process from start to end; its exit code."""
        ours, theirs = socket.socketpair()
        with theirs:
            try:
                process = await asyncio.create_subprocess_exec(
                    sys.executable, "-m", "trimwheel_workers.engine", str(theirs.fileno()),
                    pass_fds=(theirs.fileno(),), env=self._environment(),
                )  # fmt: skip
            except OSError:
                ours.close()
                raise
        self._process = process
        if self._stopping.is_set():
            # `stop` came while there was no process yet that it could have ended.
            process.kill()
        loop = asyncio.get_running_loop()
        ours.setblocking(False)
        transport, stream = await loop.create_unix_connection(lambda: _Stream(self), sock=ours)
        self._transport = transport
        self._transport.write(encode(Kind.CONFIG, self._config.to_wire()))
        try:
            return await process.wait()
        finally:
            # What the process still wrote (its last audits, why it failed) comes before its end.
            await asyncio.wait([asyncio.ensure_future(stream.closed.wait())], timeout=1.0)
            self.ready = False
            self._transport.close()
            self._transport = None
            self._events.engine_down()

    def _environment(self) -> dict[str, str]:
        threads = str(self._config.threads)
        # More threads than configured would fight the front for its core.
        return os.environ | {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads}
