"""What a played story left behind, and how to play it: as `make demo` does, and left running."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trimwheel_demo.places import Places
from trimwheel_local.cluster import Cluster

STORY_SECONDS = 1200


@dataclass(frozen=True)
class Story:
    """Its report, its output, and the variables that reach what still runs."""

    report: dict[str, Any]
    code: int
    output: str
    env: dict[str, str]
    places: Places

    @property
    def kept(self) -> bool:
        """The statistics found nothing to certify, or no harm to answer: the other honest ends."""
        reason = str(self.report["exit_reason"])
        return reason.startswith(("kept full depth: ", "kept the certified policy: "))

    def stage(self, name: str) -> dict[str, Any]:
        return next(row for row in self.report["stages"] if row["name"] == name)


def play(cluster: Cluster, path: Path) -> Story:
    """Play on this cluster; the report goes to `path`."""
    layout = cluster.layout
    env = os.environ | {
        "TRIMWHEEL_STATE": str(layout.state),
        "TRIMWHEEL_INDEX": str(layout.index),
        "DETACH": "1",
        "REPORT": str(path),
    }
    done = subprocess.run(
        [sys.executable, "-m", "trimwheel_demo", "play"],
        env=env, capture_output=True, text=True, timeout=STORY_SECONDS,
    )  # fmt: skip
    output = done.stdout + done.stderr
    sys.stdout.write(output)
    assert path.exists(), f"no report was written:\n{output[-4000:]}"
    places = Places(layout.state, layout.index)
    found = json.loads(places.session.read_text()) if places.session.exists() else {}
    reach = env | found | {"PATH": os.pathsep.join([found.get("PATH", ""), os.environ["PATH"]])}
    return Story(json.loads(path.read_text()), done.returncode, output, reach, places)
