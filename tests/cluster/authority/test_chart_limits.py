"""Numbers and sizes on the real API server: every number of every kind has a range."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest

from trimwheel_api.crd import manifests
from trimwheel_api.kinds import AdaptiveModel
from trimwheel_api.policy import MAX_DOCUMENT_BYTES

pytestmark = pytest.mark.cluster

Step = str | int


def numbers() -> Iterator[tuple[str, tuple[Step, ...], dict[str, Any]]]:
    """(kind, path, schema) of each number in a spec, as an integer or as text."""
    for crd in manifests():
        if crd["spec"]["names"]["kind"] == "PolicyJournal":
            continue  # the operator's own memory: nobody else writes it
        schema = crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
        for path, part in _walk(schema["properties"]["spec"], ()):
            pattern = part.get("pattern", "")
            is_text = "[0-9]" in pattern and "sha256" not in pattern and "[a-z0-9" not in pattern
            if part.get("type") == "integer" or is_text:
                yield crd["spec"]["names"]["kind"], path, part


def _walk(part: dict[str, Any], path: tuple[Step, ...]) -> Iterator[tuple[Any, dict[str, Any]]]:
    yield path, part
    for name, inner in part.get("properties", {}).items():
        yield from _walk(inner, (*path, name))
    if isinstance(part.get("items"), dict):
        yield from _walk(part["items"], (*path, 0))
    if isinstance(part.get("additionalProperties"), dict):
        yield from _walk(part["additionalProperties"], (*path, "cpu"))


NUMBERS = list(numbers())
IDS = [f"{kind}.{'.'.join(map(str, path))}" for kind, path, _ in NUMBERS]


def outside(part: dict[str, Any]) -> list[Any]:
    if part.get("type") == "integer":
        return [part["minimum"] - 1, part["maximum"] + 1, "NaN", 1.5]
    return ["NaN", "Infinity", "-1", "-1%", "9" * 70, "99999999d9999999d", "51%", "1e999"]


def placed(spec: dict[str, Any], path: tuple[Step, ...], value: Any) -> dict[str, Any]:
    """A copy of a spec with a value at a path; what is absent on the way is made."""
    made = copy.deepcopy(spec)
    here: Any = made
    for step, following in zip(path, path[1:], strict=False):
        empty: Any = [] if isinstance(following, int) else {}
        if isinstance(step, int):
            if not here:
                here.append({"weight": "5%"})
            here = here[step]
        else:
            here = here.setdefault(step, empty)
    if isinstance(path[-1], int):
        here[:1] = [value]
    else:
        here[path[-1]] = value
    return made


def base(stage: Any, kind: str) -> dict[str, Any]:
    """A valid object of a kind with every section that holds numbers."""
    match kind:
        case "AdaptiveModel":
            return dict(stage.model())
        case "AdaptivePolicy":
            return dict(stage.policy(certificate=stage.certificate()))
        case "TuningRun":
            return dict(stage.tuning())
        case "PolicyRollout":
            return dict(stage.rollout("r", "admin"))
    return dict(stage.assignment(candidate=stage.assignment()["spec"]["stable"]))


@pytest.mark.parametrize(("kind", "path", "part"), NUMBERS, ids=IDS)
def test_no_number_of_any_kind_is_taken_out_of_its_range(
    stage: Any, kind: str, path: tuple[Step, ...], part: dict[str, Any]
) -> None:
    body = base(stage, kind)
    actor = stage.operator if kind == "PolicyAssignment" else stage.root
    for value in outside(part):
        spec = placed(body["spec"], path, value)
        answer = actor.create({**body, "spec": spec}, dryRun="All")
        assert answer.code in (400, 422), (value, answer)
        named = "spec." + ".".join(str(step) for step in path).replace(".0", "[0]")
        assert named in answer.message or str(path[-1]) in answer.message, (value, answer.message)


EDGES: dict[str, tuple[tuple[Step, ...], str, bool]] = {
    "half of the cohorts": (("rollout", "steps", 0, "weight"), "50%", True),
    "more than half": (("rollout", "steps", 0, "weight"), "50.01%", False),
    "a year's hold": (("rollout", "steps", 0, "hold"), "366d", True),
    "a year's hold and a moment": (("rollout", "steps", 0, "hold"), "365d24h1ms", False),
    "a year in hours": (("tuning", "timeout"), "8784h", True),
    "a year in hours and a second": (("tuning", "timeout"), "8784h1s", False),
    "ten years of records": (("audits", "retention"), "3660d", True),
    "more than ten years of records": (("audits", "retention"), "3660d1s", False),
    "a wait of an hour": (("engine", "maxWait"), "60m", True),
    "a wait beyond the hour": (("engine", "maxWait"), "60m1s", False),
    "the largest promise": (("objectives", "maxDisagreement"), "0.199999999", True),
    "a promise of a fifth": (("objectives", "maxDisagreement"), "0.2", False),
    "no promise": (("objectives", "maxDisagreement"), "0", False),
    "certainty": (("objectives", "confidence"), "1", False),
    "no time at all to answer": (("objectives", "latency", "slo"), "0s", False),
    "a margin below 1": (("rollout", "passMargin"), "0.99", False),
}


@pytest.mark.parametrize("name", EDGES)
def test_the_edges_of_ranges_are_where_the_contract_says(stage: Any, name: str) -> None:
    """The API server's rule and the contract's, which names what was stored before, are one."""
    path, value, taken = EDGES[name]
    body = stage.model()
    spec = placed(body["spec"], path, value)
    answer = stage.root.create({**body, "spec": spec}, dryRun="All")
    assert answer.allowed is taken, answer
    read = AdaptiveModel.model_validate({**body, "spec": spec})
    assert (list(_beyond(read)) == []) is taken
    if not taken:
        assert f"but got {value}" in answer.message


def _beyond(model: AdaptiveModel) -> Any:
    from trimwheel_api.limits import beyond

    return beyond(model.spec)


# --- sizes ------------------------------------------------------------------------------------
def document(size: int) -> dict[str, Any]:
    """A document of about `size` bytes, of many small fields as a real one would be."""
    return {"later": {f"knob{n:05}": ["0.125"] * 4 for n in range(size // 52)}}


def test_a_document_that_no_assignment_carries_is_not_stored(stage: Any) -> None:
    answer = stage.root.create(stage.policy(policy=document(1_300_000)))
    assert answer.policy == "trimwheel-certificates"
    assert f"spec.policy: must be at most {MAX_DOCUMENT_BYTES} bytes" in answer.message


@pytest.mark.parametrize(
    "policy", [{}, {"moe": {"topK": 1}}, {"later": {"text": "ü" * 20_000}}, document(50_000)]
)
def test_a_document_within_the_size_is_stored(stage: Any, policy: dict[str, Any]) -> None:
    assert stage.root.create(stage.policy(policy=policy)).allowed


def test_the_size_is_counted_in_bytes_and_not_in_letters(stage: Any) -> None:
    answer = stage.root.create(stage.policy(policy={"later": {"text": "ü" * 40_000}}))
    assert "spec.policy: must be at most" in answer.message
