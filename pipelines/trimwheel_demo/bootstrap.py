"""From a bare machine to an installed Trimwheel; runs before anything of ours is installed.

Called by the Makefile with the system's python3, so it uses the standard library alone. It checks
the machine (all failures at once, each with its remedy), says what it is about to do, and then
runs the steps that are not cached: Python packages and the demo's model in one lane, the Go builds
of the control plane in another. An interrupted run resumes where it stopped. Timings go to
`build/setup.json` for the demo's report. It never touches `~/.kube/config`, nor anything outside
the repository's folder and one cache folder.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
VENV = ROOT / ".venv"
BUILD = ROOT / "build"
LOGS = BUILD / "setup-logs"
MINIMUM_PYTHON = (3, 11)
GIB = 2**30
NEEDED_DISK = {"python": 8 * GIB, "binaries": 6 * GIB, "model": GIB // 10}
"""Free space that a step takes when nothing of it is cached (packages and uv's cache share files
where the file system has hard links)."""
NEEDED_MEMORY = 6 * GIB
SECONDS = {"python": 240.0, "binaries": 600.0, "model": 200.0}
"""Usual time on two cores with nothing cached; only the progress bars' pace depends on it."""
SIZES = {
    "python": "6 GB (torch from PyPI brings CUDA)",
    "binaries": "0.6 GB (3 GB with Go's cache)",
    "model": "10 MB",
}
TITLES = {
    "python": "Python packages into .venv, bytecode compiled",
    "binaries": "Kubernetes, etcd, helm, kubectl and Prometheus, built with Go",
    "model": "a small encoder with exits, trained on Python's own standard library",
}


def cache_folder() -> Path:
    """The one folder outside the repository that is written to."""
    home = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(os.environ.get("TRIMWHEEL_CACHE") or Path(home) / "trimwheel")


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


# --- checks -----------------------------------------------------------------------------------


def problems(steps: list[str], plan: str = "setup") -> list[str]:
    """What stands in the way, each with its remedy; empty when nothing does."""
    found = [_python_problem(), *_input_problems()]
    missing = [name for name in steps if not is_cached(name)]
    found += [_memory_problem(), _disk_problem(missing)]
    if "binaries" in missing:
        found.append(_go_problem())
    if plan == "demo" and not os.environ.get("TRIMWHEEL_USE_KUBECONFIG"):
        found.append(_port_problem())
    return [text for text in found if text]


def _input_problems() -> list[str]:
    """Options that could not work; the demo itself looks closer, once its packages are there."""
    found = []
    for name in ("SEED", "TRIMWHEEL_INDEX"):
        text = os.environ.get(name) or "0"
        if not (text.isascii() and text.isdigit()):
            found.append(
                f"{name} must be a whole number, but is {text!r}: leave it out, or {name}=1"
            )
    policy = os.environ.get("BAD_POLICY")
    if policy and not os.access(policy, os.R_OK):
        found.append(f"BAD_POLICY names {policy!r}, which cannot be read: name a JSON or YAML file")
    return found


def _port_problem() -> str:
    """The API server's and the kubelet's ports; Services and pods have addresses of their own."""
    sys.path.insert(0, str(ROOT / "operator"))
    try:
        from trimwheel_api.errors import InvalidInput
        from trimwheel_local.layout import Layout
        from trimwheel_local.processes import ProcessId
    finally:
        sys.path.pop(0)
    state = Path(os.environ.get("TRIMWHEEL_STATE") or ROOT / ".trimwheel")
    index = os.environ.get("TRIMWHEEL_INDEX") or "0"
    if not index.isdigit():
        return ""  # said already
    try:
        layout = Layout(state, int(index))
    except InvalidInput as error:
        return f"TRIMWHEEL_INDEX: {error}"
    record = json.loads(layout.record.read_text()) if layout.record.exists() else {}
    supervisor = ProcessId.load(record.get("process"))
    if supervisor is not None and supervisor.alive():
        return ""  # a cluster of ours, which the demo removes or uses
    taken = [port for port in (layout.api_port, layout.kubelet_port) if not _is_free(port)]
    if not taken:
        return ""
    ports = " and ".join(str(port) for port in taken)
    return (
        f"port {ports} of 127.0.0.1 is taken: stop what listens there (`make down` in another "
        f"checkout?), or choose other ports with TRIMWHEEL_INDEX={int(index) + 1}"
    )


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def _python_problem() -> str:
    if sys.version_info < MINIMUM_PYTHON:
        return f"Python {sys.version.split()[0]} is too old: install Python 3.11 or newer"
    probe = subprocess.run([sys.executable, "-c", "import venv, ensurepip"], capture_output=True)
    if probe.returncode:
        return "Python's venv module is missing: apt-get install python3-venv"
    return ""


