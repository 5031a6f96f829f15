"""What the operator tells a worker process at its start, and how: one JSON environment variable.

Written by the operator's manifests, read by the worker's entry point. What changes without a
restart (policies, weights, audit rate) travels in the PolicyAssignment instead.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

from pydantic import Field, ValidationError

from trimwheel_api import names
from trimwheel_api.errors import SetupFailed
from trimwheel_api.kinds.adaptive_model import EngineSpec, Objectives
from trimwheel_api.kinds.common import Spec

ENVIRONMENT = "TRIMWHEEL_WORKER"
MODEL_PATH = "/var/run/trimwheel/model"
"""Mount of the emptyDir into which the init step puts the artifact."""
TOKENS_PATH = "/var/run/trimwheel/tokens"
"""Mount of the Secret with clients' bearer tokens."""
TLS_PATH = "/var/run/trimwheel/tls"
"""Mount of the Secret with certificate and key."""
STATE_PATH = "/var/run/trimwheel/state"
"""Mount of the emptyDir that keeps the last good assignment across container restarts."""


class WorkerConfig(Spec):
    """Everything a worker process knows before it has seen an assignment."""

    model: str = Field(description="AdaptiveModel, by object name.")
    namespace: str = Field(description="Its namespace, and the pod's.")
    model_digest: str = Field(description="Artifact that the engine insists on.")
    model_path: str = Field(default=MODEL_PATH, description="Folder of the artifact.")
    state_path: str = Field(default=STATE_PATH, description="Folder for the last good assignment.")
    engine: EngineSpec = Field(default_factory=EngineSpec)
    objectives: Objectives = Field(default_factory=Objectives)
    tokens_path: str = Field(default="", description="Folder of bearer tokens; empty: none needed.")
    tls_path: str = Field(default="", description="Folder of certificate and key; empty: none.")
    keep_inputs: bool = Field(default=False, description="audits.inputs is sampled.")
    records_uri: str = Field(default="", description="fsspec root of audit records; empty: none.")
    port: int = Field(default=names.WORKER_PORT, description="HTTP, for clients.")
    probes_port: int = Field(
        default=names.WORKER_PROBES_PORT, description="Probes and /metrics, for the cluster."
    )


def from_environment(environ: Mapping[str, str] = os.environ) -> WorkerConfig:
    """The configuration of this process. Raises SetupFailed when it is absent or broken."""
    text = environ.get(ENVIRONMENT)
    if not text:
        raise SetupFailed(f"{ENVIRONMENT} is not set: the operator sets it on worker pods")
    try:
        return WorkerConfig.model_validate_json(text)
    except ValidationError as error:
        raise SetupFailed(
            f"{ENVIRONMENT}: must be what this version's operator writes, but got {text[:80]!r}: "
            f"{error.errors()[0]['msg']}"
        ) from error
