"""What a worker costs beyond its model: HTTP throughput and latency, and bookkeeping per request.

`through_http` starts a real worker on a saved model and loads it with one asyncio client on the
same machine, so client and server share its cores: figures to compare with each other, not with
servers that have a machine of their own. `bookkeeping` times arms, metrics and records alone.
Called by `trimwheel bench serving`, which has a model and texts.
"""

from __future__ import annotations

import asyncio
import gc
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import aiohttp
import orjson
import uvloop

from trimwheel_api import worker_config
from trimwheel_api.cohorts import audit_score, cohort
from trimwheel_api.errors import Unavailable
from trimwheel_api.kinds.adaptive_model import Audits
from trimwheel_api.policy import Policy
from trimwheel_workers import settings
from trimwheel_workers.arms import ComputeKey, ResidentPolicy, Snapshot
from trimwheel_workers.engine.status import Status
from trimwheel_workers.front.auditing import AuditBook
from trimwheel_workers.front.dispatch import Answer, Caller, Ticket, server_ids
from trimwheel_workers.front.guards import Guards
from trimwheel_workers.front.metrics import WorkerMetrics
from trimwheel_workers.records.writer import RecordWriter, WriterSettings

START_SECONDS = 120.0
_MODEL = "bench"


def through_http(
    folder: Path,
    digest: str,
    policy: Policy,
    texts: Sequence[str],
    *,
    connections: Sequence[int] = (1, 8, 32),
    seconds: float = 5.0,
    audit_rate: str = "0.02",
    dtype: str = "float32",
) -> list[dict[str, float]]:
    """Closed loops of some connections against a worker that serves `policy`.

    One row for each number of connections: requests a second, p50 and p99 in milliseconds, and how
    many were not answered with 200. Raises Unavailable when the worker does not start.
    """
    with _worker(folder, digest, policy, audit_rate, dtype) as port:
        bodies = [_body(text) for text in texts]
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return [runner.run(_closed_loop(port, bodies, count, seconds)) for count in connections]


def bookkeeping(requests: int = 20_000, rounds: int = 7) -> dict[str, float]:
    """CPU microseconds a request of arms, metrics and records; the fastest of some rounds.

    Every request pays for `arms` and `metrics`, an audited one for `record` as well; `total` is the
    mean request's at the default audit rate.
    """
    parts = {"arms": _arms(), "metrics": _metrics(), "record": _records()}
    gc.collect()
    gc.freeze()
    best = {
        name: min(_microseconds(part, requests) for _ in range(rounds))
        for name, part in parts.items()
    }
    gc.unfreeze()
    rate = float(Audits().rate)
    best["total"] = best["arms"] + best["metrics"] + rate * best["record"]
    return {name: round(value, 3) for name, value in best.items()} | {"audit_rate": rate}


# -------------------------------------------------------------------------- HTTP


@contextmanager
def _worker(
    folder: Path, digest: str, policy: Policy, audit_rate: str, dtype: str
) -> Iterator[int]:
    """Port of a ready worker."""
    with tempfile.TemporaryDirectory() as scratch:
        port, probes_port = _free_port(), _free_port()
        stable = {"digest": policy.digest, "document": policy.canonical_bytes().decode()}
        assignment = Path(scratch) / "assignment.json"
        assignment.write_text(
            json.dumps({"epoch": 1, "stable": stable, "auditRate": audit_rate}), "utf-8"
        )
        config = {
            "model": _MODEL, "namespace": "bench", "modelDigest": digest,
            "modelPath": str(folder), "statePath": scratch, "recordsUri": f"{scratch}/records",
            "port": port, "probesPort": probes_port, "engine": {"dtype": dtype},
        }  # fmt: skip
        environment = os.environ | {
            worker_config.ENVIRONMENT: json.dumps(config),
            settings.BIND: "127.0.0.1",
            settings.ASSIGNMENT_FILE: str(assignment),
            settings.DRAIN_NOTICE: "0s",
        }
        with (Path(scratch) / "log").open("w+", encoding="utf-8") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "trimwheel_workers", "serve"],
                env=environment, stdout=log, stderr=log,
            )  # fmt: skip
            try:
                asyncio.run(_ready(port, process))
                yield port
            except Unavailable as error:
                log.seek(0)
                raise Unavailable(f"{error}; its log ends with {log.read()[-1000:]!r}") from error
            finally:
                process.terminate()
                process.wait(30)


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
    return port


async def _ready(port: int, process: subprocess.Popen[bytes]) -> None:
    end = time.monotonic() + START_SECONDS
    async with aiohttp.ClientSession() as session:
        while time.monotonic() < end:
            if process.poll() is not None:
                raise Unavailable(f"the worker ended with code {process.returncode}")
            try:
                async with session.get(f"http://127.0.0.1:{port}/v2/health/ready") as answer:
                    if answer.status == 200:
                        return
            except aiohttp.ClientConnectionError:
                pass  # not listening yet
            await asyncio.sleep(0.1)
    raise Unavailable(f"the worker was not ready within {START_SECONDS:.0f} s")


