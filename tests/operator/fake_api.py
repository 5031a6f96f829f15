"""An API server in memory for the parts around the plan, and a clock that a test moves."""

from __future__ import annotations

from typing import Any

from trimwheel_api.errors import Conflict


class FakeApi:
    """Objects by path, with the API server's resourceVersions; records what was written."""

    def __init__(self) -> None:
        self.objects: dict[str, Any] = {}
        self.writes: list[tuple[str, str]] = []
        self.failure: Exception | None = None
        self.version = 0

    def find(self, path: str) -> Any:
        if self.failure:
            raise self.failure
        return self.objects.get(path)

    def create(self, path: str, body: Any, *, dry_run: bool = False) -> Any:
        if self.failure:
            raise self.failure
        place = f"{path}/{body['metadata']['name']}"
        if place in self.objects:
            raise Conflict(place)
        self.writes.append(("create", place))
        return self._store(place, body)

    def replace(self, path: str, body: Any) -> Any:
        if self.failure:
            raise self.failure
        if body["metadata"]["resourceVersion"] != self.objects[path]["metadata"]["resourceVersion"]:
            raise Conflict(path)
        self.writes.append(("replace", path))
        return self._store(path, body)

    def merge(self, path: str, body: Any) -> Any:
        self.writes.append(("merge", path))
        return body

    def _store(self, place: str, body: Any) -> Any:
        self.version += 1
        metadata = {**body["metadata"], "resourceVersion": str(self.version)}
        self.objects[place] = {**body, "metadata": metadata}
        return self.objects[place]


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now
