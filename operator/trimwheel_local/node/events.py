"""Events about pods and Services: what the node did, and what it did not do."""

from __future__ import annotations

import asyncio
import logging
import time
from typing import Any

import aiohttp

from trimwheel_local.names import NODE_NAME
from trimwheel_local.node.api import ApiClient, ApiError
from trimwheel_local.node.runtime import timestamp

log = logging.getLogger(__name__)
Object = dict[str, Any]
REMEMBERED = 2048


class Recorder:
    """Posts Events in the background; an equal one only counts up. Failure to post is logged."""

    def __init__(self, api: ApiClient) -> None:
        self._api = api
        self._seen: dict[tuple[str, str, str], tuple[str, int]] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def say(self, about: Object, kind: str, reason: str, message: str) -> None:
        """`about` is the object; `kind` is Normal or Warning."""
        task = asyncio.create_task(self._post(about, kind, reason, message))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _post(self, about: Object, kind: str, reason: str, message: str) -> None:
        metadata = about["metadata"]
        path = f"/api/v1/namespaces/{metadata['namespace']}/events"
        key = (metadata["uid"], reason, message)
        name, count = self._seen.get(key, (f"{metadata['name']}.{time.time_ns():x}", 0))
        if len(self._seen) > REMEMBERED:
            self._seen.clear()
        self._seen[key] = (name, count + 1)
        now = timestamp()
        try:
            if count:
                await self._api.patch(f"{path}/{name}", {"count": count + 1, "lastTimestamp": now})
                return
            await self._api.post(path, _event(about, name, kind, reason, message, now))
        except (ApiError, aiohttp.ClientError, TimeoutError) as error:
            # A namespace that is going away takes no more events; nothing else depends on them.
            log.info("event %s of %s was not written: %s", reason, metadata["name"], error)


def _event(about: Object, name: str, kind: str, reason: str, message: str, now: str) -> Object:
    metadata = about["metadata"]
    return {
        "metadata": {"name": name, "namespace": metadata["namespace"]},
        "involvedObject": {
            "apiVersion": about.get("apiVersion", "v1"),
            "kind": about.get("kind", "Pod"),
            "name": metadata["name"],
            "namespace": metadata["namespace"],
            "uid": metadata["uid"],
        },
        "type": kind,
        "reason": reason,
        "message": message[:1024],
        "count": 1,
        "firstTimestamp": now,
        "lastTimestamp": now,
        "source": {"component": "trimwheel-node", "host": NODE_NAME},
        "reportingComponent": "trimwheel-node",
        "reportingInstance": NODE_NAME,
    }
