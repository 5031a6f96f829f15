"""Objects that 0.1.0 stored, on a real API server whose CRDs are upgraded under them.

The CRDs live in a group of their own here, so that the release's stay as they are: first without
the limits that came after 0.1.0, then with them.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.cluster.authority.actors import Answer

from trimwheel_api import names
from trimwheel_api.crd import manifests
from trimwheel_local.testing import eventually

pytestmark = pytest.mark.cluster

STORED = Path(__file__).parents[2] / "upgrade" / "stored"
GROUP = "upgrade.example.org"
LIMITS = ("x-kubernetes-validations", "maximum", "maxProperties", "maxItems")
KINDS = ("AdaptiveModel", "AdaptivePolicy", "TuningRun", "PolicyRollout")
BEYOND = {"AdaptiveModel": "adaptivemodel-beyond-limits", "TuningRun": "tuningrun-beyond-limits",
          "PolicyRollout": "policyrollout-beyond-limits"}  # fmt: skip


def crds(*, limited: bool) -> list[dict[str, Any]]:
    found = []
    for manifest in manifests():
        if manifest["spec"]["names"]["kind"] not in KINDS:
            continue
        manifest = copy.deepcopy(manifest)
        kinds = manifest["spec"]["names"]
        kinds.pop("shortNames", None)
        kinds.pop("categories", None)
        manifest["metadata"] = {"name": f"{kinds['plural']}.{GROUP}"}
        manifest["spec"]["group"] = GROUP
        version = manifest["spec"]["versions"][0]
        if not limited:
            version["schema"]["openAPIV3Schema"] = _unlimited(version["schema"]["openAPIV3Schema"])
        found.append(manifest)
    return found


def _unlimited(part: Any) -> Any:
    if isinstance(part, list):
        return [_unlimited(one) for one in part]
    if not isinstance(part, dict):
        return part
    return {key: _unlimited(value) for key, value in part.items() if key not in LIMITS}


class Upgraded:
    """The stored objects in a namespace, before and after the upgrade of their CRDs."""

    def __init__(self, stage: Any) -> None:
        self.stage = stage
        self.plurals = {
            one["spec"]["names"]["kind"]: one["spec"]["names"]["plural"] for one in manifests()
        }

    def path(self, kind: str, *rest: str) -> str:
        base = f"/apis/{GROUP}/{names.VERSION}/namespaces/{self.stage.namespace}"
        return "/".join((base, self.plurals[kind], *rest))

    def call(self, verb: str, kind: str, *rest: str, body: Any = None) -> Answer:
        found: Answer = self.stage.root.call(verb, self.path(kind, *rest), body)
        return found

    def apply(self, *, limited: bool) -> None:
        text = json.dumps({"apiVersion": "v1", "kind": "List", "items": crds(limited=limited)})
        arguments = ("apply", "--server-side", "--force-conflicts", "--filename", "-")
        self.stage.cluster.kubectl(*arguments, stdin=text)

    def create(self, name: str) -> dict[str, Any]:
        body = json.loads((STORED / f"{name}.json").read_text())
        body["apiVersion"] = f"{GROUP}/{names.VERSION}"
        body["metadata"] = {"name": name}
        made = eventually(lambda: self._created(body), f"{name} is stored", 30)
        whole = {**made, "status": body.get("status", {})}
        answer = self.call("PUT", body["kind"], name, "status", body=whole)
        assert answer.allowed, answer
        return answer.body

    def _created(self, body: dict[str, Any]) -> dict[str, Any] | None:
        answer = self.call("POST", body["kind"], body=body)
        return answer.body if answer.allowed else None


@pytest.fixture
def upgraded(stage: Any) -> Iterator[Upgraded]:
    """Every stored object, and then the CRDs of this version."""
    made = Upgraded(stage)
    made.apply(limited=False)
    for path in sorted(STORED.glob("*.json")):
        if json.loads(path.read_text())["kind"] in KINDS:
            made.create(path.stem)
    made.apply(limited=True)
    eventually(lambda: _limited(made), "the limits are in force", 30)
    yield made
    for one in crds(limited=True):
        stage.cluster.kubectl("delete", "crd", one["metadata"]["name"], "--wait=false")


def _limited(made: Upgraded) -> bool:
    spec = {"model": {"uri": "models:/m/1", "digest": "sha256:" + "a" * 64},
            "rollout": {"steps": [{"weight": "100%"}]}}  # fmt: skip
    body = {"apiVersion": f"{GROUP}/{names.VERSION}", "kind": "AdaptiveModel",
            "metadata": {"name": "probe"}, "spec": spec}  # fmt: skip
    answer = made.call("POST", "AdaptiveModel", body=body)
    if answer.allowed:
        made.call("DELETE", "AdaptiveModel", "probe")
    return answer.code == 422


def test_what_was_stored_goes_on_after_the_upgrade(upgraded: Upgraded) -> None:
    """Read, and its status still written: the API server asks limits of what changes alone."""
    condition = {"type": "Stalled", "status": "True", "reason": "Tried", "message": "",
                 "lastTransitionTime": "2026-11-28T12:00:00Z", "observedGeneration": 1}  # fmt: skip
    tried = 0
    for path in sorted(STORED.glob("*.json")):
        kind = json.loads(path.read_text())["kind"]
        if kind not in KINDS:
            continue
        assert upgraded.call("GET", kind, path.stem).allowed
        written = upgraded.call(
            "PATCH", kind, path.stem, "status", body={"status": {"conditions": [condition]}}
        )
        assert written.allowed, written
        labelled = {"metadata": {"labels": {"team": "shop"}}}
        assert upgraded.call("PATCH", kind, path.stem, body=labelled).allowed
        tried += 1
    assert tried == 7

    name = BEYOND["AdaptiveModel"]
    other = {"spec": {"replicas": 3}}
    assert upgraded.call("PATCH", "AdaptiveModel", name, body=other).allowed
    worse = {"spec": {"engine": {"queueLimit": 60_000_000}}}
    assert upgraded.call("PATCH", "AdaptiveModel", name, body=worse).code == 422
    better = {"spec": {"engine": {"queueLimit": 512}}}
    assert upgraded.call("PATCH", "AdaptiveModel", name, body=better).allowed
    paused = {"spec": {"paused": True}}
    assert upgraded.call("PATCH", "PolicyRollout", BEYOND["PolicyRollout"], body=paused).allowed
    read = upgraded.call("GET", "AdaptiveModel", "adaptivemodel").body
    assert read["spec"]["rollout"]["approvalDeadline"] == "72h", "a new field has its default"
