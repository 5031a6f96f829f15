"""The health script that the chart ships for Argo CD, run by a Lua interpreter as there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lupa
import pytest

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "charts" / "trimwheel" / "files" / "argocd" / "health.lua"


def condition(kind: str, status: str, message: str = "") -> dict[str, str]:
    return {"type": kind, "status": status, "reason": f"Because{kind}", "message": message}


READY = condition("Ready", "True", "2 of 2 workers are ready")
CASES: dict[str, tuple[list[dict[str, str]], str, str]] = {
    "ready": ([READY], "Healthy", "2 of 2 workers are ready"),
    "ready and done reconciling": (
        [READY, condition("Reconciling", "False"), condition("Stalled", "False")],
        "Healthy", "2 of 2 workers are ready",
    ),
    "not ready yet": (
        [condition("Ready", "False", "1 of 2 workers is ready")],
        "Progressing", "1 of 2 workers is ready",
    ),
    "ready, but a new spec is being applied": (
        [READY, condition("Reconciling", "True", "replicas")], "Progressing", "replicas",
    ),
    "stalled wins over everything": (
        [READY, condition("Stalled", "True", "no such model"), condition("Paused", "True")],
        "Degraded", "no such model",
    ),
    "full depth is healthy, and says so": (
        [READY, condition("Degraded", "True", "the certificate expired")],
        "Healthy", "the certificate expired",
    ),
    "waiting for a person": (
        [condition("Reconciling", "True"), condition("AwaitingApproval", "True", "approve r")],
        "Suspended", "approve r",
    ),
    "paused by a person": (
        [condition("Reconciling", "True"), condition("Paused", "True")],
        "Suspended", "BecausePaused",
    ),
    "conditions of other kinds alone": (
        [condition("Drifted", "True")], "Progressing", "waiting for the operator",
    ),
}  # fmt: skip


def health(obj: dict[str, Any]) -> tuple[str, str]:
    """(status, message) that Argo CD would show."""
    lua = lupa.LuaRuntime(unpack_returned_tuples=True)
    lua.globals().obj = lua.table_from(obj, recursive=True)
    answer = lua.execute(SCRIPT.read_text())
    return answer["status"], answer["message"]


@pytest.mark.parametrize("name", CASES)
def test_the_health_of_an_object_that_is(name: str) -> None:
    conditions, status, message = CASES[name]
    found = health(
        {
            "metadata": {"generation": 3},
            "status": {"observedGeneration": 3, "conditions": conditions},
        }
    )
    assert found == (status, message)


@pytest.mark.parametrize(
    "status",
    [
        None,
        {"observedGeneration": -1},
        {"observedGeneration": -1, "conditions": [READY]},
        {"observedGeneration": 2, "conditions": [READY]},
        {"conditions": [READY]},
    ],
)
def test_what_speaks_of_no_or_an_older_spec_is_progressing(status: dict[str, Any] | None) -> None:
    obj: dict[str, Any] = {"metadata": {"generation": 3}}
    found = health(obj if status is None else {**obj, "status": status})
    assert found == ("Progressing", "waiting for the operator")
