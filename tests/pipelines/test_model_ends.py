"""What stays of a model that is gone, or that serves full depth: no gauge, no memory, no inputs."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from tests.pipelines.test_loop import (
    DIGEST,
    MemoryRegistry,
    audited,
    loop,
    serve_policy,
    value,
)

from trimwheel_api import metrics
from trimwheel_api.kinds import AdaptivePolicy, TuningRun
from trimwheel_api.kinds.adaptive_model import AdaptiveModelStatus
from trimwheel_api.kinds.adaptive_policy import AdaptivePolicySpec
from trimwheel_api.policy import DENSE
from trimwheel_pipelines.commands import records
from trimwheel_pipelines.ledger import payload_of
from trimwheel_pipelines.loop import Loop
from trimwheel_pipelines.open_runs import GONE, stale_runs
from trimwheel_pipelines.ownership import CLAIM_FILE, Claim, claim, delete_abandoned
from trimwheel_pipelines.promotion import Aliases
from trimwheel_pipelines.registry import OpenRun

__all__ = ["loop"]
KEY = {"model_namespace": "shop", "model": "intent"}
GAUGES = (metrics.DRIFT_EVIDENCE, metrics.DISAGREEMENT_ESTIMATE, metrics.CERTIFICATE_EXPIRY)
DAY = 86_400.0


def watched(stage: Any, loop: Loop, digest: str) -> Any:
    """A model whose gauges all have values."""
    made = serve_policy(stage, digest)
    state = {"state": "Valid", "digest": DIGEST, "expiresAt": "2026-12-22T10:00:00Z"}
    status = made.status.model_dump(by_alias=True) | {"certificate": state}
    made = stage.objects.write_status(made, AdaptiveModelStatus.model_validate(status))
    audited(stage, 3000, wrong=0.05)
    loop.once()
    assert all(value(loop, row, **KEY) is not None for row in GAUGES)
    assert value(loop, metrics.DRIFT_SIGNAL, **KEY, signal="first-exit score") is not None
    return made


def serve_full_depth(stage: Any, made: Any) -> None:
    dense = {"digest": DENSE.digest, "since": "2026-11-22T11:00:00Z"}
    status = {"stable": dense, "intended": dense}
    stage.objects.write_status(made, AdaptiveModelStatus.model_validate(status))


def delete(stage: Any, made: Any) -> None:
    stage.objects.delete(made)


@pytest.mark.parametrize("end", [delete, serve_full_depth])
def test_no_gauge_outlives_what_it_speaks_of(
    stage: Any, loop: Loop, model: Any, end: Callable[[Any, Any], None]
) -> None:
    end(stage, watched(stage, loop, model.digest))
    loop.once()
    for row in (*GAUGES, metrics.DRIFT_SIGNAL):
        left = [
            sample
            for family in loop.exposed.registry.collect()
            for sample in family.samples
            if sample.name == row.name
        ]
        assert not left, row.name


def test_nothing_is_held_of_a_model_that_is_gone(stage: Any, loop: Loop, model: Any) -> None:
    made = watched(stage, loop, model.digest)
    assert loop.ledger is not None
    loop.aliases = Aliases(MemoryRegistry(), loop.ledger)  # type: ignore[arg-type]
    loop.once()
    stage.objects.delete(made)
    loop.once()
    held = (loop._watched, loop._failing, loop._care._done, loop._gauges._signals,
            loop._gauges._ended, loop.aliases._right, loop.aliases._wait)  # fmt: skip
    assert not any(held)


def test_records_outlive_their_model_by_the_stated_time_and_no_more(
    stage: Any, loop: Loop, model: Any
) -> None:
    made = stage.declare(model.digest, tuning={"bootstrap": False})
    stage.traffic.write(10, stage.now.timestamp())
    loop.once()
    document = json.loads((stage.traffic.folder / CLAIM_FILE).read_text())
    assert document["uid"] == made.metadata.uid and document["keep"] == 7 * DAY
    stage.objects.delete(made)
    for days, there in ((1, True), (6.5, True), (7.1, False)):
        stage.now = stage.objects.now + timedelta(days=days)
        restarted = Loop(**{
            name: getattr(loop, name)
            for name in ("objects", "records_uri", "prometheus", "ledger", "aliases", "exposed",
                         "heartbeat", "operator_user", "clock")
        })  # fmt: skip
        restarted.once()
        assert stage.traffic.folder.exists() is there, days


def test_a_shorter_retention_counts_after_deletion_as_well(
    stage: Any, loop: Loop, model: Any
) -> None:
    made = stage.declare(model.digest, audits={"retention": "1d"}, tuning={"bootstrap": False})
    stage.traffic.write(10, stage.now.timestamp())
    loop.once()
    stage.objects.delete(made)
    stage.now += timedelta(days=1.1)
    loop.once()
    assert not stage.traffic.folder.exists()


def test_an_object_made_anew_inherits_records_for_the_stated_time_only(
    stage: Any, loop: Loop, model: Any
) -> None:
    stage.traffic.write(10, stage.now.timestamp() - 3600)
    stage.traffic.write(10, stage.now.timestamp() + 60)
    stage.declare(model.digest, tuning={"bootstrap": False})
    for days, segments in ((6.9, 2), (7.1, 1)):
        stage.now = stage.objects.now + timedelta(days=days)
        loop.once()
        assert len(list(stage.traffic.folder.glob("*.parquet"))) == segments, days


@pytest.mark.parametrize(
    ("left", "deleted"),
    [
        (None, False),
        (b"", False),
        (b'{"uid": "u"}', False),
        (b'{"uid": "u", "account": "other", "seen": 0, "keep": 0}', False),
        (b'{"uid": "u", "account": "ours", "seen": 0, "keep": 1e12}', False),
        (b'{"uid": "u", "account": "ours", "seen": "NaN", "keep": 0}', False),
        (b'{"uid": "u", "account": "ours", "seen": 0, "keep": 0}', True),
    ],
)
def test_only_what_this_release_claimed_is_deleted(
    tmp_path: Path, left: bytes | None, deleted: bool
) -> None:
    folder = tmp_path / "shop" / "gone" / "2026-01-01"
    folder.mkdir(parents=True)
    (folder / "x.parquet").write_bytes(b"records")
    if left is not None:
        (folder.parent / CLAIM_FILE).write_bytes(left)
    claim(str(tmp_path), "shop", "alive", Claim("v", "ours", 0.0, 0.0))
    gone = delete_abandoned(str(tmp_path), "ours", {("shop", "alive")}, 1e9)
    assert gone == int(deleted) and folder.exists() is not deleted
    assert (tmp_path / "shop" / "alive" / CLAIM_FILE).exists()


def test_a_person_deletes_all_records_of_a_model_that_is_gone(
    stage: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage.traffic.write(10, stage.now.timestamp())
    ours = ["delete", "--model", "shop/intent", "--uri", stage.traffic.root]
    elsewhere = ["delete", "--all", "--model", "shop/..", "--uri", stage.traffic.root]
    for refused in (ours, [*ours, "--all", "--tenant", "t"], elsewhere):
        assert CliRunner().invoke(records, refused).exit_code != 0
        assert stage.traffic.folder.exists()
    done = CliRunner().invoke(records, [*ours, "--all", "-o", "json"])
    assert json.loads(done.output) == {"deleted": 10} and not stage.traffic.folder.exists()


# ---------------------------------------------------------------------- MLflow


def test_at_full_depth_and_between_rollouts_no_alias_is_left(
    stage: Any, loop: Loop, model: Any
) -> None:
    """A rollback to full depth: nothing in MLflow names the policy that was taken back."""
    made = serve_policy(stage, model.digest)
    stage.objects.put(AdaptivePolicy, "p", AdaptivePolicySpec(model="intent"))
    candidate = {"digest": DIGEST, "policy": "p", "rollout": "r"}
    status = made.status.model_dump(by_alias=True) | {"candidate": candidate}
    made = stage.objects.write_status(made, AdaptiveModelStatus.model_validate(status))
    registry = MemoryRegistry()
    assert loop.ledger is not None
    loop.aliases = Aliases(registry, loop.ledger)  # type: ignore[arg-type]
    loop.once()
    assert registry.aliases == {"stable": "7", "candidate": "7"}
    serve_full_depth(stage, made)
    loop.once()
    loop.once()
    assert registry.aliases == {}
    moved = [payload_of(one) for one in loop.ledger.entries() if one.kind == "AliasMoved"]
    assert [(one["alias"], one["before"], one["after"]) for one in moved[2:]] == [
        ("stable", "7", ""), ("candidate", "7", ""),
    ]  # fmt: skip


def test_runs_that_nobody_works_on_are_found(stage: Any, model: Any) -> None:
    stage.declare(model.digest)
    stage.start()
    ended = stage.run
    stage.objects.delete(ended)
    running = ended.model_copy(
        update={
            "metadata": ended.metadata.model_copy(update={"uid": "running"}),
            "status": ended.status.model_copy(update={"outcome": ""}),
        }
    )
    runs: list[TuningRun] = [ended, running]
    shown = [
        OpenRun("m1", ended.metadata.uid, "", 10.0),
        OpenRun("m2", "running", "", 10.0),
        OpenRun("m3", "deleted", "", 10.0),
        OpenRun("m4", "young", "", 90.0),
        OpenRun("m5", "", "m3", 10.0),
        OpenRun("m6", "", "m2", 10.0),
        OpenRun("m7", "", "", 10.0),
    ]
    found = {run.run_id: why for run, why in stale_runs(shown, runs, before=50.0)}
    assert found == {"m1": "Failed", "m3": GONE, "m5": GONE}
