"""What Prometheus says of a canary, and of the load: counters in, judged guards out.

Called by `gather` for the one active rollout of a model, and for a model whose policy does harm,
to learn whether its workers could carry full depth. Evidence is read from raw counters since
the rollout's frozen start, so a restarted operator recomputes the same verdicts. Prometheus being
away is an answer too: no guard passes, none fails. The formulas live in `trimwheel_telemetry`.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from trimwheel_api import metrics, names
from trimwheel_api.kinds import PolicyRollout
from trimwheel_api.kinds.policy_rollout import EffectiveRules, GuardStatus
from trimwheel_api.times import parse_or
from trimwheel_api.values import decimal_string
from trimwheel_operator.identities import largest_share, share_sentence
from trimwheel_operator.plan.observed import Evidence
from trimwheel_operator.samples import Samples
from trimwheel_telemetry.answers import Answer, Ok, Series
from trimwheel_telemetry.client import Prometheus
from trimwheel_telemetry.counters import (
    LOOKBACK_SECONDS,
    Window,
    covered_seconds,
    guard_evidence,
    matching,
    reporting_pods,
    total,
)
from trimwheel_telemetry.load import LoadCounters, full_depth_utilisation
from trimwheel_telemetry.verdicts import (
    DataState,
    GuardEvidence,
    GuardRule,
    GuardVerdict,
    capacity_evidence,
    judge,
    rollout_rules,
)

MISSED_SCRAPES = 3
"""Scrapes that may fail before counters are stale."""
ARRIVAL_SECONDS = 300.0
"""Arrivals are counted over this much of the recent past."""
MAX_DIGITS = 6


@dataclass(frozen=True, slots=True)
class Counters:
    """All lines that a rollout's guards need, or why there are none."""

    trials: tuple[Series, ...] = ()
    events: tuple[Series, ...] = ()
    requests: tuple[Series, ...] = ()
    device: tuple[Series, ...] = ()
    gap: str = ""


class EvidenceReader:
    """Asks one Prometheus; `None` for its address means that there is none."""

    def __init__(self, prometheus: Prometheus | None, scrape_interval: float) -> None:
        self._prometheus = prometheus
        self._max_age = MISSED_SCRAPES * scrape_interval + 5.0
        self._known: dict[tuple[str, str], tuple[str, dict[str, Samples]]] = {}

    def read(self, rollout: PolicyRollout, workers: int, now: datetime) -> Evidence | None:
        """Evidence on an active rollout since its start; None when it has not started."""
        effective = rollout.status.effective
        if effective is None:
            return None
        until = now.timestamp()
        since = parse_or(effective.started_at, now).timestamp()
        step_since = parse_or(rollout.status.step_started_at, now).timestamp()
        window = Window(since=since, until=until, max_age=self._max_age)
        found = self.counters(rollout, since - LOOKBACK_SECONDS, until)
        digest = rollout.spec.policy_digest
        guards = [
            judge(rule, self._guard(rule, found, digest, window, workers))
            for rule in rules_of(effective)
        ]
        ratios = () if found.gap else self._ratios(rollout, until)
        shares = {
            guard.name: largest_share(found.trials, ratios, guard.name, digest, window)
            for guard in guards
        }
        return Evidence(
            rollout_uid=rollout.metadata.uid,
            guards=tuple(as_status(guard, shares[guard.name]) for guard in guards),
            step_requests=None
            if found.gap
            else round(
                total(
                    _answered_by_candidate(found),
                    Window(since=step_since, until=until, max_age=self._max_age),
                    history_of=found.requests,
                )
            ),
            step_started_at=rollout.status.step_started_at,
        )

    def counters(self, rollout: PolicyRollout, start: float, end: float) -> Counters:
        """Raw lines of the model's counters in (start, end]."""
        if self._prometheus is None:
            return Counters(gap="PROMETHEUS_URL is not set")
        found: list[tuple[Series, ...]] = []
        for metric in (
            metrics.GUARD_TRIALS,
            metrics.GUARD_EVENTS,
            metrics.REQUESTS,
            metrics.DEVICE_SECONDS,
        ):
            selector = (
                f'{metric.name}{{namespace="{rollout.metadata.namespace}",'
                f'model="{rollout.spec.model}"}}'
            )
            samples = self._samples(rollout, metric.name)
            since = samples.missing_since(start, self._max_age)
            answer: Answer = self._prometheus.raw(selector, since, end)
            if not isinstance(answer, Ok):
                return Counters(gap=answer.reason)
            found.append(samples.take(answer.series, end))
        trials, events, requests, device = found
        return Counters(trials, events, requests, device)

    def _ratios(self, rollout: PolicyRollout, until: float) -> tuple[Series, ...]:
        """The newest shares of workers' largest identities; none is no gap in the evidence."""
        if self._prometheus is None:
            return ()
        selector = (
            f'{metrics.GUARD_LARGEST_SHARE.name}{{namespace="{rollout.metadata.namespace}",'
            f'model="{rollout.spec.model}"}}'
        )
        answer = self._prometheus.raw(selector, until - self._max_age, until)
        return answer.series if isinstance(answer, Ok) else ()

    def full_depth(self, namespace: str, model: str, workers: int, now: datetime) -> float | None:
        """Utilisation at full depth that the last minutes project; None when nobody knows."""
        if self._prometheus is None:
            return None
        until = now.timestamp()
        window = Window(since=until - ARRIVAL_SECONDS, until=until, max_age=self._max_age)
        found: list[tuple[Series, ...]] = []
        for metric in (
            metrics.REQUESTS,
            metrics.DEVICE_SECONDS,
            metrics.LAYERS_RUN,
            metrics.LAYERS_FULL,
        ):
            selector = f'{metric.name}{{namespace="{namespace}",model="{model}"}}'
            answer = self._prometheus.raw(selector, window.since - LOOKBACK_SECONDS, until)
            if not isinstance(answer, Ok):
                return None
            found.append(answer.series)
        return full_depth_utilisation(LoadCounters(*found), window, workers)

    def _samples(self, rollout: PolicyRollout, metric: str) -> Samples:
        """What is known of this metric in this attempt; a model's former attempt is forgotten."""
        key, uid = (rollout.metadata.namespace, rollout.spec.model), rollout.metadata.uid
        if key not in self._known or self._known[key][0] != uid:
            self._known[key] = (uid, {})
        return self._known[key][1].setdefault(metric, Samples())

    def _guard(
        self,
        rule: GuardRule,
        found: Counters,
        digest: str,
        window: Window,
        workers: int,
    ) -> GuardEvidence:
        if found.gap:
            return GuardEvidence(state=DataState.ABSENT, reason=found.gap)
        if rule.name == names.GUARD_CAPACITY:
            return _capacity(found, window, workers)
        return guard_evidence(
            found.trials,
            found.events,
            guard=rule.name,
            candidate=digest,
            window=window,
        )


