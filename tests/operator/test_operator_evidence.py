"""Counters of Prometheus become guards with verdicts, and a projection of the load."""

from __future__ import annotations

import socket
import time
import tracemalloc
from datetime import timedelta
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
from tests.operator.world import START

from trimwheel_api import metrics as table
from trimwheel_api import names
from trimwheel_operator.app import assemble
from trimwheel_operator.evidence import EvidenceReader
from trimwheel_operator.identities import largest_share
from trimwheel_operator.settings import Settings
from trimwheel_telemetry.answers import Answer, Empty, Ok, Partial, Series, Stale, Unreachable
from trimwheel_telemetry.counters import Window, guard_evidence, matching, total


class FakePrometheus:
    """Answers raw queries with lines that a test gives, shared out among pods."""

    def __init__(
        self, lines: dict[str, list[Series]] | None, pods: tuple[str, ...] = ("a", "b")
    ) -> None:
        self.lines = lines
        self.pods = pods

    def raw(self, selector: str, start: float, end: float) -> Any:
        if self.lines is None:
            return Unreachable("connection refused")
        assert 'namespace="team"' in selector and 'model="router"' in selector
        whole = self.lines.get(selector.partition("{")[0], [])
        return Ok(
            series=tuple(
                Series({**one.labels, "pod": pod}, one.times, one.values / len(self.pods))
                for one in whole
                for pod in self.pods
            )
        )


def line(total: float, **labels: str) -> Series:
    """A counter that grew evenly from 0 over the last minute, scraped each second."""
    times = START.timestamp() + np.arange(-10.0, 61.0)
    values = np.clip(times - START.timestamp(), 0, 60) / 60 * total
    return Series({"model": "router", **labels}, times, values)


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


def test_a_prometheus_that_hangs_does_not_hold_a_pass_until_the_lease_runs_out(
    started: Any,
) -> None:
    """The pass that asks for evidence also renews the canary: here within 10 seconds."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"http://127.0.0.1:{silent.getsockname()[1]}"
        app = assemble(Mock(), Settings(prometheus_url=address, scrape_interval=1.0))
        reader = app.reconciler._gatherer.evidence
        began = time.monotonic()
        found = reader.read(started, workers=2, now=START + timedelta(seconds=60))
        assert time.monotonic() - began < 10 / 3
    assert found is not None
    assert {guard.verdict for guard in found.guards} == {names.VERDICT_NOT_ENOUGH}


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


def test_refused_requests_are_no_answers_of_the_candidate(started: Any) -> None:
    lines = counters(started, 0)
    lines[table.REQUESTS.name] += [
        line(27_000, arm=names.ARM_CANDIDATE, exit=table.EXIT_NONE, code="429")
    ]
    prometheus: Any = FakePrometheus(lines)
    now = START + timedelta(seconds=60)
    found = EvidenceReader(prometheus, 1.0).read(started, workers=2, now=now)
    assert found is not None and found.step_requests == 1500, "a refusal exposed nobody"
    capacity = next(guard for guard in found.guards if guard.name == "capacity")
    # Ten times the arrivals, at what an answer costs: 550 a second of 2 ms on two workers.
    assert float(capacity.value) == pytest.approx(550 * 0.002 / 2, rel=0.02)
    assert capacity.samples == 3000


def guards_of(started: Any, lines: dict[str, list[Series]], seconds: float = 60) -> dict[str, Any]:
    prometheus: Any = FakePrometheus(lines)
    now = START + timedelta(seconds=seconds)
    found = EvidenceReader(prometheus, 1.0).read(started, workers=2, now=now)
    assert found is not None
    return {guard.name: guard for guard in found.guards}


@pytest.mark.parametrize("guard", ["disagreement", "errors", "latency", "parity"])
def test_each_counted_guard_fails_alone(started: Any, guard: str) -> None:
    lines = counters(started, 0)
    lines[table.GUARD_EVENTS.name] = [
        line(600 if (one.labels["arm"], one.labels["guard"]) == ("candidate", guard) else 0,
             **one.labels)
        for one in lines[table.GUARD_EVENTS.name]
    ]  # fmt: skip
    found = guards_of(started, lines)
    assert [name for name, one in found.items() if one.verdict == "Fail"] == [guard]


@pytest.mark.parametrize("guard", ["errors", "latency"])
def test_a_relative_guard_fails_after_stable_changed_under_the_canary(
    started: Any, guard: str
) -> None:
    """All of stable's counters of the second half are those of another policy."""
    lines = counters(started, 0)
    half = START.timestamp() + 29  # where a block of the comparison ends
    for name in (table.GUARD_TRIALS.name, table.GUARD_EVENTS.name):
        split = []
        for one in lines[name]:
            if one.labels["arm"] == names.ARM_STABLE:
                until = np.minimum(one.values, np.interp(half, one.times, one.values))
                split.append(Series(one.labels, one.times, until))
                after = {**one.labels, "digest": "sha256:" + "d" * 64}
                split.append(Series(after, one.times, one.values - until))
            elif name == table.GUARD_EVENTS.name and one.labels["guard"] == guard:
                split.append(Series(one.labels, one.times, np.clip(one.times - half, 0, 30) * 20))
            else:
                split.append(one)
        lines[name] = split
    assert guards_of(started, lines)[guard].verdict == "Fail"


