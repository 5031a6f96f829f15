"""Which record segments there are: one folder a UTC day, listed no oftener than it can change.

Used by `records` and `retention`. A month of records is a million files, so a pass of the watch
loop must not list them all: the newest two days are listed each time, older ones every ten minutes
(a worker whose store was away delivers late). Leaves out what is in the files.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import fsspec

from trimwheel_api.errors import SpecInvalid, Unavailable
from trimwheel_api.records import parse_segment_name, segment_day, segment_folder

QUARANTINE = "quarantine"
"""Folder of segments that could not be read."""
CHANGING_DAYS = 2
RELIST_SECONDS = 600.0
_DAY = re.compile(r"\d{4}-\d{2}-\d{2}")


@dataclass(frozen=True, slots=True)
class Segment:
    """One file of a model's records, by what its name says."""

    path: str
    started: float
    pod: str
    sequence: int
    count: int
    lost: int

    @property
    def key(self) -> tuple[float, str, int]:
        """What stays when records of a tenant are deleted from it."""
        return self.started, self.pod, self.sequence


@dataclass
class Day:
    """The segments of one folder, as listed at one moment."""

    folder: str
    files: list[Segment]
    listed: float
    read_whole: bool = False
    """A reader has taken all of these; a new listing is another object."""

    @cached_property
    def segments(self) -> list[Segment]:
        """Oldest first, one for each key.

        A deletion that stopped half-way leaves the file that it replaced: the same audits again,
        of which the newer file counts more as lost.
        """
        newest: dict[tuple[float, str, int], Segment] = {}
        for one in sorted(self.files, key=lambda segment: segment.lost):
            newest[one.key] = one
        return sorted(newest.values(), key=lambda segment: (segment.started, segment.path))

    @cached_property
    def superseded(self) -> list[Segment]:
        """Files that another one replaces."""
        current = {one.path for one in self.segments}
        return [one for one in self.files if one.path not in current]

    @cached_property
    def audits(self) -> int:
        """Records of the day, by what names say."""
        return sum(one.count for one in self.segments)


@dataclass
class SegmentFiles:
    """The folders of one model's segments below an fsspec address. Unavailable when it is away."""

    root: str
    namespace: str
    model: str
    clock: Callable[[], float] = time.monotonic
    _days: dict[str, Day] = field(default_factory=dict)

    def open(self) -> tuple[Any, str]:
        """The file system and the model's folder in it."""
        try:
            system, folder = fsspec.url_to_fs(segment_folder(self.root, self.namespace, self.model))
        except (ImportError, ValueError) as error:
            raise SpecInvalid(
                "records.uri", f"must be an fsspec address that can be opened ({error})", self.root
            ) from error
        except OSError as error:
            raise Unavailable(f"record store {self.root}: {error}") from error
        # Object stores cache listings; a reader that polls must not.
        system.invalidate_cache()
        return system, str(folder)

    def days(self, since: float = float("-inf")) -> list[Day]:
        """Folders that may hold segments which started at `since` or later, oldest first.

        Files beside the day folders count as the first of them.
        """
        system, folder = self.open()
        paths = self._list(system, folder)
        found = sorted(path for path in paths if _DAY.fullmatch(_name(path)))
        changing = set(found[-CHANGING_DAYS:])
        first = segment_day(since) if since > 0 else ""
        days = [Day(folder, list(_segments(paths)), self.clock())]
        for path in found:
            if _name(path) < first:
                continue
            known = self._days.get(path)
            if known is None or path in changing or self._is_old(known):
                listed = Day(path, list(_segments(self._list(system, path))), self.clock())
                if known is None or known.files != listed.files:
                    self._days[path] = known = listed
                known.listed = listed.listed
            days.append(known)
        for gone in self._days.keys() - set(found):
            del self._days[gone]
        return days

    def aside(self) -> list[Segment]:
        """Segments in quarantine."""
        system, folder = self.open()
        return list(_segments(self._list(system, f"{folder}/{QUARANTINE}")))

    def forget(self) -> None:
        """List everything anew next time: files were changed."""
        self._days.clear()

    def _is_old(self, day: Day) -> bool:
        return self.clock() - day.listed >= RELIST_SECONDS

    def _list(self, system: Any, folder: str) -> list[str]:
        try:
            # Not `exists` first: it says of a broken mount what it says of a folder to come.
            with answering(self.root):
                return [str(path).rstrip("/") for path in system.ls(folder, detail=False)]
        except FileNotFoundError:
            return []  # no worker has written yet


@contextmanager
def answering(root: str) -> Iterator[None]:
    """Whatever a store raises is Unavailable, except that a file is not there.

    Every store has errors of its own, and not all of them are OSErrors: those of S3's client that
    mean "no connection" are not.
    """
    try:
        yield
    except FileNotFoundError:
        raise
    except Exception as error:
        raise Unavailable(f"record store {root}: {type(error).__name__}: {error}") from error


def _segments(paths: Iterable[str]) -> Iterable[Segment]:
    """Those of the paths that are segments; files of other names are not ours."""
    for path in paths:
        try:
            yield Segment(path, *parse_segment_name(path))
        except ValueError:
            continue


def _name(path: str) -> str:
    return path.rsplit("/", 1)[-1]
