"""Fixtures of the worker's tests: a tiny saved model, assignments, and real worker processes."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest

from trimwheel_api.policy import Policy, parse_policy

CLASSES = ("alpha", "beta", "gamma")
EXITS = (1, 2, 3)


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """(folder, digest) of a randomly initialised model of four layers and three exits."""
    import torch

    from trimwheel_workers.model import artifact
    from trimwheel_workers.model.config import EncoderConfig
    from trimwheel_workers.model.encoder import Encoder
    from trimwheel_workers.model.tokenizer import Tokenizer

    torch.manual_seed(0)
    texts = ["def f(x): return x", "import os", "class A: pass", "for i in range(9): print(i)"] * 5
    tokenizer = Tokenizer.train(texts, 400, 64)
    encoder = Encoder(
        EncoderConfig(
            vocabulary=tokenizer.vocabulary, classes=CLASSES, dim=32, layers=4, heads=4,
            feed_forward=64, exits=EXITS, moe_layer=2, expert_feed_forward=32,
        )
    )  # fmt: skip
    # Scores and answers that vary from row to row, so that exits are really taken.
    for head in encoder.heads.exits:
        torch.nn.init.normal_(head.weight, std=0.6)
    torch.nn.init.normal_(encoder.learned.weight, std=2.0)
    folder = tmp_path_factory.mktemp("model")
    return folder, artifact.save(folder, encoder, tokenizer, {})


def policy_of(*thresholds: str, **moe: Any) -> Policy:
    """A policy with these thresholds (none: dense) and knobs of the mixture block."""
    document: dict[str, Any] = {"moe": moe} if moe else {}
    if thresholds:
        document["exit"] = {"enabled": True, "thresholds": list(thresholds)}
    return parse_policy(document)


def assigned(policy: Policy) -> dict[str, str]:
    """A policy as an assignment carries it."""
    return {"digest": policy.digest, "document": policy.canonical_bytes().decode()}


def assignment(
    epoch: int,
    stable: Policy,
    candidate: Policy | None = None,
    *,
    weight: int = 0,
    uid: str = "u1",
    **fields: Any,
) -> dict[str, Any]:
    """A PolicyAssignment as JSON."""
    spec = {"epoch": epoch, "stable": assigned(stable), "weightBasisPoints": weight, **fields}
    if candidate is not None:
        spec["candidate"] = assigned(candidate)
    return {"metadata": {"uid": uid}, "spec": spec}


def body_of(*texts: str, **extra: Any) -> dict[str, Any]:
    """An inference request."""
    tensor = {"name": "text", "datatype": "BYTES", "shape": [len(texts)], "data": list(texts)}
    return {"inputs": [tensor], **extra}


@dataclass
class WorkerProcess:
    """`python -m trimwheel_workers serve` on a file assignment."""

    folder: Path
    port: int
    probes_port: int
    process: subprocess.Popen[bytes]
    client: httpx.Client = field(init=False)

    def __post_init__(self) -> None:
        self.client = httpx.Client(base_url=f"http://127.0.0.1:{self.port}", timeout=10.0)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v2/models/m/infer"

    @property
    def records(self) -> Path:
        return self.folder / "records" / "n" / "m"

    def assign(self, value: dict[str, Any]) -> None:
        fresh = self.folder / "assignment.new"
        fresh.write_text(json.dumps(value))
        os.replace(fresh, self.folder / "assignment.json")

    def infer(self, *texts: str, **headers: str) -> httpx.Response:
        return self.client.post("/v2/models/m/infer", json=body_of(*texts), headers=headers)

    def metric(self, name: str, **labels: str) -> float:
        """Sum of the series of a metric whose labels match."""
        from prometheus_client.parser import text_string_to_metric_families

        families = text_string_to_metric_families(self.probe("/metrics").text)
        return sum(
            sample.value
            for family in families
            for sample in family.samples
            if sample.name == name and labels.items() <= sample.labels.items()
        )

    def wait(self, what: Callable[[], bool], seconds: float = 60.0) -> None:
        """Until `what` holds; a worker that is not up yet does not."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            try:
                if what():
                    return
            except httpx.TransportError:
                pass
            assert self.process.poll() is None, f"the worker ended: {self.log()}"
            time.sleep(0.05)
        raise AssertionError(f"not within {seconds} s: {self.log()}")

    def probe(self, path: str) -> httpx.Response:
        return httpx.get(f"http://127.0.0.1:{self.probes_port}{path}", timeout=10.0)

    def ready(self) -> bool:
        return self.client.get("/v2/health/ready").status_code == 200

    def engine_pid(self) -> int:
        """The engine is the worker's only child."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text()
        return int(children.split()[0])

    def log(self) -> str:
        return (self.folder / "log").read_text()[-4000:]

    def stop(self, seconds: float = 20.0) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(seconds)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        port: int = sock.getsockname()[1]
        return port


@pytest.fixture
def start_worker(
    tiny_model: tuple[Path, str], tmp_path: Path
) -> Iterator[Callable[..., WorkerProcess]]:
    """Starts a worker (with camelCase fields of WorkerConfig) and waits until it is ready."""
    started: list[WorkerProcess] = []

    def start(
        value: dict[str, Any],
        *,
        wait: bool = True,
        notice: str = "200ms",
        environ: dict[str, str] | None = None,
        **fields: Any,
    ) -> WorkerProcess:
        model, digest = tiny_model
        port, probes_port = free_port(), free_port()
        config = {
            "model": "m", "namespace": "n", "modelDigest": digest, "modelPath": str(model),
            "statePath": str(tmp_path / "state"), "recordsUri": str(tmp_path / "records"),
            "port": port, "probesPort": probes_port,
        }  # fmt: skip
        environment = (
            os.environ
            | {
                "TRIMWHEEL_WORKER": json.dumps(config | fields),
                "TRIMWHEEL_BIND": "127.0.0.1",
                "TRIMWHEEL_RECORD_AGE": "500ms",
                "TRIMWHEEL_DRAIN_NOTICE": notice,
                "TRIMWHEEL_ASSIGNMENT_FILE": str(tmp_path / "assignment.json"),
                "OMP_NUM_THREADS": "1",
            }
            | (environ or {})
        )
        (tmp_path / "assignment.json").write_text(json.dumps(value))
        with (tmp_path / "log").open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "trimwheel_workers", "serve"],
                env=environment, stdout=log, stderr=log,
            )  # fmt: skip
        worker = WorkerProcess(tmp_path, port, probes_port, process)
        started.append(worker)
        if wait:
            worker.wait(worker.ready)
        return worker

    yield start
    for worker in started:
        worker.client.close()
        if worker.process.poll() is None:
            worker.process.kill()
            worker.process.wait()


@pytest.fixture
def make() -> Any:
    """The builders above, for tests: they cannot import a conftest."""
    from types import SimpleNamespace

    return SimpleNamespace(
        policy=policy_of, assigned=assigned, assignment=assignment, body=body_of, classes=CLASSES
    )
