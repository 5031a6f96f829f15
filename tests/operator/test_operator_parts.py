"""The parts around the plan: lock, self-test of admission, evidence, settings, reconciling."""

from __future__ import annotations

import asyncio
import logging
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trimwheel_api import metrics as table
from trimwheel_api import names
from trimwheel_api.errors import Conflict, Refused, SpecInvalid, Unavailable
from trimwheel_api.kinds import KINDS
from trimwheel_operator.admission import APPROVALS, APPROVERS, POLICIES, AdmissionTest, probes
from trimwheel_operator.apply import Writer
from trimwheel_operator.cluster import path_of
from trimwheel_operator.evidence import EvidenceReader
from trimwheel_operator.gather import acknowledgement, held_since, tuning_job
from trimwheel_operator.handlers import registry
from trimwheel_operator.leader import Leader, NotLeader
from trimwheel_operator.metrics import OperatorMetrics
from trimwheel_operator.plan.actions import (
    Decided,
    PatchStatus,
    Plan,
    PostEvent,
    Report,
    WriteAssignment,
    merge_patch,
)
from trimwheel_operator.plan.clock import to_micro
from trimwheel_operator.plan.conditions import with_condition
from trimwheel_operator.plan.observed import ObservedState
from trimwheel_operator.reconcile import Reconciler
from trimwheel_operator.settings import Settings, from_environment
from trimwheel_operator.watching import key_of
from trimwheel_telemetry.answers import Ok, Series, Unreachable

START = datetime(2026, 11, 22, 12, 0, 0, tzinfo=UTC)


class FakeApi:
    """Objects by path, with the API server's resourceVersions; records what was written."""

    def __init__(self) -> None:
        self.objects: dict[str, Any] = {}
        self.writes: list[tuple[str, str]] = []
        self.failure: Exception | None = None
        self.version = 0

    def find(self, path: str) -> Any:
        if self.failure:
            raise self.failure
        return self.objects.get(path)

    def create(self, path: str, body: Any, *, dry_run: bool = False) -> Any:
        if self.failure:
            raise self.failure
        place = f"{path}/{body['metadata']['name']}"
        if place in self.objects:
            raise Conflict(place)
        self.writes.append(("create", place))
        return self._store(place, body)

    def replace(self, path: str, body: Any) -> Any:
        if self.failure:
            raise self.failure
        if body["metadata"]["resourceVersion"] != self.objects[path]["metadata"]["resourceVersion"]:
            raise Conflict(path)
        self.writes.append(("replace", path))
        return self._store(path, body)

    def merge(self, path: str, body: Any) -> Any:
        self.writes.append(("merge", path))
        return body

    def _store(self, place: str, body: Any) -> Any:
        self.version += 1
        metadata = {**body["metadata"], "resourceVersion": str(self.version)}
        self.objects[place] = {**body, "metadata": metadata}
        return self.objects[place]


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


# --- the leader lock ---------------------------------------------------------------------------


def two_operators() -> tuple[Leader, Leader, FakeApi, Clock]:
    api, clock = FakeApi(), Clock()
    first, second = (Leader(api, "ns", name, 15.0, clock) for name in ("a", "b"))  # type: ignore[arg-type]
    return first, second, api, clock


def test_the_first_takes_the_lock_and_the_second_waits() -> None:
    first, second, _, _ = two_operators()
    assert first.attempt() and not second.attempt()
    assert first.held() and not second.held()
    with pytest.raises(NotLeader):
        second.require()


def test_a_silent_holder_loses_it_before_another_may_take_it() -> None:
    first, second, _, clock = two_operators()
    first.attempt()
    second.attempt()
    for _ in range(60):
        clock.now += 0.25
        second.attempt()
        assert not (first.held() and second.held()), "never two at once"
        if second.held():
            break
    assert second.held() and clock.now - 100.0 >= 15.0
    assert not first.attempt()


def test_a_renewed_lock_is_never_taken() -> None:
    first, second, _, clock = two_operators()
    for _ in range(40):
        assert first.attempt() and not second.attempt()
        clock.now += 3.0


def test_an_absent_api_server_costs_the_lock_in_time() -> None:
    first, _, api, clock = two_operators()
    first.attempt()
    api.failure = Unavailable("away")
    clock.now += 9.0
    assert first.attempt(), "it is still trusted"
    clock.now += 2.0
    assert not first.attempt() and not first.held()
    api.failure = None
    assert first.attempt()


