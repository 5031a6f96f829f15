"""Which binaries there are, and what pins their versions: the modules under `toolchain/`.

`golang` builds them, `releases` knows their official releases, `binaries` decides between the two.
A built group lands in `<cache>/bin/<group>-<hash>/`, where the hash covers the pins and the flags,
and a release in `<cache>/bin/<group>-<version>-<platform>/`: a changed pin makes a new folder, and
what was built is never taken for what was released.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path

from trimwheel_local.layout import cache_folder

TOOLCHAIN = Path(__file__).parent / "toolchain"
VERSION_PACKAGE = "k8s.io/component-base/version"


@dataclass(frozen=True)
class Group:
    """Binaries that one Go module pins and one project releases together."""

    name: str
    module_path: str
    """The Go module whose version is the release's."""
    packages: tuple[tuple[str, str], ...]
    """(binary, package), in the order in which the story needs them."""
    linker: str = ""
    tags: str = ""
    from_assets: frozenset[str] = frozenset()
    """Binaries that `KUBEBUILDER_ASSETS` may supply instead."""

    @property
    def module(self) -> Path:
        return TOOLCHAIN / self.name

    @property
    def version(self) -> str:
        """The pinned version of the Go module, `v1.2.3`."""
        return _required(self.name, self.module_path)

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
        """Where builds of this group land."""
        return cache_folder() / "bin" / f"{self.name}-{self.digest}"


def kubernetes_version() -> str:
    """The pinned release, `v1.2.3`."""
    return _required("kubernetes", "k8s.io/kubernetes")


def groups() -> tuple[Group, ...]:
    """Every group, in the order in which the story needs them.

    The cluster comes first, then kubectl and helm, which install the chart, then Prometheus.
    """
    prometheus = "github.com/prometheus/prometheus"
    etcd, helm = "go.etcd.io/etcd/server/v3", "helm.sh/helm/v4"
    return (
        Group("etcd", etcd, (("etcd", etcd),), from_assets=frozenset({"etcd"})),
        _kubernetes(),
        Group("helm", helm, (("helm", f"{helm}/cmd/helm"),)),
        Group(
            "prometheus",
            prometheus,
            tuple((name, f"{prometheus}/cmd/{name}") for name in ("prometheus", "promtool")),
            tags="remove_all_sd,enable_kubernetes_sd",
        ),
    )


def all_names() -> frozenset[str]:
    """Every binary that is pinned."""
    return frozenset(name for group in groups() for name, _ in group.packages)


def _kubernetes() -> Group:
    version = kubernetes_version()
    major, minor, _ = version.removeprefix("v").split(".")
    settings = {"gitVersion": version, "gitMajor": major, "gitMinor": minor}
    servers = ("kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubectl")
    return Group(
        name="kubernetes",
        module_path="k8s.io/kubernetes",
        packages=tuple((name, f"k8s.io/kubernetes/cmd/{name}") for name in servers),
        # Without the version, version-gated code takes itself for an ancient release.
        linker=" ".join(f"-X {VERSION_PACKAGE}.{key}={value}" for key, value in settings.items()),
        from_assets=frozenset({"kube-apiserver", "kubectl"}),
    )


def _required(group: str, module_path: str) -> str:
    text = (TOOLCHAIN / group / "go.mod").read_text()
    line = re.search(rf"^\s*(?:require )?{re.escape(module_path)} (v\d+\.\d+\.\d+)", text, re.M)
    assert line, f"the go.mod of {group} requires {module_path}"
    return line[1]
