"""Objects that do not parse, as an older or newer CRD may leave them: there, and left alone."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from trimwheel_api import names
from trimwheel_api.kinds import TuningRun
from trimwheel_operator import manifests
from trimwheel_operator.admission import AdmissionTest
from trimwheel_operator.gather import Gatherer, Memory
from trimwheel_operator.informers import watched
from trimwheel_operator.plan import plan
from trimwheel_operator.plan.actions import (
    DeleteJob,
    PatchStatus,
    WriteAssignment,
    WriteJournal,
)
from trimwheel_operator.plan.observed import ObservedState, Unreadable
from trimwheel_operator.raw import Parser
from trimwheel_operator.reconcile import is_gone
from trimwheel_operator.settings import Settings
from trimwheel_operator.store import Entry, Store

World = Any
Document = dict[str, Any]


def ramped(world: World, good: Document) -> World:
    world.policy("good", good)
    world.rollout("ramp", "good")
    world.guards("Pass")
    world.settle().after(16)
    return world.settle()


@pytest.mark.parametrize("kind", ["AdaptiveModel", "PolicyAssignment"])
def test_while_the_model_cannot_be_read_nothing_is_decided(
    world: World, good: Document, kind: str
) -> None:
    """Its rollouts are not orphans, and its assignment is not made anew."""
    state = ramped(world, good).observe()
    gone = {"model": None} if kind == "AdaptiveModel" else {"assignment": None}
    unreadable = (Unreadable(kind, "router", "u"),)
    assert plan(replace(state, **gone, unreadable=unreadable), world.now).actions == ()
    assert plan(replace(state, **gone), world.now).actions != ()


def test_a_rollout_that_cannot_be_read_keeps_its_candidate(world: World, good: Document) -> None:
    state = ramped(world, good).observe()
    lost = replace(state, rollouts=(), evidence=None, last_renewal=world.now)
    unreadable = (Unreadable("PolicyRollout", "ramp", "u"),)

    def taken(one: ObservedState) -> bool:
        return any(isinstance(action, WriteAssignment) for action in plan(one, world.now).actions)

    assert taken(lost) and not taken(replace(lost, unreadable=unreadable))


def test_a_run_that_cannot_be_read_keeps_its_job(world: World) -> None:
    world.tuning("t")
    world.settle()
    [run] = world.observe().runs
    lost = replace(world.observe(), runs=())
    known = replace(lost, unreadable=(Unreadable("TuningRun", "t", run.metadata.uid),))
    for state, deleted in ((lost, 1), (known, 0)):
        actions = plan(state, world.now).actions
        assert sum(isinstance(one, DeleteJob) for one in actions) == deleted
        assert not any(isinstance(one, PatchStatus) for one in actions if deleted == 0)


def test_a_model_of_which_something_is_left_that_cannot_be_read_is_not_forgotten() -> None:
    left = (Unreadable("AdaptiveModel", "router", "u"),)
    assert not is_gone(ObservedState("team", "router", Settings(), unreadable=left))
    assert is_gone(ObservedState("team", "router", Settings()))


def gathered(world: World, *items: tuple[str, Document]) -> ObservedState:
    """What is gathered of `team/router` when these objects are there."""

    class Api:
        def find(self, path: str) -> Any:
            return None

        def list(self, path: str, labels: str = "") -> Any:
            return [], "1"

    store = Store()
    for target in watched("trimwheel-system"):
        store.add_kind(target.kind, target.group)
    for number, (kind, item) in enumerate(items):
        namespace = "trimwheel-system" if kind == "Job" else "team"
        metadata = {"namespace": namespace, "uid": f"u-{number}", "resourceVersion": "1"}
        store.put(kind, {**item, "metadata": metadata | item["metadata"]})
    api: Any = Api()
    parts: Any = {"api": api, "store": store, "admission": AdmissionTest(api), "evidence": None}
    return Gatherer(**parts, settings=Settings()).gather("team", "router", Memory(), world.now)


def test_the_gatherer_says_what_it_could_not_read(world: World) -> None:
    """A TuningRun of a later version, with a field that this one does not know."""
    run = {
        "metadata": {"name": "t", "namespace": "team", "uid": "u-t"},
        "spec": {"model": "router", "colour": "red"},
    }
    state = gathered(world, ("TuningRun", run))
    assert state.unreadable == (Unreadable("TuningRun", "t", "u-t"),)
    assert state.runs == ()


LABELS = {names.LABEL_MODEL: "router", names.LABEL_MODEL_NAMESPACE: "team"}
HEALTHY: dict[str, Document] = {
    "AdaptivePolicy": {"spec": {"model": "router", "policy": {}}},
    "TuningRun": {"spec": {"model": "router"}},
    "PolicyRollout": {
        "spec": {"model": "router", "policy": "p", "policyDigest": "sha256:" + "a" * 64,
                 "requestedBy": "ann"},
    },
    "Pod": {
        "labels": manifests.labels("router"),
        "status": {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]},
    },
    "Lease": {
        "labels": LABELS,
        "annotations": {names.ANNOTATION_EPOCH: "7"},
        "spec": {"renewTime": "2026-01-01T00:00:00Z"},
    },
    "Job": {"labels": LABELS, "status": {}},
}  # fmt: skip
FIELD = {
    "AdaptivePolicy": "policies", "TuningRun": "runs", "PolicyRollout": "rollouts", "Pod": "pods",
    "Lease": "acknowledgements", "Job": "jobs",
}  # fmt: skip
BROKEN: dict[str, Document] = {
    "AdaptivePolicy": {"spec": {"model": "router", "policy": 7}},
    "TuningRun": {"spec": {"model": "router", "budget": "all"}},
    "PolicyRollout": {"spec": {"model": "router", "policyDigest": ["x"]}},
    "Pod": {
        "labels": manifests.labels("router"), "status": {"phase": "Running", "conditions": [{}]},
    },
    "Lease": {
        "labels": LABELS,
        "annotations": {names.ANNOTATION_EPOCH: "9" * 5000},
        "spec": {"renewTime": "2026-01-01T00:00:00Z"},
    },
    "Job": {"labels": LABELS, "status": {"conditions": [{"status": "True"}]}},
}  # fmt: skip


@pytest.mark.parametrize("label", ["", "team"])
def test_a_pod_and_a_lease_of_another_namespace_say_nothing_of_this_model(
    world: World, label: str
) -> None:
    """A tenant that names another one's model could otherwise end that one's canary."""
    own = [("Pod", named("a", HEALTHY["Pod"])), ("Lease", named("a", HEALTHY["Lease"]))]
    forged = []
    for kind, item in (("Pod", HEALTHY["Pod"]), ("Lease", HEALTHY["Lease"])):
        made = named("forged", item)
        marks = {**made["metadata"]["labels"], names.LABEL_MODEL_NAMESPACE: label}
        made["metadata"] = {**made["metadata"], "namespace": "evil", "labels": marks}
        forged.append((kind, made))
    state = gathered(world, *own, *forged)
    assert [pod.name for pod in state.pods] == ["a"]
    assert [ack.pod for ack in state.acknowledgements] == ["a"]


def named(name: str, document: Document) -> Document:
    place = {key: document[key] for key in ("labels", "annotations") if key in document}
    rest = {key: value for key, value in document.items() if key not in place}
    return {"metadata": {"name": name, **place}, **rest}


@pytest.mark.parametrize("kind", HEALTHY)
def test_one_broken_object_of_a_kind_never_hides_the_healthy_one_beside_it(
    world: World, kind: str
) -> None:
    good, bad = named("b", HEALTHY[kind]), named("a", BROKEN[kind])
    state = gathered(world, (kind, bad), (kind, good))
    assert len(getattr(state, FIELD[kind])) == 1


def test_a_broken_object_is_complained_of_once(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    entry = Entry(named("a", BROKEN["TuningRun"]), ("team", "router"), 1, 0.0)
    entry.item["metadata"] |= {"namespace": "team", "uid": "u"}
    for _ in range(3):
        assert Parser().parse(TuningRun, entry) is None
    assert len(caplog.records) == 1


def test_a_journal_that_cannot_be_read_holds_what_is_new_and_lets_a_canary_end(
    world: World, good: Document
) -> None:
    """Another version wrote it: what it remembers is not known, so nothing is exposed."""
    unreadable = (Unreadable("PolicyJournal", "team.router", "u"),)
    state = replace(ramped(world, good).observe(), journal=None, unreadable=unreadable)

    def weights(one: ObservedState) -> list[Any]:
        actions = plan(one, world.after(60).now).actions
        assert not any(isinstance(action, WriteJournal) for action in actions)
        writes = [action.spec for action in actions if isinstance(action, WriteAssignment)]
        return [spec["weightBasisPoints"] for spec in writes if "weightBasisPoints" in spec]

    assert weights(state) == [], "no next step"
    world.guards("Pass", errors="Fail")
    failing = replace(world.observe(), journal=None, unreadable=unreadable)
    assert weights(failing) == [0]
