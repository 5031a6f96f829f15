"""The node's HTTP client for the API server: requests, and list-then-watch that resumes.

Watching follows the API's rules: list, watch from the list's resourceVersion with bookmarks,
resume where the stream ended, list again on 410 Gone. No Kubernetes client library: the node
needs a dozen calls, and this way it starts fast and stays small.
"""

from __future__ import annotations

import asyncio
import json
import logging
import ssl
from collections.abc import AsyncIterator
from http import HTTPStatus
from typing import Any

import aiohttp

from trimwheel_local.layout import Layout

log = logging.getLogger(__name__)

Object = dict[str, Any]
STRATEGIC = "application/strategic-merge-patch+json"
MERGE = "application/merge-patch+json"
WATCH_SECONDS = 300
"""The server ends a watch after this time; silence for much longer means a dead connection."""
RETRY_FIRST, RETRY_LAST = 0.2, 5.0
LINE_LIMIT = 4 * 2**20
"""Largest object of a watch, in bytes; etcd's own limit is 1.5 MiB."""


class ApiError(Exception):
    """The API server refused; `status` is the HTTP status, the text is its message."""

    def __init__(self, status: int, message: str) -> None:
        self.status = status
        super().__init__(message)


class ApiClient:
    """One connection pool to one API server, as the node's own user."""

    def __init__(self, layout: Layout) -> None:
        context = ssl.create_default_context(cafile=f"{layout.pki}/ca.crt")
        context.load_cert_chain(f"{layout.pki}/node.crt", f"{layout.pki}/node.key")
        connector = aiohttp.TCPConnector(ssl=context, limit=0)
        timeout = aiohttp.ClientTimeout(total=30)
        self._session = aiohttp.ClientSession(
            layout.server, connector=connector, timeout=timeout, read_bufsize=LINE_LIMIT
        )

    async def close(self) -> None:
        await self._session.close()

    async def get(self, path: str, **query: str) -> Object:
        return await self._request("GET", path, query=query)

    async def post(self, path: str, body: Object) -> Object:
        return await self._request("POST", path, body)

    async def patch(self, path: str, body: Object, kind: str = STRATEGIC) -> Object:
        return await self._request("PATCH", path, body, kind)

    async def delete(self, path: str, body: Object) -> Object:
        return await self._request("DELETE", path, body)

    async def _request(
        self,
        method: str,
        path: str,
        body: Object | None = None,
        kind: str = "application/json",
        query: dict[str, str] | None = None,
    ) -> Object:
        data = None if body is None else json.dumps(body).encode()
        headers = {"Content-Type": kind, "Accept": "application/json"}
        async with self._session.request(
            method, path, params=query, data=data, headers=headers
        ) as response:
            answer: Object = await response.json()
            if response.status >= HTTPStatus.BAD_REQUEST:
                raise ApiError(response.status, str(answer.get("message", answer)))
            return answer

    async def watch(self, path: str, **query: str) -> AsyncIterator[tuple[str, Object]]:
        """Events for ever: ("LIST", list) first and after every gap, then ("ADDED", object) ...

        Never raises for a server that is away: it retries with back-off.
        """
        delay = RETRY_FIRST
        version = ""
        while True:
            try:
                if not version:
                    listed = await self.get(path, **query)
                    version = listed["metadata"]["resourceVersion"]
                    yield "LIST", listed
                async for kind, item in self._stream(path, version, query):
                    delay = RETRY_FIRST
                    version = item["metadata"]["resourceVersion"]
                    if kind != "BOOKMARK":
                        yield kind, item
            except ApiError as error:
                log.info("watch of %s: %s; listing again", path, error)
                version = ""
            except (aiohttp.ClientError, TimeoutError, json.JSONDecodeError) as error:
                log.info("watch of %s broke: %r; trying again in %.1f s", path, error, delay)
            else:
                continue
            await asyncio.sleep(delay)
            delay = min(2 * delay, RETRY_LAST)

    async def _stream(
        self, path: str, version: str, query: dict[str, str]
    ) -> AsyncIterator[tuple[str, Object]]:
        parameters = {
            **query,
            "watch": "true",
            "resourceVersion": version,
            "allowWatchBookmarks": "true",
            "timeoutSeconds": str(WATCH_SECONDS),
        }
        timeout = aiohttp.ClientTimeout(total=None, sock_read=WATCH_SECONDS + 15)
        async with self._session.get(path, params=parameters, timeout=timeout) as response:
            if response.status != HTTPStatus.OK:
                raise ApiError(response.status, await response.text())
            async for line in response.content:
                event = json.loads(line)
                if event["type"] == "ERROR":
                    status = event["object"]
                    raise ApiError(int(status.get("code", 500)), status.get("message", ""))
                yield event["type"], event["object"]
