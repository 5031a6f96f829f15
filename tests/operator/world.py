"""A small world for the operator's plans: objects in memory, an API server's rules, a fake clock.

`World` keeps what the API server would keep and refuses what it would refuse (a stale
resourceVersion, an epoch that does not grow). `look` makes one pass; `settle` passes until nothing
is left to do, and fails when that never comes. `crash_after` drops the rest of a pass, as a killed
operator would.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from tests.operator.api_server import (
    JOURNAL,
    KINDS,
    MODEL,
    NAMESPACE,
    START,
    ApiServer,
    StaleWrite,
    merged,
)

from trimwheel_api.kinds import (
    PolicyAssignment,
    PolicyJournal,
)
from trimwheel_api.kinds.policy_journal import PolicyJournalSpec
from trimwheel_api.kinds.policy_rollout import GuardStatus
from trimwheel_api.names import GUARDS
from trimwheel_api.policy import parse_policy
from trimwheel_api.times import to_micro, to_text
from trimwheel_operator.plan import plan
from trimwheel_operator.plan.actions import (
    Plan,
)
from trimwheel_operator.plan.observed import (
    Acknowledgement,
    AdmissionCheck,
    Children,
    DeploymentState,
    Evidence,
    ObservedState,
    Pod,
)
from trimwheel_operator.settings import Settings

MODEL_DIGEST = "sha256:" + "a" * 64


@dataclass
class World(ApiServer):
    """One namespace with one model."""

    pods: list[str] = field(default_factory=lambda: ["router-0", "router-1"])
    acknowledged: dict[str, tuple[int, datetime]] = field(default_factory=dict)
    silent: set[str] = field(default_factory=set)
    said: dict[str, dict[str, str]] = field(default_factory=dict)
    """What a worker says beside its epoch: `refused`, `tripped`."""
    taken: set[tuple[str, str]] = field(default_factory=set)
    """(kind, name) of objects that somebody else made."""
    verdicts: dict[str, str] | None = None
    requests: int = 10_000
    admission: AdmissionCheck = AdmissionCheck(True, "", START - timedelta(days=1))
    full_depth_load: float | None = None
    """Utilisation that Prometheus projects for full depth."""
    held_since: datetime | None = None
    notes_since: datetime | None = None
    """When the operator began to note what was written under admission; None: not yet."""
    settings: Settings = field(default_factory=Settings)

    # --- what people and pipelines do ---------------------------------------------------------

    def model(self, **spec: Any) -> None:
        known = self.objects.get(("AdaptiveModel", MODEL), {}).get("spec", {})
        base = known or {
            "model": {"uri": "models:/router/1", "digest": MODEL_DIGEST},
            "replicas": 2,
            "rollout": {
                "steps": [
                    {"weight": "0%", "hold": "15s", "maxDuration": "10m"},
                    {"weight": "10%", "hold": "15s", "minRequests": 100, "maxDuration": "10m"},
                    {"weight": "50%", "hold": "15s", "minRequests": 300, "maxDuration": "10m"},
                ]
            },
        }
        self.put("AdaptiveModel", MODEL, merged(base, spec))

    def policy(
        self, name: str, document: dict[str, Any], *, certified: bool = True, **certificate: Any
    ) -> str:
        digest = parse_policy(document).digest
        spec: dict[str, Any] = {"model": MODEL, "policy": document}
        if certified:
            spec["certificate"] = {
                "epsilon": "0.02",
                "delta": "0.1",
                "n": 2000,
                "errors": 10,
                "pValue": "0.001",
                "windowStart": to_text(self.now - timedelta(days=2)),
                "windowEnd": to_text(self.now),
                "policyDigest": digest,
                "modelDigest": MODEL_DIGEST,
                "issuedAt": to_text(self.now),
                "expiresAt": to_text(self.now + timedelta(days=30)),
                **certificate,
            }
        self.put("AdaptivePolicy", name, spec)
        return digest

    def rollout(self, name: str, policy: str = "", **spec: Any) -> None:
        digest = spec.pop("policyDigest", None)
        if digest is None:
            digest = parse_policy(self.objects["AdaptivePolicy", policy]["spec"]["policy"]).digest
        body = {
            "model": MODEL,
            "policy": policy,
            "policyDigest": digest,
            "requestedBy": "pipelines@example.org",
            **spec,
        }
        self.put("PolicyRollout", name, body)

    def approve(self, rollout: str, *, by: str = "ann", decision: str = "Approve") -> None:
        item = self.objects["PolicyRollout", rollout]
        self.put(
            "PolicyApproval",
            f"{rollout}-{by}-{decision.lower()}-{len(self.objects)}",
            {
                "rollout": rollout,
                "rolloutUID": item["metadata"]["uid"],
                "policyDigest": item["spec"]["policyDigest"],
                "decision": decision,
                "approver": by,
            },
        )

    def change(self, rollout: str, **spec: Any) -> None:
        item = self.objects["PolicyRollout", rollout]
        self.put("PolicyRollout", rollout, item["spec"] | spec)

    def tuning(self, name: str, **spec: Any) -> None:
        self.put("TuningRun", name, {"model": MODEL, **spec})

    def report_drift(self, name: str, verdict: str, **fields: Any) -> None:
        """What pipelines write into a TuningRun's status."""
        item = self.objects["TuningRun", name]
        drift = {
            "verdict": verdict,
            "signal": "disagreement",
            "value": "0.05",
            "bound": "0.02",
            "audits": 900,
            "time": to_micro(self.now),
            **fields,
        }
        item["status"] = {**item["status"], "drift": drift}
        self.touch(item)

    def break_glass(self) -> None:
        """A person with verb rollback stops everything, the operator being down."""
        item = self.objects["PolicyAssignment", MODEL]
        spec = item["spec"]
        item["spec"] = spec | {"weightBasisPoints": 0, "hold": True, "epoch": spec["epoch"] + 1}
        self.held_since = self.now.replace(microsecond=0)
        self.touch(item)
        self.writes.append(copy.deepcopy(item["spec"]))

    def guards(self, verdict: str, **others: str) -> None:
        """From now on Prometheus says this of every guard, but for `others`."""
        self.verdicts = {name: others.get(name, verdict) for name in GUARDS}

    def prometheus_away(self) -> None:
        self.verdicts = None

    def acknowledge(self, delay: timedelta = timedelta(milliseconds=20)) -> None:
        """Workers apply the newest epoch, but for the silent ones."""
        epoch = self.assignment["epoch"]
        for pod in self.pods:
            if pod not in self.silent and self.acknowledged.get(pod, (0, self.now))[0] < epoch:
                self.acknowledged[pod] = (epoch, self.now + delay)

    def after(self, seconds: float) -> World:
        self.now += timedelta(seconds=seconds)
        return self

    # --- what the operator sees and does -------------------------------------------------------

    def observe(self) -> ObservedState:
        def of(kind: str) -> tuple[Any, ...]:
            return tuple(
                KINDS[kind].model_validate(copy.deepcopy(item))
                for (found, _), item in sorted(self.objects.items())  # a list is by name
                if found == kind
            )

        models, assignment = of("AdaptiveModel"), self.objects.get(("PolicyAssignment", MODEL))
        kept = self.objects.get(("PolicyJournal", JOURNAL))
        rollouts = of("PolicyRollout")
        wanted = models[0].spec.replicas if models else 0
        return ObservedState(
            namespace=NAMESPACE,
            name=MODEL,
            settings=self.settings,
            model=models[0] if models else None,
            assignment=PolicyAssignment.model_validate(copy.deepcopy(assignment))
            if assignment
            else None,
            journal=PolicyJournal.model_validate(copy.deepcopy(kept)) if kept else None,
            notes_since=self.notes_since,
            held_since=self.held_since if assignment and assignment["spec"].get("hold") else None,
            last_renewal=self.last_renewal,
            policies=of("AdaptivePolicy"),
            rollouts=rollouts,
            approvals=of("PolicyApproval"),
            runs=of("TuningRun"),
            jobs=tuple(self.jobs.values()),
            pods=tuple(Pod(name, f"uid-{name}", True) for name in self.pods),
            acknowledgements=tuple(
                Acknowledgement(pod, epoch, at, **self.said.get(pod, {}))
                for pod, (epoch, at) in self.acknowledged.items()
            ),
            children=Children(
                hashes=dict(self.ensured),
                deployment=DeploymentState(1, 1, wanted, wanted, len(self.pods))
                if ("Deployment", MODEL) in self.ensured
                else DeploymentState(1),
                refused=dict(self.refused),
                taken=frozenset(self.taken),
                cluster_ip="127.96.0.9" if ("Service", MODEL) in self.ensured else "",
            ),
            evidence=self._evidence(rollouts),
            admission=self.admission,
            full_depth_load=self.full_depth_load,
        )

    def look(self, *, crash_after: int | None = None) -> Plan:
        """One pass; a conflict ends it, as does the crash."""
        made = plan(self.observe(), self.now)
        for action in made.actions[:crash_after]:
            try:
                self.carry_out(action)
            except StaleWrite:
                break
        return made

    def settle(self, limit: int = 12) -> World:
        """Passes until a plan asks for nothing, workers answering in between."""
        for _ in range(limit):
            self.after(0.001)
            if not self.look().actions:
                return self
            if ("PolicyAssignment", MODEL) in self.objects:
                self.acknowledge()
        raise AssertionError(f"not settled after {limit} passes: {self.look().actions}")

    # --- what tests ask ------------------------------------------------------------------------

    @property
    def assignment(self) -> dict[str, Any]:
        return PolicyAssignment.model_validate(
            self.objects["PolicyAssignment", MODEL]
        ).spec.model_dump(by_alias=True)

    @property
    def journal(self) -> Any:
        """The spec of the model's journal; an empty one while there is none."""
        kept = self.objects.get(("PolicyJournal", JOURNAL))
        if kept is None:
            return PolicyJournalSpec(namespace=NAMESPACE, model=MODEL)
        return PolicyJournal.model_validate(kept).spec

    def copy_to_ledger(self) -> list[Any]:
        """What pipelines do: read what is beyond the cursor, and move it."""
        item = self.objects["PolicyJournal", JOURNAL]
        found = PolicyJournal.model_validate(item)
        item["status"] = {"cursor": found.spec.sequence}
        self.touch(item)
        return [one for one in found.spec.decisions if one.sequence > found.status.cursor]

    def status(self, kind: str, name: str) -> Any:
        return KINDS[kind].model_validate(self.objects[kind, name]).status

    def of_rollout(self, name: str) -> Any:
        return self.status("PolicyRollout", name)

    @property
    def of_model(self) -> Any:
        return self.status("AdaptiveModel", MODEL)

    def actions_of(self, rollout: str) -> list[tuple[str, str]]:
        return [(one.action, one.reason) for one in self.of_rollout(rollout).decisions]

    def _evidence(self, rollouts: tuple[Any, ...]) -> Evidence | None:
        active = [one for one in rollouts if one.status.effective and not one.status.finished_at]
        if not active or self.verdicts is None:
            return None
        guards = tuple(
            GuardStatus(name=name, verdict=verdict, value="0.1", bound="0.02", samples=500)  # type: ignore[arg-type]
            for name, verdict in self.verdicts.items()
        )
        uid, step = active[0].metadata.uid, active[0].status.step_started_at
        return Evidence(uid, guards, self.requests, step)
