"""The demo's report, `trimwheel.demo/v1`: what happened, and how to read each claim again.

Filled by the stages, written once at the end (also after a failure). Every piece of evidence
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

SCHEMA = "trimwheel.demo/v1"
_VERSIONED = ("trimwheel", "torch", "ray", "mlflow", "optuna", "kopf", "kubernetes", "sqlmodel",
              "prometheus-api-client")  # fmt: skip


class Report:
    """The document, as it grows."""

    def __init__(self, path: Path, seed: int, root: Path) -> None:
        self.path = path
        self.data: dict[str, Any] = {
            "schema": SCHEMA,
            "ok": False,
            "exit_reason": "did not finish",
            "seed": seed,
            "commit": _commit(root),
            "started_at": datetime.now(UTC).isoformat(timespec="seconds"),
            "host": _host(),
            "versions": {"python": platform.python_version()}
            | {name: version(name) for name in _VERSIONED},
            "settings": {},
            "setup": _setup(root),
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
            "not_shown": [],
        }

    def __getitem__(self, key: str) -> Any:
        return self.data[key]

    def __setitem__(self, key: str, value: Any) -> None:
        self.data[key] = value

    @contextmanager
    def stage(self, name: str) -> Iterator[list[dict[str, str]]]:
        """Time a stage; the body appends its evidence."""
        evidence: list[dict[str, str]] = []
        row: dict[str, Any] = {"name": name, "ok": False, "seconds": 0.0, "evidence": evidence}
        self.data["stages"].append(row)
        started = time.monotonic()
        try:
            yield evidence
            row["ok"] = True
        finally:
            row["seconds"] = round(time.monotonic() - started, 1)

    def write(self) -> None:
        """Write the document; its folder is made."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.write_text(json.dumps(self.data, indent=2, default=str) + "\n")


def evidence(kind: str, ref: str, uid: str, check: str) -> dict[str, str]:
    """One piece of evidence; `check` is a shell command for the environment of `trimwheel env`."""
    return {"kind": kind, "ref": ref, "uid": uid, "check": check}


def object_evidence(item: dict[str, Any], plural: str, path: str) -> dict[str, str]:
    """Evidence in an object's field: `path` is a kubectl JSON path such as `.status.verdict`."""
    meta = item["metadata"]
    check = f"kubectl -n {meta['namespace']} get {plural} {meta['name']} -o jsonpath='{{{path}}}'"
    return evidence(item["kind"], f"{meta['namespace']}/{meta['name']}", meta["uid"], check)


def metric_evidence(expression: str) -> dict[str, str]:
    """Evidence in a metric: the PromQL and the curl line that evaluates it."""
    check = f"curl -sG $PROMETHEUS_URL/api/v1/query --data-urlencode 'query={expression}'"
    return evidence("PromQL", expression, "", check)


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
    found: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    venv = root / ".venv"
    done = subprocess.run(["du", "-sb", str(venv)], capture_output=True, text=True)
    size = int(done.stdout.split()[0]) if done.returncode == 0 else 0
    return {
        "cold": found.get("cold", False),
        "seconds": found.get("seconds", 0.0),
        "disk_bytes": size,
        "steps": found.get("steps", []),
    }
