"""A whole TuningRun on records that the model really made; the API server is a memory."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from trimwheel_api import names
from trimwheel_api.kinds import AdaptiveModel, AdaptivePolicy, PolicyRollout, TuningRun
from trimwheel_api.kinds.adaptive_model import AdaptiveModelStatus
from trimwheel_api.kinds.tuning_run import TuningRunSpec
from trimwheel_api.policy import parse_policy
from trimwheel_pipelines.executors import Outcome, SerialExecutor
from trimwheel_pipelines.trials import Search
from trimwheel_pipelines.tune import tune
from trimwheel_workers.model.artifact import LoadedModel
from trimwheel_workers.model.config import Signature


def test_a_run_certifies_a_cheaper_policy_and_asks_for_its_rollout(
    stage: Any, model: LoadedModel
) -> None:
    stage.declare(model.digest)
    stage.traffic.write(400, stage.before)
    stage.traffic.write(400, stage.after)
    assert stage.start() == names.CERTIFIED
    status = stage.run.status
    assert stage.condition(names.READY) == ("True", "Succeeded")
    assert stage.condition(names.STALLED)[0] == stage.condition(names.RECONCILING)[0] == "False"
    assert status.phase == "Finished" and status.finished_at and status.started_at
    assert status.search_records == 300 and status.trials_done == 3
    assert status.executor == "serial" and 0 < status.model_run_trials < 3
    policy = stage.objects.get(AdaptivePolicy, "shop", status.policy)
    document = parse_policy(policy.spec.policy, exits=3, experts=3)
    assert document.digest == status.policy_digest == policy.spec.certificate.policy_digest
    certificate = policy.spec.certificate
    assert certificate.model_digest == model.digest and certificate.n == 300
    assert certificate.errors / certificate.n < 0.1 and float(certificate.p_value) < 0.05
    assert certificate.short and "short" in certificate.population
    owner = policy.metadata.owner_references[0]
    assert (owner.kind, owner.name) == ("AdaptiveModel", "intent")
    rollout = stage.objects.get(PolicyRollout, "shop", status.rollout)
    assert rollout.spec.policy == policy.name
    assert rollout.spec.policy_digest == document.digest
    assert rollout.spec.requested_by.endswith(":trimwheel-tuning")
    assert not rollout.spec.allow_uncertified and rollout.spec.steps is None
    assert rollout.spec.on_behalf_of == stage.run.spec.requested_by == "rita"


def test_the_status_counts_trials_while_they_run_and_not_more_often_than_people_read(
    stage: Any, model: LoadedModel
) -> None:
    """Trials that take a second each: every second or third of them is written down."""

    class Slow(SerialExecutor):
        def run(
            self, search: Search, signatures: Sequence[Signature], until: float = math.inf
        ) -> Iterator[Outcome]:
            for outcome in super().run(search, signatures, until):
                stage.now += timedelta(seconds=1)
                yield outcome

    stage.world = replace(stage.world, executor=Slow())
    budget = {"searchRecords": 300, "certifyRecords": 300, "trials": 6, "timeout": "1m"}
    stage.declare(model.digest, tuning=budget)
    stage.traffic.write(400, stage.before)
    stage.traffic.write(400, stage.after)
    stage.start()
    written = [one.status for one in stage.objects.history if isinstance(one, TuningRun)]
    counts = [status.trials_done for status in written if status.phase == "Searching"]
    assert list(dict.fromkeys(counts)) == [0, 1, 3, 5, 6]


def test_a_second_start_of_the_job_changes_nothing(stage: Any, model: LoadedModel) -> None:
    stage.declare(model.digest)
    stage.traffic.write(400, stage.before)
    stage.traffic.write(400, stage.after)
    stage.start()
    writes = len(stage.objects.history)
    assert tune(stage.world, "shop", "run") == names.CERTIFIED
    assert len(stage.objects.history) == writes


def test_a_job_killed_after_publishing_ends_the_same_on_its_second_start(
    stage: Any, model: LoadedModel
) -> None:
    stage.declare(model.digest)
    stage.traffic.write(400, stage.before)
    stage.traffic.write(400, stage.after)
    stage.start()
    first = stage.run
    forgotten = first.status.model_copy(update={"outcome": "", "policy": "", "rollout": ""})
    stage.objects.write_status(first, forgotten)
    assert tune(stage.world, "shop", "run") == names.CERTIFIED
    assert stage.run.status.policy == first.status.policy
    assert len(stage.objects.list(AdaptivePolicy)) == len(stage.objects.list(PolicyRollout)) == 1


def test_search_and_certification_never_share_an_audit(stage: Any, model: LoadedModel) -> None:
    """Too few audits before the run: the window opens only after those that the search took."""
    stage.declare(model.digest)
    stage.traffic.write(100, stage.before)
    stage.while_waiting = [lambda: stage.traffic.write(450, stage.after + 1, step=0.01)] + [
        lambda: stage.traffic.write(200, stage.after + 10, step=0.01)
    ]
    assert stage.start() == names.CERTIFIED
    certificate = stage.run.status.certificate
    assert certificate is not None
    # 200 of the later 450 complete the search; the window opens behind the 200th of them.
    assert certificate.window_start >= "2026-11-22T10:00:04Z"
    assert certificate.n == 300


def test_a_promise_that_cannot_be_kept_leaves_full_depth(stage: Any, model: LoadedModel) -> None:
    stage.declare(model.digest, objectives={"maxDisagreement": "0.0001"})
    stage.traffic.write(400, stage.before)
    stage.traffic.write(1300, stage.after, step=0.001)
    assert stage.start() == "NothingCertified"
    assert stage.condition(names.STALLED) == ("True", "NothingCertified")
    assert stage.condition(names.READY)[0] == "False"
    assert not stage.objects.list(AdaptivePolicy) and not stage.objects.list(PolicyRollout)


def test_clusters_that_cannot_carry_a_certificate_end_the_run_with_how_many_are_needed(
    stage: Any, model: LoadedModel
) -> None:
    stage.declare(model.digest)
    stage.traffic.write(400, stage.before)
    stage.traffic.write(1300, stage.after, step=0.001, session=["everybody"] * 1300)
    assert stage.start() == "NothingCertified"
    assert stage.condition(names.STALLED) == ("True", "TooFewClusters")
    ready = stage.run.status.condition(names.READY)
    assert ready is not None
    assert "are worth 1 independent ones because of sessions" in ready.message
    assert (
        "audits like these are needed" in ready.message and "at the present rate" in ready.message
    )
    assert not stage.objects.list(AdaptivePolicy)


def test_too_many_lost_audits_void_the_window(stage: Any, model: LoadedModel) -> None:
    stage.declare(model.digest)
    stage.traffic.write(400, stage.before)
    stage.traffic.write(400, stage.after, lost=30)
    assert stage.start() == "NothingCertified"
    ready = stage.run.status.condition(names.READY)
    assert ready is not None and "lost" in ready.message


def test_too_few_audits_until_the_deadline_say_how_many_there_were(
    stage: Any, model: LoadedModel
) -> None:
    stage.declare(model.digest)
    stage.traffic.write(40, stage.before)
    assert stage.start() == "Failed"
    assert stage.condition(names.STALLED) == ("True", "TooFewRecords")
    ready = stage.run.status.condition(names.READY)
    assert ready is not None and "40 are there, 300 are needed" in ready.message


def test_without_inputs_only_thresholds_change(stage: Any, model: LoadedModel) -> None:
    stage.declare(model.digest, audits={"inputs": "none"})
    stage.traffic.write(400, stage.before, inputs=False)
    stage.traffic.write(400, stage.after, inputs=False)
    assert stage.start() == names.CERTIFIED
    policy = stage.objects.list(AdaptivePolicy)[0]
    assert set(policy.spec.policy) == {"exit"}
    assert stage.run.status.trials_done == 1
    assert stage.run.status.model_run_trials == 0


def test_records_of_another_model_do_not_count(stage: Any, model: LoadedModel) -> None:
    stage.declare(model.digest)
    stage.traffic.write(400, stage.before)
    stage.traffic.digest = "sha256:" + "0" * 64
    stage.traffic.write(400, stage.after)
    assert stage.start() == "Failed"
    assert stage.condition(names.STALLED) == ("True", "TooFewRecords")


def made_stable(stage: Any, model: LoadedModel) -> AdaptiveModel:
    """A model that serves the policy which a first run certified; the run and rollout are gone."""
    made: AdaptiveModel = stage.declare(model.digest)
    stage.traffic.write(400, stage.before)
    stage.traffic.write(400, stage.after)
    stage.start()
    first = stage.run.status
    certificate = first.certificate
    assert certificate is not None
    stable = {"digest": first.policy_digest, "policy": first.policy}
    state = {"state": "Valid", "digest": first.policy_digest, "expiresAt": certificate.expires_at}
    status = {"stable": stable, "intended": stable, "certificate": state}
    written: AdaptiveModel = stage.objects.write_status(
        made, AdaptiveModelStatus.model_validate(status)
    )
    for old in (*stage.objects.list(TuningRun), *stage.objects.list(PolicyRollout)):
        stage.objects.delete(old)
    return written


def test_a_policy_no_better_than_the_stable_one_is_not_rolled_out(
    stage: Any, model: LoadedModel
) -> None:
    made_stable(stage, model)
    assert stage.start() == "NoImprovement"
    assert stage.condition(names.READY) == ("True", "NoImprovement")
    assert not stage.objects.list(PolicyRollout)
    # After harm the stable policy is no measure: what is served is full depth.
    stage.objects.delete(stage.run)
    assert stage.start(reason="Harmful") == names.CERTIFIED
    assert len(stage.objects.list(PolicyRollout)) == 1


def test_harm_that_comes_while_a_run_certifies_leaves_full_depth_as_its_rival(
    stage: Any, model: LoadedModel
) -> None:
    """A covariate alarm's run goes on as the answer to the harm that is shown after it."""
    serving = made_stable(stage, model)
    stage.objects.now = stage.now = stage.now + timedelta(minutes=1)
    later = stage.now.timestamp() + 2.0

    def harm_is_shown() -> None:
        revoked = serving.status.certificate.model_copy(update={"state": "Revoked"})
        status = serving.status.model_copy(update={"certificate": revoked})
        stage.objects.write_status(serving, status)
        stage.traffic.write(400, later)
        stage.now += timedelta(minutes=1)

    stage.while_waiting = [harm_is_shown]
    assert stage.start(reason="CovariateDrift") == names.CERTIFIED
    assert len(stage.objects.list(PolicyRollout)) == 1


