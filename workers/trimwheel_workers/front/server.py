"""Runs a worker from start to drain: HTTP server, engine, assignment loop, record writer.

Called by `python -m trimwheel_workers serve`. On SIGTERM: not ready, a moment for routers to
notice, requests in flight answered, audits in hand finished, records stored, exit 0.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import uvicorn
import uvloop

from trimwheel_api.errors import SetupFailed
from trimwheel_api.records import segment_folder
from trimwheel_api.values import seconds
from trimwheel_api.worker_config import WorkerConfig
from trimwheel_workers.assignment.loop import Acknowledge, AssignmentLoop
from trimwheel_workers.assignment.source import AssignmentSource, FileSource
from trimwheel_workers.assignment.store import Store
from trimwheel_workers.engine.status import LOST_BACKLOG_FULL
from trimwheel_workers.front.app import make_app
from trimwheel_workers.front.connections import Door, connection_class
from trimwheel_workers.front.engine_client import EngineFailed
from trimwheel_workers.front.limits import ConnectionLimits
from trimwheel_workers.front.metrics import WorkerMetrics
from trimwheel_workers.front.probes import Probes, Pulse
from trimwheel_workers.front.tls import Certificate
from trimwheel_workers.front.worker import Worker
from trimwheel_workers.records.writer import RecordWriter, WriterSettings
from trimwheel_workers.settings import Settings

_LOG = logging.getLogger(__name__)
# Together below the 30 s that Kubernetes waits before it kills.
_RESPONSES_SECONDS = 10.0
_AUDITS_SECONDS = 6.0
_RECORDS_SECONDS = 8.0
_SWITCH_SECONDS = 0.001
"""Threads of the front give way to the event loop after this long; Python's own is 5 ms."""


def run(config: WorkerConfig, settings: Settings) -> int:
    """Serve until SIGTERM or SIGINT; the process's exit code."""
    sys.setswitchinterval(_SWITCH_SECONDS)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(_Serving(config, settings).serve())


class _Serving:
    """The parts of one running worker, and the order in which they start and end."""

    def __init__(self, config: WorkerConfig, settings: Settings) -> None:
        self._config = config
        self._settings = settings
        self._metrics = WorkerMetrics(config.model, seconds(config.objectives.latency.slo))
        self._writer = _writer(config, settings, self._metrics)
        self._worker = Worker(config, self._metrics, self._writer)
        self._door = Door(
            ConnectionLimits(settings.receive_time, settings.max_connections),
            self._worker.requests.refused,
        )

    async def serve(self) -> int:
        """Start everything, wait for the end, drain."""
        loop = asyncio.get_running_loop()
        listener = _listen(self._settings.bind, self._config.port)
        tls_path = self._config.tls_path
        certificate = Certificate(Path(tls_path)) if tls_path else None
        pulse = Pulse()
        watching = [asyncio.create_task(pulse.beat(), name="pulse")]
        probes = Probes(
            self._settings.bind, self._config.probes_port, pulse=pulse,
            ready=lambda: self._worker.ready, metrics=self._metrics.render,
        )  # fmt: skip
        probes.start()
        stop = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop.set)
        if self._writer is not None:
            self._writer.start()
        server = _Server(
            uvicorn.Config(
                make_app(self._worker), http=connection_class(self._door), lifespan="off",
                log_config=None, access_log=False, server_header=False, proxy_headers=False,
                log_level="warning", timeout_graceful_shutdown=int(_RESPONSES_SECONDS),
            )
        )  # fmt: skip
        if certificate is not None:
            # uvicorn makes a context of its own from files, which it would never read again.
            server.config.load()
            server.config.ssl = certificate.context
            watching.append(asyncio.create_task(certificate.watch(), name="certificate"))
        http = asyncio.create_task(server.serve([listener]), name="http")
        engine = asyncio.create_task(self._worker.engine.run(), name="engine")
        assignments = self._assignments(loop)
        assignments.start()
        stopping = asyncio.create_task(stop.wait(), name="stop")
        await asyncio.wait({http, engine, stopping}, return_when=asyncio.FIRST_COMPLETED)
        healthy = stopping.done()
        await self._drain(server, http, engine, assignments)
        for task in watching:
            task.cancel()
        await asyncio.to_thread(probes.stop)
        return 0 if healthy else 1

    def _assignments(self, loop: asyncio.AbstractEventLoop) -> AssignmentLoop:
        source, acknowledge = _seams(self._config, self._settings)
        assignments = AssignmentLoop(
            source,
            lambda effective: self._worker.apply_from_thread(loop, effective),
            acknowledge,
            store=Store(self._config.state_path),
        )
        self._worker.assignments = assignments
        return assignments

    async def _drain(
        self,
        server: uvicorn.Server,
        http: asyncio.Task[None],
        engine: asyncio.Task[None],
        assignments: AssignmentLoop,
    ) -> None:
        self._worker.draining = True
        _LOG.info("draining: %d requests in flight", self._worker.requests.in_flight)
        if not (engine.done() or http.done()):
            await asyncio.sleep(self._settings.drain_notice)
        server.should_exit = True
        try:
            await http
            await self._worker.engine.stop(_AUDITS_SECONDS)
            await engine
        except EngineFailed as error:
            _LOG.error("the engine cannot serve this model: %s", error)
        finally:
            # However the rest ended, records in hand are stored.
            await self._store_records()
            await asyncio.to_thread(assignments.stop)
        _LOG.info("drained")

    async def _store_records(self) -> None:
        if self._writer is None:
            return
        left = await asyncio.to_thread(self._writer.close, _RECORDS_SECONDS)
        if left:
            _LOG.error("%d audit records could not be stored and are lost", left)


class _Server(uvicorn.Server):
    """uvicorn without its signal handlers: the drain is ours."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def _listen(host: str, port: int) -> socket.socket:
    """The listening socket. Raises SetupFailed; uvicorn would end the process in the middle."""
    try:
        return socket.create_server((host, port), backlog=2048)
    except OSError as error:
        raise SetupFailed(f"cannot listen on {host}:{port}: {error}") from error


def _writer(
    config: WorkerConfig, settings: Settings, metrics: WorkerMetrics
) -> RecordWriter | None:
    if not config.records_uri:
        return None
    folder = segment_folder(config.records_uri, config.namespace, config.model)
    return RecordWriter(
        WriterSettings(
            folder,
            settings.pod_name,
            config.namespace,
            config.model,
            flush_seconds=settings.record_age,
        ),
        on_written=metrics.records_written.inc,
        on_dropped=metrics.dropped[LOST_BACKLOG_FULL].inc,
    )


def _seams(config: WorkerConfig, settings: Settings) -> tuple[AssignmentSource, Acknowledge]:
    """Where assignments come from and go to: a file and the log, or the API server and a Lease."""
    if settings.assignment_file is not None:
        return FileSource(settings.assignment_file), lambda said: _LOG.info("in force: %s", said)
    # The client library takes half a second and 40 MB; a worker on a file does without.
    from trimwheel_workers.assignment.acknowledger import LeaseAcknowledger, Pod
    from trimwheel_workers.assignment.kubernetes_source import KubernetesSource

    pod = Pod(settings.pod_name, settings.pod_uid, config.namespace)
    return KubernetesSource(config.namespace, config.model), LeaseAcknowledger(config.model, pod)