def test_a_candidate_too_slow_for_all_traffic_fails_capacity(started: Any) -> None:
    lines = counters(started, 0)
    lines[table.DEVICE_SECONDS.name] = [line(6, arm="stable"), line(80, arm="candidate")]
    assert guards_of(started, lines)["capacity"].verdict == "Fail"


def test_workers_that_fell_silent_are_no_evidence_for_any_guard(started: Any) -> None:
    found = guards_of(started, counters(started, 0), seconds=600)
    assert {guard.verdict for guard in found.values()} == {"NotEnoughEvidence"}
    assert "0 of 2 ready workers" in found["capacity"].message


def test_capacity_waits_for_every_worker_that_is_ready(started: Any) -> None:
    """Half of the arrivals over all of the workers would pass at any load."""
    prometheus: Any = FakePrometheus(counters(started, 0), pods=("a",))
    now = START + timedelta(seconds=60)
    found = EvidenceReader(prometheus, 1.0).read(started, workers=2, now=now)
    assert found is not None
    capacity = next(guard for guard in found.guards if guard.name == "capacity")
    assert capacity.verdict == "NotEnoughEvidence"
    assert "1 of 2 ready workers" in capacity.message


def test_a_prometheus_that_began_anew_does_not_thin_out_the_arrivals(started: Any) -> None:
    """Samples of the last 20 s only, of a rollout of 60 s: what arrived is spread over 20 s."""
    whole = counters(started, 0)
    young = {
        name: [Series(one.labels, one.times[-20:], one.values[-20:]) for one in lines]
        for name, lines in whole.items()
    }
    found = guards_of(started, young)["capacity"]
    assert float(found.value) == pytest.approx(100 * 0.002 / 2, rel=0.02)


@pytest.mark.parametrize("answer", [Empty("no series matches"), Partial(("a",), "shard away")])
def test_without_a_whole_answer_no_guard_says_anything(started: Any, answer: Answer) -> None:
    class Half(FakePrometheus):
        def raw(self, selector: str, start: float, end: float) -> Any:
            return answer

    prometheus: Any = Half(None)
    found = EvidenceReader(prometheus, 1.0).read(started, workers=2, now=START)
    assert found is not None
    assert {guard.verdict for guard in found.guards} == {"NotEnoughEvidence"}
    assert all(answer.reason in guard.message for guard in found.guards)


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


def ratio(value: float, **labels: str) -> Series:
    times = START.timestamp() + np.arange(0.0, 61.0)
    return Series({"model": "router", **labels}, times, np.full(61, value))


@pytest.mark.parametrize(("share", "named"), [(1.0, "100%"), (0.83, "83%"), (0.1, ""), (0.02, "")])
def test_a_verdict_names_the_share_of_the_largest_client(
    started: Any, share: float, named: str
) -> None:
    lines = counters(started, 0)
    digest = started.spec.policy_digest
    pods = 2  # the stand-in shares values out among them
    lines[table.GUARD_LARGEST_SHARE.name] = [
        ratio(share * pods, arm=names.ARM_CANDIDATE, digest=digest, guard=guard)
        for guard in ("errors", "disagreement")
    ]
    found = guards_of(started, lines)
    for guard in ("errors", "disagreement"):
        assert ("one client" in found[guard].message) is bool(named)
        assert named in found[guard].message
        assert found[guard].verdict == "Pass", "it says so and decides nothing"
    assert "one client" not in found["parity"].message, "workers that do not report it"


def test_shares_of_pods_are_added_as_if_one_client_were_the_largest_on_each() -> None:
    window = Window(since=START.timestamp(), until=START.timestamp() + 60, max_age=5)
    labels = {"arm": names.ARM_CANDIDATE, "digest": "d", "guard": "errors"}
    trials = [line(n, **labels, pod=pod) for n, pod in ((900, "a"), (100, "b"), (500, "c"))]
    ratios = [ratio(0.1, **labels, pod="a"), ratio(1.0, **labels, pod="b")]
    assert largest_share(trials, ratios, "errors", "d", window) == pytest.approx(0.19)
    assert largest_share(trials, [], "errors", "d", window) is None


