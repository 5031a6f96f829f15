"""Finds the control plane's binaries, or builds them with Go.

Order: `KUBEBUILDER_ASSETS` (etcd, kube-apiserver and kubectl only, as envtest defines it), the
user's cache, a build. Versions are pinned by the `go.mod` and `go.sum` files under `toolchain/`;
there is no Go code of ours. A built group lands in `<cache>/bin/<group>-<hash>/`, where the hash
covers the pins and the flags, so a changed pin builds anew and an old cache never lies.

`python -m trimwheel_local.binaries` builds everything with a progress bar. Go's own caches stay
inside the same cache folder. A `prometheus` on PATH is not picked up by itself, since nothing
says how old it is: name it in `TRIMWHEEL_PROMETHEUS_BIN` (a folder with prometheus and promtool),
which also brings its web pages, that the Go module does not carry.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from trimwheel_local.errors import BinaryError
from trimwheel_local.files import tail
from trimwheel_local.layout import cache_folder

TOOLCHAIN = Path(__file__).parent / "toolchain"
VERSION_PACKAGE = "k8s.io/component-base/version"
MINIMUM_GO = (1, 26)
SWITCHING_GO = (1, 21)
"""From this version on, Go downloads the newer toolchain that a go.mod file asks for."""

Progress = Callable[[str, float, float, str], None]
"""Called with (step, done, total, message); `total` 0 means that the end is unknown."""


def no_progress(name: str, done: float, total: float, message: str) -> None:
    """A `Progress` that says nothing."""


@dataclass(frozen=True)
class Group:
    """Binaries that one Go module pins and one `go build` makes."""

    name: str
    packages: tuple[tuple[str, str], ...]
    """(binary, package), in the order of building."""
    linker: str = ""
    tags: str = ""
    from_assets: frozenset[str] = frozenset()
    """Binaries that `KUBEBUILDER_ASSETS` may supply instead."""

    @property
    def module(self) -> Path:
        return TOOLCHAIN / self.name

    @property
    def flags(self) -> list[str]:
        tags = ["-tags", self.tags] if self.tags else []
        return ["-trimpath", *tags, "-ldflags", f"-s -w {self.linker}".strip()]

    @property
    def digest(self) -> str:
        """Twelve hex digits over pins, packages and flags."""
        content = hashlib.sha256(repr((self.packages, self.flags)).encode())
        for file in ("go.mod", "go.sum"):
            content.update((self.module / file).read_bytes())
        return content.hexdigest()[:12]

    @property
    def folder(self) -> Path:
        return cache_folder() / "bin" / f"{self.name}-{self.digest}"


def kubernetes_version() -> str:
    """The pinned release, `v1.2.3`."""
    text = (TOOLCHAIN / "kubernetes" / "go.mod").read_text()
    found = re.search(r"k8s\.io/kubernetes (v\d+\.\d+\.\d+)", text)
    assert found, "the go.mod of kubernetes requires k8s.io/kubernetes"
    return found[1]


def _kubernetes() -> Group:
    version = kubernetes_version()
    major, minor, _ = version.removeprefix("v").split(".")
    settings = {"gitVersion": version, "gitMajor": major, "gitMinor": minor}
    servers = ("kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubectl")
    return Group(
        name="kubernetes",
        packages=tuple((name, f"k8s.io/kubernetes/cmd/{name}") for name in servers),
        # Without the version, version-gated code takes itself for an ancient release.
        linker=" ".join(f"-X {VERSION_PACKAGE}.{key}={value}" for key, value in settings.items()),
        from_assets=frozenset({"kube-apiserver", "kubectl"}),
    )


def groups() -> tuple[Group, ...]:
    """Every group, the slowest build first."""
    prometheus = "github.com/prometheus/prometheus/cmd"
    return (
        _kubernetes(),
        Group("etcd", (("etcd", "go.etcd.io/etcd/server/v3"),), from_assets=frozenset({"etcd"})),
        Group("helm", (("helm", "helm.sh/helm/v4/cmd/helm"),)),
        Group(
            "prometheus",
            tuple((name, f"{prometheus}/{name}") for name in ("prometheus", "promtool")),
            tags="remove_all_sd,enable_kubernetes_sd",
        ),
    )


@dataclass(frozen=True)
class Binaries:
    """Where each binary is."""

    paths: dict[str, Path]

    def __getitem__(self, name: str) -> Path:
        return self.paths[name]

    @property
    def folders(self) -> list[Path]:
        """The folders to put on PATH, each once."""
        return list(dict.fromkeys(path.parent for path in self.paths.values()))


def search_path() -> str:
    """PATH on which a shell finds `trimwheel`, `kubectl trimwheel`, kubectl and promtool.

    Our own commands lie beside this interpreter; kubectl looks for its plugins on PATH.
    """
    folders = [Path(sys.executable).parent, *find().folders]
    return os.pathsep.join([*map(str, folders), os.environ.get("PATH", os.defpath)])


def all_names() -> frozenset[str]:
    """Every binary that there is a build for."""
    return frozenset(name for group in groups() for name, _ in group.packages)


def find() -> Binaries:
    """What is there already, without building; a missing binary is missing from `paths`."""
    return Binaries({name: path for name, path in _locations() if os.access(path, os.X_OK)})


def ensure(progress: Progress = no_progress, wanted: frozenset[str] | None = None) -> Binaries:
    """The wanted binaries, all unless said otherwise; builds what is missing.

    Raises BinaryError when Go is missing, too old, or a build fails. Interrupted builds resume:
    Go's caches keep every package that was compiled.
    """
    names = all_names() if wanted is None else wanted
    for group in groups():
        if missing := [name for name in missing_from(group) if name in names]:
            build(group, missing, progress)
    found = find()
    absent = sorted(names - found.paths.keys())
    if absent:
        raise BinaryError(f"still missing after the build: {', '.join(absent)}")
    return found


def missing_from(group: Group) -> list[str]:
    """The binaries of a group that are neither cached nor supplied."""
    found = find().paths
    return [name for name, _ in group.packages if name not in found]


def build(group: Group, wanted: list[str], progress: Progress = no_progress) -> None:
    """Build what is missing of one group; one builder at a time, each binary lands atomically."""
    check_go()
    group.folder.mkdir(parents=True, exist_ok=True)
    with (cache_folder() / "bin" / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        names = [name for name in missing_from(group) if name in wanted]
        packages = dict(group.packages)
        for number, name in enumerate(names):
            progress(name, number, len(names), f"building {name} with Go")
            _build_one(group, name, packages[name])
            progress(name, number + 1, len(names), f"built {name}")


def check_go() -> None:
    """Raise BinaryError unless a Go is there that is new enough, or fetches a newer one."""
    wanted = f"Go {MINIMUM_GO[0]}.{MINIMUM_GO[1]} or newer"
    if shutil.which("go") is None:
        raise BinaryError(f"go is not on PATH; install {wanted}, or set KUBEBUILDER_ASSETS")
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
            f"{text.strip()!r}; install a newer one from your distribution or go.dev/dl"
        )


def _locations() -> Iterator[tuple[str, Path]]:
    assets = os.environ.get("KUBEBUILDER_ASSETS")
    prometheus = os.environ.get("TRIMWHEEL_PROMETHEUS_BIN")
    for group in groups():
        for name, _ in group.packages:
            if assets and name in group.from_assets:
                yield name, Path(assets) / name
            elif prometheus and group.name == "prometheus":
                yield name, Path(prometheus) / name
            else:
                yield name, group.folder / name


def _build_one(group: Group, name: str, package: str) -> None:
    cache = cache_folder()
    log = cache / "bin" / f"{name}.log"
    caches = {"GOPATH": "go", "GOMODCACHE": "go/pkg/mod", "GOCACHE": "go-build"}
    own = {variable: str(cache / folder) for variable, folder in caches.items()}
    with tempfile.TemporaryDirectory(dir=group.folder, prefix=".build-") as scratch:
        # A module cache that is writable can be removed like any other folder.
        flags = ["-mod=readonly", "-modcacherw", *group.flags]
        command = ["go", "build", *flags, "-o", f"{scratch}/{name}", package]
        with log.open("wb") as output:
            outcome = subprocess.run(
                command,
                cwd=group.module,
                env={**os.environ, **own, "CGO_ENABLED": "0"},
                stdout=output,
                stderr=subprocess.STDOUT,
                check=False,
            )
        if outcome.returncode:
            raise BinaryError(f"{' '.join(command)} failed; the end of {log}:\n{tail(log)}")
        (Path(scratch) / name).rename(group.folder / name)


def main() -> None:
    """Build everything, with a progress bar."""
    from trimwheel_local.progress import progress_bar

    with progress_bar() as progress:
        found = ensure(progress)
    for folder in found.folders:
        progress("done", 1, 1, str(folder))


if __name__ == "__main__":
    main()
