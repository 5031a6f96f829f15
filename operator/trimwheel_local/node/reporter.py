"""Tells the API server what a pod's status is: whenever it changes, and once more at the end."""

from __future__ import annotations

import asyncio
import logging
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

import aiohttp

from trimwheel_local.node import runtime
from trimwheel_local.node.api import ApiClient, ApiError
from trimwheel_local.node.status import pod_status

if TYPE_CHECKING:
    from trimwheel_local.node.worker import PodWorker

log = logging.getLogger(__name__)
Object = dict[str, Any]
FIRST_RETRY, LAST_RETRY = 0.1, 5.0
REPLACE = {"$patch": "replace"}
"""Makes a strategic merge replace a list that it would merge by key."""
GONE = (HTTPStatus.NOT_FOUND, HTTPStatus.CONFLICT)
"""The pod is no more, or another one has its name: nothing to report to."""


class Reporter:
    """Writes the status of one pod; equal statuses are written once, unless somebody else changed
    it: the controllers call the pods of a node that was silent unready."""

    def __init__(self, api: ApiClient, worker: PodWorker) -> None:
        self._api = api
        self._worker = worker
        self._dirty = asyncio.Event()
        self._sent: Object | None = None
        self._version = 0
        self._started = ""
        self._dirty.set()

    def changed(self) -> None:
        """Something about the pod may be new."""
        self._dirty.set()

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            await self._dirty.wait()
            self._dirty.clear()
            await self._send()

    async def finish(self) -> None:
        """The last status, then let the object go."""
        metadata = self._worker.pod["metadata"]
        await self._send()
        options = {
            "apiVersion": "v1",
            "kind": "DeleteOptions",
            "gracePeriodSeconds": 0,
            "preconditions": {"uid": metadata["uid"]},
        }
        await self._insist("DELETE", options)

    async def _send(self) -> None:
        status = self._status()
        if status == self._sent and not self._overwritten():
            return
        uid = self._worker.pod["metadata"]["uid"]
        written = await self._insist("PATCH", {"metadata": {"uid": uid}, "status": status})
        self._version = _version(written) if written else self._version
        self._sent = status

    def _overwritten(self) -> bool:
        """Whether the watch tells, of later than our last write, a condition that is not ours."""
        pod = self._worker.pod
        if not self._sent or _version(pod) <= self._version:
            return False
        told = {one["type"]: one["status"] for one in pod.get("status", {}).get("conditions", [])}
        return any(told.get(one["type"]) != one["status"] for one in self._sent["conditions"])

    def _status(self) -> Object:
        worker = self._worker
        pod = worker.addressed
        # What was sent is newer than what the watch has told so far.
        if self._sent:
            conditions = _merged(pod["status"].get("conditions", []), self._sent["conditions"])
            pod = {**pod, "status": {**pod["status"], "conditions": conditions}}
        now = runtime.timestamp()
        self._started = self._started or pod["status"].get("startTime") or now
        init, main = ([one.status for one in loops] for loops in (worker.init, worker.main))
        return {
            **pod_status(pod, init, main, now, worker.verdict),
            "startTime": self._started,
            "podIP": worker.address,
            "podIPs": [{"ip": worker.address}, REPLACE],
            "hostIP": "127.0.0.1",
            "hostIPs": [{"ip": "127.0.0.1"}, REPLACE],
        }

    async def _insist(self, method: str, body: Object) -> Object | None:
        """Again and again until it is done, or the pod is gone: then None."""
        metadata = self._worker.pod["metadata"]
        path = f"/api/v1/namespaces/{metadata['namespace']}/pods/{metadata['name']}"
        delay = FIRST_RETRY
        while True:
            try:
                if method == "PATCH":
                    return await self._api.patch(f"{path}/status", body)
                return await self._api.delete(path, body)
            except ApiError as error:
                if error.status in GONE:
                    return None
                log.warning("%s of pod %s: %s", method, metadata["name"], error)
            except (aiohttp.ClientError, TimeoutError) as error:
                log.info("%s of pod %s: %r; trying again", method, metadata["name"], error)
            await asyncio.sleep(delay)
            delay = min(2 * delay, LAST_RETRY)


def _version(item: Object) -> int:
    """resourceVersions are numbers that grow."""
    return int(item["metadata"]["resourceVersion"])


def _merged(known: list[Object], sent: list[Object]) -> list[Object]:
    by_type = {one["type"]: one for one in known} | {one["type"]: one for one in sent}
    return list(by_type.values())
