"""Gets one binary the way that was planned: downloads and unpacks its release, or builds it.

Called by `binaries`, one at a time, under its lock. In mode `auto` a download that fails on the
way, whatever the reason, ends in a build and says so.
"""

from __future__ import annotations

import shutil
import tarfile
from pathlib import Path

from trimwheel_local import download, golang, releases
from trimwheel_local.errors import DownloadError
from trimwheel_local.releases import Artifact
from trimwheel_local.reporting import MB, Progress, megabytes
from trimwheel_local.ways import Way, mode


def get(way: Way, place: str, progress: Progress) -> None:
    """Download or build one binary; `place` says which of how many. Raises BinaryError."""
    reason = way.reason
    if way.artifact is not None:
        try:
            _download(way, way.artifact, place, progress)
            return
        except DownloadError as error:
            if mode() == "download":
                raise
            reason = str(error)
            progress(way.name, 0, 0, f"{reason}; building it with Go instead")
    golang.check_go(reason)
    usual = golang.USUAL_SECONDS[way.name] * MB

    def tick(seconds: float, doing: str) -> None:
        said = f"building {way.name} with Go ({place}): {doing}"
        progress(way.name, min(seconds * MB, 0.95 * usual), usual, said)

    golang.build(way.group, way.name, tick)
    progress(way.name, usual, usual, f"built {way.name} ({place})")


def _download(way: Way, artifact: Artifact, place: str, progress: Progress) -> None:
    said = f"downloading {way.name} {way.group.version} ({place})"

    def received(size: int, total: int) -> None:
        whole = max(total or artifact.size, size)
        amount = f"{megabytes(size)} of {megabytes(whole)}"
        progress(way.name, size, whole, f"{said}: {amount}")

    folder = releases.release_folder(way.group)
    file = folder / ".download" / artifact.file
    patience = download.Patience() if mode() == "auto" else download.Patience(slowest=0)
    download.fetch(releases.origin() + artifact.path, file, way.sha256, received, patience)
    for name, inner in artifact.members:
        _unpack(file, inner, folder / name)
        progress(name, 1, 1, f"downloaded {name} {way.group.version} ({place})")
    file.unlink(missing_ok=True)


def _unpack(file: Path, inner: str, target: Path) -> None:
    """Put one member of a verified archive, or the file itself, at its place, in one step."""
    scratch = file.with_name(f"{target.name}.new")
    try:
        if inner:
            with tarfile.open(file) as archive, scratch.open("wb") as output:
                source = archive.extractfile(inner)
                if source is None:
                    raise DownloadError(f"{file.name}: {inner} is no file in it")
                shutil.copyfileobj(source, output)
        else:
            file.rename(scratch)
    except (tarfile.TarError, KeyError, EOFError, OSError) as error:
        raise DownloadError(f"{file.name}: cannot unpack {inner}: {error}") from error
    scratch.chmod(0o755)
    scratch.rename(target)
