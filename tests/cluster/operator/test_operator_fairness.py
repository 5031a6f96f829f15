"""One namespace full of junk, and the decisions of another: nobody waits for what others claim.

TRIMWHEEL_JUNK says how many junk objects there are. The crowd goes on writing while the others'
rollbacks are timed, as a hostile editor's script would.
"""

from __future__ import annotations

import itertools
import logging
import os
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from kubernetes import client
from tests.cluster.operator.team import MODEL, MODEL_DIGEST, SETTLED

from trimwheel_api import names
from trimwheel_api.kinds import PLURALS
from trimwheel_api.policy import DENSE
from trimwheel_api.times import instant
from trimwheel_local.testing import Clients, eventually

log = logging.getLogger(__name__)
pytestmark = [pytest.mark.cluster, pytest.mark.timeout(900)]
JUNK = int(os.environ.get("TRIMWHEEL_JUNK", "400"))
WRITERS = 4
ROUNDS = 5
LONGEST_WAIT = 1.0
"""Seconds from the request to the decision that others' objects may cost at most."""


@pytest.fixture
def crowd(admin: Clients) -> Iterator[str]:
    """A namespace in which somebody creates whatever an editor may."""
    name = f"crowd-{uuid.uuid4().hex[:8]}"
    admin.core.create_namespace({"metadata": {"name": name}})
    yield name
    for plural in ("adaptivemodels", "adaptivepolicies", "tuningruns", "policyrollouts"):
        admin.custom.delete_collection_namespaced_custom_object(
            names.GROUP, names.VERSION, name, plural
        )
    admin.core.delete_namespace(name)


def absent_models(number: int, user: str) -> tuple[str, dict[str, Any]]:
    """A policy, a run or a rollout of a model that is not there."""
    absent = f"absent-{number}"
    rollout = {
        "model": absent, "policy": "none", "policyDigest": DENSE.digest, "requestedBy": user,
    }  # fmt: skip
    return (
        ("AdaptivePolicy", {"model": absent, "policy": {}}),
        ("AdaptivePolicy", {"model": absent, "policy": {"exit": {"enabled": True}}}),
        ("TuningRun", {"model": absent, "requestedBy": user}),
        ("PolicyRollout", rollout),
    )[number % 4]


def models(number: int, user: str) -> tuple[str, dict[str, Any]]:
    """A model that is there: five objects are made for each."""
    source = {"uri": f"models:/m/{number}", "digest": MODEL_DIGEST}
    return "AdaptiveModel", {"model": source, "replicas": 0}


JUNK_OF: dict[str, tuple[Callable[[int, str], tuple[str, dict[str, Any]]], int]] = {
    "objects of absent models": (absent_models, JUNK),
    "models": (models, max(JUNK // 10, 40)),
}


class Crowd:
    """Writes junk: a given number at once, then one after another until it is stopped."""

    def __init__(self, admin: Clients, namespace: str, junk: Any) -> None:
        self.admin, self.namespace, self.junk = admin, namespace, junk
        review = client.AuthenticationV1Api(admin.api).create_self_subject_review({})
        self.user = review.status.user_info.username
        self.numbers = itertools.count()
        self.ended = threading.Event()

    def write(self, _: Any = None) -> None:
        kind, spec = self.junk(number := next(self.numbers), self.user)
        body = {
            "apiVersion": names.API_VERSION, "kind": kind,
            "metadata": {"name": f"junk-{number}"}, "spec": spec,
        }  # fmt: skip
        self.admin.custom.create_namespaced_custom_object(
            names.GROUP, names.VERSION, self.namespace, PLURALS[kind], body
        )

    def fill(self, count: int) -> None:
        with ThreadPoolExecutor(WRITERS) as pool:
            list(pool.map(self.write, range(count)))

    def go_on(self) -> threading.Thread:
        def run() -> None:
            while not self.ended.wait(0.02):
                self.write()

        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        return thread


def wait_for_decision(team: Any, name: str) -> float:
    """Seconds from asking for a Rollback to the decision in its status."""
    began = datetime.now(UTC)
    team.rollout(name, "", DENSE.digest, type="Rollback", reason="timed")
    team.reaches(name, "RolledBack", 180)
    return (instant(team.status(name)["decisions"][0]["time"]) - began).total_seconds()


def resident(process: Any) -> int:
    """Memory of a process, MiB."""
    status = Path(f"/proc/{process.pid}/status").read_text()
    return int(status.split("VmRSS:")[1].split()[0]) // 1024


@pytest.mark.parametrize("case", JUNK_OF)
def test_a_namespace_of_junk_delays_nobody_elses_rollback(
    team: Any,
    operator: Callable[..., Any],
    admin: Clients,
    crowd: str,
    case: str,
    record_property: Callable[[str, object], None],
) -> None:
    deciding = operator()
    team.model()
    team.becomes("AdaptiveModel", MODEL, names.READY)
    junk, count = JUNK_OF[case]
    before = resident(deciding.process)
    quiet = [wait_for_decision(team, f"quiet-{number}") for number in range(ROUNDS)]
    noise = Crowd(admin, crowd, junk)
    began = time.monotonic()
    noise.fill(count)
    filled = time.monotonic() - began
    writing = noise.go_on()
    loud = [wait_for_decision(team, f"loud-{number}") for number in range(ROUNDS)]
    noise.ended.set()
    writing.join(SETTLED)
    figures = {
        "junk": count, "filled": round(filled, 1), "quiet": max(quiet), "loud": max(loud),
        "mib": resident(deciding.process) - before,
    }  # fmt: skip
    for name, value in figures.items():
        record_property(name, value)
    log.warning("%s", figures)
    assert max(loud) < max(quiet) + LONGEST_WAIT, figures
    if junk is absent_models:
        # It is told so in time, behind everybody else.
        eventually(lambda: told_of_absence(admin, crowd), "its model is absent", 60)


def told_of_absence(admin: Clients, namespace: str) -> bool:
    found = admin.custom.list_namespaced_custom_object(
        names.GROUP, names.VERSION, namespace, "policyrollouts", limit=1
    )["items"]
    conditions = found[0].get("status", {}).get("conditions", []) if found else []
    return any(one["reason"] == "ModelNotFound" for one in conditions)
