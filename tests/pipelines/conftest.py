"""Shared by the tests of the pipelines: a small real model and audits that it really made."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from trimwheel_api import names
from trimwheel_api.errors import Conflict
from trimwheel_api.kinds import AdaptiveModel, Resource, TuningRun, dump
from trimwheel_api.kinds.adaptive_model import AdaptiveModelSpec
from trimwheel_api.kinds.tuning_run import TuningRunSpec
from trimwheel_api.policy import DENSE
from trimwheel_api.records import segment_folder, segment_name
from trimwheel_pipelines.executors import SerialExecutor
from trimwheel_pipelines.patience import Patience
from trimwheel_pipelines.registry import Registry
from trimwheel_pipelines.trials import Audits, ModelRef
from trimwheel_pipelines.tune import tune
from trimwheel_pipelines.tuning_world import World
from trimwheel_workers.model import artifact, measured
from trimwheel_workers.model.artifact import LoadedModel
from trimwheel_workers.model.config import EncoderConfig
from trimwheel_workers.model.encoder import Encoder
from trimwheel_workers.model.tokenizer import Tokenizer
from trimwheel_workers.offline import evaluate
from trimwheel_workers.records.segments import SCHEMA

TEXTS = [f"def f{i}(x): return {i * 7 % 13} + x * {i % 31} # {i * i % 17}" for i in range(400)]


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A four-layer encoder with three experts: untrained, but exits mostly agree and have scores.

    Exit 1 agrees with full depth on 70 %, exit 3 on 91 %; one expert in place of two on 96 %.
    """
    import torch  # noqa: TID251  the test makes what a worker would load

    torch.manual_seed(0)
    tokenizer = Tokenizer.train(TEXTS, 300, 24)
    config = EncoderConfig(
        vocabulary=tokenizer.vocabulary,
        classes=("a", "b", "c"),
        dim=16,
        layers=4,
        heads=2,
        feed_forward=32,
        max_tokens=24,
        exits=(1, 2, 3),
        moe_layer=2,
        experts=3,
        expert_feed_forward=16,
    )
    encoder = Encoder(config)
    encoder.learned.weight[:, 1] = torch.tensor([3.0, 5.0, 8.0])
    encoder.learned.weight[:, 3] = 1.0
    _make_exits_agree(encoder)
    folder = tmp_path_factory.mktemp("model")
    artifact.save(folder, encoder, tokenizer, {})
    return folder


def _make_exits_agree(encoder: Encoder) -> None:
    """One head for all depths, much attention first, little change later."""
    import torch  # noqa: TID251  the test makes what a worker would load

    encoder.layers[0].attention.out.weight.data *= 8.0
    for layer in encoder.layers[2:]:
        layer.attention.out.weight.data *= 0.15
        layer.feed.down.weight.data *= 0.15
    for expert in encoder.layers[1].mixture.experts:
        expert.down.weight.data *= 0.45
    heads = encoder.heads
    heads.pooler.weight.data = torch.eye(encoder.config.dim) * 0.5
    for head in heads.exits:
        head.load_state_dict(heads.classifier.state_dict())


@pytest.fixture(scope="session")
def model(model_folder: Path) -> LoadedModel:
    """The same, loaded."""
    return artifact.load(model_folder)


@pytest.fixture(scope="session")
def model_ref(model_folder: Path, model: LoadedModel) -> ModelRef:
    """The same, as trials name it."""
    return ModelRef(str(model_folder), model.digest, model.dtype, measured.findings())


@pytest.fixture(scope="session")
def audits(model: LoadedModel) -> Audits:
    """What workers would have recorded of TEXTS, inputs included."""
    found = evaluate(model, TEXTS, model.config.dense_signature)
    return Audits(
        scores=found.scores,
        predictions=found.predictions,
        propensity=np.full(len(TEXTS), 0.5),
        sessions=np.array([f"s{i // 2}" for i in range(len(TEXTS))]),
        texts=tuple(TEXTS),
    )


# --- a record store that workers fill, and an API server that remembers -----------------------

