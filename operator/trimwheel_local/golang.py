"""Builds a pinned binary with Go, and reports what the compiler is at.

Called by `binaries` for what no official release supplied. Interrupted builds resume: Go's own
caches lie in the same cache folder and keep every package that was compiled.
"""

from __future__ import annotations

import os
import re
import select
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from trimwheel_local.errors import BinaryError
from trimwheel_local.files import tail
from trimwheel_local.layout import cache_folder
from trimwheel_local.pins import Group

MINIMUM_GO = (1, 26)
SWITCHING_GO = (1, 21)
"""From this version on, Go downloads the newer toolchain that a go.mod file asks for."""

USUAL_SECONDS = {
    "etcd": 60,
    "kube-apiserver": 310,
    "kube-controller-manager": 70,
    "kube-scheduler": 6,
    "kubectl": 30,
    "helm": 200,
    "prometheus": 185,
    "promtool": 5,
}
"""On two cores, nothing cached, in the order of `groups()`: later ones reuse packages of earlier
ones. The bars and the plan go by it."""

Tick = Callable[[float, str], None]
"""Called about once a second with (seconds so far, what Go is at)."""


def check_go(reason: str = "") -> None:
    """Raise BinaryError unless a Go is there that is new enough, or fetches a newer one.

    `reason` is why a build is needed at all.
    """
    wanted = f"Go {MINIMUM_GO[0]}.{MINIMUM_GO[1]} or newer"
    because = f" (the official release cannot be had: {reason})" if reason else ""
    if shutil.which("go") is None:
        raise BinaryError(
            f"go is not on PATH; install {wanted}, or set KUBEBUILDER_ASSETS{because}"
        )
    # Outside of a module, so that no go.mod file starts a toolchain download here.
    text = subprocess.run(
        ["go", "version"], capture_output=True, text=True, check=True, cwd="/"
    ).stdout
    found = re.search(r"go(\d+)\.(\d+)", text)
    version = (int(found[1]), int(found[2])) if found else (0, 0)
    local_only = os.environ.get("GOTOOLCHAIN", "") in {"local", "path"}
    if version < (MINIMUM_GO if local_only else SWITCHING_GO):
        raise BinaryError(
            f"go must be {wanted} (or 1.21 with toolchain download), but `go version` says "
            f"{text.strip()!r}; install a newer one from your distribution or go.dev/dl{because}"
        )


def build(group: Group, name: str, tick: Tick) -> None:
    """Build one binary of a group; it lands atomically. Raises BinaryError."""
    check_go()
    group.folder.mkdir(parents=True, exist_ok=True)
    log = cache_folder() / "bin" / f"{name}.log"
    with tempfile.TemporaryDirectory(dir=group.folder, prefix=".build-") as scratch:
        # A module cache that is writable can be removed like any other folder.
        flags = ["-v", "-mod=readonly", "-modcacherw", *group.flags]
        command = ["go", "build", *flags, "-o", f"{scratch}/{name}", dict(group.packages)[name]]
        with _running(command, group.module) as process:
            _follow(process, log, tick)
        if process.returncode:
            raise BinaryError(f"{' '.join(command)} failed; the end of {log}:\n{tail(log)}")
        (Path(scratch) / name).rename(group.folder / name)


@contextmanager
def _running(command: list[str], module: Path) -> Iterator[subprocess.Popen[bytes]]:
    """The build's process, which ends with us: an interrupt reaches Go's compilers as well."""
    cache = cache_folder()
    caches = {"GOPATH": "go", "GOMODCACHE": "go/pkg/mod", "GOCACHE": "go-build"}
    own = {variable: str(cache / folder) for variable, folder in caches.items()}
    process = subprocess.Popen(
        command,
        cwd=module,
        env={**os.environ, **own, "CGO_ENABLED": "0"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        assert process.stdout is not None
        process.stdout.close()


def _follow(process: subprocess.Popen[bytes], log: Path, tick: Tick) -> None:
    """Copy what Go prints to the log until it ends, ticking with what it is at."""
    assert process.stdout is not None
    started = time.monotonic()
    compiled, rest, doing = 0, b"", "reading what there is to compile"
    with log.open("wb") as output:
        while True:
            tick(time.monotonic() - started, doing)
            if not select.select([process.stdout], [], [], 1.0)[0]:
                continue
            data = os.read(process.stdout.fileno(), 1 << 16)
            if not data:
                break
            output.write(data)
            output.flush()
            *lines, rest = (rest + data).split(b"\n")
            for line in lines:
                if line.startswith(b"go: downloading"):
                    doing = "downloading its sources"
                elif line and not line.startswith((b"go: ", b"#", b"\t")):
                    compiled += 1
                    doing = f"{compiled} packages compiled"
    process.wait()