def test_a_restarted_container_takes_its_own_lock_at_once() -> None:
    first, _, api, clock = two_operators()
    first.attempt()
    again = Leader(api, "ns", "a", 15.0, clock)  # type: ignore[arg-type]
    assert again.attempt()


def test_a_lock_given_back_is_free_at_once() -> None:
    first, second, _, _ = two_operators()
    first.attempt()
    second.attempt()
    first.stop()
    assert second.attempt()


def test_nothing_is_written_without_the_lock() -> None:
    api = FakeApi()
    first, second, _, _ = two_operators()
    first.attempt()
    second.attempt()
    action = PatchStatus("PolicyRollout", "ns", "r", "u", "1", {"step": 1})
    with pytest.raises(NotLeader):
        Writer(api, second.require).carry_out(Plan((action,)))  # type: ignore[arg-type]
    assert api.writes == []
    Writer(api, first.require).carry_out(Plan((action,)))  # type: ignore[arg-type]
    assert api.writes == [("merge", path_of("PolicyRollout", "ns", "r", "status"))]


def test_a_conflict_ends_the_pass() -> None:
    class Changed(FakeApi):
        def merge(self, path: str, body: Any) -> Any:
            raise Conflict(path)

    api = Changed()
    event = PostEvent("PolicyRollout", "ns", "r", "u", "Normal", "Started", "", "k")
    write = WriteAssignment("ns", "m", {"epoch": 2}, "u", "1")
    with pytest.raises(Conflict):
        Writer(api, lambda: None).carry_out(Plan((write, event)))  # type: ignore[arg-type]
    assert api.writes == []


def test_an_event_told_before_is_no_failure() -> None:
    api = FakeApi()
    event = PostEvent("PolicyRollout", "ns", "r", "uid-1234567", "Normal", "Started", "", "k-1")
    writer = Writer(api, lambda: None)  # type: ignore[arg-type]
    writer.carry_out(Plan((event, event)))
    assert len(api.writes) == 1


def test_the_log_has_one_line_for_each_event_that_is_new(caplog: pytest.LogCaptureFixture) -> None:
    told = PostEvent("PolicyRollout", "ns", "r", "u-1234567", "Normal", "Started", "at 1 %", "k")
    harm = PostEvent("AdaptiveModel", "ns", "m", "u-1234567", "Warning", "Harmful", "0.05", "h")
    caplog.set_level(logging.INFO, "trimwheel_operator")
    Writer(FakeApi(), lambda: None).carry_out(Plan((told, told, harm)))  # type: ignore[arg-type]
    assert [(one.levelname, one.getMessage()) for one in caplog.records] == [
        ("INFO", "PolicyRollout ns/r: Started: at 1 %"),
        ("WARNING", "AdaptiveModel ns/m: Harmful: 0.05"),
    ]