def a_day(started: Any, pods: int, hours: float) -> dict[str, list[Series]]:
    """A long step with restarts of counters and a hole in the scrapes, scraped every 15 s."""
    rng = np.random.default_rng(3)
    times = START.timestamp() + np.arange(-59.0, hours * 3600, 15.0)
    times = times[(times < START.timestamp() + 5000) | (times > START.timestamp() + 7000)]

    def grown(rate: float, **labels: str) -> list[Series]:
        lines = []
        for number in range(pods):
            steps = rng.poisson(rate * 15.0, len(times)) * (times > START.timestamp())
            values = np.cumsum(steps).astype(float)
            if number == 0:  # this worker's process was killed half-way
                half = len(values) // 2
                values[half:] -= values[half]
            lines.append(Series({"model": "router", "pod": f"p{number}", **labels}, times, values))
        return lines

    candidate, stable = started.spec.policy_digest, started.status.effective.stable_digest
    arms = [(names.ARM_CANDIDATE, candidate), (names.ARM_STABLE, stable)]
    guards = [guard for guard in names.GUARDS if guard != names.GUARD_CAPACITY]
    return {
        table.GUARD_TRIALS.name: [x for a, d in arms for g in guards
                                  for x in grown(2.0, arm=a, digest=d, guard=g)],
        table.GUARD_EVENTS.name: [x for a, d in arms for g in guards
                                  for x in grown(0.004, arm=a, digest=d, guard=g)],
        table.REQUESTS.name: [x for a, _ in arms for x in grown(5.0, arm=a, exit="1", code="200")],
        table.DEVICE_SECONDS.name: [x for a, _ in arms for x in grown(0.01, arm=a)],
    }  # fmt: skip


class Plain(Windowed):
    """The lines as they are, in (start, end], as Prometheus cuts them."""

    widest = 0.0

    def raw(self, selector: str, start: float, end: float) -> Any:
        self.widest = max(self.widest, end - start)
        found = []
        for one in (self.lines or {}).get(selector.partition("{")[0], []):
            inside = (one.times > start) & (one.times <= end)
            self.sent += int(inside.sum())
            if inside.any():
                found.append(Series(one.labels, one.times[inside], one.values[inside]))
        if not found:
            return Empty("no series matches")
        newest = max(float(one.times[-1]) for one in found)
        return Ok(tuple(found)) if end - newest < 60 else Stale(end - newest, "old", tuple(found))


def test_sums_in_windows_say_what_all_samples_say(started: Any) -> None:
    lines = a_day(started, pods=3, hours=6)
    prometheus: Any = Plain(lines)
    reader = EvidenceReader(prometheus, 15.0)
    until = START.timestamp() + 6 * 3600
    looks = 0
    while looks < 20:
        looks += 1
        found = reader.read(started, workers=3, now=START + timedelta(hours=6))
        assert found is not None
        if found.step_requests is not None:
            break
        assert "reading the rollout's history" in found.guards[0].message
        assert {guard.verdict for guard in found.guards} == {"NotEnoughEvidence"}
    assert looks > 1 and prometheus.widest <= 1800.0
    window = Window(since=START.timestamp(), until=until, max_age=50.0)
    tallies = reader._known["team", "router"]
    trials, events = lines[table.GUARD_TRIALS.name], lines[table.GUARD_EVENTS.name]
    for guard in ("errors", "latency", "disagreement", "parity"):
        digest = started.spec.policy_digest
        slow = guard_evidence(trials, events, guard=guard, candidate=digest, window=window)
        fast = tallies.evidence(guard, window)
        np.testing.assert_allclose(fast.blocks, slow.blocks)
        assert (fast.trials, fast.events, fast.state) == (slow.trials, slow.events, slow.state)
        assert (fast.stable_trials, fast.stable_events) == (slow.stable_trials, slow.stable_events)
    answered = matching(lines[table.REQUESTS.name], arm=names.ARM_CANDIDATE)
    assert round(total(answered, window)) == round(tallies.answered)
    step = Window(since=START.timestamp() + 30, until=until, max_age=50.0)
    assert found.step_requests == round(total(answered, step))


def test_a_day_of_fifty_workers_is_held_in_a_few_megabytes(started: Any) -> None:
    lines = a_day(started, pods=50, hours=4)
    samples = sum(len(one.times) for several in lines.values() for one in several)
    prometheus: Any = Plain(lines)
    sizes = []
    reader = EvidenceReader(prometheus, 15.0)
    tracemalloc.start()
    for hours in (1.0, 2.0, 3.0, 4.0):
        for _ in range(3):
            reader.read(started, workers=50, now=START + timedelta(hours=hours))
        sizes.append(tracemalloc.get_traced_memory()[0])
    tracemalloc.stop()
    # Samples alone would take 16 bytes each, and as much again for every four hours more.
    assert sizes[-1] < 8_000_000 < samples * 16
    assert sizes[-1] - sizes[1] < 1_000_000