def _go_problem() -> str:
    remedy = "install Go 1.26, or 1.21 and newer with toolchain download, from go.dev/dl"
    go = shutil.which("go")
    if go is None:
        return (
            f"go is not on PATH: {remedy} (KUBEBUILDER_ASSETS supplies etcd, kube-apiserver and "
            "kubectl alone: the other binaries are built all the same)"
        )
    text = subprocess.run([go, "version"], capture_output=True, text=True, cwd="/").stdout
    found = re.search(r"go(\d+)\.(\d+)", text)
    version = (int(found[1]), int(found[2])) if found else (0, 0)
    local_only = os.environ.get("GOTOOLCHAIN", "") in ("local", "path")
    if version < ((1, 26) if local_only else (1, 21)):
        return f"{text.strip() or 'go version'} is too old: {remedy} (Debian 12's own is 1.19)"
    return ""


def _memory_problem() -> str:
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            available = int(line.split()[1]) * 1024
            if available < NEEDED_MEMORY:
                return (
                    f"{available / GIB:.1f} GiB of memory are free, "
                    f"{NEEDED_MEMORY // GIB} are needed: close something"
                )
    return ""


def _disk_problem(missing: list[str]) -> str:
    needed = sum(NEEDED_DISK[name] for name in missing)
    folder = next(p for p in (cache_folder(), *cache_folder().parents) if p.exists())
    free = min(shutil.disk_usage(ROOT).free, shutil.disk_usage(folder).free)
    if free < needed:
        return (
            f"{free / GIB:.1f} GiB of disk are free, {needed / GIB:.0f} are needed: make room, "
            "or point TRIMWHEEL_CACHE to another disk"
        )
    return ""


# --- what is cached ---------------------------------------------------------------------------


def python_stamp() -> Path:
    """Exists once the packages of exactly this lock are installed."""
    content = (ROOT / "requirements/dev.txt").read_bytes() + (ROOT / "pyproject.toml").read_bytes()
    return VENV / f".trimwheel-{hashlib.sha256(content).hexdigest()[:16]}"


def is_cached(name: str) -> bool:
    """Whether a step has nothing to do."""
    if name == "python":
        return python_stamp().exists()
    if name == "binaries":
        return not _missing_binaries()
    return not _fresh() and _trained_model() is not None


def _model_note() -> Path:
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


def _trained_model() -> Path | None:
    """Folder of the trained model that an earlier run noted; None when it is gone or outdated."""
    note = _model_note()
    folder = Path(note.read_text().strip()) if note.exists() else None
    return folder if folder is not None and folder.exists() else None


def _missing_binaries() -> list[str]:
    sys.path.insert(0, str(ROOT / "operator"))
    try:
        from trimwheel_local import binaries
    finally:
        sys.path.pop(0)
    wanted = needed_binaries(binaries.all_names())
    missing = [name for group in binaries.groups() for name in binaries.missing_from(group)]
    return [name for name in missing if name in wanted]


def needed_binaries(
    everything: frozenset[str], environ: Mapping[str, str] = os.environ
) -> frozenset[str]:
    """What has to be built here: not what a cluster or a Prometheus of one's own stands in for."""
    if environ.get("TRIMWHEEL_USE_KUBECONFIG"):
        return everything & {"helm", "kubectl"}
    if environ.get("TRIMWHEEL_USE_PROMETHEUS"):
        return everything - {"prometheus", "promtool"}
    return everything


