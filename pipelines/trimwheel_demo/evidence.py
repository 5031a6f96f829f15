"""Evidence: a claim of the report, and the shell command that reads it again from the live system.

Each command prints what it found, and fails when that is not what was claimed: it ends in a grep
for the claimed value, so `sh` and `bash` agree on its exit status. It needs kubectl, curl and what
`trimwheel env` exports. Made by the stages, kept by the report; runs nothing itself.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from shlex import quote
from typing import Any

from trimwheel_api.names import API_VERSION

Evidence = dict[str, str]


def evidence(kind: str, ref: str, uid: str, check: str) -> Evidence:
    """One piece of evidence; `check` is a shell command for the environment of `trimwheel env`."""
    return {"kind": kind, "ref": ref, "uid": uid, "check": check}


def object_evidence(item: Mapping[str, Any], plural: str, path: str, value: object) -> Evidence:
    """An object's field holds a value: `path` is a kubectl JSON path such as `.status.verdict`."""
    meta = item["metadata"]
    place = f"kubectl -n {meta['namespace']} get {plural} {meta['name']}"
    check = f"{place} -o jsonpath={quote('{' + path + '}')} | grep -xF -- {quote(str(value))}"
    return evidence(item["kind"], f"{meta['namespace']}/{meta['name']}", meta["uid"], check)


def condition_path(kind: str, field: str) -> str:
    """JSON path of a field of one condition."""
    return f'.status.conditions[?(@.type=="{kind}")].{field}'


def metric_evidence(condition: str) -> Evidence:
    """A PromQL comparison holds: it has no result otherwise."""
    query = quote(f"query={condition}")
    check = (
        f'curl -sfG "$PROMETHEUS_URL/api/v1/query" --data-urlencode {query} '
        """| grep -o '"value":[[][^]]*]'"""
    )
    return evidence("PromQL", condition, "", check)


def about(expression: str, value: float, slack: float) -> str:
    """A PromQL comparison: the expression lies within `slack` of the value."""
    return f"({expression}) >= {value - slack:.6g} <= {value + slack:.6g}"


def mlflow_evidence(kind: str, ref: str, path: str, holds: str, **given: str) -> Evidence:
    """MLflow's answer to a GET holds a piece of JSON, written without spaces."""
    parameters = "".join(
        f" --data-urlencode {quote(f'{key}={value}')}" for key, value in given.items()
    )
    url = f'"$MLFLOW_TRACKING_URI/api/2.0/mlflow/{path}"'
    check = f"curl -sfG {url}{parameters} | tr -d ' \\n' | grep -oF -- {quote(holds)}"
    return evidence(kind, ref, "", check)


def refusal_evidence(
    user: str, kind: str, namespace: str, spec: Mapping[str, Any], words: str
) -> Evidence:
    """The API server still refuses the user this object, in these words; nothing is stored."""
    metadata = {"name": "tried-again", "namespace": namespace}
    body = {"apiVersion": API_VERSION, "kind": kind, "metadata": metadata, "spec": dict(spec)}
    check = (
        f"printf %s {quote(json.dumps(body))} | kubectl create --dry-run=server --as {quote(user)} "
        f"-f - 2>&1 | grep -oF -- {quote(words)}"
    )
    return evidence("Refusal", f"{kind} by {user}", "", check)