def test_a_rejected_digest_is_not_rolled_out_again_by_itself(
    stage: Any, model: LoadedModel
) -> None:
    made = stage.declare(model.digest)
    stage.traffic.write(400, stage.before)
    stage.traffic.write(400, stage.after)
    stage.start(rollout=False)
    assert stage.run.status.policy and not stage.run.status.rollout
    digest = stage.run.status.policy_digest
    held = made.status.model_copy(update={"rejected_digests": [digest]})
    stage.objects.write_status(made, held)
    stage.objects.delete(stage.run)
    assert stage.start() == names.CERTIFIED
    assert not stage.objects.list(PolicyRollout)


def test_a_run_overtaken_by_harm_ends_and_says_so(stage: Any, model: LoadedModel) -> None:
    stage.declare(model.digest)
    stage.traffic.write(400, stage.before)

    def harm() -> None:
        stage.objects.now += timedelta(seconds=5)
        spec = TuningRunSpec.model_validate({"model": "intent", "reason": "Harmful"})
        stage.objects.put(TuningRun, "harm", spec)

    stage.while_waiting = [harm]
    assert stage.start(reason="CovariateDrift") == "Superseded"
    assert stage.condition(names.READY) == ("True", "Superseded"), "it gave way as intended"
    assert stage.condition(names.STALLED) == ("False", "Superseded")


