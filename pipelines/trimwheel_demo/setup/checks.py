"""Can this machine do it? All that stands in the way at once, each with its remedy.

Called by `__main__` before anything is made; changes nothing.
"""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path

from trimwheel_demo.setup.cached import ROOT, cache_folder, is_cached
from trimwheel_demo.setup.supply import Supply

MINIMUM_PYTHON = (3, 11)
GIB = 2**30
NEEDED_DISK = {"python": 8 * GIB, "binaries": 6 * GIB, "model": GIB // 10}
"""Free space that a step takes when nothing of it is cached (packages and uv's cache share files
where the file system has hard links)."""
DISK_OF_RELEASES = 3 * GIB // 2
"""The same of the binaries when all of them are downloaded."""
NEEDED_MEMORY = 6 * GIB


def problems(steps: list[str], plan: str = "setup", supply: Supply | None = None) -> list[str]:
    """What stands in the way, each with its remedy; empty when nothing does.

    Without a supply every binary that is missing is taken for one to build.
    """
    found = [_python_problem(), *_input_problems()]
    if supply is not None and supply.problem:
        found.append(supply.problem)
        steps = [name for name in steps if name != "binaries"]
    missing = [name for name in steps if not is_cached(name)]
    builds = "binaries" in missing and (supply is None or bool(supply.built))
    found += [_memory_problem(), _disk_problem(missing, builds)]
    if builds:
        found.append(_go_problem(supply.reasons if supply is not None else ""))
    if plan == "demo" and not os.environ.get("TRIMWHEEL_USE_KUBECONFIG"):
        found.append(_port_problem())
    return [text for text in found if text]


def _input_problems() -> list[str]:
    """Options that could not work; the demo itself looks closer, once its packages are there."""
    found = []
    for name in ("SEED", "TRIMWHEEL_INDEX"):
        text = os.environ.get(name) or "0"
        if not (text.isascii() and text.isdigit() and len(text) <= 10):
            found.append(
                f"{name} must be a whole number, but is {text!r}: leave it out, or {name}=1"
            )
    policy = os.environ.get("BAD_POLICY")
    if policy and not os.access(policy, os.R_OK):
        found.append(f"BAD_POLICY names {policy!r}, which cannot be read: name a JSON or YAML file")
    return found


def _port_problem() -> str:
    """The API server's and the kubelet's ports; Services and pods have addresses of their own."""
    from trimwheel_api.errors import InvalidInput
    from trimwheel_local.files import read_json
    from trimwheel_local.layout import Layout
    from trimwheel_local.processes import ProcessId

    state = Path(os.environ.get("TRIMWHEEL_STATE") or ROOT / ".trimwheel")
    index = os.environ.get("TRIMWHEEL_INDEX") or "0"
    if not (index.isascii() and index.isdigit() and len(index) <= 10):
        return ""  # said already
    try:
        layout = Layout(state, int(index))
    except InvalidInput as error:
        return f"TRIMWHEEL_INDEX: {error}"
    supervisor = ProcessId.load((read_json(layout.record) or {}).get("process"))
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


def _go_problem(reasons: str = "") -> str:
    remedy = "install Go 1.26, or 1.21 and newer with toolchain download, from go.dev/dl"
    if reasons:
        remedy += f", or let the official releases be reached ({reasons})"
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


def _disk_problem(missing: list[str], builds: bool) -> str:
    needed = sum(NEEDED_DISK[name] for name in missing)
    if "binaries" in missing and not builds:
        needed += DISK_OF_RELEASES - NEEDED_DISK["binaries"]
    folder = next(p for p in (cache_folder(), *cache_folder().parents) if p.exists())
    free = min(shutil.disk_usage(ROOT).free, shutil.disk_usage(folder).free)
    if free < needed:
        return (
            f"{free / GIB:.1f} GiB of disk are free, {needed / GIB:.0f} are needed: make room, "
            "or point TRIMWHEEL_CACHE to another disk"
        )
    return ""
