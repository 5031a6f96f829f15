"""How each missing binary will be had: from its official release, or by a build with Go.

Called by `binaries` before it gets anything, and by the set-up to say beforehand which way it will
go. Asks the origins for their checksums and nothing else.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from trimwheel_api.errors import InvalidInput
from trimwheel_local import golang, releases
from trimwheel_local.errors import BinaryError
from trimwheel_local.pins import Group, groups
from trimwheel_local.releases import Artifact
from trimwheel_local.reporting import MB

MODE_VARIABLE = "TRIMWHEEL_BINARIES"
MODES = ("auto", "download", "build")
FOLDER_VARIABLES = ("KUBEBUILDER_ASSETS", "TRIMWHEEL_PROMETHEUS_BIN")


@dataclass(frozen=True)
class Way:
    """How a binary that is missing will be had."""

    name: str
    group: Group
    artifact: Artifact | None = None
    """The release's file that holds it; None for a build."""
    sha256: str = ""
    reason: str = ""
    """Why it is built although a download was allowed."""

    @property
    def weight(self) -> float:
        """Its part of a progress bar: bytes, or a megabyte for each usual second of a build."""
        if self.artifact is None:
            return golang.USUAL_SECONDS[self.name] * MB
        first = self.artifact.members[0][0] == self.name
        return self.artifact.size if first else 1  # the others come in the same file

    @property
    def description(self) -> str:
        """What will be done, in a few words."""
        if self.artifact is None:
            return f"{self.name} {self.group.version}: to be built with Go"
        return f"{self.name} {self.group.version}: to be downloaded"


def mode() -> str:
    """What `TRIMWHEEL_BINARIES` says. Raises InvalidInput."""
    chosen = os.environ.get(MODE_VARIABLE) or "auto"
    if chosen not in MODES:
        raise InvalidInput(MODE_VARIABLE, f"must be one of {', '.join(MODES)}", chosen)
    return chosen


def plan(names: Iterable[str], built: frozenset[str] = frozenset()) -> list[Way]:
    """The way of each, in the given order; asks the origins, for a few seconds at most.

    `built` are those that are built without asking. Raises BinaryError when
    `TRIMWHEEL_BINARIES=download` and something cannot be downloaded, InvalidInput for a variable
    that cannot work.
    """
    chosen = mode()
    _check_folders()
    builds = {name: Way(name, group) for group in groups() for name, _ in group.packages}
    names = list(names)
    if chosen == "build":
        return [builds[name] for name in names]
    ways = builds | {way.name: way for way in _downloads(set(names) - built)}
    lost = [ways[name] for name in names if ways[name].artifact is None]
    if chosen == "download" and lost:
        raise BinaryError(_cannot_download(lost))
    return [ways[name] for name in names]


def reasons(ways: Iterable[Way]) -> str:
    """Why some are built, each reason once; empty when nobody wanted a download."""
    return "; ".join(dict.fromkeys(way.reason for way in ways if way.reason))


def _downloads(names: set[str]) -> list[Way]:
    """A way for each name: its release, or a build with the reason why it is not the release."""
    holders = {name: each for each in releases.artifacts() for name, _ in each.members}
    answers = releases.ask({holders[name] for name in names if name in holders})
    homes = {name: group for group in groups() for name, _ in group.packages}
    ways = []
    for name in names:
        if name not in holders:
            ways.append(Way(name, homes[name], reason="nobody releases it for this machine"))
            continue
        artifact = holders[name]
        answer = answers[artifact]
        if answer.sha256:
            ways.append(Way(name, homes[name], artifact, answer.sha256))
        else:
            ways.append(Way(name, homes[name], reason=f"{artifact.host}: {answer.problem}"))
    return ways


def _check_folders() -> None:
    """A folder that is named and is none would otherwise be passed over in silence."""
    for name in FOLDER_VARIABLES:
        folder = os.environ.get(name)
        if folder and not Path(folder).is_dir():
            raise InvalidInput(name, "must name a folder with binaries", folder)


def _cannot_download(ways: list[Way]) -> str:
    return (
        f"{MODE_VARIABLE}=download, but {', '.join(way.name for way in ways)} cannot be "
        f"downloaded ({reasons(ways)}): set it to auto or build for a build with Go, or name a "
        f"mirror in {releases.ORIGIN_VARIABLE}"
    )
