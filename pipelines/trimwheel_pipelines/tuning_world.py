"""What a TuningRun touches outside itself, as one value: real in a Job, chosen in tests.

Built by `__main__`, used by `tune`, `collecting`, `certifying` and `publishing`.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from trimwheel_pipelines.executors import Executor
from trimwheel_pipelines.kube import Objects
from trimwheel_pipelines.patience import Patience
from trimwheel_pipelines.registry import Registry
from trimwheel_pipelines.trials import ModelRef
from trimwheel_pipelines.tuning_plan import Plan
from trimwheel_workers.fetch import fetch_model
from trimwheel_workers.model import artifact, measured
from trimwheel_workers.model.artifact import LoadedModel

log = logging.getLogger(__name__)

LoadModel = Callable[[Plan], tuple[LoadedModel, ModelRef]]


def utc_now() -> datetime:
    """The clock of a real run."""
    return datetime.now(UTC)


@dataclass(frozen=True)
class World:
    """API server, record store, MLflow, executor, model, clock."""

    objects: Objects
    records_uri: str
    registry: Registry | None
    """None: the chart names no MLflow; everything else happens all the same."""
    executor: Executor
    load_model: LoadModel
    clock: Callable[[], datetime] = utc_now
    sleep: Callable[[float], None] = time.sleep
    patience: Patience = field(default_factory=Patience)


def model_loader(cache: Path, prefixes: tuple[str, ...]) -> LoadModel:
    """Fetch the model as workers do (allowed prefixes, digest check) and load it.

    `cache` keeps artifacts by digest between runs.
    """

    def load(plan: Plan) -> tuple[LoadedModel, ModelRef]:
        folder = cache / plan.model_digest.removeprefix("sha256:")
        if not (folder / artifact.WEIGHTS_FILE).exists():
            log.info("Fetching %s.", plan.model_uri)
            fetch_model(plan.model_uri, plan.model_digest, folder, prefixes)
        loaded = artifact.load(folder, plan.model_digest, plan.dtype)
        # Type and ways as this Job chose them: all trials of a study compute alike.
        ref = ModelRef(str(folder), plan.model_digest, loaded.dtype, measured.findings())
        return loaded, ref

    return load
