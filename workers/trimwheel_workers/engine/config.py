"""What the front tells the engine process at its start. Imported by both; no torch."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from trimwheel_api.values import seconds
from trimwheel_api.worker_config import WorkerConfig

AUDIT_QUEUE = 1024
"""Audits that may wait; about 100 KB. Beyond it new ones are dropped, and counted as missing."""


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """Settings of one engine process."""

    model_path: str
    model_digest: str
    dtype: str  # as asked for; auto is decided where the model is loaded
    threads: int
    max_batch: int
    max_wait: float  # seconds
    slo: float  # seconds; a request slower than this breaks the model's latency promise
    audit_queue: int = AUDIT_QUEUE

    def to_wire(self) -> dict[str, Any]:
        """JSON values."""
        return asdict(self)

    @classmethod
    def from_wire(cls, body: dict[str, Any]) -> EngineConfig:
        """Inverse of `to_wire`."""
        return cls(**body)

    @classmethod
    def of_worker(cls, config: WorkerConfig) -> EngineConfig:
        """The engine's part of a worker's configuration."""
        return cls(
            model_path=config.model_path,
            model_digest=config.model_digest,
            dtype=config.engine.dtype,
            threads=config.engine.threads,
            max_batch=config.engine.max_batch,
            max_wait=seconds(config.engine.max_wait),
            slo=seconds(config.objectives.latency.slo),
        )
