"""The demo's report, `trimwheel.demo/v1`: what happened, and how to read each claim again.

Filled by the stages, written once at the end, however the story ended. Every piece of evidence
carries `check`, a shell command that re-reads the claim from the live system.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from trimwheel_demo.evidence import Evidence
from trimwheel_local.files import read_json
from trimwheel_local.layout import cache_folder

SCHEMA = "trimwheel.demo/v1"
_VERSIONED = ("trimwheel", "torch", "ray", "mlflow", "optuna", "kopf", "kubernetes", "sqlmodel",
              "prometheus-api-client")  # fmt: skip


class Report:
    """The document, as it grows."""

    def __init__(self, path: Path, seed: int, root: Path) -> None:
        self.path = path
        self._root = root
        self.data: dict[str, Any] = {
            "schema": SCHEMA,
            "ok": False,
            "exit_reason": "",
            "seed": seed,
            "commit": _commit(root),
            "started_at": datetime.now(UTC).isoformat(timespec="seconds"),
            "host": _host(),
            "versions": {"python": platform.python_version()}
            | {name: version(name) for name in _VERSIONED},
            "settings": {},
            "setup": _setup(root),
            "first_answer_seconds": None,
            "stages": [],
            "model": {},
            "drift": {},
            "tuning": {},
            "rollout": {},
            "control": {},
            "approval": {"by": "", "denied": []},
            "rollback": {},
            "before": {},
            "after": {},
            "peak_memory_bytes": 0,
            "peak_memory_of": "",
            "not_shown": [],
        }

    def __getitem__(self, key: str) -> Any:
        return self.data[key]

    def __setitem__(self, key: str, value: Any) -> None:
        self.data[key] = value

    @contextmanager
    def stage(self, name: str) -> Iterator[list[Evidence]]:
        """Time a stage; the body appends its evidence."""
        evidence: list[Evidence] = []
        row: dict[str, Any] = {"name": name, "ok": False, "seconds": 0.0, "evidence": evidence}
        self.data["stages"].append(row)
        started = time.monotonic()
        try:
            yield evidence
            row["ok"] = True
        finally:
            row["seconds"] = round(time.monotonic() - started, 1)

    def write(self) -> None:
        """Write the document; its folder is made, and only now is the disk looked over."""
        self.data["setup"] |= _disk(self._root)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.write_text(json.dumps(self.data, indent=2, default=str) + "\n")


def _commit(root: Path) -> str:
    done = subprocess.run(
        ["git", "-C", str(root), "rev-parse", "HEAD"], capture_output=True, text=True
    )
    return done.stdout.strip() or "unknown"


def _host() -> dict[str, Any]:
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return {"cpus": os.cpu_count(), "memory_bytes": pages, "gpu": _gpu()}


def _gpu() -> str | None:
    nodes = sorted(Path("/proc/driver/nvidia/gpus").glob("*/information"))
    return nodes[0].read_text().splitlines()[0].split(":", 1)[1].strip() if nodes else None


def _setup(root: Path) -> dict[str, Any]:
    path = root / "build" / "setup.json"
    found = read_json(path) or {}
    return {
        "cold": found.get("cold", False),
        "seconds": found.get("seconds", 0.0),
        "steps": found.get("steps", []),
        "first_run": found.get("first_run"),
    }


def _disk(root: Path) -> dict[str, Any]:
    """What the set-up keeps; one `du`, which counts a file once that both folders link to."""
    folders = {"venv": root / ".venv", "cache": cache_folder()}
    there = {name: folder for name, folder in folders.items() if folder.exists()}
    command = ["du", "-s", "--block-size=1", *(str(folder) for folder in there.values())]
    done = subprocess.run(command, capture_output=True, text=True)
    # A file that vanishes meanwhile makes du complain, and count all others.
    sizes = [int(line.split()[0]) for line in done.stdout.splitlines()]
    parts = dict(zip(there, sizes, strict=False))
    return {"disk_bytes": sum(sizes), "disk_parts": parts}
