"""The last good assignment on disk, for a restart while the API server is away."""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path

from trimwheel_api.kinds.common import dump
from trimwheel_api.kinds.policy_assignment import PolicyAssignmentSpec
from trimwheel_workers.assignment.source import parse_spec

_LOG = logging.getLogger(__name__)
FILE = "assignment.json"


class Store:
    """One file in a folder that outlives the container (an emptyDir)."""

    def __init__(self, folder: Path | str) -> None:
        self._path = Path(folder) / FILE

    def save(self, uid: str, spec: PolicyAssignmentSpec) -> None:
        """Replace the file in one step. A full disk costs the copy, never the service."""
        text = json.dumps({"metadata": {"uid": uid}, "spec": dump(spec)})
        fresh = self._path.with_suffix(".new")
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            fresh.write_text(text, "utf-8")
            os.replace(fresh, self._path)
        except OSError as error:
            _LOG.warning("the last good assignment could not be kept: %s", error)

    def load(self) -> tuple[str, PolicyAssignmentSpec] | None:
        """(uid, spec), or None when there is none that can be read."""
        try:
            return parse_spec(self._path.read_bytes())
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            _LOG.warning("%s cannot be used: %s", self._path, error)
            return None