async def _closed_loop(
    port: int, bodies: Sequence[bytes], connections: int, seconds: float
) -> dict[str, float]:
    """Each connection sends its next request as soon as it has its answer."""
    url = f"http://127.0.0.1:{port}/v2/models/{_MODEL}/infer"
    latencies: list[float] = []
    failed = 0
    connector = aiohttp.TCPConnector(limit=connections)
    async with aiohttp.ClientSession(connector=connector) as session:

        async def send(first: int, until: float, *, counted: bool) -> None:
            nonlocal failed
            number = first
            while (sent := time.perf_counter()) < until:
                async with session.post(url, data=bodies[number % len(bodies)]) as answer:
                    await answer.read()
                    failed += answer.status != 200
                if counted:
                    latencies.append(time.perf_counter() - sent)
                number += connections

        async def all_send(length: float, *, counted: bool) -> float:
            started = time.perf_counter()
            until = started + length
            await asyncio.gather(*(send(n, until, counted=counted) for n in range(connections)))
            return time.perf_counter() - started

        await all_send(min(1.0, seconds), counted=False)
        spent = await all_send(seconds, counted=True)
    cuts = statistics.quantiles(latencies, n=100, method="inclusive")
    return {
        "connections": connections,
        "requests_per_second": round(len(latencies) / spent, 1),
        "p50_ms": round(1000 * cuts[49], 3),
        "p99_ms": round(1000 * cuts[98], 3),
        "failed": failed,
    }


def _body(text: str) -> bytes:
    tensor = {"name": "text", "datatype": "BYTES", "shape": [1], "data": [text]}
    return orjson.dumps({"inputs": [tensor]})


# -------------------------------------------------------------------------- bookkeeping


def _microseconds(part: Callable[[int], None], requests: int) -> float:
    started = time.process_time()
    for number in range(requests):
        part(number)
    return 1e6 * (time.process_time() - started) / requests


def _snapshot() -> Snapshot:
    policies = [
        ResidentPolicy(f"sha256:{n}", (0.9,) * 5, 5, ComputeKey(2, 0.0, "learned"))
        for n in range(2)
    ]
    return Snapshot(1, 1, "salt", 1000, 1.0, *policies)


def _arms() -> Callable[[int], None]:
    """A server-made id, the cohort, the arm, and whether the request is audited."""
    snapshot = _snapshot()
    ids = server_ids()

    def part(number: int) -> None:
        server_id = next(ids)
        snapshot.arm(cohort(f"session-{number}", snapshot.salt))
        audit_score(server_id, _MODEL)

    return part


def _metrics() -> Callable[[int], None]:
    """Counter, histogram and guard evidence of one answered request."""
    metrics = WorkerMetrics(_MODEL, 0.25)
    guards = Guards(metrics)
    guards.reside("salt", {"stable": "sha256:0", "candidate": "sha256:1"})

    def part(number: int) -> None:
        metrics.requests("stable", 1, 200).inc()
        metrics.duration["stable"].observe(0.012)
        policy = guards.of("stable", "sha256:0")
        if policy is not None:
            policy.served(f"session-{number // 3}", "127.0.0.1", failed=False, slow=False)

    return part


def _records() -> Callable[[int], None]:
    """An audit from the answer to the record in the writer's hands; storing is another thread's."""
    metrics = WorkerMetrics(_MODEL, 0.25)
    snapshot = _snapshot()
    guards = Guards(metrics)
    guards.reside("salt", {"stable": "sha256:0", "candidate": "sha256:1"})
    writer = RecordWriter(
        WriterSettings("memory://bench", "bench", backlog_records=1 << 30),
        on_written=metrics.records_written.inc,
        on_dropped=metrics.trips["Tripwire"].inc,
    )
    book = AuditBook(metrics, guards, writer, keep_inputs=True)
    loop = asyncio.new_event_loop()
    future: asyncio.Future[Answer] = loop.create_future()
    loop.close()
    answer = Answer(Status.ANSWERED, 1, 0.9, 1, 2, "stable", 20, snapshot)
    scores, predictions = [0.1, 0.2, 0.3, 0.4, 0.5], [1, 1, 1, 1, 1, 1]

    def part(number: int) -> None:
        ticket = Ticket(
            "0" * 24, Caller(f"session-{number // 3}"), "text", "stable", True, 0.1, 1.0, 0.0, 2.0,
            future,
        )  # fmt: skip
        book.expect(number, ticket, answer, 0.01)
        book.settle([number, scores, predictions, [1, 1], [1, 1], [1, 1]])

    return part