def test_probes_and_raw_events_are_not_logged() -> None:
    """In a process of its own: levels are the process's, and other tests have theirs."""
    quiet = ("kopf.activities.probe", "kopf.objects", "aiohttp.access")
    told = ("trimwheel_operator.apply",)
    program = (
        "import logging; from trimwheel_operator.__main__ import log_decisions_only\n"
        "log_decisions_only()\n"
        f"for name in {quiet + told!r}:\n"
        "    logging.getLogger(name).info('usual of %s', name)\n"
        "    logging.getLogger(name).warning('trouble of %s', name)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert [name for name in quiet + told if f"usual of {name}" in done.stderr] == list(told)
    assert all(f"trouble of {name}" in done.stderr for name in quiet + told)


# --- admission ---------------------------------------------------------------------------------


class Guarded(FakeApi):
    """Both bindings are there; each policy refuses as the chart's do, unless it is `gone`.

    Of several that refuse, `first` is named: the API server's order is none.
    """

    def __init__(self, gone: str = "", first: str = APPROVERS, instead: str = "") -> None:
        super().__init__()
        self.gone, self.instead = gone, instead
        self.order = sorted(POLICIES, key=lambda name: name != first)
        self.asked = 0
        for name in POLICIES:
            self.objects[path_of("ValidatingAdmissionPolicyBinding", name=name)] = {
                "metadata": {"creationTimestamp": "2026-01-01T00:00:00Z"},
                "spec": {"validationActions": ["Deny", "Audit"]},
            }

    def create(self, path: str, body: Any, *, dry_run: bool = False) -> Any:
        assert dry_run and path == path_of("PolicyApproval", "team")
        self.asked += 1
        if self.instead:
            raise Refused(self.instead)
        spec = body["spec"]
        refuses = {
            APPROVERS: spec["rolloutUID"] != "trimwheel-self-test",
            APPROVALS: spec["rolloutUID"] != "uid-PolicyRollout-ramp",
        }
        for name in self.order:
            if refuses[name] and name != self.gone:
                raise Refused(f"ValidatingAdmissionPolicy '{name}' with binding '{name}' denied")
        return body


@pytest.mark.parametrize("first", POLICIES)
@pytest.mark.parametrize(
    ("change", "missing"),
    [
        ({}, ""),
        ({"gone": APPROVERS}, "trimwheel-approvers let a forged approval"),
        ({"gone": APPROVALS}, "trimwheel-approvals let a forged approval"),
        ({"instead": 'User "x" cannot create "policyapprovals"'}, "not by trimwheel-approvers"),
        ({"instead": "ValidatingAdmissionPolicy 'no-friday' denied"}, "not by trimwheel-appr"),
        ({"instead": "ValidatingAdmissionPolicy 'trimwheel-approvers' denied"}, "-approvals: "),
        ({"instead": "ValidatingAdmissionPolicy 'trimwheel-approvals' denied"}, "-approvers: "),
    ],
)
def test_admission_counts_only_when_each_policy_refuses_in_its_own_name(
    started: Any, change: dict[str, str], missing: str, first: str
) -> None:
    found = AdmissionTest(Guarded(first=first, **change)).check(started)  # type: ignore[arg-type]
    assert found.armed is not bool(missing)
    assert (found.armed_since is None) is bool(missing)
    assert missing in found.message


def test_the_forged_rejection_is_wrong_in_nothing_but_its_author(started: Any) -> None:
    who, what = (probe.body["spec"] for probe in probes(started))
    right = (started.name, started.metadata.uid, started.spec.policy_digest)
    assert (who["rollout"], who["rolloutUID"], who["policyDigest"]) == right
    assert who["decision"] == "Reject"
    assert what["rollout"] == started.name and what["rolloutUID"] != started.metadata.uid


@pytest.mark.parametrize("change", ["delete", "audit only"])
def test_a_binding_that_is_gone_or_only_audits_is_missing_admission(
    started: Any, change: str
) -> None:
    api = Guarded()
    place = path_of("ValidatingAdmissionPolicyBinding", name=APPROVALS)
    if change == "delete":
        del api.objects[place]
    else:
        api.objects[place]["spec"]["validationActions"] = ["Audit"]
    found = AdmissionTest(api).check(started)  # type: ignore[arg-type]
    assert found.armed is False and APPROVALS in found.message


def test_the_self_test_runs_each_minute_and_whenever_an_approval_is_counted(started: Any) -> None:
    api, clock = Guarded(), Clock()
    test = AdmissionTest(api, clock)  # type: ignore[arg-type]
    for seconds, fresh in ((0, False), (59, False), (1, False), (1, True)):
        clock.now += seconds
        test.check(started, fresh=fresh)
    assert api.asked == 3 * len(probes(started))


# --- evidence ----------------------------------------------------------------------------------


class FakePrometheus:
    """Answers raw queries with lines that a test gives."""

    def __init__(self, lines: dict[str, list[Series]] | None) -> None:
        self.lines = lines

    def raw(self, selector: str, start: float, end: float) -> Any:
        if self.lines is None:
            return Unreachable("connection refused")
        assert 'namespace="team"' in selector and 'model="router"' in selector
        return Ok(series=tuple(self.lines[selector.partition("{")[0]]))


def line(total: float, **labels: str) -> Series:
    """A counter that grew evenly from 0 over the last minute, scraped each second."""
    times = START.timestamp() + np.arange(-10.0, 61.0)
    values = np.clip(times - START.timestamp(), 0, 60) / 60 * total
    return Series({"model": "router", **labels}, times, values)


@pytest.fixture
def started(world: Any, good: dict[str, Any]) -> Any:
    """An active rollout that began at START."""
    world.now = START
    world.policy("good", good)
    world.rollout("ramp", "good")
    world.settle()
    rollout = world.observe().rollouts[0]
    effective = rollout.status.effective.model_copy(update={"started_at": to_micro(START)})
    status = rollout.status.model_copy(
        update={"effective": effective, "step_started_at": to_micro(START + timedelta(seconds=30))}
    )
    return rollout.model_copy(update={"status": status})


def counters(rollout: Any, disagreements: float) -> dict[str, list[Series]]:
    candidate, stable = rollout.spec.policy_digest, rollout.status.effective.stable_digest
    arms = [(names.ARM_CANDIDATE, candidate), (names.ARM_STABLE, stable)]
    guards = [guard for guard in names.GUARDS if guard != names.GUARD_CAPACITY]
    trials = [line(3000, arm=a, digest=d, guard=g) for a, d in arms for g in guards]
    events = [
        line(disagreements if (a, g) == (names.ARM_CANDIDATE, names.GUARD_DISAGREEMENT) else 0,
             arm=a, digest=d, guard=g)
        for a, d in arms
        for g in guards
    ]  # fmt: skip
    return {
        table.GUARD_TRIALS.name: trials,
        table.GUARD_EVENTS.name: events,
        table.REQUESTS.name: [line(3000, arm=a, exit="1", code="200") for a, _ in arms],
        table.DEVICE_SECONDS.name: [line(6, arm=a) for a, _ in arms],
    }


@pytest.mark.parametrize(("disagreements", "verdict"), [(0, "Pass"), (300, "Fail")])
def test_counters_become_verdicts_with_their_numbers(
    started: Any, disagreements: float, verdict: str
) -> None:
    prometheus: Any = FakePrometheus(counters(started, disagreements))
    now = START + timedelta(seconds=60)
    found = EvidenceReader(prometheus, 1.0).read(started, workers=2, now=now)
    assert found is not None and found.step_requests == 1500
    by_name = {guard.name: guard for guard in found.guards}
    assert set(by_name) == set(names.GUARDS)
    assert by_name["disagreement"].verdict == verdict
    assert by_name["disagreement"].samples == 3000
    assert float(by_name["disagreement"].value) == disagreements / 3000
    assert by_name["errors"].verdict == "Pass"
    capacity = by_name["capacity"]
    assert float(capacity.value) == pytest.approx(100 * 0.002 / 2, rel=0.02)
    assert capacity.verdict == "Pass"


class Windowed(FakePrometheus):
    """Answers with the samples in (start, end], and says how many it sent."""

    sent = 0

    def raw(self, selector: str, start: float, end: float) -> Any:
        whole = super().raw(selector, start, end)
        cut = []
        for one in whole.series:
            inside = (one.times > start) & (one.times <= end)
            cut.append(Series(one.labels, one.times[inside], one.values[inside]))
            self.sent += int(inside.sum())
        return Ok(series=tuple(cut))


def test_looking_often_asks_for_the_newest_samples_and_sees_the_same(started: Any) -> None:
    lines = counters(started, 40)
    often: Any = Windowed(lines)
    reader = EvidenceReader(often, 1.0)
    for seconds in range(1, 61):
        before = often.sent
        seen = reader.read(started, workers=2, now=START + timedelta(seconds=seconds))
    once: Any = Windowed(lines)
    whole = EvidenceReader(once, 1.0).read(started, workers=2, now=START + timedelta(seconds=60))
    assert seen == whole
    assert often.sent - before < once.sent / 5, "the last of many looks is a short one"


@pytest.mark.parametrize("prometheus", [None, FakePrometheus(None)])
def test_without_prometheus_no_guard_passes_or_fails(started: Any, prometheus: Any) -> None:
    now = START + timedelta(seconds=60)
    found = EvidenceReader(prometheus, 1.0).read(started, workers=2, now=now)
    assert found is not None and found.step_requests is None
    assert {guard.verdict for guard in found.guards} == {"NotEnoughEvidence"}
    assert all(guard.message for guard in found.guards)


def layers(skipped: float) -> dict[str, list[Series]]:
    """Stable served 3000 in the last minute, on `skipped` fewer layers; so did a candidate."""
    arms = (names.ARM_CANDIDATE, names.ARM_STABLE)
    return {
        table.REQUESTS.name: [line(3000, arm=a, exit="1", code="200") for a in arms],
        table.DEVICE_SECONDS.name: [line(t, arm=a) for a, t in zip(arms, (99, 6), strict=True)],
        table.LAYERS_RUN.name: [line(12000 * (1 - skipped), arm=a) for a in arms],
        table.LAYERS_FULL.name: [line(12000, arm=a) for a in arms],
    }


@pytest.mark.parametrize(("skipped", "load"), [(0.0, 0.1), (0.5, 0.2), (0.75, 0.4)])
def test_full_depth_is_projected_from_what_stable_requests_cost(
    skipped: float, load: float
) -> None:
    prometheus: Any = FakePrometheus(layers(skipped))
    reader = EvidenceReader(prometheus, 1.0)
    # 100 requests a second of 2 ms each on two workers are a tenth, without skipped layers.
    found = reader.full_depth("team", "router", 2, START + timedelta(seconds=60))
    assert found == pytest.approx(load, rel=0.2)  # the line begins ten seconds before it grows


@pytest.mark.parametrize("prometheus", [None, FakePrometheus(None)])
def test_without_prometheus_nobody_knows_the_load(prometheus: Any) -> None:
    assert EvidenceReader(prometheus, 1.0).full_depth("team", "router", 2, START) is None


# --- small parts -------------------------------------------------------------------------------

JSON = st.recursive(
    st.integers() | st.text(max_size=3) | st.booleans(),
    lambda inner: (
        st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from("abcd"), inner, max_size=4)
    ),
    max_leaves=10,
)
OBJECTS = st.dictionaries(st.sampled_from("abcd"), JSON, max_size=4)


