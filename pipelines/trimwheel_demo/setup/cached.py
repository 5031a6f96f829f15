"""What of a set-up is there already, and where things are: read by every other module here.

Nothing here makes anything.
"""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
VENV = ROOT / ".venv"
BUILD = ROOT / "build"
LOGS = BUILD / "setup-logs"


def cache_folder() -> Path:
    """The one folder outside the repository that is written to."""
    from trimwheel_local import layout

    return layout.cache_folder()


def python_stamp() -> Path:
    """Exists once the packages of exactly this lock are installed."""
    content = (ROOT / "requirements/dev.txt").read_bytes() + (ROOT / "pyproject.toml").read_bytes()
    return VENV / f".trimwheel-{hashlib.sha256(content).hexdigest()[:16]}"


def is_cached(name: str) -> bool:
    """Whether a step has nothing to do."""
    if name == "python":
        return python_stamp().exists()
    if name == "binaries":
        return not missing_binaries()
    return not fresh() and trained_model() is not None


def model_note() -> Path:
    """Where the folder of the model trained from exactly these sources is noted; it lies with the
    models, so that another checkout of the same sources finds it as well."""
    seed = os.environ.get("SEED") or "0"
    return cache_folder() / "models" / f"seed-{seed}-{_model_sources()[:16]}.txt"


def _model_sources() -> str:
    """Names all that the trained weights depend on, without importing any of it."""
    folders = ("workers/trimwheel_workers/fitting", "workers/trimwheel_workers/model")
    files = [path for folder in folders for path in sorted((ROOT / folder).glob("*.py"))]
    files += [ROOT / "pipelines/trimwheel_demo" / name for name in ("corpus.py", "training.py")]
    content = hashlib.sha256(sys.version.encode())
    for path in files:
        content.update(path.read_bytes())
    return content.hexdigest()


def trained_model() -> Path | None:
    """Folder of the trained model that an earlier run noted; None when it is gone or outdated."""
    note = model_note()
    folder = Path(note.read_text().strip()) if note.exists() else None
    return folder if folder is not None and folder.exists() else None


def missing_binaries() -> list[str]:
    """What has to be downloaded or built, in the order in which the story needs it."""
    from trimwheel_local import binaries, pins

    return binaries.missing(needed_binaries(pins.all_names()))


def needed_binaries(
    everything: frozenset[str], environ: Mapping[str, str] = os.environ
) -> frozenset[str]:
    """What has to be had here: not what a cluster or a Prometheus of one's own stands in for."""
    if environ.get("TRIMWHEEL_USE_KUBECONFIG"):
        return everything & {"helm", "kubectl"}
    if environ.get("TRIMWHEEL_USE_PROMETHEUS"):
        return everything - {"prometheus", "promtool"}
    return everything


def fresh() -> bool:
    """FRESH=1: train anew, whatever is cached."""
    return os.environ.get("FRESH") in ("1", "true", "yes")
