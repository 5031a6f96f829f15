"""The admission policy of AdaptiveModels, made from the table of looser fields.

Called by `trimwheel_api.generate`, which writes it into the chart. One validation a field: its
change is stricter, or the user holds verb `waive` on the model; the message names field, rule and
value. CEL cannot read our durations and percentages, so it is told how to. The text keeps Helm's
own marks, since the release's labels go into it. Pure.
"""

from __future__ import annotations

from collections.abc import Iterator

from trimwheel_api.kinds.adaptive_model import AdaptiveModelSpec, ModelSource, Step, default_steps
from trimwheel_api.kinds.common import dump
from trimwheel_api.loosening import FIELDS, STRICTEST, Guarded, Steps
from trimwheel_api.values import basis_points, cel_milliseconds, seconds

NAME = "trimwheel-models"
_LABELS = '  labels: {{- include "trimwheel.labels" (dict "root" $ "component" "") | nindent 4 }}'
_WAIVES = (
    "authorizer.group('trimwheel.dev').resource('adaptivemodels').namespace(request.namespace)"
    ".name(object.metadata.name).check('waive').allowed()"
)
_MEASURED = {
    "decimal": "double({0})",
    "integer": "{0}",
    "duration": cel_milliseconds("{0}"),
    "word": "{0}",
}
_COMPARED = {"larger": "{now} > {was}", "smaller": "{now} < {was}", "changed": "{now} != {was}"}
_RULES = {
    "larger": "must not grow",
    "smaller": "must not shrink",
    "changed": "must not change",
}


def text() -> str:
    """The whole file."""
    lines = [
        "# Who may weaken a promise or expose more: whoever holds verb waive on the model. On",
        "# creation a spec is compared with the schema's defaults. Which direction of a field is",
        "# looser, and why: the table in trimwheel_api.loosening.",
        "apiVersion: admissionregistration.k8s.io/v1",
        "kind: ValidatingAdmissionPolicy",
        "metadata:",
        f"  name: {NAME}",
        _LABELS,
        "spec:",
        "  failurePolicy: Fail",
        "  matchConstraints:",
        "    resourceRules:",
        '      - {apiGroups: [trimwheel.dev], apiVersions: ["*"], operations: [CREATE, UPDATE], '
        "resources: [adaptivemodels]}",
        "  matchConditions:",
        '    {{- include "trimwheel.selfTest" (dict "root" $ "name" "models") | nindent 4 }}',
        "  variables:",
        *_item("waives", _WAIVES),
    ]
    for name, expression in _variables():
        lines += _item(name, expression)
    lines += ["  validations:", '    {{- include "trimwheel.onlyDryRuns" . | nindent 4 }}']
    for expression, message in _validations():
        lines += [f"    - expression: {_quoted(expression)}", "      reason: Forbidden"]
        lines += [f"      messageExpression: {_quoted(message)}"]
    lines += [
        "---",
        "apiVersion: admissionregistration.k8s.io/v1",
        "kind: ValidatingAdmissionPolicyBinding",
        "metadata:",
        f"  name: {NAME}",
        _LABELS,
        "spec:",
        f"  policyName: {NAME}",
        "  validationActions: [Deny, Audit]",
    ]
    return "\n".join(lines) + "\n"


def defaults() -> dict[str, object]:
    """Path below `spec` -> what the schema fills in."""
    source = ModelSource(uri="none", digest="sha256:" + "0" * 64)
    return dict(_leaves(dump(AdaptiveModelSpec(model=source)), ""))


def _leaves(value: dict[str, object], where: str) -> Iterator[tuple[str, object]]:
    for key, inner in value.items():
        path = f"{where}{key}"
        if isinstance(inner, dict) and path not in FIELDS:
            yield from _leaves(inner, f"{path}.")
        else:
            yield path, inner


