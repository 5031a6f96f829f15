"""Reads the world about one model into one frozen `ObservedState`; writes nothing.

Called by `reconcile` in a thread. Objects come from the store that watches keep: what a pass costs
depends on the objects of its own model, never on how many others there are. A plan may thus rest on
objects that are some milliseconds old. Writes are fenced by what was observed, and before one that
exposes more people to anything, `confirm` reads what it rests on from the API server itself.

The few things that no object says (what this process applied, when it last renewed) are in
`Memory`, and losing them costs a repeated write at most.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import partial
from typing import Any

from trimwheel_api import names
from trimwheel_api.errors import Conflict, Unavailable
from trimwheel_api.kinds import (
    AdaptiveModel,
    AdaptivePolicy,
    PolicyApproval,
    PolicyAssignment,
    PolicyJournal,
    PolicyRollout,
    Resource,
    TuningRun,
)
from trimwheel_api.kinds.policy_journal import PolicyJournalSpec
from trimwheel_operator import manifests
from trimwheel_operator.admission import AdmissionTest
from trimwheel_operator.causes import cause_of, pods_of
from trimwheel_operator.cluster import KubeApi, path_of
from trimwheel_operator.evidence import EvidenceReader
from trimwheel_operator.plan import phases, stable
from trimwheel_operator.plan.actions import Ensure, Place, Plan, RuleFailure, WriteAssignment
from trimwheel_operator.plan.observed import (
    AdmissionCheck,
    Cause,
    Children,
    Evidence,
    ObservedState,
)
from trimwheel_operator.plan.remembered import loosened_fields, unnoted
from trimwheel_operator.plan.witness import may_count, promise_may_count
from trimwheel_operator.raw import (
    Json,
    Kind,
    Parser,
    acknowledgement,
    deployment_state,
    each,
    held_since,
    is_ours,
    of_epochs_until,
    serving_pod,
    tuning_job,
)
from trimwheel_operator.schedule import Key
from trimwheel_operator.settings import Settings
from trimwheel_operator.store import Entry, Store

log = logging.getLogger(__name__)


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
    service: Json | None = None
    """The Service as last read: nobody watches it, it is read again once a resync."""

    def carried_out(self, plan: Plan, now: datetime, refused: Mapping[Place, str]) -> bool:
        """Remember what was written; whether other objects are refused now than before."""
        before = set(self.refused)
        for action in plan.actions:
            if isinstance(action, WriteAssignment):
                self.renewed_at = now
            elif isinstance(action, Ensure):
                self.service = None if action.place[0] == "Service" else self.service
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
    store: Store
    admission: AdmissionTest
    evidence: EvidenceReader
    settings: Settings
    stale: Callable[[], list[str]] = list
    """Kinds of which the store has not had news for long."""

    def gather(self, namespace: str, name: str, memory: Memory, now: datetime) -> ObservedState:
        """The state of one model as of now."""
        parser, key = Parser(), (namespace, name)
        model = self._model(parser, key)
        assignment = self._one(parser, PolicyAssignment, key)
        rollouts = self._of_model(parser, PolicyRollout, key)
        place = (self.settings.release_namespace, names.journal_name(namespace, name))
        journal = self._one(parser, PolicyJournal, place)
        self._find_named(rollouts)
        policies = self._of_model(parser, AdaptivePolicy, key)
        approvals = self._approvals(parser, namespace, rollouts)
        children = self._children(model, memory, now) if model else Children()
        acknowledgements = each(acknowledgement, self.store.of_group("Lease", key))
        heard = {ack.pod for ack in acknowledgements}
        if assignment is not None:
            acknowledgements = of_epochs_until(assignment.spec.epoch, acknowledgements)
        pods = each(partial(serving_pod, name, heard), self.store.of_group("Pod", key))
        active = [one for one in rollouts if phases.is_active(one.status)]
        going_back = any(
            one.spec.type == phases.ROLLBACK and not one.status.phase for one in rollouts
        )
        state = ObservedState(
            namespace=namespace,
            name=name,
            settings=self.settings,
            model=model,
            assignment=assignment,
            journal=journal,
            held_since=self._held_since(key),
            last_renewal=memory.renewed_at,
            policies=policies,
            rollouts=rollouts,
            approvals=approvals,
            runs=self._of_model(parser, TuningRun, key),
            jobs=each(partial(tuning_job, self._pods(key)), self.store.of_group("Job", key)),
            pods=pods,
            acknowledgements=acknowledgements,
            children=children,
            evidence=self._evidence(
                active, sum(pod.ready for pod in pods), memory, now, going_back=going_back
            ),
            notes_since=self.admission.notes_since(),
            admission=self._admission(
                namespace,
                active,
                approvals,
                fresh=self._asks(journal, model, policies, rollouts),
            ),
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

    def confirm(self, state: ObservedState) -> None:
        """Read from the API server what an exposure rests on.

        Raises Conflict when something is not as it was observed: gather again. Raises Unavailable
        when the store had no news of some kind for long.
        """
        if kinds := self.stale():
            raise Unavailable(f"no news of {', '.join(kinds)} for long: nothing is exposed")
        open_ones = [one for one in state.rollouts if not phases.is_finished(one.status)]
        named = {one.spec.policy for one in open_ones}
        rests_on: list[Resource[Any, Any] | None] = [
            state.model,
            *open_ones,
            *state.approvals,
            *(one for one in state.policies if one.name in named),
        ]
        for one in rests_on:
            if one is not None:
                self._confirm(one)

    def _confirm(self, observed: Resource[Any, Any]) -> None:
        kind, metadata = type(observed).__name__, observed.metadata
        found = self.api.find(path_of(kind, metadata.namespace, metadata.name))
        if found is None:
            if entry := self.store.find(kind, metadata.namespace, metadata.name):
                self.store.remove(kind, entry.item)
            raise Conflict(f"{kind} {metadata.namespace}/{metadata.name} is gone")
        self.store.put(kind, found)
        now = found["metadata"]["uid"], found["metadata"]["resourceVersion"]
        if now != (metadata.uid, metadata.resource_version):
            raise Conflict(f"{kind} {metadata.namespace}/{metadata.name} is another by now")

    def _model(self, parser: Parser, key: Key) -> AdaptiveModel | None:
        """The model; that there is none is asked of the API server, since Jobs end by it."""
        if self.store.find("AdaptiveModel", *key) is None:
            self._read("AdaptiveModel", *key)
        return self._one(parser, AdaptiveModel, key)

    def _find_named(self, rollouts: tuple[PolicyRollout, ...]) -> None:
        """A new rollout may be known before the policy that was made before it: each kind has a
        watch of its own."""
        for rollout in rollouts:
            place = rollout.metadata.namespace, rollout.spec.policy
            if not rollout.status.phase and all(place):
                if self.store.find("AdaptivePolicy", *place) is None:
                    self._read("AdaptivePolicy", *place)

    def _read(self, kind: str, namespace: str, name: str) -> None:
        found = self.api.find(path_of(kind, namespace, name))
        if found is not None:
            self.store.put(kind, found)

    def _one(self, parser: Parser, kind: type[Kind], key: Key) -> Kind | None:
        entry = self.store.find(kind.__name__, *key)
        return None if entry is None else parser.parse(kind, entry)

    def _of_model(self, parser: Parser, kind: type[Kind], key: Key) -> tuple[Kind, ...]:
        return self._parsed(parser, kind, self.store.of_group(kind.__name__, key))

    def _approvals(
        self, parser: Parser, namespace: str, rollouts: tuple[PolicyRollout, ...]
    ) -> tuple[PolicyApproval, ...]:
        found: list[PolicyApproval] = []
        for rollout in rollouts:
            if not phases.is_finished(rollout.status):
                entries = self.store.of_group("PolicyApproval", (namespace, rollout.name))
                found += self._parsed(parser, PolicyApproval, entries)
        return tuple(found)

    @staticmethod
    def _parsed(parser: Parser, kind: type[Kind], entries: list[Entry]) -> tuple[Kind, ...]:
        found = (parser.parse(kind, entry) for entry in entries)
        return tuple(one for one in found if one is not None)

    def _held_since(self, key: Key) -> datetime | None:
        entry = self.store.find("PolicyAssignment", *key)
        return None if entry is None else held_since(entry.item)

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
            found = self._child(kind, model, memory, due)
            hashes.pop(place, None)
            if found is not None and is_ours(found, model):
                live[kind] = found
                hashes[place] = manifests.hash_of(found)
            elif found is not None:
                taken.add(place)
        return Children(
            hashes=hashes,
            deployment=deployment_state(live.get("Deployment", {})),
            cause=self._cause(live.get("Deployment", {}), model),
            cluster_ip=str(live.get("Service", {}).get("spec", {}).get("clusterIP", "")),
            refused=dict(memory.refused),
            taken=frozenset(taken),
            check=due,
        )

    def _pods(self, key: Key) -> list[Json]:
        return [entry.item for entry in self.store.of_group("Pod", key)]

    def _cause(self, deployment: Json, model: AdaptiveModel) -> Cause | None:
        """What keeps workers from starting; of an odd pod nothing is known."""
        pods = self._pods((model.metadata.namespace, model.name))
        try:
            return cause_of(deployment, pods_of(manifests.selector(model.name), pods))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            log.warning("%s: a pod's status is not understood: %r", model.name, error)
            return None

    def _child(self, kind: str, model: AdaptiveModel, memory: Memory, due: bool) -> Json | None:
        """A Deployment is watched, unless it is somebody else's; a Service is read now and then."""
        namespace = model.metadata.namespace
        if self.store.caches(kind):
            if entry := self.store.find(kind, namespace, model.name):
                return entry.item
        elif memory.service is not None and not due:
            return memory.service
        found = self.api.find(path_of(kind, namespace, model.name))
        if kind == "Service":
            memory.service = found
        return found

    def _evidence(
        self,
        active: list[PolicyRollout],
        workers: int,
        memory: Memory,
        now: datetime,
        *,
        going_back: bool = False,
    ) -> Evidence | None:
        """Asked at most twice a scrape, since it cannot change faster, and once a step.

        Not in a pass that may go back: that waits for no Prometheus that hangs.
        """
        if going_back:
            return None
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
        self,
        namespace: str,
        active: list[PolicyRollout],
        approvals: tuple[PolicyApproval, ...],
        *,
        fresh: bool,
    ) -> AdmissionCheck:
        """Asked while a canary is under way, and before an approval counts or a note is taken."""
        uids = {one.metadata.uid for one in active}
        counts = fresh or any(one.spec.rollout_uid in uids for one in approvals)
        if not counts and not active and (latest := self.admission.latest()) is not None:
            return latest
        return self.admission.check(namespace, fresh=counts)

    def _asks(
        self,
        journal: PolicyJournal | None,
        model: AdaptiveModel | None,
        policies: tuple[AdaptivePolicy, ...],
        rollouts: tuple[PolicyRollout, ...],
    ) -> bool:
        """Whether something waits for a note that a self-test could give; an old gap never does."""
        spec = journal.spec if journal else PolicyJournalSpec(namespace="")
        held = self.admission.held_since()
        if model and loosened_fields(spec, model) and promise_may_count(spec, model, held):
            return True
        return any(may_count(one, held) for one in unnoted(spec, policies, rollouts))
