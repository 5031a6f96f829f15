"""Which record segments there are: one folder a UTC day, listed no oftener than it can change.

Used by `records`, `merging` and `retention`. A pass of the watch loop must not list a month: the
newest two days are listed each time, older ones every ten minutes (a worker whose store was away
delivers late). Leaves out what is in the files.
"""

from __future__ import annotations

import json
import logging
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

log = logging.getLogger(__name__)

QUARANTINE = "quarantine"
"""Folder of segments that could not be read."""
CHANGING_DAYS = 2
RELIST_SECONDS = 600.0
PLAN = re.compile(r"merge-[0-9a-f]{16}\.json")
MOST_SOURCES = 1000
"""Of one merge: what one pass may take."""
MOST_PLANS = 16
"""Read in one folder: the loop has one at a time, and finishes or undoes what it meets."""
_LARGEST_PLAN = 1 << 20
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


@dataclass(frozen=True, slots=True)
class Plan:
    """A merge: the file that takes the place of others, by names in its folder (`merging`)."""

    path: str
    target: str
    sources: tuple[str, ...]
    done: bool
    """The target is there, so the sources are not to be read any more."""

    def keys(self) -> list[tuple[float, str, int]]:
        """Keys of the sources."""
        return [Segment(name, *parse_segment_name(name)).key for name in self.sources]

    @property
    def key(self) -> tuple[float, str, int]:
        """Key of the target."""
        return Segment(self.target, *parse_segment_name(self.target)).key


@dataclass
class Day:
    """The segments of one folder, as listed at one moment."""

    folder: str
    files: list[Segment]
    listed: float
    plans: list[Plan] = field(default_factory=list)
    """Merges that began here; sources of those that came about are not among the files."""
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
                listed = self._day(system, path)
                if known is None or (known.files, known.plans) != (listed.files, listed.plans):
                    self._days[path] = known = listed
                known.listed = listed.listed
            days.append(known)
        for gone in self._days.keys() - set(found):
            del self._days[gone]
        return days

    def _day(self, system: Any, path: str) -> Day:
        """One folder as it is now, without what a finished merge has replaced."""
        paths = self._list(system, path)
        names = {_name(one) for one in paths}
        plans = [
            plan
            for one in sorted(one for one in paths if PLAN.fullmatch(_name(one)))[:MOST_PLANS]
            if (plan := self._plan(system, one, names))
        ]
        replaced = {name for plan in plans if plan.done for name in plan.sources}
        files = [one for one in _segments(paths) if _name(one.path) not in replaced]
        return Day(path, files, self.clock(), plans)

    def _plan(self, system: Any, path: str, names: set[str]) -> Plan | None:
        """A plan, or None where somebody finished it meanwhile or it is not one."""
        try:
            with answering(self.root), system.open(path, "rb") as stream:
                text = stream.read(_LARGEST_PLAN)
        except FileNotFoundError:
            return None
        try:
            document = json.loads(text)
            target, sources = str(document["target"]), tuple(map(str, document["sources"]))
            if len(sources) > MOST_SOURCES:
                raise ValueError(f"{len(sources)} sources, more than {MOST_SOURCES}")
            for name in (target, *sources):
                if "/" in name:
                    raise ValueError(f"{name!r} leads out of the folder")
                parse_segment_name(name)
        except (ValueError, KeyError, TypeError) as error:
            log.warning("%s is no plan of a merge: %s", path, error)
            return None
        return Plan(path, target, sources, target in names)

    def aside(self) -> list[Segment]:
        """Segments in quarantine."""
        system, folder = self.open()
        return list(_segments(self._list(system, f"{folder}/{QUARANTINE}")))

    def forget(self, folder: str = "") -> None:
        """List a day, or everything, anew next time: files were changed."""
        if folder:
            self._days.pop(folder, None)
        else:
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