NAMESPACE, MODEL = "shop", "intent"


class Traffic:
    """Writes the segments that workers would write for requests with texts of TEXTS.

    `risky` raises the share of records whose exits disagree, as after a change of traffic.
    """

    def __init__(self, root: Path, audits: Audits, digest: str) -> None:
        self.root, self.audits, self.digest = str(root), audits, digest
        self.folder = Path(segment_folder(self.root, NAMESPACE, MODEL))
        self.folder.mkdir(parents=True, exist_ok=True)
        self.random = np.random.default_rng(5)
        self.sequence = 0

    def write(
        self,
        count: int,
        start: float,
        step: float = 0.02,
        *,
        lost: int = 0,
        inputs: bool = True,
        **columns: Any,
    ) -> float:
        """`count` audits from `start` on, `step` seconds apart; returns the time after the last."""
        self.sequence += 1
        rows = self.random.integers(0, len(self.audits), count)
        times = start + step * np.arange(count)
        values: dict[str, Any] = {
            "id": [f"{self.sequence}-{i}" for i in range(count)],
            "time": times,
            "session": [f"{self.sequence}-{i // 2}" for i in range(count)],
            "first_in_session": [i % 2 == 0 for i in range(count)],
            "u": self.random.uniform(0.0, 0.5, count),
            "propensity": np.full(count, 0.5),
            "epoch": np.ones(count, np.int64),
            "model_digest": [self.digest] * count,
            "tokens": self.random.integers(5, 24, count).astype(np.int32),
            "arm": ["stable"] * count,
            "digest": [DENSE.digest] * count,
            "exit": np.full(count, 3, np.int32),
            "layers": np.full(count, 4, np.int32),
            "prediction": self.audits.predictions[rows, -1].astype(np.int32),
            "latency": np.full(count, 0.01, np.float32),
            "scores": list(self.audits.scores[rows]),
            "predictions": list(self.audits.predictions[rows].astype(np.int32)),
            "stable_digest": [DENSE.digest] * count,
            "stable_prediction": self.audits.predictions[rows, -1].astype(np.int32),
            "stable_exit": np.full(count, 3, np.int32),
            "candidate_digest": [None] * count,
            "candidate_prediction": [None] * count,
            "candidate_exit": [None] * count,
            "text": [TEXTS[row] for row in rows] if inputs else [None] * count,
            "tenant": [None] * count,
        }
        table = pa.table(values | columns, schema=SCHEMA)
        name = segment_name(f"{MODEL}-0", start, self.sequence, count, lost)
        pq.write_table(table, self.folder / name)
        return float(times[-1] + step)


class MemoryObjects:
    """Stands in for the API server: names, uids, versions and conflicts, nothing else of it."""

    def __init__(self, now: datetime) -> None:
        self.now = now
        self.stored: dict[tuple[str, str, str], Resource[Any, Any]] = {}
        self.version = 0
        self.history: list[Resource[Any, Any]] = []

    def put(self, kind: type[Any], name: str, spec: Any, **status: Any) -> Any:
        """Create an object as a user or the operator would."""
        made = self.create(kind, {"name": name, "namespace": NAMESPACE}, spec)
        return self.write_status(made, made.status.model_copy(update=status)) if status else made

    def get(self, kind: type[Any], namespace: str, name: str) -> Any:
        return self.stored.get((kind.__name__, namespace, name))

    def list(self, kind: type[Any], namespace: str = "") -> list[Any]:
        return [
            one
            for (name, where, _), one in self.stored.items()
            if name == kind.__name__ and namespace in ("", where)
        ]

    def create(self, kind: type[Any], metadata: dict[str, Any], spec: Any) -> Any:
        key = (kind.__name__, metadata["namespace"], metadata["name"])
        if key in self.stored:
            raise Conflict(f"{key} exists")
        self.version += 1
        full = metadata | {
            "uid": f"uid-{self.version}",
            "resourceVersion": str(self.version),
            "generation": 1,
            "creationTimestamp": self.now.strftime("%Y-%m-%dT%H:%M:%SZ"),
        }
        status = kind.model_fields["status"].get_default(call_default_factory=True)
        body = {"metadata": full, "spec": dump(spec), "status": dump(status)}
        self.stored[key] = kind.model_validate(body)
        self.history.append(self.stored[key])
        return self.stored[key]

    def write_status(self, observed: Any, status: Any) -> Any:
        key = (observed.kind, observed.metadata.namespace, observed.metadata.name)
        held = self.stored.get(key)
        if held is None or held.metadata.resource_version != observed.metadata.resource_version:
            raise Conflict(f"{key} changed")
        self.version += 1
        metadata = held.metadata.model_copy(update={"resource_version": str(self.version)})
        plain = type(status).model_validate(dump(status))
        self.stored[key] = held.model_copy(update={"metadata": metadata, "status": plain})
        self.history.append(self.stored[key])
        return self.stored[key]

    def delete(self, observed: Any) -> None:
        self.stored.pop((observed.kind, observed.metadata.namespace, observed.metadata.name), None)

    def names(self, kind: type[Any]) -> set[tuple[str, str]]:
        return {(where, called) for (name, where, called) in self.stored if name == kind.__name__}

    def account_uid(self) -> str:
        return "account-1"

    def whoami(self) -> str:
        return names.service_account_user(names.RELEASE_NAMESPACE, names.TUNING_ACCOUNT)


