"""One look at a rollout: ask Prometheus, and hand back the evidence of every guard.

Called by the operator in a thread, on every pass while a candidate is resident. Whatever is missing
comes back as evidence that says so (`DataState.ABSENT` with its reason), so that the verdict is
NotEnoughEvidence and nothing raises. Leaves out the judging (`verdicts`) and all state: the same
question later gives the same counts, plus what happened since.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from trimwheel_api import metrics, names
from trimwheel_telemetry.answers import Answer, Ok, Series
from trimwheel_telemetry.client import Prometheus
from trimwheel_telemetry.counters import (
    LOOKBACK_SECONDS,
    Window,
    guard_evidence,
    matching,
    newest_sample,
    total,
)
from trimwheel_telemetry.verdicts import (
    DataState,
    GuardEvidence,
    GuardRule,
    GuardVerdict,
    capacity_evidence,
    judge,
)

COUNTED_GUARDS = tuple(guard for guard in names.GUARDS if guard != names.GUARD_CAPACITY)
"""Guards whose evidence workers count; capacity is projected from engine time."""


@dataclass(frozen=True, slots=True)
class Attempt:
    """Which rollout is asked about. Times in Unix seconds."""

    namespace: str
    model: str
    candidate: str  # digest
    stable: str  # digest
    since: float  # when evidence began to count
    until: float  # now
    max_age: float = 60.0  # the newest sample may be this old: a few scrape intervals
    workers: int = 1  # engines that share the load


def gather(prometheus: Prometheus, attempt: Attempt) -> dict[str, GuardEvidence]:
    """Evidence of all five guards, by name."""
    window = Window(attempt.since, attempt.until, attempt.max_age)
    start = attempt.since - LOOKBACK_SECONDS
    answers = {
        metric.name: prometheus.raw(_selector(metric, attempt), start, attempt.until)
        for metric in (
            metrics.GUARD_TRIALS,
            metrics.GUARD_EVENTS,
            metrics.REQUESTS,
            metrics.DEVICE_SECONDS,
        )
    }
    evidence = _counted(answers, attempt, window)
    evidence[names.GUARD_CAPACITY] = _capacity(answers, attempt, window)
    return evidence


def judge_all(
    rules: Sequence[GuardRule], evidence: Mapping[str, GuardEvidence]
) -> list[GuardVerdict]:
    """Each rule's verdict; a guard without evidence is judged on none."""
    missing = GuardEvidence(state=DataState.ABSENT, reason="no data was gathered")
    return [judge(rule, evidence.get(rule.name, missing)) for rule in rules]


def _selector(metric: metrics.Metric, attempt: Attempt) -> str:
    return f'{metric.name}{{namespace="{attempt.namespace}",model="{attempt.model}"}}'


def _counted(
    answers: Mapping[str, Answer], attempt: Attempt, window: Window
) -> dict[str, GuardEvidence]:
    lines = _lines(answers, metrics.GUARD_TRIALS, metrics.GUARD_EVENTS)
    if isinstance(lines, str):
        absent = GuardEvidence(state=DataState.ABSENT, reason=lines)
        return dict.fromkeys(COUNTED_GUARDS, absent)
    trials, events = lines
    return {
        guard: guard_evidence(
            trials,
            events,
            guard=guard,
            candidate=attempt.candidate,
            stable=attempt.stable,
            window=window,
        )
        for guard in COUNTED_GUARDS
    }


def _capacity(answers: Mapping[str, Answer], attempt: Attempt, window: Window) -> GuardEvidence:
    """Engine seconds of a candidate request, times all arrivals, over the workers."""
    lines = _lines(answers, metrics.REQUESTS, metrics.DEVICE_SECONDS)
    if isinstance(lines, str):
        return GuardEvidence(state=DataState.ABSENT, reason=lines)
    requests, device = lines
    candidate = matching(requests, arm=names.ARM_CANDIDATE)
    newest = newest_sample(requests, window)
    if newest is None or window.until - newest > window.max_age:
        return GuardEvidence(state=DataState.STALE, reason="no worker has reported lately")
    return capacity_evidence(
        arrivals=total(requests, window),
        seconds=newest - window.since,
        candidate_requests=total(candidate, window, history_of=requests),
        candidate_device_seconds=total(
            matching(device, arm=names.ARM_CANDIDATE), window, history_of=device
        ),
        workers=attempt.workers,
    )


def _lines(
    answers: Mapping[str, Answer], *wanted: metrics.Metric
) -> tuple[tuple[Series, ...], ...] | str:
    """The series of these metrics, or the reason why one of them may not be used."""
    found = []
    for metric in wanted:
        answer = answers[metric.name]
        if not isinstance(answer, Ok):
            return answer.reason
        found.append(answer.series)
    return tuple(found)
