"""The self-test of admission: is every policy of the chart in force, and since when as it is now?

Missing admission fails open: a deleted ValidatingAdmissionPolicy lets everything pass, and a
missing right of our own would look alike. So before anything counts that only admission vouches
for (an approval, a certificate, a request), and every minute, the operator tries to forge one
object for each policy, as a dry run, and each policy must refuse its own by name (`probes`).

A test shows the present. What was written before it counts only if the policies were the same all
the while: their uids and generations, with those of their bindings, lie in the release's journal
together with the time since which they are unchanged. A policy that was deleted, edited or merely
did not bite starts that time anew, and nobody but the operator can write the journal. The time when
that journal was made is when notes began; what is older is accepted once (`plan.witness`).
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from trimwheel_api import names
from trimwheel_api.errors import Refused, TrimwheelError
from trimwheel_api.kinds import PolicyJournal, dump
from trimwheel_api.kinds.policy_journal import AdmissionRecord, GuardingPolicy
from trimwheel_api.times import parse, to_micro
from trimwheel_operator.cluster import KubeApi, path_of
from trimwheel_operator.plan.observed import AdmissionCheck
from trimwheel_operator.probes import PROBES, Probe, judged

log = logging.getLogger(__name__)

Json = dict[str, Any]
POLICY, BINDING = "ValidatingAdmissionPolicy", "ValidatingAdmissionPolicyBinding"
FRESH_SECONDS = 60.0
OURS = f"{names.LABEL_PART_OF}={names.PART_OF}"


class NotInForce(Exception):
    """A policy is missing or does not refuse what it must; the message says which and how."""


class AdmissionTest:
    """Runs the test, and remembers its answer for a minute in each namespace."""

    def __init__(
        self,
        api: KubeApi,
        release_namespace: str = names.RELEASE_NAMESPACE,
        require: Callable[[], None] = lambda: None,
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._api = api
        self._release = release_namespace
        self._require = require
        self._clock = clock
        self._now = now
        self._known: dict[str, tuple[float, AdmissionCheck]] = {}
        self._journal: Json | None = None
        self._lock = threading.Lock()
        """Of the release's journal: passes of several models run side by side."""

    def check(self, namespace: str, *, fresh: bool = False) -> AdmissionCheck:
        """The newest answer in a namespace; `fresh` asks again, as is due before something
        counts."""
        now, known = self._clock(), self._known.get(namespace)
        if known is None or fresh or now - known[0] >= FRESH_SECONDS:
            known = (now, self._run(namespace))
            self._known[namespace] = known
        return known[1]

    def latest(self) -> AdmissionCheck | None:
        """The newest answer in any namespace; None when it is older than a minute."""
        moment, found = max(self._known.values(), key=lambda one: one[0], default=(0.0, None))
        return found if found and self._clock() - moment < FRESH_SECONDS else None

    def notes_since(self) -> datetime | None:
        """When notes began; None while no self-test of this release has held yet."""
        with self._lock:
            journal = self._journal or self._read()
        return parse(journal["metadata"]["creationTimestamp"]) if journal else None

    def held_since(self) -> datetime | None:
        """Since when admission is as it was in the newest test that held."""
        with self._lock:
            return unchanged_since(self._journal) if self._journal else None

    def _run(self, namespace: str) -> AdmissionCheck:
        try:
            policies = self._installed()
            self._try(namespace)
            with self._lock:
                journal = self._recorded(policies)
        except NotInForce as failure:
            return AdmissionCheck(False, str(failure))
        except TrimwheelError as error:
            # Harm and rollbacks wait for no self-test.
            return AdmissionCheck(False, f"the self-test of admission could not be made: {error}")
        return AdmissionCheck(True, "", unchanged_since(journal))

    def _installed(self) -> list[GuardingPolicy]:
        """Identity and generation of every policy and its binding."""
        policies = self._by_name(POLICY)
        bindings = self._by_name(BINDING)
        found = []
        for name in names.ADMISSION_POLICIES:
            policy, binding = policies.get(name), bindings.get(name)
            if policy is None or policy["spec"].get("failurePolicy", "Fail") != "Fail":
                raise NotInForce(f"{POLICY} {name} is missing or does not fail closed")
            if binding is None or not _denies(binding, name):
                raise NotInForce(f"{BINDING} {name} is missing or does not deny")
            one = policy["metadata"]
            others = [b["metadata"] for b in bindings.values() if b["spec"]["policyName"] == name]
            found.append(
                GuardingPolicy(
                    name=name,
                    uid=one["uid"],
                    generation=one.get("generation", 1),
                    binding_uid=",".join(sorted(other["uid"] for other in others)),
                    binding_generation=sum(other.get("generation", 1) for other in others),
                )
            )
        return found

    def _by_name(self, kind: str) -> dict[str, Json]:
        items, _ = self._api.list(path_of(kind), labels=OURS)
        return {item["metadata"]["name"]: item for item in items}

    def _try(self, namespace: str) -> None:
        for make in PROBES.values():
            probe = make()
            refusal = self._refusal(namespace, probe)
            if refusal is None:
                with self._lock:
                    self._forget_record()
            if mistake := judged(probe, refusal):
                raise NotInForce(mistake)

    def _refusal(self, namespace: str, probe: Probe) -> str | None:
        """The API server's words; None when it would have taken the forgery."""
        place = self._release if probe.in_release else namespace
        body = probe.body(place)
        try:
            if probe.apply:
                self._api.apply(path_of(probe.kind, place, probe.name), body, dry_run=True)
            else:
                self._api.create(path_of(probe.kind, place), body, dry_run=True)
        except Refused as refusal:
            return str(refusal)
        return None

    # ------------------------------------------------------------------ the release's journal

    def _path(self) -> str:
        return path_of("PolicyJournal", self._release, names.RELEASE_JOURNAL)

    def _read(self) -> Json | None:
        try:
            self._journal = self._api.find(self._path())
        except Refused as refusal:
            log.warning("the release's journal cannot be read, upgrade the chart: %s", refusal)
        return self._journal

    def _recorded(self, policies: list[GuardingPolicy]) -> Json:
        """The journal with these policies in it; written when they are not those it knows."""
        journal = self._read()
        record = AdmissionRecord(held_since=to_micro(self._now()), policies=policies)
        if journal is not None:
            known = PolicyJournal.model_validate(journal).spec.admission
            if known is not None and known.policies == policies:
                return journal
            return self._write(journal, dump(record))
        self._require()
        body = {
            "apiVersion": names.API_VERSION,
            "kind": "PolicyJournal",
            "metadata": {
                "name": names.RELEASE_JOURNAL,
                "namespace": self._release,
                "labels": {names.LABEL_PART_OF: names.PART_OF},
            },
            "spec": {"namespace": self._release, "admission": dump(record)},
        }
        self._journal = self._api.create(path_of("PolicyJournal", self._release), body)
        return self._journal

    def _forget_record(self) -> None:
        """A policy is there and does not bite: what it let pass meanwhile must not count."""
        journal = self._read()
        if journal is not None and journal["spec"].get("admission"):
            self._write(journal, None)

    def _write(self, journal: Json, admission: Json | None) -> Json:
        self._require()
        metadata = {key: journal["metadata"][key] for key in ("uid", "resourceVersion")}
        body = {"metadata": metadata, "spec": {"admission": admission}}
        self._journal = self._api.merge(self._path(), body)
        return self._journal


def unchanged_since(journal: Json) -> datetime | None:
    """Since when the recorded policies are as they are, by the API server's clock and by ours.

    A journal that was never changed holds since it was made, which is when notes began.
    """
    metadata, record = journal["metadata"], journal["spec"].get("admission")
    if not record:
        return None
    if metadata.get("generation") == 1:
        return parse(metadata["creationTimestamp"])
    written = [
        parse(entry.get("time", ""))
        for entry in metadata.get("managedFields", [])
        if entry.get("manager") == names.FIELD_MANAGER
    ]
    times = [parse(record["heldSince"]), *written]
    return max((one for one in times if one is not None), default=None)


def _denies(binding: Json, policy: str) -> bool:
    spec = binding["spec"]
    return spec.get("policyName") == policy and "Deny" in spec.get("validationActions", [])
