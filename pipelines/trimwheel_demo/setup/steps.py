"""The three steps of a set-up: Python packages, Go builds, the demo's model.

Each resumes where it was interrupted, writes what it ran to a log of its own, and counts how far it
is where it can. Called by `lanes`.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from trimwheel_demo.setup.cached import (
    LOGS,
    ROOT,
    VENV,
    cache_folder,
    fresh,
    missing_binaries,
    model_note,
    python_stamp,
)

SECONDS = {"python": 240.0, "binaries": 600.0, "model": 200.0}
"""Usual time on two cores with nothing cached; of the progress bars only the builds' goes by it."""
DISK_OF_PACKAGES = 7 * 2**30
TITLES = {
    "python": "Python packages into .venv, bytecode compiled",
    "binaries": "Kubernetes, etcd, helm, kubectl and Prometheus, built with Go",
    "model": "a small encoder with exits, trained on Python's own standard library",
}


@dataclass
class Step:
    """One step and how far it is."""

    name: str
    run: Callable[[Step], None]
    cached: bool = False
    state: str = "waiting"
    seconds: float = 0.0
    started: float = 0.0
    message: str = ""
    fraction: Callable[[], float] | None = field(default=None, repr=False)

    @property
    def log(self) -> Path:
        return LOGS / f"{self.name}.log"

    def progress(self) -> float:
        """Share done: counted where the step can count, else by the clock and never quite full."""
        if self.state == "done":
            return 1.0
        if self.fraction is not None:
            return min(self.fraction(), 0.99)
        elapsed = time.monotonic() - self.started if self.started else 0.0
        return min(elapsed / SECONDS[self.name], 0.99)


class StepFailed(Exception):
    """A step ended with an error; the message holds the end of its log."""


def install_python(step: Step) -> None:
    """A virtual environment, uv with a pinned hash, then every pinned package."""
    python = VENV / "bin/python"
    if not python.exists():
        _call(step, [sys.executable, "-m", "venv", str(VENV)], "creating .venv")
    cache = cache_folder()
    env = {
        "UV_CACHE_DIR": str(cache / "uv"),
        "PIP_CACHE_DIR": str(cache / "pip"),
        "UV_COMPILE_BYTECODE": "1",  # torch then imports in 1.3 s instead of 4
        "UV_HTTP_TIMEOUT": "300",
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
    }
    uv = VENV / "bin/uv"
    bootstrap = str(ROOT / "requirements/bootstrap.txt")
    if not uv.exists():
        pip = [str(python), "-m", "pip", "install", "-q", "--require-hashes", "-r", bootstrap]
        _call(step, pip, "installing uv", env)
    start = shutil.disk_usage(ROOT).free
    step.fraction = lambda: (start - shutil.disk_usage(ROOT).free) / DISK_OF_PACKAGES
    common = [str(uv), "pip", "install", "--python", str(python)]
    lock = str(ROOT / "requirements/dev.txt")
    _call(step, [*common, "--require-hashes", "-r", lock], "downloading packages", env)
    _call(step, [*common, "--no-deps", "-e", str(ROOT)], "installing trimwheel", env)
    for stale in VENV.glob(".trimwheel-*"):
        stale.unlink()
    python_stamp().touch()


def build_binaries(step: Step) -> None:
    """The control plane, with Go; the module that knows how needs no installed package either."""
    total = len(missing_binaries())
    step.fraction = lambda: _share_built(total, step)
    env = {"PYTHONPATH": str(ROOT / "operator")}
    script = (
        "import sys; from trimwheel_local import binaries; "
        "binaries.ensure(wanted=frozenset(sys.argv[1:]))"
    )
    command = [sys.executable, "-c", script, *missing_binaries()]
    _call(step, command, f"building {total} binaries", env)


def _share_built(total: int, step: Step) -> float:
    left = missing_binaries()
    step.message = f"building {left[0]}" if left else "built"
    by_clock = (time.monotonic() - step.started) / SECONDS["binaries"]
    return max((total - len(left)) / max(total, 1), min(by_clock, 0.95))


def train_model(step: Step) -> None:
    """The demo's encoder; cached by seed and recipe."""
    anew = ["--retrain"] if fresh() else []
    done = LOGS / "model.progress"
    done.write_text("0\n")
    # An empty file is one that is being written.
    step.fraction = lambda: float(done.read_text() or 0.0)
    told = ["--progress-file", str(done), "-o", "json"]
    _call(step, [*_train(), *anew, *told], "training the encoder on one core")
    answer = step.log.read_text()
    folder = json.loads(answer[answer.index("{\n") :])["folder"]
    model_note().write_text(f"{folder}\n")


def _call(step: Step, command: list[str], message: str, env: dict[str, str] | None = None) -> None:
    step.message = message
    with step.log.open("ab") as log:
        outcome = subprocess.run(
            command,
            stdout=log,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            cwd=ROOT,
            env={**os.environ, **(env or {})},
        )
    if outcome.returncode:
        end = step.log.read_text(errors="replace").strip().splitlines()[-12:]
        raise StepFailed(
            f"{TITLES[step.name]}: `{' '.join(command)}` failed; the end of {step.log}:\n  "
            + "\n  ".join(end)
        )


def _train() -> list[str]:
    seed = os.environ.get("SEED") or "0"
    return [str(VENV / "bin/python"), "-m", "trimwheel_demo.training", "--seed", seed]


RUNNERS = {"python": install_python, "binaries": build_binaries, "model": train_model}