def _variables() -> Iterator[tuple[str, str]]:
    known = defaults()
    for path, entry in FIELDS.items():
        if isinstance(entry, Guarded):
            yield _variable(path, "now"), f"object.spec.{path}"
            before = f"oldObject == null ? {_literal(known[path])} : oldObject.spec.{path}"
            yield _variable(path, "was"), before
    yield "steps_now", _measured_steps("object.spec.rollout.steps")
    before = _measured_steps("oldObject.spec.rollout.steps")
    yield "steps_was", f"oldObject == null ? {_default_steps()} : {before}"


def _measured_steps(steps: str) -> str:
    """CEL for a list of steps as numbers: basis points, milliseconds, requests."""
    return (
        f"{steps}.map(s, {{'weight': int(double(s.weight.replace('%', '')) * 100.0 + 0.5), "
        f"'hold': {cel_milliseconds('s.hold')}, 'requests': int(s.minRequests)}})"
    )


def _default_steps() -> str:
    def one(step: Step) -> str:
        hold = round(seconds(step.hold) * 1000)
        weight, requests = basis_points(step.weight), step.min_requests
        return f"{{'weight': {weight}, 'hold': {hold}, 'requests': {requests}}}"

    return f"[{', '.join(one(step) for step in default_steps())}]"


def _validations() -> Iterator[tuple[str, str]]:
    for path, entry in FIELDS.items():
        if isinstance(entry, Guarded):
            yield _guarded(path, entry)
        elif isinstance(entry, Steps):
            yield from _steps(path)


def _guarded(path: str, entry: Guarded) -> tuple[str, str]:
    now, was = (f"variables.{_variable(path, time)}" for time in ("now", "was"))
    measure = _MEASURED[entry.measure]
    looser = _COMPARED[entry.looser].format(now=measure.format(now), was=measure.format(was))
    rule = f"{_RULES[entry.looser]} (it was ' + {_text(entry, was)} + ')"
    if path in STRICTEST:
        looser = f"{now} != '{STRICTEST[path]}' && {looser}"
        rule = f"must be {STRICTEST[path]}, or stay ' + {was} + '"
    return f"!({looser}) || variables.waives", _message(path, rule, _text(entry, now), entry.why)


def _steps(path: str) -> Iterator[tuple[str, str]]:
    """As `loosening.looser_steps`, rule by rule."""
    wider = "variables.steps_now.exists(n, variables.steps_was.all(w, n.weight > w.weight))"
    exposed = "variables.steps_was[0].weight == 0 && variables.steps_now[0].weight > 0"
    rules = {
        wider: "must not exceed the largest weight before",
        exposed: "must begin with a shadow step at 0%",
        _less("hold"): "must hold as long as before, up to each weight",
        _less("requests"): "must see as many requests as before, up to each weight",
    }
    shown = "object.spec.rollout.steps.map(s, s.weight + ' after ' + s.hold).join(', ')"
    for looser, rule in rules.items():
        yield f"!({looser}) || variables.waives", _message(path, rule, shown, FIELDS[path].why)


def _less(what: str) -> str:
    def total(steps: str) -> str:
        return f"variables.{steps}.filter(n, n.weight <= w.weight).map(n, int(n.{what})).sum()"

    return f"variables.steps_was.exists(w, {total('steps_now')} < {total('steps_was')})"


def _message(path: str, rule: str, value: str, why: str) -> str:
    return (
        f"'spec.{path}: {rule}, but got ' + {value} + ' ({why}); ' + request.userInfo.username + "
        "' lacks verb waive on adaptivemodels/' + object.metadata.name"
    )


def _text(entry: Guarded, value: str) -> str:
    return f"string({value})" if entry.measure == "integer" else value


def _variable(path: str, time: str) -> str:
    return f"{path.replace('.', '_')}_{time}"


def _literal(value: object) -> str:
    return str(value) if isinstance(value, int) else f"'{value}'"


def _item(name: str, expression: str) -> list[str]:
    return [f"    - name: {name}", f"      expression: {_quoted(expression)}"]


def _quoted(text: str) -> str:
    """A YAML scalar that folds nothing: CEL holds both kinds of quotes."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'
