"""Brings a model artifact from MLflow or any fsspec address into a folder; the worker's init step.

Only addresses below an allowed prefix are touched: whoever may create an AdaptiveModel would
otherwise make workers read whatever their account can. The digest is checked here, and again by the
engine.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import fsspec

from trimwheel_api.environment import Environment
from trimwheel_api.errors import SpecInvalid, Unavailable
from trimwheel_workers.model.digest import FILES, WEIGHTS_FILE, ModelDigestMismatch, digest_of

PREFIXES = "TRIMWHEEL_ALLOWED_PREFIXES"
MLFLOW_SCHEME = "models:/"


def allowed_prefixes(environ: Mapping[str, str] = os.environ) -> tuple[str, ...]:
    """The chart's list of addresses that may be fetched."""
    return Environment(environ).words(PREFIXES)


def check_allowed(uri: str, prefixes: Sequence[str]) -> None:
    """Raises SpecInvalid unless `uri` lies below a prefix.

    A prefix ends at a boundary (`s3://models` does not allow `s3://models-of-others`), and an
    address may not climb out of it.
    """
    climbs = any(part in ("..", "") for part in uri.partition(":")[2].strip("/").split("/"))
    below = any(uri == prefix or uri.startswith(_boundary(prefix)) for prefix in prefixes)
    if climbs or not below:
        raise SpecInvalid(
            "spec.model.uri",
            f"must lie below one of {', '.join(prefixes) or '(no prefix is allowed)'}",
            uri,
            "Ask whoever installed the chart to extend models.allowedPrefixes",
        )


def fetch_model(uri: str, digest: str, target: Path, prefixes: Sequence[str]) -> None:
    """Put the artifact's files into `target`.

    Raises SpecInvalid for an address that is not allowed or holds no model, DigestMismatch for
    other bytes, Unavailable when the store does not answer.
    """
    check_allowed(uri, prefixes)
    target.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target) as scratch:
        download = _from_mlflow if uri.startswith(MLFLOW_SCHEME) else _from_store
        found = _artifact_below(download(uri, Path(scratch)), uri)
        actual = digest_of(found)
        if actual != digest:
            raise ModelDigestMismatch(
                "spec.model.digest",
                f"the artifact at {uri} has {actual}",
                digest,
                "Point uri and digest at the same version",
            )
        for name in FILES:
            shutil.move(found / name, target / name)


def _boundary(prefix: str) -> str:
    return prefix if prefix.endswith(("/", ":")) else f"{prefix}/"


def _from_mlflow(uri: str, scratch: Path) -> Path:
    from mlflow.artifacts import download_artifacts
    from mlflow.exceptions import MlflowException

    try:
        return Path(download_artifacts(artifact_uri=uri, dst_path=str(scratch)))
    except (MlflowException, OSError) as error:
        tracking = os.environ.get("MLFLOW_TRACKING_URI", "(MLFLOW_TRACKING_URI is not set)")
        raise Unavailable(f"{uri} from MLflow at {tracking}: {error}") from error


def _from_store(uri: str, scratch: Path) -> Path:
    folder = scratch / "artifact"
    try:
        store, root = fsspec.core.url_to_fs(uri)
        store.get(root.rstrip("/") + "/", f"{folder}/", recursive=True)
    except Exception as error:
        # Each store has errors of its own, missing drivers included.
        raise Unavailable(f"{uri}: {type(error).__name__}: {error}") from error
    return folder


def _artifact_below(folder: Path, uri: str) -> Path:
    """The one folder that holds the weights; MLflow may have put it below others."""
    found = sorted(path.parent for path in folder.rglob(WEIGHTS_FILE))
    if len(found) != 1:
        raise SpecInvalid(
            "spec.model.uri", f"must hold one {WEIGHTS_FILE}, it holds {len(found)}", uri
        )
    return found[0]
