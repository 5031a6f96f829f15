"""The official release of each pinned binary: its address, and the checksum published beside it.

Called by `binaries`, which downloads what was found here and builds the rest. An origin has
`PATIENCE` seconds to answer with its checksums; what it says instead, or that it says nothing, is
kept as the reason. `TRIMWHEEL_RELEASES` names a mirror that holds each file below the name of its
own host: `<mirror>/dl.k8s.io/v1.36.3/bin/linux/amd64/kubectl`. Downloads no binary itself.
"""

from __future__ import annotations

import os
import platform
import queue
import re
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from trimwheel_api.errors import InvalidInput
from trimwheel_local.download import read_small
from trimwheel_local.errors import DownloadError
from trimwheel_local.layout import cache_folder
from trimwheel_local.pins import Group, groups
from trimwheel_local.reporting import MB

ORIGIN_VARIABLE = "TRIMWHEEL_RELEASES"
PATIENCE = 4.0
"""Seconds in which every origin must have answered; they are asked all at once."""

_MACHINES = {"x86_64": "amd64", "aarch64": "arm64", "ppc64le": "ppc64le", "s390x": "s390x"}
_SIZES = {
    "kube-apiserver": 88 * MB,
    "kube-controller-manager": 75 * MB,
    "kube-scheduler": 50 * MB,
    "kubectl": 60 * MB,
    "etcd": 24 * MB,
    "helm": 20 * MB,
    "prometheus": 130 * MB,
}
"""About; the plan and the bars go by it until the origin has said how long a file is."""


@dataclass(frozen=True)
class Artifact:
    """One file of a release, and the binaries that are in it."""

    group: Group
    path: str
    """Host and path, as below `https://`."""
    checksums: str
    """The same of the file that holds its SHA-256, alone or in a list."""
    members: tuple[tuple[str, str], ...]
    """(binary, path inside the archive); with an empty path the file itself is the binary."""

    @property
    def file(self) -> str:
        return self.path.rpartition("/")[2]

    @property
    def host(self) -> str:
        """Where it is asked for: the project's own host, or the mirror's."""
        return urlsplit(origin() + self.path).netloc

    @property
    def size(self) -> int:
        """Bytes, about."""
        return _SIZES[self.members[0][0]]


@dataclass(frozen=True)
class Answer:
    """What an origin said of an artifact: its checksum, or why there is none."""

    sha256: str = ""
    problem: str = ""


def platform_name() -> str:
    """`linux-amd64`, or empty where no project releases for this machine."""
    machine = _MACHINES.get(platform.machine())
    return f"linux-{machine}" if machine and platform.system() == "Linux" else ""


def release_folder(group: Group) -> Path:
    """Where the binaries of a group's release land."""
    name = f"{group.name}-{group.version}-{platform_name() or 'none'}"
    return cache_folder() / "bin" / name


def artifacts() -> tuple[Artifact, ...]:
    """Every file that this machine can use, in the order of the groups; none where nobody
    releases for it."""
    target = platform_name()
    if not target:
        return ()
    makers = {"etcd": _etcd, "kubernetes": _kubernetes, "helm": _helm, "prometheus": _prometheus}
    return tuple(artifact for group in groups() for artifact in makers[group.name](group, target))


def origin() -> str:
    """What stands before an artifact's path. Raises InvalidInput for a mirror that is none."""
    mirror = os.environ.get(ORIGIN_VARIABLE, "")
    if not mirror:
        return "https://"
    rule = "must be an address such as https://mirror.example.com/releases"
    try:
        parts = urlsplit(mirror)
        good = parts.scheme in ("http", "https") and parts.hostname and (parts.port or 1)
    except ValueError:  # a bad port or bracket
        good = False
    if not good or any(letter.isspace() or not letter.isprintable() for letter in mirror):
        raise InvalidInput(ORIGIN_VARIABLE, rule, mirror, "Leave it empty for the official ones")
    return mirror.rstrip("/") + "/"


def ask(wanted: Iterable[Artifact], patience: float = PATIENCE) -> dict[Artifact, Answer]:
    """The checksum of each artifact, or why it could not be had; all are asked at once.

    Takes no longer than `patience`, whatever names, proxies and sockets do: a thread that hangs in
    one of them is left behind.
    """
    start = origin()
    answers: queue.SimpleQueue[tuple[Artifact, Answer]] = queue.SimpleQueue()
    waiting = list(wanted)

    def run(artifact: Artifact) -> None:
        answers.put((artifact, _ask_one(start, artifact, patience)))

    for artifact in waiting:
        threading.Thread(target=run, args=(artifact,), daemon=True).start()
    silent = Answer(problem=f"no answer within {patience:g} s")
    got = dict.fromkeys(waiting, silent)
    deadline = time.monotonic() + patience
    for _ in waiting:
        try:
            artifact, answer = answers.get(timeout=max(deadline - time.monotonic(), 0.001))
        except queue.Empty:
            break
        got[artifact] = answer
    return got


def checksum_in(text: str, file: str) -> str:
    """The SHA-256 of `file` in a checksum file: a digest alone, or a list of `digest  name`."""
    lines = [line.split() for line in text.splitlines() if line.strip()]
    for words in lines:
        alone = len(words) == 1 and len(lines) == 1
        named = len(words) == 2 and words[1].lstrip("*").rpartition("/")[2] == file
        if (alone or named) and re.fullmatch(r"[0-9a-fA-F]{64}", words[0]):
            return words[0].lower()
    return ""


def _ask_one(start: str, artifact: Artifact, patience: float) -> Answer:
    url = start + artifact.checksums
    try:
        text = read_small(url, patience)
    except DownloadError as error:
        reason = str(error).removeprefix(f"{url}: ")
        where = f"/{artifact.checksums}" if reason.startswith("HTTP ") else ""
        return Answer(problem=f"{reason} {where}".rstrip())
    sha256 = checksum_in(text, artifact.file)
    return Answer(sha256) if sha256 else Answer(problem=f"no checksum in /{artifact.checksums}")


def _kubernetes(group: Group, target: str) -> list[Artifact]:
    start = f"dl.k8s.io/{group.version}/bin/{target.replace('-', '/')}"
    return [
        Artifact(group, f"{start}/{name}", f"{start}/{name}.sha256", ((name, ""),))
        for name, _ in group.packages
    ]


def _etcd(group: Group, target: str) -> list[Artifact]:
    start = f"github.com/etcd-io/etcd/releases/download/{group.version}"
    top = f"etcd-{group.version}-{target}"
    members = (("etcd", f"{top}/etcd"),)
    return [Artifact(group, f"{start}/{top}.tar.gz", f"{start}/SHA256SUMS", members)]


def _helm(group: Group, target: str) -> list[Artifact]:
    file = f"get.helm.sh/helm-{group.version}-{target}.tar.gz"
    return [Artifact(group, file, f"{file}.sha256sum", (("helm", f"{target}/helm"),))]


def _prometheus(group: Group, target: str) -> list[Artifact]:
    # The module of release 3.15.0 is v0.315.0: 0, then major and minor in one number.
    _, joined, patch = group.version.split(".")
    version = f"{joined[0]}.{int(joined[1:])}.{patch}"
    start = f"github.com/prometheus/prometheus/releases/download/v{version}"
    top = f"prometheus-{version}.{target}"
    members = tuple((name, f"{top}/{name}") for name, _ in group.packages)
    return [Artifact(group, f"{start}/{top}.tar.gz", f"{start}/sha256sums.txt", members)]
