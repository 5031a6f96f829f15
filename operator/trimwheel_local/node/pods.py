"""All pods that are bound to the node: one `PodWorker` each, following the API server."""

from __future__ import annotations

import asyncio
import logging
from functools import partial
from pathlib import Path
from typing import Any

from trimwheel_local.names import NODE_NAME
from trimwheel_local.node import runtime
from trimwheel_local.node.context import Context
from trimwheel_local.node.worker import PodWorker

log = logging.getLogger(__name__)
Object = dict[str, Any]

WORKER_RETRY = 2.0
"""Seconds after which a pod whose worker failed gets a new one."""


class Pods:
    """All pods bound to the node."""

    def __init__(self, context: Context) -> None:
        self.context = context
        self.workers: dict[str, PodWorker] = {}

    async def run(self) -> None:
        """Follow the API server for ever."""
        query = {"fieldSelector": f"spec.nodeName={NODE_NAME}"}
        async for kind, item in self.context.api.watch("/api/v1/pods", **query):
            if kind == "LIST":
                self._list(item["items"])
            elif kind == "DELETED":
                self._remove(item["metadata"]["uid"])
            else:
                self._update(item)

    def find(self, namespace: str, name: str) -> PodWorker | None:
        for worker in self.workers.values():
            metadata = worker.pod["metadata"]
            if (metadata["namespace"], metadata["name"]) == (namespace, name):
                return worker
        return None

    def _list(self, items: list[Object]) -> None:
        known = {item["metadata"]["uid"] for item in items}
        for uid in [uid for uid in self.workers if uid not in known]:
            self._remove(uid)
        folders = {uid[:13] for uid in known}
        for folder in self.context.layout.pods.iterdir():
            if folder.name not in folders and not self._own(folder):
                log.info("pod folder %s belongs to no pod; it is cleaned up", folder.name)
                runtime.kill_pod(folder)
        for item in items:
            self._update(item)

    def _own(self, folder: Path) -> bool:
        return any(worker.folder == folder for worker in self.workers.values())

    def _update(self, pod: Object) -> None:
        worker = self.workers.get(pod["metadata"]["uid"])
        if worker:
            worker.update(pod)
        else:
            worker = PodWorker(self.context, pod)
            self.workers[worker.uid] = worker
            worker.task.add_done_callback(partial(self._done, worker))
        self.context.services.pod_changed(pod)

    def _remove(self, uid: str) -> None:
        if worker := self.workers.get(uid):
            worker.removed()
            self.context.services.pod_removed(worker.pod)

    def _done(self, worker: PodWorker, task: asyncio.Task[None]) -> None:
        self.workers.pop(worker.uid, None)
        self.context.services.pod_removed(worker.pod)
        if task.cancelled():
            return
        if error := task.exception():
            name = worker.pod["metadata"]["name"]
            log.error("pod %s: its worker failed and is started anew", name, exc_info=error)
            self.context.addresses.free(worker.address)
            asyncio.get_running_loop().call_later(WORKER_RETRY, self._update, worker.pod)
