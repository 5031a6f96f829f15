"""Somebody with credentials, and the answers of the API server: which layer refused, and why."""

from __future__ import annotations

import copy
import json
import re
from dataclasses import dataclass, field
from typing import Any

import httpx

from trimwheel_api import names
from trimwheel_api.kinds import PLURALS

GUARDED_BY = re.compile(r"ValidatingAdmissionPolicy '([^']+)'")
MEDIA = {"PATCH": "application/merge-patch+json"}


@dataclass(frozen=True)
class Answer:
    """What the API server said: HTTP status, its words, and the object when it agreed."""

    code: int
    message: str
    body: dict[str, Any] = field(default_factory=dict)

    @property
    def allowed(self) -> bool:
        return self.code < 300

    @property
    def policy(self) -> str:
        """The admission policy that refused; empty when RBAC, the schema or nobody did."""
        found = GUARDED_BY.search(self.message)
        return found[1] if found else ""

    @property
    def rbac(self) -> bool:
        """Whether the authorizer refused before any admission."""
        return self.code == 403 and "cannot" in self.message and not self.policy


@dataclass(frozen=True)
class Actor:
    """Somebody with credentials, working in one namespace unless a call names another."""

    http: httpx.Client
    namespace: str

    def create(self, body: dict[str, Any], **query: str) -> Answer:
        """POST an object of ours (its kind says where), or any object with `_path` set."""
        body = copy.deepcopy(body)
        return self.call("POST", body.pop("_path", None) or self._path(body["kind"]), body, **query)

    def get(self, kind: str, name: str) -> Answer:
        return self.call("GET", self._path(kind, name))

    def patch(self, kind: str, name: str, body: dict[str, Any], sub: str = "") -> Answer:
        """A JSON merge patch of an object or of its subresource."""
        return self.call("PATCH", self._path(kind, name, sub), body)

    def put(self, body: dict[str, Any], sub: str = "") -> Answer:
        return self.call("PUT", self._path(body["kind"], body["metadata"]["name"], sub), body)

    def delete(self, kind: str, name: str) -> Answer:
        return self.call("DELETE", self._path(kind, name))

    def call(self, verb: str, path: str, body: Any = None, **query: str) -> Answer:
        """One request; errors become Answers."""
        headers = {"Content-Type": MEDIA.get(verb, "application/json")}
        content = None if body is None else json.dumps(body)
        response = self.http.request(verb, path, content=content, headers=headers, params=query)
        said = response.json()
        return Answer(response.status_code, str(said.get("message", "")), said)

    def _path(self, kind: str, name: str = "", sub: str = "") -> str:
        parts = ["/apis", names.API_VERSION, "namespaces", self.namespace, PLURALS[kind], name, sub]
        return "/".join(part for part in parts if part)


def made(kind: str, name: str, spec: dict[str, Any]) -> dict[str, Any]:
    return {
        "apiVersion": names.API_VERSION,
        "kind": kind,
        "metadata": {"name": name},
        "spec": spec,
    }
