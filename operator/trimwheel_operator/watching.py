"""Watches the workers' side with label selectors: pods, Deployments, acknowledgements, Jobs.

Kopf watches our own kinds; it filters labels only after everything has arrived, and every node of
a cluster renews a Lease every ten seconds. Each watch is a thread that lists, then follows, and
lists again after an error. It only marks keys.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from trimwheel_api import names
from trimwheel_api.errors import Conflict, TrimwheelError
from trimwheel_operator.cluster import KubeApi, path_of

log = logging.getLogger(__name__)

Json = dict[str, Any]
Mark = Callable[[tuple[str, str]], None]
PAUSE = 1.0


@dataclass(frozen=True, slots=True)
class Watched:
    """A collection of which only labelled objects matter."""

    kind: str
    labels: str
    namespace: str = ""


def watched(release_namespace: str) -> tuple[Watched, ...]:
    """What belongs to models without being a kind of ours."""
    worker = f"{names.LABEL_PART_OF}={names.PART_OF},{names.LABEL_MODEL}"
    tuning = f"{names.LABEL_COMPONENT}={names.COMPONENT_TUNING}"
    return (
        Watched("Deployment", worker),
        Watched("Pod", worker),
        Watched("Lease", names.LABEL_MODEL),
        Watched("Job", tuning, release_namespace),
    )


def key_of(item: Json) -> tuple[str, str]:
    """The model that a labelled object belongs to; a Job says in which namespace that is."""
    metadata = item["metadata"]
    labels = metadata.get("labels", {})
    namespace = labels.get(names.LABEL_MODEL_NAMESPACE) or metadata.get("namespace", "")
    return namespace, labels.get(names.LABEL_MODEL, "")


class Watches:
    """All watches; daemon threads, since a read may block for a minute."""

    def __init__(self, api: KubeApi, release_namespace: str, mark: Mark) -> None:
        self._api = api
        self._mark = mark
        self._stop = threading.Event()
        self._threads = [
            threading.Thread(
                target=self._run, args=(target,), name=f"watch-{target.kind.lower()}", daemon=True
            )
            for target in watched(release_namespace)
        ]

    def start(self) -> None:
        """Follow everything from now on."""
        for thread in self._threads:
            thread.start()

    def alive(self) -> bool:
        """Whether every watch still runs."""
        return all(thread.is_alive() for thread in self._threads)

    def stop(self) -> None:
        """Mark nothing any more."""
        self._stop.set()

    def _run(self, target: Watched) -> None:
        version = ""
        while not self._stop.is_set():
            try:
                version = self._follow(target, version)
            except Conflict as error:
                log.debug("watch of %s: listing again: %s", target.kind, error)
                version = ""
            except TrimwheelError as error:
                log.warning("watch of %s: listing again: %s", target.kind, error)
                version = ""
                self._stop.wait(PAUSE)
            except Exception:  # a watch that ended would be missed by nobody
                log.exception("watch of %s: listing again", target.kind)
                version = ""
                self._stop.wait(PAUSE)

    def _follow(self, target: Watched, version: str) -> str:
        path = path_of(target.kind, target.namespace)
        if not version:
            items, version = self._api.list(path, labels=target.labels)
            for item in items:
                self._touch(item)
        for change, item in self._api.watch(path, target.labels, version):
            version = item["metadata"]["resourceVersion"]
            if change != "BOOKMARK":
                self._touch(item)
        return version

    def _touch(self, item: Json) -> None:
        key = key_of(item)
        if all(key) and not self._stop.is_set():
            self._mark(key)
