"""Keeps the store like the API server: a list and a watch a kind, and a list again every minute.

Made by `app`. Each kind has a thread that lists once and then follows; a thread of its own lists
every kind again, unconditionally, since a watch may go silent without an error (after an etcd
restore one from a future resourceVersion says nothing for ever). A stream therefore lives a minute
and the next one starts from the newest list, never from the stream before it.

Says what changed to `changed`, which marks models; reads nothing else, and decides nothing.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from trimwheel_api import names
from trimwheel_api.errors import Conflict, TrimwheelError
from trimwheel_api.kinds import PLURALS
from trimwheel_operator.cluster import KubeApi, path_of
from trimwheel_operator.store import Group, Store

log = logging.getLogger(__name__)

Json = dict[str, Any]
Changed = Callable[[str, Json], None]
"""(kind, object): it came, changed or went."""

PAUSE = 1.0
RELIST_SECONDS = 60.0
STALE_SECONDS = 150.0
"""Without a list for this long nothing is decided that exposes more people to anything."""


@dataclass(frozen=True, slots=True)
class Watched:
    """A collection, and what its objects belong to."""

    kind: str
    group: Callable[[Json], Group]
    labels: str = ""
    """Filtered by the server: every node of a cluster renews a Lease every ten seconds."""
    namespace: str = ""
    keep_managers: bool = False


def watched(release_namespace: str) -> tuple[Watched, ...]:
    """Our kinds, and what belongs to models without being one."""
    worker = f"{names.LABEL_PART_OF}={names.PART_OF},{names.LABEL_MODEL}"
    tuning = f"{names.LABEL_COMPONENT}={names.COMPONENT_TUNING}"
    return (
        Watched("AdaptiveModel", by_name),
        Watched("PolicyAssignment", by_name, keep_managers=True),
        Watched("PolicyRollout", by_model),
        Watched("PolicyApproval", by_rollout),
        Watched("TuningRun", by_model),
        Watched("AdaptivePolicy", by_model),
        Watched("PolicyJournal", by_journal, namespace=release_namespace),
        Watched("Deployment", by_label, worker),
        Watched("Pod", partial(by_pod, release_namespace), worker),
        Watched("Lease", by_label, names.LABEL_MODEL),
        Watched("Job", by_job, tuning, release_namespace),
    )


def by_name(item: Json) -> Group:
    """A model, and what is named after it."""
    return item["metadata"]["namespace"], item["metadata"]["name"]


def by_model(item: Json) -> Group:
    """What names its model in its spec."""
    return item["metadata"]["namespace"], str(item.get("spec", {}).get("model", ""))


def by_journal(item: Json) -> Group:
    """A journal lies in the release's namespace and names its model; the release's names none."""
    spec = item.get("spec", {})
    return str(spec.get("namespace", "")), str(spec.get("model", ""))


def by_rollout(item: Json) -> Group:
    """An approval names a rollout, which names the model."""
    return item["metadata"]["namespace"], str(item.get("spec", {}).get("rollout", ""))


def by_label(item: Json) -> Group:
    """A labelled object belongs to a model of its own namespace, whatever else it says of itself:
    anybody labels what is theirs as they like."""
    metadata = item["metadata"]
    labels = metadata.get("labels") or {}
    return metadata.get("namespace", ""), labels.get(names.LABEL_MODEL, "")


def by_job(item: Json) -> Group:
    """A Job is in the release's namespace, where tenants write nothing: it names its model's."""
    labels = item["metadata"].get("labels") or {}
    namespace, model = by_label(item)
    return labels.get(names.LABEL_MODEL_NAMESPACE) or namespace, model


def by_pod(release_namespace: str, item: Json) -> Group:
    """A worker is beside its model; the pod of a Job is where the Job is, and says what it says."""
    metadata = item["metadata"]
    labels = metadata.get("labels") or {}
    of_job = labels.get(names.LABEL_COMPONENT) == names.COMPONENT_TUNING
    if of_job and metadata.get("namespace") == release_namespace:
        return by_job(item)
    return by_label(item)


class Informer:
    """One kind."""

    def __init__(self, api: KubeApi, store: Store, target: Watched, changed: Changed) -> None:
        self.target = target
        self._api = api
        self._store = store
        self._changed = changed
        self._path = path_of(target.kind, target.namespace)
        self._version = ""
        self.listed_at: float | None = None
        """When the newest list was asked for that succeeded."""
        self.went_back = False
        """The server knows lower versions than before: the stream under way may be dead."""
        store.add_kind(target.kind, target.group, keep_managers=target.keep_managers)

    def list(self) -> None:
        """Make the store what the server says. Raises what the server or the network does."""
        began = time.monotonic()
        items, version = self._api.list(self._path, labels=self.target.labels)
        before, self._version = self._version, version
        if version.isdecimal() and before.isdecimal() and int(version) < int(before):
            log.warning("%s: the server went back to version %s", self.target.kind, version)
            self.went_back = True
        changed = self._store.replace(self.target.kind, items, began)
        self.listed_at = began
        for item in changed:
            self._changed(self.target.kind, item)

    def follow(self) -> None:
        """Take what a watch tells, from the newest list on, until the server ends it."""
        self.went_back = False
        for change, item in self._api.watch(self._path, self.target.labels, self._version):
            if change != "BOOKMARK":
                self.take(change, item)

    def take(self, change: str, item: Json) -> None:
        """One change of a watch."""
        kind, store = self.target.kind, self._store
        news = store.remove(kind, item) if change == "DELETED" else store.put(kind, item)
        if news:
            self._changed(kind, item)

    @property
    def is_listed(self) -> bool:
        """Whether a stream can start."""
        return bool(self._version)

    def again(self) -> None:
        """Start from a list next time."""
        self._version = ""


class Informers:
    """All of them; daemon threads, since a read may block for a minute."""

    def __init__(
        self,
        api: KubeApi,
        store: Store,
        release_namespace: str,
        changed: Changed,
        synced: Callable[[], None],
        relist_seconds: float = RELIST_SECONDS,
    ) -> None:
        self._stop = threading.Event()
        self._tell_synced: Callable[[], None] | None = synced
        self._syncing = threading.Lock()
        self._relist_seconds = relist_seconds
        self.informers = [
            Informer(api, store, target, self._told(changed))
            for target in watched(release_namespace)
        ]
        self._threads = [
            threading.Thread(
                target=self._run, args=(one,), name=f"watch-{one.target.kind}", daemon=True
            )
            for one in self.informers
        ]
        self._threads.append(threading.Thread(target=self._relist, name="relist", daemon=True))

    def start(self) -> None:
        """Follow everything from now on."""
        for thread in self._threads:
            thread.start()

    def alive(self) -> bool:
        """Whether every thread still runs."""
        return all(thread.is_alive() for thread in self._threads)

    def stop(self) -> None:
        """Say nothing any more."""
        self._stop.set()

    def missing(self) -> list[str]:
        """Kinds that were never listed: until then absence means nothing."""
        return [one.target.kind for one in self.informers if one.listed_at is None]

    def stale(self) -> list[str]:
        """Kinds of ours that have not been listed for long."""
        now = time.monotonic()
        return [
            one.target.kind
            for one in self.informers
            if one.target.kind in PLURALS
            and (one.listed_at is None or now - one.listed_at > STALE_SECONDS)
        ]

    def _told(self, changed: Changed) -> Changed:
        def tell(kind: str, item: Json) -> None:
            if not self._stop.is_set():
                changed(kind, item)

        return tell

    def _run(self, informer: Informer) -> None:
        while not self._stop.is_set():
            listed = informer.is_listed or self._try(informer, informer.list)
            if not listed or not self._try(informer, informer.follow):
                informer.again()
                self._stop.wait(PAUSE)

    def _relist(self) -> None:
        """Kind after kind, so that a minute's lists do not come at once."""
        pause = self._relist_seconds / len(self.informers)
        while not self._stop.is_set():
            for informer in self.informers:
                self._stop.wait(pause)
                for one in [informer, *(each for each in self.informers if each.went_back)]:
                    if not self._stop.is_set():
                        self._try(one, one.list)

    def _try(self, informer: Informer, action: Callable[[], None]) -> bool:
        """Do it; a thread that ended would be missed by nobody."""
        kind = informer.target.kind
        try:
            action()
            self._listed()
        except Conflict as error:
            log.info("%s: listing again: %s", kind, error)
        except TrimwheelError as error:
            log.warning("%s: listing again: %s", kind, error)
        except Exception:
            log.exception("%s: listing again", kind)
        else:
            return True
        return False

    def _listed(self) -> None:
        """Say once that everything has been listed."""
        with self._syncing:
            tell, self._tell_synced = self._tell_synced, None
            if tell is not None and self.missing():
                self._tell_synced = tell
            elif tell is not None:
                tell()
