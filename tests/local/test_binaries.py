"""Where binaries come from, and what pins them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from trimwheel_local import binaries, golang, pins
from trimwheel_local.errors import BinaryError

REFUSES = "http://127.0.0.1:9"
"""An origin of releases that nothing listens at."""


def executable(path: Path, text: str = "#!/bin/sh\n") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)
    return path


@pytest.fixture
def empty(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """No binary anywhere; returns the cache folder."""
    monkeypatch.setenv("TRIMWHEEL_CACHE", str(tmp_path / "cache"))
    for name in ("KUBEBUILDER_ASSETS", "TRIMWHEEL_PROMETHEUS_BIN", "TRIMWHEEL_BINARIES"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TRIMWHEEL_RELEASES", REFUSES)
    return tmp_path / "cache"


def fake_go(folder: Path, version: str) -> None:
    """A `go` that reports a version and builds by writing a script to the -o argument."""
    build = 'while [ "$1" != -o ]; do shift; done; printf "#!/bin/sh\\n" > "$2"; chmod +x "$2"'
    lines = (
        f'#!/bin/sh\nif [ "$1" = version ]; then echo "go version {version} x"; else {build}; fi\n'
    )
    executable(folder / "go", lines)


def test_assets_supply_etcd_apiserver_and_kubectl_only(
    empty: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    names = ("etcd", "kube-apiserver", "kubectl", "kube-scheduler", "helm")
    assets = tmp_path / "assets"
    for name in names:
        executable(assets / name)
    monkeypatch.setenv("KUBEBUILDER_ASSETS", str(assets))
    assert set(binaries.find().paths) == {"etcd", "kube-apiserver", "kubectl"}


def test_prometheus_comes_from_the_named_folder_not_from_path(
    empty: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    executable(tmp_path / "prometheus")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "prometheus" not in binaries.find().paths
    monkeypatch.setenv("TRIMWHEEL_PROMETHEUS_BIN", str(tmp_path))
    assert binaries.find()["prometheus"] == tmp_path / "prometheus"


def test_what_is_missing_is_built_once_into_a_folder_named_by_its_pins(
    empty: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    fake_go(tmp_path / "bin", "go1.26.8")
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:/usr/bin:/bin")
    seen: list[str] = []
    found = binaries.ensure(lambda name, *_: seen.append(name))
    assert set(found.paths) == {name for group in pins.groups() for name, _ in group.packages}
    assert all(path.is_relative_to(empty / "bin") for path in found.paths.values())
    assert "kube-apiserver" in seen
    monkeypatch.setenv("PATH", "/nonexistent")
    assert binaries.ensure().paths == found.paths


def test_only_what_is_wanted_is_built(
    empty: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    fake_go(tmp_path / "bin", "go1.26.8")
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:/usr/bin:/bin")
    wanted = frozenset({"kubectl", "helm"})
    assert binaries.ensure(wanted=wanted).paths.keys() == wanted


@pytest.mark.parametrize(
    ("version", "toolchain", "accepted"),
    [
        ("go1.26.0", "", True),
        ("go1.21.3", "", True),
        ("go1.19.8", "", False),
        ("go1.21.3", "local", False),
        ("go1.27", "local", True),
    ],
)
def test_go_must_be_new_enough_or_able_to_fetch_a_newer_one(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, version: str, toolchain: str, accepted: bool
) -> None:
    fake_go(tmp_path, version)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setenv("GOTOOLCHAIN", toolchain)
    if accepted:
        golang.check_go()
    else:
        with pytest.raises(BinaryError, match=f"go must be Go 1.26 .*{version}"):
            golang.check_go()


def test_without_go_the_error_names_the_ways_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(BinaryError, match="install Go 1.26 or newer, or set KUBEBUILDER_ASSETS"):
        golang.check_go()


def test_a_failed_build_shows_the_end_of_its_log_and_leaves_no_binary(
    empty: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    script = (
        '#!/bin/sh\n[ "$1" = version ] && echo go version go1.26.1 x && exit\necho no net\nexit 1\n'
    )
    executable(tmp_path / "bin" / "go", script)
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:/usr/bin:/bin")
    with pytest.raises(BinaryError, match="no net"):
        binaries.ensure()
    assert binaries.find().paths == {}


@pytest.mark.parametrize("group", pins.groups(), ids=lambda group: group.name)
def test_pins_are_exact_and_complete(group: pins.Group) -> None:
    text = (group.module / "go.mod").read_text()
    assert (group.module / "go.sum").stat().st_size > 0
    for _, package in group.packages:
        assert any(package.startswith(word) for word in text.split()), package


def test_every_staging_module_of_kubernetes_has_the_version_of_the_release() -> None:
    text = (pins.TOOLCHAIN / "kubernetes" / "go.mod").read_text()
    replaced = [line.split() for line in text.splitlines() if "=>" in line]
    assert len(replaced) == 33
    assert {words[-1] for words in replaced} == {"v0.36.3"}


def test_the_module_needs_nothing_but_the_standard_library() -> None:
    script = "from trimwheel_local import binaries; binaries.find()"
    root = str(Path(binaries.__file__).parents[1])
    done = subprocess.run(
        [sys.executable, "-S", "-c", script], env={**os.environ, "PYTHONPATH": root}, check=False
    )
    assert done.returncode == 0
