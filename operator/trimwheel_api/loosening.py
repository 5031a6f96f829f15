"""Which change of an AdaptiveModel weakens a promise or exposes more: field by field.

The one home of that question. From this table comes the admission policy that asks for verb
`waive` (`trimwheel_api.admission_policy`), the sentence in `kubectl explain`, and the reference;
the operator asks `looser_steps` of a rollout's own steps. A field of the spec without an entry
fails the tests. Pure.

On creation a spec is compared with the schema's defaults, later with what was stored.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from trimwheel_api.kinds.adaptive_model import AdaptiveModelSpec, Step
from trimwheel_api.kinds.common import dump
from trimwheel_api.values import basis_points, seconds

Direction = Literal["larger", "smaller", "changed"]
Measure = Literal["decimal", "integer", "duration", "word"]


@dataclass(frozen=True, slots=True)
class Guarded:
    """A field that has a looser direction; going there takes verb `waive`."""

    looser: Direction
    measure: Measure
    why: str


@dataclass(frozen=True, slots=True)
class Free:
    """A field that whoever may edit the model may change either way, and why that is safe."""

    why: str


@dataclass(frozen=True, slots=True)
class Steps:
    """The steps: compared as a whole, by `looser_steps`."""

    why: str


Entry = Guarded | Free | Steps

_CAPACITY = "capacity is the editor's to give; errors, latency and capacity are judged as they are"
_SECRET = "whoever edits the namespace may write the Secret as well; evidence is shared out anyway"
_SEARCH = "it only guides the search: what is found has to be certified all the same"
_COVARIATE = "it calibrates the covariate alarm, which promises nothing: audits alone show harm"

FIELDS: dict[str, Entry] = {
    "model.uri": Free("bytes are named by model.digest, and workers refuse others"),
    "model.digest": Free("another digest voids every certificate and waiver: full depth follows"),
    "task": Free("there is one"),
    "replicas": Free(_CAPACITY),
    "access.tokensSecret": Free(_SECRET),
    "access.tlsSecret": Free(_SECRET),
    "resources.requests": Free(_CAPACITY),
    "resources.limits": Free(_CAPACITY),
    "engine.dtype": Free("full depth and every policy run in the same type"),
    "engine.threads": Free(_CAPACITY),
    "engine.maxBatch": Free(_CAPACITY),
    "engine.maxWait": Free(_CAPACITY),
    "engine.queueLimit": Free(_CAPACITY),
    "engine.deadline": Free(_CAPACITY),
    "objectives.maxDisagreement": Guarded("larger", "decimal", "more answers may differ"),
    "objectives.confidence": Guarded("smaller", "decimal", "certificates hold less surely"),
    "objectives.errorBudget": Guarded("larger", "decimal", "more sessions may see errors"),
    "objectives.latency.slo": Guarded("larger", "duration", "slower answers count as in time"),
    "objectives.latency.budget": Guarded("larger", "decimal", "more answers may be slow"),
    "objectives.capacityTarget": Guarded(
        "changed",
        "decimal",
        "larger weakens the capacity guard, smaller keeps harm from leading to full depth",
    ),
    "audits.rate": Guarded("smaller", "decimal", "harm is shown later, or never"),
    "audits.alarmRate": Guarded("smaller", "decimal", "harm after an alarm is shown later"),
    "audits.alarmAudits": Guarded("smaller", "integer", "an alarm ends before it is judged"),
    "audits.inputs": Free("it changes what is kept, and no answer"),
    "audits.retention": Free("audits are judged as they arrive, and kept for an hour at least"),
    "drift.falseAlarmAudits": Guarded("larger", "decimal", "harm is shown later"),
    "drift.onHarm": Guarded("changed", "word", "alert keeps a harmful policy serving"),
    "drift.block": Guarded("larger", "duration", "a covariate alarm, and its audits, come later"),
    "drift.reference": Free(_COVARIATE),
    "tuning.trials": Free(_SEARCH),
    "tuning.searchRecords": Free(_SEARCH),
    "tuning.certifyRecords": Free("the test holds at any number of audits"),
    "tuning.finalists": Free("they share delta"),
    "tuning.knobs": Free(_SEARCH),
    "tuning.timeout": Free(_SEARCH),
    "tuning.certificateTTL": Guarded("larger", "duration", "a promise outlives its traffic"),
    "tuning.schedule": Free(_SEARCH),
    "tuning.bootstrap": Free(_SEARCH),
    "rollout.approval": Guarded("changed", "word", "Automatic asks no person"),
    "rollout.approvalDeadline": Guarded("larger", "duration", "it waits longer while exposed"),
    "rollout.steps": Steps("they expose more, or sooner"),
    "rollout.alpha": Guarded("smaller", "decimal", "a guard needs more harm to fail"),
    "rollout.beta": Guarded("larger", "decimal", "a guard passes on less evidence"),
    "rollout.passMargin": Guarded("larger", "decimal", "a candidate passes further from epsilon"),
    "rollout.parityBudget": Guarded("larger", "decimal", "replay may be wrong more often"),
    "rollout.leaseSeconds": Guarded(
        "larger", "integer", "a worker that is cut off serves the candidate for longer"
    ),
    "rollout.historyLimit": Free("the ledger keeps what is removed"),
}
"""By path below `spec`; leaves alone, and the list of steps as one."""

STRICTEST: dict[str, str] = {"drift.onHarm": "fullDepth", "rollout.approval": "Required"}
"""Of a word the value that anybody may set."""


def sentence(path: str) -> str:
    """What the table says of a field, for `kubectl explain`; empty for a free one."""
    match FIELDS.get(path):
        case Guarded(looser="changed", measure="word"):
            return f"Anything but {STRICTEST[path]} takes verb waive."
        case Guarded(looser="changed"):
            return "A change takes verb waive."
        case Guarded(looser=direction, measure="duration"):
            return f"A {'longer' if direction == 'larger' else 'shorter'} one takes verb waive."
        case Guarded(looser=direction):
            return f"A {direction} one takes verb waive."
        case Steps():
            return "Looser ones take verb waive."
    return ""


def guarded_values(spec: AdaptiveModelSpec) -> dict[str, str]:
    """What the table guards of a spec, by path, as text that can be kept and compared."""
    found = {}
    for path, entry in FIELDS.items():
        if not isinstance(entry, Free):
            value: Any = dump(spec)
            for part in path.split("."):
                value = value[part]
            found[path] = value if isinstance(value, str) else json.dumps(value, sort_keys=True)
    return found


def loosened(now: Mapping[str, str], than: Mapping[str, str]) -> list[str]:
    """The paths at which guarded values are looser than others; a new one is compared to itself."""
    return [path for path, value in now.items() if _is_looser(path, value, than.get(path, value))]


def _is_looser(path: str, now: str, was: str) -> bool:
    if now == was:
        return False
    match FIELDS[path]:
        case Steps():
            mine, others = ([Step.model_validate(x) for x in json.loads(y)] for y in (now, was))
            return bool(looser_steps(mine, others))
        case Guarded(looser="changed"):
            return now != STRICTEST.get(path)
        case Guarded(looser=direction, measure="duration"):
            grew = seconds(now) - seconds(was)
        case Guarded(looser=direction):
            grew = float(now) - float(was)
        case _:
            return False
    return grew > 0 if direction == "larger" else grew < 0


def looser_steps(steps: Sequence[Step], than: Sequence[Step]) -> str:
    """In what way `steps` expose more, or sooner, than others; empty when they do not.

    Before they exceed any weight of the others they must have waited, and seen requests, at least
    as long; and where the others begin in the shadow, so must they. `maxDuration` is no part of it:
    what it leads to is a pause, which exposes as much as before. Beyond the last step lies
    promotion, which takes a Pass and a person.
    """
    widest, bound = max(steps, key=_weight), max(than, key=_weight)
    if _weight(widest) > _weight(bound):
        return f"a step at {widest.weight}, above the model's largest weight of {bound.weight}"
    if _weight(than[0]) == 0 and _weight(steps[0]) > 0:
        return "there is no shadow step at 0%"
    for bar in than:
        spent = [step for step in steps if _weight(step) <= _weight(bar)]
        wanted = [step for step in than if _weight(step) <= _weight(bar)]
        if sum(seconds(s.hold) for s in spent) < sum(seconds(s.hold) for s in wanted):
            return f"less holding time than the model's steps up to {bar.weight}"
        if sum(s.min_requests for s in spent) < sum(s.min_requests for s in wanted):
            return f"fewer requests than the model's steps up to {bar.weight}"
    return ""


def _weight(step: Step) -> int:
    return basis_points(step.weight)