def merged(before: Any, patch: Any) -> Any:
    if not isinstance(patch, dict):
        return patch
    out = dict(before) if isinstance(before, dict) else {}
    for key, value in patch.items():
        if value is None:
            out.pop(key, None)
        else:
            out[key] = merged(out.get(key), value)
    return out


@given(before=OBJECTS, after=OBJECTS)
def test_a_merge_patch_leads_from_one_to_the_other(before: Any, after: Any) -> None:
    patch = merge_patch(before, after)
    assert merged(before, patch) == after
    assert (patch == {}) is (before == after)


@given(states=st.lists(st.sampled_from(["True", "False", "Unknown"]), min_size=1, max_size=8))
def test_a_transition_time_is_that_of_the_last_flip(states: list[Any]) -> None:
    conditions: list[Any] = []
    flipped, before = START, None
    for index, state in enumerate(states):
        now = START + timedelta(seconds=index)
        flipped = now if state != before else flipped
        before = state
        conditions = with_condition(
            conditions, "Ready", state, "Reason", "", now=now, generation=index
        )
    [ready] = conditions
    assert datetime.fromisoformat(ready.last_transition_time) == flipped


def test_a_hold_is_dated_by_whoever_else_wrote_it() -> None:
    fields = {"f:spec": {"f:hold": {}}}
    own = {"manager": names.FIELD_MANAGER, "time": "2026-01-03T00:00:00Z", "fieldsV1": fields}
    assignment = {
        "spec": {"hold": True},
        "metadata": {
            "managedFields": [
                own,
                {"manager": "kubectl", "time": "2026-01-02T00:00:00Z", "fieldsV1": fields},
                {"manager": "x", "time": "2026-01-04T00:00:00Z", "fieldsV1": {"f:spec": {}}},
            ]
        },
    }
    assert held_since(assignment) == datetime(2026, 1, 2, tzinfo=UTC)
    assert held_since({**assignment, "spec": {"hold": False}}) is None


