"""Reads the world about one model into one frozen `ObservedState`; writes nothing.

Called by `reconcile` in a thread. Reads go to the API server each time, so that a plan never rests
on a cache; the few things that no object says (what this process applied, when it last renewed)
are in `Memory`, and losing them costs a repeated write at most.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime

from trimwheel_api import names
from trimwheel_api.kinds import (
    AdaptiveModel,
    AdaptivePolicy,
    PolicyApproval,
    PolicyAssignment,
    PolicyRollout,
    TuningRun,
)
from trimwheel_operator import manifests
from trimwheel_operator.admission import AdmissionTest
from trimwheel_operator.cluster import KubeApi, path_of
from trimwheel_operator.evidence import EvidenceReader
from trimwheel_operator.plan import phases, stable
from trimwheel_operator.plan.actions import Ensure, Place, Plan, RuleFailure, WriteAssignment
from trimwheel_operator.plan.observed import (
    UNCHECKED,
    Acknowledgement,
    AdmissionCheck,
    Children,
    Evidence,
    ObservedState,
    Pod,
    TuningJob,
)
from trimwheel_operator.raw import (
    Json,
    Kind,
    Parser,
    acknowledgement,
    deployment_state,
    held_since,
    is_ours,
    tuning_job,
)
from trimwheel_operator.settings import Settings


@dataclass(slots=True)
class Memory:
    """What this process knows of its own doings about one model."""

    applied: dict[Place, str] = field(default_factory=dict)
    refused: dict[Place, str] = field(default_factory=dict)
    checked_at: datetime | None = None
    renewed_at: datetime | None = None
    evidence: Evidence | None = None
    evidence_at: datetime | None = None
    failure: RuleFailure | None = None
    """What raised when evidence was last read."""

    def carried_out(self, plan: Plan, now: datetime, refused: Mapping[Place, str]) -> bool:
        """Remember what was written; whether other objects are refused now than before."""
        before = set(self.refused)
        for action in plan.actions:
            if isinstance(action, WriteAssignment):
                self.renewed_at = now
            elif isinstance(action, Ensure):
                self.applied.pop(action.place, None)
                self.refused.pop(action.place, None)
                if said := refused.get(action.place):
                    self.refused[action.place] = said
                else:
                    self.applied[action.place] = manifests.hash_of(action.manifest)
        return before != set(self.refused)


@dataclass(frozen=True, slots=True)
class Gatherer:
    """Everything that reading takes."""

    api: KubeApi
    admission: AdmissionTest
    evidence: EvidenceReader
    settings: Settings

    def gather(self, namespace: str, name: str, memory: Memory, now: datetime) -> ObservedState:
        """The state of one model as of now."""
        parser = Parser()
        model = self._one(parser, AdaptiveModel, namespace, name)
        raw_assignment = self.api.find(path_of("PolicyAssignment", namespace, name))
        assignment = None
        if raw_assignment is not None:
            assignment = parser.parse(PolicyAssignment, raw_assignment)
        rollouts = self._of_model(parser, PolicyRollout, namespace, name)
        approvals = self._approvals(parser, namespace, rollouts)
        children = self._children(model, memory, now) if model else Children()
        acknowledgements = self._acknowledgements(namespace, name)
        pods = self._pods(namespace, name, acknowledgements)
        active = [one for one in rollouts if phases.is_active(one.status)]
        state = ObservedState(
            namespace=namespace,
            name=name,
            settings=self.settings,
            model=model,
            assignment=assignment,
            held_since=held_since(raw_assignment or {}),
            last_renewal=memory.renewed_at,
            policies=self._of_model(parser, AdaptivePolicy, namespace, name),
            rollouts=rollouts,
            approvals=approvals,
            runs=self._of_model(parser, TuningRun, namespace, name),
            jobs=self._jobs(namespace, name),
            pods=pods,
            acknowledgements=acknowledgements,
            children=children,
            evidence=self._evidence(active, sum(pod.ready for pod in pods), memory, now),
            admission=self._admission(active, approvals),
            unreadable=tuple(parser.failed),
        )
        if memory.failure is not None:
            state = replace(state, failures=(memory.failure,))
        return self._with_full_depth_load(state, now)

    def _with_full_depth_load(self, state: ObservedState, now: datetime) -> ObservedState:
        """Not known when it cannot be read: then harm leads to full depth."""
        try:
            if not stable.harm_asks_for_full_depth(state):
                return state
            workers = sum(pod.ready for pod in state.pods)
            load = self.evidence.full_depth(state.namespace, state.name, workers, now)
        except Exception as error:
            failure = RuleFailure("full_depth_load", "", error)
            return replace(state, failures=(*state.failures, failure))
        return replace(state, full_depth_load=load)

    def _one(self, parser: Parser, kind: type[Kind], namespace: str, name: str) -> Kind | None:
        found = self.api.find(path_of(kind.__name__, namespace, name))
        return None if found is None else parser.parse(kind, found)

    def _of_model(
        self, parser: Parser, kind: type[Kind], namespace: str, name: str
    ) -> tuple[Kind, ...]:
        items, _ = self.api.list(path_of(kind.__name__, namespace))
        found = [parser.parse(kind, item) for item in items if item["spec"].get("model") == name]
        return tuple(one for one in found if one is not None)

    def _approvals(
        self, parser: Parser, namespace: str, rollouts: tuple[PolicyRollout, ...]
    ) -> tuple[PolicyApproval, ...]:
        open_ones = {one.name for one in rollouts if not phases.is_finished(one.status)}
        if not open_ones:
            return ()
        items, _ = self.api.list(path_of("PolicyApproval", namespace))
        found = [
            parser.parse(PolicyApproval, item)
            for item in items
            if item["spec"]["rollout"] in open_ones
        ]
        return tuple(one for one in found if one is not None)

    def _children(self, model: AdaptiveModel, memory: Memory, now: datetime) -> Children:
        """Deployment and Service as they are; accounts and roles as this process left them.

        All are applied again once a resync, which undoes whatever somebody changed by hand.
        """
        due = memory.checked_at is None or (
            (now - memory.checked_at).total_seconds() >= self.settings.resync
        )
        if due:
            memory.checked_at = now
        hashes = dict(memory.applied)
        live: dict[str, Json] = {}
        taken = set()
        for kind in ("Deployment", "Service"):
            place = (kind, model.name)
            found = self.api.find(path_of(kind, model.metadata.namespace, model.name))
            hashes.pop(place, None)
            if found is not None and is_ours(found, model):
                live[kind] = found
                hashes[place] = manifests.hash_of(found)
            elif found is not None:
                taken.add(place)
        return Children(
            hashes=hashes,
            deployment=deployment_state(live.get("Deployment", {})),
            cluster_ip=str(live.get("Service", {}).get("spec", {}).get("clusterIP", "")),
            refused=dict(memory.refused),
            taken=frozenset(taken),
            check=due,
        )

    def _pods(
        self, namespace: str, name: str, acknowledged: tuple[Acknowledgement, ...]
    ) -> tuple[Pod, ...]:
        """Pods that may be serving: one that never was Ready nor acknowledged serves nobody."""
        heard = {ack.pod for ack in acknowledged}
        items, _ = self.api.list(path_of("Pod", namespace), labels=pod_selector(name))
        found = []
        for item in items:
            metadata, status = item["metadata"], item.get("status", {})
            ready = any(
                one["type"] == "Ready" and one["status"] == "True"
                for one in status.get("conditions", [])
            )
            serving = ready or metadata["name"] in heard
            if status.get("phase") == "Running" and serving:
                found.append(Pod(metadata["name"], metadata["uid"], ready))
        return tuple(found)

    def _acknowledgements(self, namespace: str, name: str) -> tuple[Acknowledgement, ...]:
        items, _ = self.api.list(path_of("Lease", namespace), labels=f"{names.LABEL_MODEL}={name}")
        found = [acknowledgement(item) for item in items]
        return tuple(one for one in found if one is not None)

    def _jobs(self, namespace: str, name: str) -> tuple[TuningJob, ...]:
        selector = (
            f"{names.LABEL_COMPONENT}={names.COMPONENT_TUNING},"
            f"{names.LABEL_MODEL}={name},{names.LABEL_MODEL_NAMESPACE}={namespace}"
        )
        place = path_of("Job", self.settings.release_namespace)
        items, _ = self.api.list(place, labels=selector)
        return tuple(tuning_job(item) for item in items)

    def _evidence(
        self,
        active: list[PolicyRollout],
        workers: int,
        memory: Memory,
        now: datetime,
    ) -> Evidence | None:
        """Asked at most twice a scrape, since it cannot change faster, and once a step."""
        if not active:
            memory.evidence = memory.evidence_at = memory.failure = None
            return None
        rollout = active[0]
        last, known = memory.evidence_at, memory.evidence
        fresh = (
            last is not None and (now - last).total_seconds() < self.settings.scrape_interval / 2
        )
        asked = (rollout.metadata.uid, rollout.status.step_started_at)
        if known is None or (known.rollout_uid, known.step_started_at) != asked or not fresh:
            # Whatever the rollout's rules hold: it has no evidence then, and the pass goes on.
            memory.evidence, memory.failure = None, None
            memory.evidence_at = now
            try:
                memory.evidence = self.evidence.read(rollout, workers, now)
            except Exception as error:
                memory.failure = RuleFailure("evidence", rollout.name, error)
        return memory.evidence

    def _admission(
        self, active: list[PolicyRollout], approvals: tuple[PolicyApproval, ...]
    ) -> AdmissionCheck:
        if not active:
            return UNCHECKED
        uids = {one.metadata.uid for one in active}
        counts = any(one.spec.rollout_uid in uids for one in approvals)
        return self.admission.check(active[0], fresh=counts)


def pod_selector(model: str) -> str:
    """Label selector of a model's worker pods."""
    return ",".join(f"{key}={value}" for key, value in manifests.selector(model).items())
