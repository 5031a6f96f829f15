"""Objects of the API server in memory, by kind and by the model that they belong to.

Fed by `informers` (lists and watches) and by `apply` (the answers to our own writes, so that a pass
sees what the pass before it wrote); read by `gather` and `marks`. Thread-safe; items are shared and
never changed in place. Holds no opinion: what an object means is read in `raw`, and decided in
`plan`.

Three things may disagree about an object: a list that was asked for a while ago, a watch that lags
or repeats itself, and our own write. Within one watch the higher resourceVersion is the newer. A
list overrules everything that was known before it was asked for, higher versions too: that is how
an etcd that was restored from a backup looks. What came in while the list was under way stays.
"""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

Json = dict[str, Any]
Group = tuple[str, str]
"""(namespace, name) of what an object belongs to: its model; for an approval its rollout."""
Place = tuple[str, str]
"""(namespace, name) of an object."""

TOMBSTONE_SECONDS = 300.0
"""A watch may repeat what it said of a deleted object for as long as it may replay: one stream."""


@dataclass(slots=True)
class Entry:
    """One object as last seen; `parsed` is the reader's note of what it made of this version."""

    item: Json
    group: Group
    version: int
    seen_at: float
    parsed: Any = None


class Collection:
    """Objects of one kind. Callers hold the store's lock."""

    def __init__(self, group_of: Callable[[Json], Group], *, keep_managers: bool = False) -> None:
        self.group_of = group_of
        self.keep_managers = keep_managers
        self.entries: dict[Place, Entry] = {}
        self.groups: dict[Group, dict[Place, Entry]] = defaultdict(dict)
        self.deleted: dict[str, float] = {}
        """uid -> when it was seen to be gone."""

    def set(self, item: Json, now: float) -> Entry:
        """Keep this version of an object."""
        place, metadata = place_of(item), item["metadata"]
        if not self.keep_managers and "managedFields" in metadata:
            slim = {key: value for key, value in metadata.items() if key != "managedFields"}
            item = {**item, "metadata": slim}
        self.drop(place)
        entry = Entry(item, self.group_of(item), version_of(item), now)
        self.entries[place] = entry
        self.groups[entry.group][place] = entry
        return entry

    def drop(self, place: Place) -> Entry | None:
        """Forget an object."""
        entry = self.entries.pop(place, None)
        if entry is not None:
            group = self.groups[entry.group]
            group.pop(place, None)
            if not group:
                del self.groups[entry.group]
        return entry

    def bury(self, uid: str, now: float) -> None:
        """Remember that this very object is gone."""
        self.deleted = {
            known: moment
            for known, moment in self.deleted.items()
            if now - moment < TOMBSTONE_SECONDS
        }
        self.deleted[uid] = now


class Store:
    """Collections by kind; a kind without one is not cached."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.RLock()
        self._kinds: dict[str, Collection] = {}

    def add_kind(
        self, kind: str, group_of: Callable[[Json], Group], *, keep_managers: bool = False
    ) -> None:
        """Cache a kind. `keep_managers`: its managedFields are read, and worth their memory."""
        self._kinds[kind] = Collection(group_of, keep_managers=keep_managers)

    def caches(self, kind: str) -> bool:
        """Whether objects of this kind are kept."""
        return kind in self._kinds

    # --- reading ---------------------------------------------------------------------------

    def find(self, kind: str, namespace: str, name: str) -> Entry | None:
        """One object."""
        with self._lock:
            kept = self._kinds.get(kind)
            return kept.entries.get((namespace, name)) if kept else None

    def of_group(self, kind: str, group: Group) -> list[Entry]:
        """The objects of a model (approvals: of a rollout), by name."""
        with self._lock:
            found = self._kinds[kind].groups.get(group, {})
            return [entry for _, entry in sorted(found.items())]

    def group_of(self, kind: str, item: Json) -> Group:
        """What an object belongs to."""
        return self._kinds[kind].group_of(item)

    def groups(self, kind: str) -> list[Group]:
        """What the objects of a kind belong to."""
        with self._lock:
            return list(self._kinds[kind].groups)

    # --- writing ---------------------------------------------------------------------------

    def put(self, kind: str, item: Json) -> bool:
        """Keep an object as a watch or a write told it; False when that is no news."""
        if kind not in self._kinds:
            return False
        with self._lock:
            kept = self._kinds[kind]
            known = kept.entries.get(place_of(item))
            if item["metadata"]["uid"] in kept.deleted:
                return False
            if known is not None and is_same(known.item, item):
                if known.version >= version_of(item) > 0:
                    return False
            kept.set(item, self._clock())
            return True

    def remove(self, kind: str, item: Json) -> bool:
        """Forget an object that a watch or a read told to be gone; False when it was not known."""
        if kind not in self._kinds:
            return False
        with self._lock:
            kept = self._kinds[kind]
            kept.bury(item["metadata"]["uid"], self._clock())
            known = kept.entries.get(place_of(item))
            if known is None or not is_same(known.item, item):
                return False
            kept.drop(place_of(item))
            return True

    def replace(self, kind: str, items: Iterable[Json], began: float) -> list[Json]:
        """Make a kind what a list said that was asked for at `began`; the objects that changed."""
        changed: list[Json] = []
        listed: set[Place] = set()
        with self._lock:
            kept, now = self._kinds[kind], self._clock()
            for item in items:
                place, uid = place_of(item), item["metadata"]["uid"]
                listed.add(place)
                known = kept.entries.get(place)
                if known is not None and known.seen_at > began:
                    continue
                if kept.deleted.get(uid, -1.0) > began:
                    continue
                kept.deleted.pop(uid, None)
                if known is not None and is_same(known.item, item):
                    if known.version == version_of(item):
                        continue
                kept.set(item, now)
                changed.append(item)
            for place, known in list(kept.entries.items()):
                if place not in listed and known.seen_at <= began:
                    kept.drop(place)
                    changed.append(known.item)
        return changed


def place_of(item: Json) -> Place:
    """(namespace, name) of an object."""
    metadata = item["metadata"]
    return metadata.get("namespace", ""), metadata["name"]


def version_of(item: Json) -> int:
    """The resourceVersion, which API servers promise to be comparable as a number; 0 for none."""
    text = str(item["metadata"].get("resourceVersion", ""))
    return int(text) if text.isascii() and text.isdecimal() else 0


def is_same(one: Json, other: Json) -> bool:
    """Whether two versions are of one object, not of two that had the same name."""
    return bool(one["metadata"].get("uid") == other["metadata"].get("uid"))