def test_leases_and_jobs_are_read_by_what_they_say() -> None:
    lease = {
        "metadata": {"name": "w-0", "annotations": {names.ANNOTATION_EPOCH: "7"}},
        "spec": {"renewTime": "2026-01-01T00:00:00.5Z"},
    }
    found = acknowledgement(lease)
    assert found is not None and (found.pod, found.epoch) == ("w-0", 7)
    assert acknowledgement({"metadata": {"name": "w-0"}, "spec": {}}) is None
    condition = {"type": "Failed", "status": "True", "reason": "BackoffLimitExceeded"}
    labels = {names.LABEL_TUNING_RUN_UID: "u"}
    job = {"metadata": {"name": "j", "uid": "x", "labels": labels},
           "status": {"conditions": [condition]}}  # fmt: skip
    assert tuning_job(job).failed and tuning_job(job).message == "BackoffLimitExceeded"


def test_labelled_objects_lead_back_to_their_model() -> None:
    labels = {names.LABEL_MODEL: "router"}
    assert key_of({"metadata": {"namespace": "team", "labels": labels}}) == ("team", "router")
    labels[names.LABEL_MODEL_NAMESPACE] = "other"
    assert key_of({"metadata": {"namespace": "team", "labels": labels}}) == ("other", "router")


def test_settings_come_from_the_environment_and_name_a_bad_variable() -> None:
    found = from_environment({"TRIMWHEEL_SCRAPE_INTERVAL": "2s", "POD_UID": "u", "TRIMWHEEL_LEADER_SECONDS": "5"})  # fmt: skip  # noqa: E501
    assert (found.scrape_interval, found.identity, found.leader_seconds) == (2.0, "u", 5.0)
    with pytest.raises(SpecInvalid, match="TRIMWHEEL_RESYNC: must be a duration"):
        from_environment({"TRIMWHEEL_RESYNC": "soon"})