def test_a_run_that_the_operator_ended_ends_its_job_and_is_not_written_again(
    stage: Any, model: LoadedModel
) -> None:
    """Else Job and operator would take each other's conditions back and forth."""
    stage.declare(model.digest)
    stage.traffic.write(400, stage.before)
    ended: list[Any] = []

    def stopped() -> None:
        status = stage.run.status.model_copy(update={"outcome": "Stopped", "phase": "Searching"})
        ended.append(stage.objects.write_status(stage.run, status).status)

    stage.while_waiting = [stopped]
    assert stage.start() == "Failed"
    assert stage.run.status == ended[0]


def test_a_deleted_run_ends_its_job(stage: Any, model: LoadedModel) -> None:
    stage.declare(model.digest)
    stage.while_waiting = [lambda: stage.objects.delete(stage.run)]
    assert stage.start() == "Failed"
    assert not stage.objects.list(TuningRun)


def test_a_run_without_its_model_says_so(stage: Any) -> None:
    assert stage.start() == "Failed"
    assert stage.condition(names.STALLED) == ("True", "ModelNotFound")


@pytest.mark.parametrize(
    ("run", "objectives", "field"),
    [
        ({"risk": {"epsilon": "0"}}, {}, "TuningRun spec.risk.epsilon"),
        ({"risk": {"epsilon": "1"}}, {}, "TuningRun spec.risk.epsilon"),
        ({"risk": {"delta": "0"}}, {}, "TuningRun spec.risk.delta"),
        ({"risk": {"delta": "1"}}, {}, "TuningRun spec.risk.delta"),
        ({}, {"maxDisagreement": "0"}, "AdaptiveModel spec.objectives.maxDisagreement"),
        ({}, {"confidence": "1"}, "AdaptiveModel spec.objectives.confidence"),
        ({}, {"confidence": "0"}, "AdaptiveModel spec.objectives.confidence"),
    ],
)
def test_a_promise_that_nothing_can_prove_is_refused_before_a_record_is_read(
    stage: Any, model: LoadedModel, run: Any, objectives: Any, field: str
) -> None:
    stage.declare(model.digest, objectives={"maxDisagreement": "0.1"} | objectives)
    began = stage.now
    assert stage.start(**run) == "Failed"
    assert stage.now == began, "nothing was waited for"
    assert stage.condition(names.STALLED) == ("True", "InvalidSpec")
    message = stage.run.status.condition(names.STALLED).message
    assert message.startswith(field + ": must be above 0 and below 1") and "but got" in message