def _train() -> list[str]:
    seed = os.environ.get("SEED") or "0"
    return [str(VENV / "bin/python"), "-m", "trimwheel_demo.training", "--seed", seed]


def _fresh() -> bool:
    """FRESH=1: train anew, whatever is cached."""
    return os.environ.get("FRESH") in ("1", "true", "yes")


# --- steps ------------------------------------------------------------------------------------


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
    step.fraction = lambda: (start - shutil.disk_usage(ROOT).free) / (7 * GIB)
    common = [str(uv), "pip", "install", "--python", str(python)]
    lock = str(ROOT / "requirements/dev.txt")
    _call(step, [*common, "--require-hashes", "-r", lock], "downloading packages", env)
    _call(step, [*common, "--no-deps", "-e", str(ROOT)], "installing trimwheel", env)
    for stale in VENV.glob(".trimwheel-*"):
        stale.unlink()
    python_stamp().touch()


def build_binaries(step: Step) -> None:
    """The control plane, with Go; the module that knows how needs no installed package either."""
    total = len(_missing_binaries())
    step.fraction = lambda: _share_built(total, step)
    env = {"PYTHONPATH": str(ROOT / "operator")}
    script = (
        "import sys; from trimwheel_local import binaries; "
        "binaries.ensure(wanted=frozenset(sys.argv[1:]))"
    )
    command = [sys.executable, "-c", script, *_missing_binaries()]
    _call(step, command, f"building {total} binaries", env)


def _share_built(total: int, step: Step) -> float:
    left = _missing_binaries()
    step.message = f"building {left[0]}" if left else "built"
    by_clock = (time.monotonic() - step.started) / SECONDS["binaries"]
    return max((total - len(left)) / max(total, 1), min(by_clock, 0.95))


def train_model(step: Step) -> None:
    """The demo's encoder; cached by seed and recipe."""
    anew = ["--retrain"] if _fresh() else []
    done = LOGS / "model.progress"
    done.write_text("0\n")
    # An empty file is one that is being written.
    step.fraction = lambda: float(done.read_text() or 0.0)
    told = ["--progress-file", str(done), "-o", "json"]
    _call(step, [*_train(), *anew, *told], "training the encoder on one core")
    answer = step.log.read_text()
    folder = json.loads(answer[answer.index("{\n") :])["folder"]
    _model_note().write_text(f"{folder}\n")


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


RUNNERS = {"python": install_python, "binaries": build_binaries, "model": train_model}
LANES = (("python", "model"), ("binaries",))
"""The model needs the packages; the Go builds need neither."""


# --- running and showing ----------------------------------------------------------------------


def run_steps(steps: list[Step]) -> None:
    """Run both lanes at once, showing how far each step is. Raises StepFailed."""
    failures: list[Exception] = []
    by_name = {step.name: step for step in steps}
    lanes = [[by_name[name] for name in lane if name in by_name] for lane in LANES]
    threads = [threading.Thread(target=_run_lane, args=(lane, failures)) for lane in lanes if lane]
    for thread in threads:
        thread.start()
    _show(steps, threads)
    if failures:
        raise failures[0]


def _run_lane(lane: list[Step], failures: list[Exception]) -> None:
    for step in lane:
        if failures:
            return
        step.started = time.monotonic()
        try:
            step.cached = is_cached(step.name)
            if not step.cached:
                step.state = "running"
                step.log.write_text("")
                step.run(step)
            step.state = "done"
        except Exception as error:  # shown and raised by the main thread
            step.state = "failed"
            failures.append(error)
            return
        finally:
            step.seconds = time.monotonic() - step.started