def test_every_kind_has_an_event_handler_and_none_that_touches_users_objects() -> None:
    app: Any = object()
    found: Any = registry(app)
    watched = {handler.selector.any_name for handler in found._watching.get_all_handlers()}
    assert watched == {kind.plural for kind in KINDS}
    for other in (found._changing, found._spawning):
        assert not other.get_all_handlers()


def test_metrics_are_those_of_the_table() -> None:
    made = OperatorMetrics()
    report = Report(degraded=True, weight=2500)
    made.passed(("team", "router"), Plan((), decided=(Decided("Start", "Shadow"),), actuations=(0.2,), report=report), 0.1)  # fmt: skip  # noqa: E501
    value = made.registry.get_sample_value
    labels = {"model_namespace": "team", "model": "router"}
    assert (
        value("trimwheel_decisions_total", {**labels, "action": "Start", "reason": "Shadow"}) == 1
    )
    assert value("trimwheel_rollback_seconds_count", {}) == 1
    assert value("trimwheel_degraded", labels) == 1
    assert value("trimwheel_rollout_weight_ratio", labels) == 0.25


# --- reconciling -------------------------------------------------------------------------------


class Script:
    """A gatherer that answers each look with the next of a list."""

    def __init__(self, world: Any, answers: list[Any]) -> None:
        self.world, self.answers, self.looks = world, answers, 0

    def gather(self, *_: Any) -> ObservedState:
        self.looks += 1
        answer = self.answers.pop(0) if self.answers else None
        if isinstance(answer, Exception):
            raise answer
        state: ObservedState = answer or self.world.observe()
        return state


class Nothing:
    """A writer that counts."""

    def carry_out(self, plan: Plan) -> None:
        del plan


class Held:
    def held(self) -> bool:
        return True


KEY = ("team", "router")


def running(gatherer: Script) -> Reconciler:
    parts: Any = (gatherer, Nothing(), Held(), OperatorMetrics())
    reconciler = Reconciler(*parts)
    reconciler.start()
    return reconciler


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.01)


async def test_many_marks_make_one_pass(world: Any) -> None:
    gatherer = Script(world, [])
    reconciler = running(gatherer)
    for _ in range(50):
        reconciler.mark(KEY)
    await until(lambda: gatherer.looks > 0)
    await asyncio.sleep(0.2)
    assert gatherer.looks <= 2 and reconciler.keys() == [KEY]
    await reconciler.stop()


@pytest.mark.parametrize("error", [Conflict("changed"), Unavailable("away"), KeyError("a defect")])
async def test_a_failed_pass_is_tried_again(world: Any, error: Exception) -> None:
    gatherer = Script(world, [error])
    reconciler = running(gatherer)
    reconciler.mark(KEY)
    await until(lambda: gatherer.looks >= 2)
    assert reconciler.alive()
    await reconciler.stop()


async def test_a_model_of_which_nothing_is_left_is_forgotten(world: Any) -> None:
    gone = ObservedState(namespace="team", name="router", settings=Settings())
    gatherer = Script(world, [gone])
    reconciler = running(gatherer)
    reconciler.mark(KEY)
    await until(lambda: gatherer.looks > 0 and reconciler.keys() == [])
    assert reconciler.alive()
    await reconciler.stop()