def rules_of(effective: EffectiveRules) -> tuple[GuardRule, ...]:
    """The guards of a rollout, from its frozen rules."""
    rollout = effective.rollout
    return rollout_rules(
        max_disagreement=float(effective.max_disagreement),
        error_budget=float(effective.error_budget),
        latency_budget=float(effective.latency_budget),
        capacity_target=float(effective.capacity_target),
        parity_budget=float(rollout.parity_budget),
        alpha=float(rollout.alpha),
        beta=float(rollout.beta),
        pass_margin=float(rollout.pass_margin),
        certified=effective.certified,
    )


def as_status(verdict: GuardVerdict, share: float | None = None) -> GuardStatus:
    """A verdict as the rollout's status shows it; `share` is its largest client's."""
    value = "" if verdict.value is None else decimal_string(verdict.value, MAX_DIGITS)
    return GuardStatus.model_validate(
        {
            "name": verdict.name,
            "verdict": verdict.verdict.value,
            "value": value,
            "bound": decimal_string(verdict.bound, MAX_DIGITS),
            "samples": verdict.samples,
            "message": "; ".join(filter(None, (verdict.reason, share_sentence(share)))),
        }
    )


def _capacity(found: Counters, window: Window, workers: int) -> GuardEvidence:
    """Arrivals of late, at the candidate's cost since it began."""
    recent = max(window.since, window.until - ARRIVAL_SECONDS)
    lately = Window(since=recent, until=window.until, max_age=window.max_age)
    heard = reporting_pods(found.requests, window)
    if heard < max(workers, 1):
        told = f"{heard} of {workers} ready workers have reported lately"
        return GuardEvidence(state=DataState.STALE, reason=told)
    return capacity_evidence(
        arrivals=total(found.requests, lately),
        seconds=covered_seconds(found.requests, lately),
        candidate_requests=total(_answered_by_candidate(found), window, history_of=found.requests),
        candidate_device_seconds=total(
            matching(found.device, arm=names.ARM_CANDIDATE), window, history_of=found.device
        ),
        workers=workers,
    )


def _answered_by_candidate(found: Counters) -> tuple[Series, ...]:
    """A request that was refused took no engine time and exposed nobody."""
    return matching(found.requests, arm=names.ARM_CANDIDATE, code=metrics.CODE_ANSWERED)