def _show(steps: list[Step], threads: list[threading.Thread]) -> None:
    terminal = sys.stdout.isatty()
    drawn = 0
    last = time.monotonic()
    while True:
        alive = any(thread.is_alive() for thread in threads)
        lines = [_line(step) for step in steps if not step.cached and step.started]
        if terminal and lines:
            sys.stdout.write(f"\x1b[{drawn}F" if drawn else "")
            sys.stdout.write("".join(f"\x1b[2K{line}\n" for line in lines))
            drawn = len(lines)
        elif lines and (time.monotonic() - last > 20 or not alive):
            sys.stdout.write("".join(f"{line}\n" for line in lines))
            last = time.monotonic()
        sys.stdout.flush()
        if not alive:
            return
        for thread in threads:
            thread.join(0.25)


def _line(step: Step) -> str:
    share = step.progress()
    bar = "#" * round(share * 24)
    elapsed = step.seconds or (time.monotonic() - step.started if step.started else 0.0)
    return (
        f"  {step.name:<9} [{bar:<24}] {share:4.0%} {elapsed:5.0f} s  "
        f"{step.state if step.state != 'running' else step.message}"
    )


PLANS = {
    "demo": "Trimwheel's demo: the whole loop on this machine, without root, Docker or a cluster.",
    "test": "Trimwheel's tests, on a real API server started here.",
    "setup": "Setting Trimwheel up.",
}


def print_plan(kind: str, missing: list[str]) -> None:
    """What will happen, how long it usually takes, and what stays untouched."""
    out = [PLANS[kind], ""]
    for name in missing:
        out.append(
            f"  will make   {TITLES[name]}: about {SECONDS[name] / 60:.0f} min, {SIZES[name]}"
        )
    out.append(f"  writes to   {ROOT} and {cache_folder()}")
    out.append("  leaves be   ~/.kube/config and everything else; ambient KUBECONFIG,")
    out.append("              PROMETHEUS_URL and MLFLOW_TRACKING_URI are ignored")
    skips = "KUBEBUILDER_ASSETS, TRIMWHEEL_USE_KUBECONFIG, TRIMWHEEL_USE_PROMETHEUS, "
    out.append(f"  can skip    {skips}TRIMWHEEL_USE_MLFLOW:")
    out.append("              docs/how-to/your-own-services.md")
    sys.stdout.write("\n".join(out) + "\n\n")
    sys.stdout.flush()


def write_timings(steps: list[Step], seconds: float) -> None:
    """`build/setup.json`: what the demo's report says about the set-up."""
    cold = any(not step.cached for step in steps)
    rows = [
        {"name": step.name, "seconds": round(step.seconds, 1), "cached": step.cached}
        for step in steps
    ]
    previous = BUILD / "setup.json"
    record = {"cold": cold, "seconds": round(seconds, 1), "steps": rows}
    if not cold and previous.exists():
        first = json.loads(previous.read_text())
        record["first_run"] = first.get("first_run") or (first if first.get("cold") else None)
    previous.write_text(json.dumps(record, indent=2) + "\n")


def main() -> int:
    """Check, plan, run. Exit 0 done, 1 a step failed, 2 the machine lacks something."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", default="python,binaries,model")
    parser.add_argument("--plan", default="setup", choices=[*PLANS, "quiet"])
    options = parser.parse_args()
    names = [name for name in options.steps.split(",") if name]
    found = problems(names, options.plan)
    if found:
        sys.stderr.write("This machine is not ready:\n")
        sys.stderr.write("".join(f"  - {text}\n" for text in found))
        return 2
    started = time.monotonic()
    missing = [name for name in names if not is_cached(name)]
    if options.plan != "quiet" and (missing or options.plan == "demo"):
        print_plan(options.plan, missing)
    LOGS.mkdir(parents=True, exist_ok=True)
    steps = [Step(name, RUNNERS[name]) for name in names]
    try:
        run_steps(steps)
    except StepFailed as error:
        sys.stderr.write(f"{error}\nRun the same command again: finished parts are kept.\n")
        return 1
    write_timings(steps, time.monotonic() - started)
    return 0


if __name__ == "__main__":
    sys.exit(main())
