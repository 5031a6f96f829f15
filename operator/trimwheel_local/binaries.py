"""Finds the control plane's binaries; downloads their official releases, or builds them with Go.

Order: `KUBEBUILDER_ASSETS` (etcd, kube-apiserver and kubectl only, as envtest defines it), the
user's cache, the official release, a build. `TRIMWHEEL_BINARIES` chooses between the last two:
`auto` builds what cannot be downloaded, `download` never builds, `build` asks no origin. `pins` has
the versions, the same either way, and `ways` decides.

`python -m trimwheel_local.binaries` gets everything. A `prometheus` on PATH is not picked up by
itself, since nothing says how old it is: name it in `TRIMWHEEL_PROMETHEUS_BIN` (a folder with
prometheus and promtool).
"""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from trimwheel_api.errors import TrimwheelError
from trimwheel_local import golang, obtain, releases
from trimwheel_local.errors import BinaryError
from trimwheel_local.files import write_atomic
from trimwheel_local.layout import cache_folder
from trimwheel_local.pins import all_names, groups
from trimwheel_local.reporting import Progress, Shares, no_progress
from trimwheel_local.ways import Way, mode, plan, reasons

KEPT = "what was downloaded and compiled is kept: run it again, and it goes on from there"


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


def find() -> Binaries:
    """What is there already, without getting any; a missing binary is missing from `paths`."""
    paths: dict[str, Path] = {}
    for name, path in _locations():
        if name not in paths and os.access(path, os.X_OK):
            paths[name] = path
    return Binaries(paths)


def missing(wanted: frozenset[str]) -> list[str]:
    """The wanted binaries that are neither cached nor supplied, in the order of the story."""
    present = find().paths
    names = [name for group in groups() for name, _ in group.packages]
    return [name for name in names if name in wanted and name not in present]


def ensure(
    progress: Progress = no_progress,
    wanted: frozenset[str] | None = None,
    built: frozenset[str] = frozenset(),
) -> Binaries:
    """The wanted binaries, all unless said otherwise; gets what is missing.

    `built` are those that are built without asking an origin again. Raises BinaryError when a
    binary can be had neither way; what was downloaded or compiled until then is kept.
    """
    names = all_names() if wanted is None else wanted
    if missing(names):
        try:
            with _one_at_a_time(progress):
                _get_all(plan(missing(names), built), progress)
        except KeyboardInterrupt as interrupt:
            interrupt.add_note(f"still to get: {', '.join(missing(names))}; {KEPT}")
            raise
    if absent := missing(names):
        raise BinaryError(f"still missing after download and build: {', '.join(absent)}")
    return find()


def _get_all(ways: list[Way], progress: Progress) -> None:
    if any(way.artifact is None for way in ways):
        golang.check_go(reasons(ways))  # before the downloads, not after them
    for way in ways:
        progress(way.name, 0, way.weight, way.description)
    for number, way in enumerate(ways, 1):
        if missing(frozenset({way.name})):  # promtool comes with prometheus
            obtain.get(way, f"{number} of {len(ways)}", progress)


def _locations() -> Iterator[tuple[str, Path]]:
    """Where each binary may be, the preferred place first."""
    assets = os.environ.get("KUBEBUILDER_ASSETS")
    prometheus = os.environ.get("TRIMWHEEL_PROMETHEUS_BIN")
    chosen = mode()
    for group in groups():
        places = [releases.release_folder(group)] if chosen != "build" else []
        places += [group.folder] if chosen != "download" else []
        for name, _ in group.packages:
            if assets and name in group.from_assets:
                yield name, Path(assets) / name
            if prometheus and group.name == "prometheus":
                yield name, Path(prometheus) / name
            yield from ((name, folder / name) for folder in places)


@contextmanager
def _one_at_a_time(progress: Progress) -> Iterator[None]:
    """Whoever comes second waits, says so, and finds what the first has made."""
    folder = cache_folder() / "bin"
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            progress("binaries", 0, 0, "waiting for another process that gets the same binaries")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def progress_file(path: Path) -> Progress:
    """A `Progress` that keeps the share of the whole and the last message in a JSON file."""
    shares = Shares()

    def report(name: str, done: float, total: float, message: str) -> None:
        shares.update(name, done, total)
        state = {"share": round(shares.share, 4), "message": message}
        write_atomic(path, json.dumps(state).encode())

    return report


def main() -> None:
    """Get everything, or what is named, with a progress bar or a file for a caller's own bar."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--wanted", default="", help="comma list of binaries; all by default")
    parser.add_argument("--build", default="", help="comma list: built without asking an origin")
    parser.add_argument("--progress-file", type=Path, help="keep share and message there, as JSON")
    options = parser.parse_args()
    wanted = frozenset(filter(None, options.wanted.split(","))) or all_names()
    built = frozenset(filter(None, options.build.split(",")))
    if unknown := sorted((wanted | built) - all_names()):
        parser.error(f"no such binaries: {', '.join(unknown)}")
    try:
        _get_with_progress(options.progress_file, wanted, built)
    except TrimwheelError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt as interrupt:
        sys.exit("; ".join(["interrupted", *interrupt.__notes__]))


def _get_with_progress(file: Path | None, wanted: frozenset[str], built: frozenset[str]) -> None:
    if file is not None:
        ensure(progress_file(file), wanted, built)
        return
    from trimwheel_local.progress import progress_bar  # needs a package; the set-up has none yet

    with progress_bar() as progress:
        ensure(progress, wanted, built)


if __name__ == "__main__":
    main()
