"""Reads the model's PolicyAssignment from the API server: GET, then watch, again and again.

A worker may `get` and `watch` one object by name. Every watch ends after a minute, and then the
credentials are read afresh and the object is read unconditionally: a watch from a resource version
that the server lost (a restored etcd) is silent without an error, and tokens rotate.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from typing import Any

from kubernetes import client
from kubernetes.client.rest import ApiException
from pydantic import ValidationError

from trimwheel_api import names
from trimwheel_api.errors import TrimwheelError, Unavailable
from trimwheel_api.kinds.policy_assignment import PolicyAssignmentSpec
from trimwheel_workers.assignment.client import REQUEST_TIMEOUT, connect, unavailable
from trimwheel_workers.assignment.source import Event, Gone, Seen, Unreachable

PLURAL = "policyassignments"
WATCH_SECONDS = 60
_WATCH_TIMEOUT = (3.0, WATCH_SECONDS + 15.0)
_FIRST_RETRY = 0.5
_LAST_RETRY = 10.0


class KubernetesSource:
    """Implements `AssignmentSource` for one object."""

    def __init__(self, namespace: str, name: str, watch_seconds: int = WATCH_SECONDS) -> None:
        self._namespace = namespace
        self._name = name
        self._watch_seconds = watch_seconds
        self._response: Any = None
        self._closed = False

    def events(self, stop: threading.Event) -> Iterator[Event]:
        """Readings until `stop`; failures are yielded and retried with back-off."""
        delay = _FIRST_RETRY
        while not stop.is_set():
            try:
                api = client.CustomObjectsApi(connect())
                version = None
                found = self._get(api)
                yield Gone() if found is None else self._seen(found)
                if found is not None:
                    version = found["metadata"]["resourceVersion"]
                for event in self._watch(api, version):
                    delay = _FIRST_RETRY
                    yield event
            except TrimwheelError as error:
                if not stop.is_set():
                    yield Unreachable(str(error))
                stop.wait(delay)
                delay = min(delay * 2, _LAST_RETRY)

    def close(self) -> None:
        """Shut the watch's socket, which wakes its reader."""
        self._closed = True
        response = self._response
        if response is not None:
            response.shutdown()

    def _get(self, api: client.CustomObjectsApi) -> dict[str, Any] | None:
        with unavailable(f"GET {PLURAL}/{self._name}"):
            try:
                found: dict[str, Any] = api.get_namespaced_custom_object(
                    names.GROUP, names.VERSION, self._namespace, PLURAL, self._name,
                    _request_timeout=REQUEST_TIMEOUT,
                )  # fmt: skip
            except ApiException as error:
                if error.status == 404:
                    return None
                raise
        return found

    def _watch(self, api: client.CustomObjectsApi, version: str | None) -> Iterator[Event]:
        """Changes until the watch ends, however it ends; raises Unavailable when that is an error.

        Without a version the server begins with the object as it is, if it is.
        """
        with unavailable(f"watch {PLURAL}/{self._name}"):
            self._response = api.list_namespaced_custom_object(
                names.GROUP, names.VERSION, self._namespace, PLURAL,
                field_selector=f"metadata.name={self._name}", watch=True,
                allow_watch_bookmarks=True, timeout_seconds=self._watch_seconds,
                resource_version=version, _preload_content=False,
                _request_timeout=_WATCH_TIMEOUT,
            )  # fmt: skip
            try:
                if self._closed:  # between the GET and the watch, when there was nothing to shut
                    return
                for line in _lines(self._response):
                    event = self._event(json.loads(line))
                    if event is not None:
                        yield event
            finally:
                self._response.close()
                self._response = None

    def _event(self, change: dict[str, Any]) -> Event | None:
        kind, value = change["type"], change["object"]
        if kind == "BOOKMARK":
            return None
        if kind == "ERROR":
            # 410 Gone above all: the version is too old, only a GET helps.
            raise Unavailable(f"watch: {value.get('code')} {value.get('message')}")
        return Gone() if kind == "DELETED" else self._seen(value)

    def _seen(self, found: dict[str, Any]) -> Event:
        try:
            spec = PolicyAssignmentSpec.model_validate(found["spec"])
        except ValidationError as error:
            # A newer operator may write what this worker does not know: keep the last good one.
            return Unreachable(f"{PLURAL}/{self._name} cannot be read: {error.errors()[0]}")
        return Seen(found["metadata"]["uid"], spec)


def _lines(response: Any) -> Iterator[bytes]:
    """Lines of a chunked response as they come."""
    if response.status != 200:
        raise Unavailable(f"watch: HTTP {response.status}")
    rest = b""
    for chunk in response.stream(amt=None, decode_content=True):
        *whole, rest = (rest + chunk).split(b"\n")
        yield from (line for line in whole if line.strip())
