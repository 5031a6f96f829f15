"""Which models a change concerns: none that is not there, unless something waits for an end."""

from __future__ import annotations

from typing import Any

import pytest

from trimwheel_api import names
from trimwheel_operator.informers import watched
from trimwheel_operator.marks import Marker
from trimwheel_operator.schedule import Key, Lane
from trimwheel_operator.store import Store

Document = dict[str, Any]
KEY = ("team", "router")
LABELS = {names.LABEL_MODEL: "router", names.LABEL_MODEL_NAMESPACE: "team"}


class Place:
    """A store, and what its changes mark."""

    def __init__(self) -> None:
        self.store = Store()
        for target in watched("trimwheel-system"):
            self.store.add_kind(target.kind, target.group)
        self.marks: list[tuple[Key, Lane]] = []
        self.marker = Marker(self.store, lambda key, lane: self.marks.append((key, lane)))
        self.count = 0

    def put(self, kind: str, name: str, *, status: Any = None, **rest: Any) -> None:
        self.count += 1
        place = {key: rest.pop(key) for key in ("labels", "annotations") if key in rest}
        metadata = {
            "namespace": "team", "name": name, "uid": f"u-{kind}-{name}",
            "resourceVersion": str(self.count), **place,
        }  # fmt: skip
        item = {"metadata": metadata, "spec": rest, "status": status or {}}
        if self.store.put(kind, item):
            self.marker.changed(kind, item)

    def told(self) -> list[tuple[Key, Lane]]:
        found, self.marks[:] = list(self.marks), []
        return found


@pytest.fixture
def place() -> Place:
    made = Place()
    made.marker.begin()
    return made


@pytest.fixture
def with_model(place: Place) -> Place:
    place.put("AdaptiveModel", "router")
    assert place.told() == [(KEY, Lane.NORMAL)]
    return place


def test_thousands_of_objects_that_name_absent_models_get_no_key(place: Place) -> None:
    for number in range(5000):
        place.put("AdaptivePolicy", f"p{number}", model=f"absent-{number}")
    assert place.told() == []


ENDLESS: dict[str, tuple[Document, Lane | None]] = {
    "a policy": ({"kind": "AdaptivePolicy", "model": "router"}, None),
    "a rollout without an end": ({"kind": "PolicyRollout", "model": "router"}, Lane.ORPHAN),
    "a rollout that ended": (
        {"kind": "PolicyRollout", "model": "router", "status": {"finishedAt": "t"}}, None,
    ),
    "a run without an outcome": ({"kind": "TuningRun", "model": "router"}, Lane.ORPHAN),
    "a run that ended": (
        {"kind": "TuningRun", "model": "router", "status": {"outcome": "Failed"}}, None,
    ),
    "a Job": ({"kind": "Job", "labels": LABELS}, Lane.ORPHAN),
    "a pod": ({"kind": "Pod", "labels": LABELS}, None),
    "a Lease": ({"kind": "Lease", "labels": LABELS}, None),
}  # fmt: skip


@pytest.mark.parametrize("case", ENDLESS)
def test_without_its_model_only_what_has_no_end_yet_gets_a_key(place: Place, case: str) -> None:
    document, lane = ENDLESS[case]
    place.put(document["kind"], "x", **{k: v for k, v in document.items() if k != "kind"})
    assert place.told() == ([] if lane is None else [(KEY, lane)])


URGENT: dict[str, Document] = {
    "a Rollback": {"kind": "PolicyRollout", "model": "router", "type": "Rollback"},
    "an abort": {"kind": "PolicyRollout", "model": "router", "type": "Canary", "abort": True},
    "harm": {"kind": "TuningRun", "model": "router", "status": {"drift": {"verdict": "Harmful"}}},
    "a hold": {"kind": "PolicyAssignment", "hold": True},
    "a tripped worker": {
        "kind": "Lease", "labels": LABELS, "annotations": {names.ANNOTATION_TRIPPED: "NaN"},
    },
    "a worker that refuses": {
        "kind": "Lease", "labels": LABELS, "annotations": {names.ANNOTATION_REFUSED: "no"},
    },
}  # fmt: skip
PATIENT: dict[str, Document] = {
    "a canary": {"kind": "PolicyRollout", "model": "router", "type": "Canary"},
    "a Rollback that ended": {
        "kind": "PolicyRollout", "model": "router", "type": "Rollback",
        "status": {"finishedAt": "t"},
    },
    "a run": {"kind": "TuningRun", "model": "router"},
    "a worker that acknowledges": {"kind": "Lease", "labels": LABELS},
    "a policy": {"kind": "AdaptivePolicy", "model": "router"},
}  # fmt: skip


@pytest.mark.parametrize(
    ("document", "lane"),
    [
        *(pytest.param(one, Lane.URGENT, id=case) for case, one in URGENT.items()),
        *(pytest.param(one, Lane.NORMAL, id=case) for case, one in PATIENT.items()),
    ],
)
def test_what_takes_a_policy_away_is_urgent(
    with_model: Place, document: Document, lane: Lane
) -> None:
    name = "router" if document["kind"] == "PolicyAssignment" else "x"
    with_model.put(document["kind"], name, **{k: v for k, v in document.items() if k != "kind"})
    assert with_model.told() == [(KEY, lane)]


@pytest.mark.parametrize(("decision", "lane"), [("Reject", Lane.URGENT), ("Approve", Lane.NORMAL)])
def test_an_approval_marks_the_model_of_its_rollout_and_no_other(
    with_model: Place, decision: str, lane: Lane
) -> None:
    with_model.put("PolicyRollout", "ramp", model="router")
    with_model.told()
    with_model.put("PolicyApproval", "by-bea", rollout="ramp", decision=decision)
    assert with_model.told() == [(KEY, lane)]
    with_model.put("PolicyApproval", "stray", rollout="nothing", decision=decision)
    assert with_model.told() == []


def test_a_model_that_went_is_looked_at_once_more(with_model: Place) -> None:
    entry = with_model.store.find("AdaptiveModel", *KEY)
    assert entry is not None
    with_model.store.remove("AdaptiveModel", entry.item)
    with_model.marker.changed("AdaptiveModel", entry.item)
    assert with_model.told() == [(KEY, Lane.NORMAL)]


def test_before_everything_is_listed_nothing_is_absent() -> None:
    place = Place()
    place.put("PolicyRollout", "back", model="router", type="Rollback")
    place.put("PolicyRollout", "stray", model="absent")
    place.put("AdaptiveModel", "router")
    place.put("AdaptivePolicy", "p", model="nowhere")
    assert place.told() == []
    place.marker.begin()
    assert set(place.told()) == {
        (KEY, Lane.NORMAL), (KEY, Lane.URGENT), (("team", "absent"), Lane.ORPHAN),
    }  # fmt: skip
