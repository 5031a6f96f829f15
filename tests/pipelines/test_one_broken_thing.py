"""A broken thing of each kind beside a healthy one: the healthy one goes on as if it were alone."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from tests.pipelines.test_loop import MemoryRegistry, audited, loop, serve_policy, value

from trimwheel_api import metrics, names
from trimwheel_api.errors import Refused
from trimwheel_api.kinds import AdaptiveModel, AdaptivePolicy, PolicyRollout, TuningRun
from trimwheel_api.kinds.adaptive_model import AdaptiveModelSpec, AdaptiveModelStatus
from trimwheel_api.kinds.adaptive_policy import AdaptivePolicySpec
from trimwheel_api.kinds.policy_rollout import PolicyRolloutSpec
from trimwheel_pipelines.loop import Loop
from trimwheel_pipelines.promotion import Aliases

__all__ = ["loop"]
INVALID = {"exit": {"enabled": True, "thresholds": ["not a number"]}, "nonsense": 7}


def test_an_invalid_policy_fails_no_tuning_run(stage: Any, model: Any) -> None:
    stage.declare(model.digest)
    stage.objects.put(AdaptivePolicy, "odd", AdaptivePolicySpec(model="intent", policy=INVALID))
    stage.traffic.write(400, stage.before)
    stage.traffic.write(400, stage.after)
    assert stage.start() == names.CERTIFIED


def test_an_invalid_policy_that_should_be_served_counts_as_full_depth(
    stage: Any, model: Any
) -> None:
    made = stage.declare(model.digest)
    stage.objects.put(AdaptivePolicy, "odd", AdaptivePolicySpec(model="intent", policy=INVALID))
    stable = {"digest": "sha256:" + "1" * 64, "policy": "odd"}
    status = {"stable": stable, "intended": stable}
    stage.objects.write_status(made, AdaptiveModelStatus.model_validate(status))
    stage.traffic.write(400, stage.before)
    stage.traffic.write(400, stage.after)
    assert stage.start() == names.CERTIFIED
    assert stage.run.status.dense_cost == "1"


def test_a_segment_of_another_shape_costs_its_own_records(stage: Any, model: Any) -> None:
    stage.declare(model.digest)
    stage.traffic.write(400, stage.before)
    stage.traffic.write(2, stage.before + 1, scores=[[0.5]] * 2, predictions=[[0, 0]] * 2)
    stage.traffic.write(400, stage.after)
    assert stage.start() == names.CERTIFIED


def garbage(folder: Path, started: float) -> None:
    name = f"{round(started * 1000):015d}-intent-0-000099-n3-lost0.parquet"
    (folder / name).write_bytes(b"PAR1 not a segment PAR1")


def test_a_broken_segment_delays_no_verdict(stage: Any, loop: Loop, model: Any) -> None:
    serve_policy(stage, model.digest)
    garbage(stage.traffic.folder, stage.now.timestamp() + 2)
    audited(stage, 300, wrong=0.5)
    loop.once()
    [run] = stage.objects.list(TuningRun)
    assert run.spec.reason == "Harmful"
    assert value(loop, metrics.LOOP_ERRORS, reason="corrupt segment") == 1.0
    loop.once()
    assert value(loop, metrics.LOOP_ERRORS, reason="corrupt segment") == 1.0, "read once"


def a_status_without_sense(stage: Any, digest: str) -> None:
    """A model whose status no pass can work with."""
    source = {"model": {"uri": "file:///m", "digest": digest}}
    broken = stage.objects.put(AdaptiveModel, "a-broken", AdaptiveModelSpec.model_validate(source))
    stable = {"digest": "sha256:" + "2" * 64, "policy": "p", "since": "yesterday"}
    stage.objects.write_status(broken, AdaptiveModelStatus.model_validate({"stable": stable}))


def test_a_broken_model_stops_no_other(stage: Any, loop: Loop, model: Any) -> None:
    a_status_without_sense(stage, model.digest)
    serve_policy(stage, model.digest)
    audited(stage, 300, wrong=0.5)
    for _ in range(2):
        loop.once()
    assert [run.spec.model for run in stage.objects.list(TuningRun)] == ["intent"]
    assert value(loop, metrics.LOOP_ERRORS, reason="model") == 2.0


@pytest.mark.parametrize("verb", ["create", "write_status", "delete"])
def test_an_object_that_cannot_be_written_stops_no_other_part(
    stage: Any, loop: Loop, model: Any, verb: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the API server refuses, decisions reach the ledger and records age."""
    serve_policy(stage, model.digest, rollout={"historyLimit": 1}, audits={"retention": "1h"})
    for name in ("r1", "r2", "r3"):
        spec = PolicyRolloutSpec(
            model="intent", policy="p", policy_digest="sha256:" + "1" * 64, requested_by="ann"
        )
        made = stage.objects.put(PolicyRollout, name, spec)
        decided = {"seq": 0, "time": "2026-11-22T10:00:00Z", "action": "Abort", "reason": "Aborted"}
        status = {"decisions": [decided], "finishedAt": "2026-11-22T10:00:01Z"}
        stage.objects.write_status(made, type(made.status).model_validate(status))
    stage.traffic.write(10, stage.now.timestamp() - 7200)
    audited(stage, 300, wrong=0.5)
    original: Callable[..., Any] = getattr(stage.objects, verb)

    def refused(first: Any, *rest: Any) -> Any:
        if getattr(first, "name", "") in ("r1", "") or verb != "delete":
            raise Refused(f"{verb} is not for you")
        return original(first, *rest)

    monkeypatch.setattr(stage.objects, verb, refused)
    loop.once()
    assert loop.ledger is not None
    assert sum(entry.kind == "Abort" for entry in loop.ledger.entries()) == 3
    assert len(list(stage.traffic.folder.glob("*.parquet"))) == 1
    if verb == "delete":
        assert [one.name for one in stage.objects.list(PolicyRollout)] == ["r1", "r3"]


def test_an_invalid_policy_keeps_one_alias_and_no_more(stage: Any, loop: Loop, model: Any) -> None:
    made = serve_policy(stage, model.digest)
    stage.objects.put(AdaptivePolicy, "p", AdaptivePolicySpec(model="intent", policy=INVALID))
    stage.objects.put(AdaptivePolicy, "q", AdaptivePolicySpec(model="intent"))
    candidate = {"digest": "sha256:" + "3" * 64, "policy": "q", "rollout": "r"}
    status = made.status.model_dump(by_alias=True) | {"candidate": candidate}
    stage.objects.write_status(made, AdaptiveModelStatus.model_validate(status))
    registry = MemoryRegistry()
    assert loop.ledger is not None
    loop.aliases = Aliases(registry, loop.ledger)  # type: ignore[arg-type]
    loop.once()
    assert registry.aliases == {"candidate": "7"}
    stage.now += timedelta(seconds=1)
    loop.once()
    assert value(loop, metrics.LOOP_ERRORS, reason="MLflow") is None