@pytest.fixture
def traffic(tmp_path: Path, audits: Audits, model: LoadedModel) -> Traffic:
    return Traffic(tmp_path / "records", audits, model.digest)


START = datetime(2026, 11, 22, 10, 0, 0, tzinfo=UTC)
SPEC: dict[str, Any] = {
    "objectives": {"maxDisagreement": "0.1"},
    "audits": {"inputs": "sampled"},
    "tuning": {"searchRecords": 300, "certifyRecords": 300, "trials": 3, "timeout": "1m"},
}


class Stage:
    """A model, its records, and a clock that moves when somebody waits."""

    def __init__(self, traffic: Any, objects: Any, loaded: LoadedModel, ref: ModelRef) -> None:
        self.traffic, self.objects = traffic, objects
        self.now = START
        self.before, self.after = START.timestamp() - 100.0, START.timestamp() + 2.0
        self.while_waiting: list[Any] = []
        self.world = World(
            objects=objects,
            records_uri=traffic.root,
            registry=None,
            executor=SerialExecutor(),
            load_model=lambda plan: (loaded, ref),
            clock=lambda: self.now,
            sleep=self.sleep,
            patience=Patience(total=0.0),
        )

    def with_registry(self, registry: Registry, patience: Patience | None = None) -> None:
        """Log to an MLflow, and wait for it as told."""
        patient = patience or self.world.patience
        self.world = replace(self.world, registry=registry, patience=patient)

    def sleep(self, seconds: float) -> None:
        self.now += timedelta(seconds=seconds)
        if self.while_waiting:
            self.while_waiting.pop(0)()

    def declare(self, digest: str, **spec: Any) -> AdaptiveModel:
        source = {"model": {"uri": "file:///models/intent", "digest": digest}}
        made: AdaptiveModel = self.objects.put(
            AdaptiveModel, "intent", AdaptiveModelSpec.model_validate(source | SPEC | spec)
        )
        return made

    def start(self, **spec: Any) -> str:
        self.objects.put(
            TuningRun,
            "run",
            TuningRunSpec.model_validate({"model": "intent", "requestedBy": "rita"} | spec),
        )
        return tune(self.world, "shop", "run")

    @property
    def run(self) -> TuningRun:
        found: TuningRun = self.objects.get(TuningRun, "shop", "run")
        return found

    def condition(self, kind: str) -> tuple[str, str]:
        found = self.run.status.condition(kind)
        assert found is not None
        return found.status, found.reason


@pytest.fixture
def stage(traffic: Any, model: LoadedModel, model_ref: ModelRef) -> Stage:
    return Stage(traffic, MemoryObjects(START), model, model_ref)
