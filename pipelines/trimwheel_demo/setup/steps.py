"""The three steps of a set-up: Python packages, the control plane's binaries, the demo's model.

Each resumes where it was interrupted, writes what it ran to a log of its own, and counts how far it
is where it can. Called by `lanes`.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
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

SECONDS = {"python": 240.0, "model": 200.0}
"""Usual time on two cores with nothing cached, for the plan."""
DISK_OF_PACKAGES = 7 * 2**30
TITLES = {
    "python": "Python packages into .venv, bytecode compiled",
    "binaries": "Kubernetes, etcd, helm, kubectl and Prometheus",
    "model": "a small encoder with exits, trained on Python's own standard library",
}
KEPT = {
    "python": "packages that were downloaded are kept",
    "binaries": "what was downloaded and compiled is kept",
    "model": "training goes on from its last checkpoint",
}
"""What an interrupted step leaves for the next call."""
INTERRUPTED = 130


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
    process: subprocess.Popen[bytes] | None = field(default=None, repr=False)
    stopping: bool = False
    lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    @property
    def log(self) -> Path:
        return LOGS / f"{self.name}.log"

    def progress(self) -> float:
        """Share done, never quite full while the step runs."""
        if self.state == "done":
            return 1.0
        return min(self.fraction(), 0.99) if self.fraction is not None else 0.0

    def stop(self, patience: float = 10.0) -> None:
        """Interrupt what runs, with all that it started; nothing more is started."""
        with self.lock:
            self.stopping = True
        if self.process is None or self.process.poll() is not None:
            return
        for number in (signal.SIGINT, signal.SIGKILL):
            try:
                os.killpg(self.process.pid, number)
                self.process.wait(patience)
            except ProcessLookupError:
                return
            except subprocess.TimeoutExpired:
                continue
            return


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
    step.fraction = lambda: _installed(step, start)
    common = [str(uv), "pip", "install", "--python", str(python)]
    lock = str(ROOT / "requirements/dev.txt")
    _call(step, [*common, "--require-hashes", "-r", lock], "downloading packages", env)
    _call(step, [*common, "--no-deps", "-e", str(ROOT)], "installing trimwheel", env)
    for stale in VENV.glob(".trimwheel-*"):
        stale.unlink()
    python_stamp().touch()


def _installed(step: Step, start: int) -> float:
    """The share by the disk that packages take; uv's own lines say what it is at."""
    told = step.log.read_text(errors="replace")
    if "Installed " in told:
        step.message = "compiling bytecode"
    elif "Prepared " in told:
        step.message = "installing packages"
    return (start - shutil.disk_usage(ROOT).free) / DISK_OF_PACKAGES


def get_binaries(step: Step, built: Sequence[str] = ()) -> None:
    """The control plane, downloaded or built; the module that knows how needs no package either.

    `built` are those that no origin has to be asked for again.
    """
    state = LOGS / "binaries.progress"
    state.unlink(missing_ok=True)
    step.fraction = lambda: _told(state, step)
    names = missing_binaries()
    command = [sys.executable, "-m", "trimwheel_local.binaries", "--progress-file", str(state)]
    command += ["--wanted", ",".join(names), "--build", ",".join(built)]
    env = {"PYTHONPATH": str(ROOT / "operator")}
    _call(step, command, f"getting {len(names)} binaries", env)


def _told(state: Path, step: Step) -> float:
    """The share that the running command noted; what it is at becomes the step's message."""
    try:
        told = json.loads(state.read_text())
    except FileNotFoundError:
        return 0.0
    step.message = told["message"]
    return float(told["share"])


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
    """Run a command to its end, in a session of its own: Ctrl-C is passed on by `stop` alone."""
    step.message = message
    with step.log.open("ab") as log:
        with step.lock:
            if step.stopping:
                raise StepFailed(f"{TITLES[step.name]}: interrupted")
            step.process = subprocess.Popen(
                command,
                stdout=log,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                cwd=ROOT,
                env={**os.environ, **(env or {})},
                start_new_session=True,
            )
        code = step.process.wait()
    if code:
        end = step.log.read_text(errors="replace").strip().splitlines()[-12:]
        what = f"{TITLES[step.name]}: `{' '.join(command)}` {_ending(step, code)}"
        raise StepFailed("\n  ".join([f"{what}; the end of {step.log}:", *end]))


def _ending(step: Step, code: int) -> str:
    """How a command that failed ended; a signal is no fault of its own."""
    if code == -signal.SIGKILL:
        return "was killed (by the kernel, if memory ran out)"
    if code < 0 or code == INTERRUPTED:
        name = signal.Signals(-code).name if code < 0 else "SIGINT"
        return f"was interrupted by {name} ({KEPT[step.name]})"
    return f"failed with exit code {code}"


def _train() -> list[str]:
    seed = os.environ.get("SEED") or "0"
    return [str(VENV / "bin/python"), "-m", "trimwheel_demo.training", "--seed", seed]


RUNNERS: dict[str, Callable[[Step], None]] = {
    "python": install_python,
    "binaries": get_binaries,
    "model": train_model,
}
