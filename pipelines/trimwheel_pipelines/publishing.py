"""Turns a certified policy into a registered version, an AdaptivePolicy and a PolicyRollout.

Called by `tune` at its end. Names follow from the run, so that a restarted Job finds what it made.
Nothing here decides: without a certificate there is no `Winner` to publish.
"""

from __future__ import annotations

import logging
from typing import Any

from trimwheel_api import names
from trimwheel_api.errors import Conflict
from trimwheel_api.kinds import AdaptiveModel, AdaptivePolicy, PolicyRollout
from trimwheel_api.kinds.adaptive_policy import AdaptivePolicySpec, MlflowReference
from trimwheel_api.kinds.policy_rollout import PolicyRolloutSpec
from trimwheel_pipelines.certifying import Winner
from trimwheel_pipelines.registry import RunRef
from trimwheel_pipelines.tuning_plan import Plan, certificate_spec, object_name
from trimwheel_pipelines.tuning_world import World

log = logging.getLogger(__name__)


def publish_policy(
    world: World,
    plan: Plan,
    model: AdaptiveModel,
    winner: Winner,
    *,
    parent: str,
    score_digest: str,
    run: RunRef | None,
) -> dict[str, Any]:
    """Register the policy and create its object; returns the status fields that follow."""
    policy = winner.policy
    certificate = certificate_spec(winner.certificate, policy, plan, score_digest, world.clock())
    spec = AdaptivePolicySpec(
        model=plan.model,
        policy=policy.document(),
        parent=parent,
        model_digest=plan.model_digest,
        certificate=certificate,
        mlflow=_registered(world, plan, winner, parent, run),
    )
    name = object_name(plan, policy)
    _create(world, AdaptivePolicy, _metadata(plan, model, name, policy.digest), spec)
    log.info("AdaptivePolicy %s, %s.", name, policy.digest)
    return {"policy": name, "policy_digest": policy.digest, "certificate": certificate}


def request_rollout(
    world: World, plan: Plan, model: AdaptiveModel, winner: Winner
) -> dict[str, Any]:
    """Ask for a rollout in our own name, on behalf of who asked for the run.

    None is asked for where people said no to these very bytes before.
    """
    digest = winner.policy.digest
    if not plan.rollout:
        return {}
    if digest in model.status.rejected_digests:
        log.warning("This digest was rejected before: no rollout unless a person asks for it.")
        return {}
    user = world.patience.call("Asking who we are", world.objects.whoami)
    name = object_name(plan, winner.policy)
    spec = PolicyRolloutSpec(
        model=plan.model,
        policy=name,
        policy_digest=digest,
        requested_by=user,
        on_behalf_of=plan.requested_by,
        reason=f"TuningRun {plan.run} ({plan.reason})",
    )
    _create(world, PolicyRollout, _metadata(plan, model, name, digest), spec)
    log.info("PolicyRollout %s, requested by %s.", name, user)
    return {"rollout": name}


def _registered(
    world: World, plan: Plan, winner: Winner, parent: str, run: RunRef | None
) -> MlflowReference | None:
    registry = world.registry
    if registry is None or run is None:
        return None
    version = world.patience.call(
        "Registering the policy",
        lambda: registry.register(run, plan.namespace, plan.model, winner.policy, parent),
    )
    return MlflowReference(run_id=run.run_id, experiment=run.experiment, model_version=version)


def _create(world: World, kind: type[Any], metadata: dict[str, Any], spec: Any) -> None:
    """Create an object; one of that name is ours, from before a restart."""
    try:
        world.patience.call(
            f"Creating {kind.__name__}", lambda: world.objects.create(kind, metadata, spec)
        )
    except Conflict:
        log.info("%s %s is there already.", kind.__name__, metadata["name"])


def _metadata(plan: Plan, model: AdaptiveModel, name: str, digest: str) -> dict[str, Any]:
    """Metadata of an object that goes when its model goes."""
    return {
        "name": name,
        "namespace": plan.namespace,
        "labels": {
            names.LABEL_MODEL: plan.model,
            names.LABEL_DIGEST: names.digest_label(digest),
            names.LABEL_PART_OF: names.PART_OF,
        },
        "ownerReferences": [
            {
                "apiVersion": names.API_VERSION,
                "kind": "AdaptiveModel",
                "name": model.name,
                "uid": model.metadata.uid,
            }
        ],
    }
