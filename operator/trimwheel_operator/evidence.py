"""What Prometheus says of a canary, and of the load: counters in, judged guards out.

Called by `gather` for the one active rollout of a model, and for a model whose policy does harm,
to learn whether its workers could carry full depth. Evidence is read from raw counters since
the rollout's frozen start, so a restarted operator recomputes the same verdicts. Prometheus being
away is an answer too: no guard passes, none fails. The formulas live in `trimwheel_telemetry`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import UTC, datetime

from trimwheel_api import metrics, names
from trimwheel_api.kinds import PolicyRollout
from trimwheel_api.kinds.policy_rollout import EffectiveRules, GuardStatus
from trimwheel_api.times import parse_or
from trimwheel_api.values import decimal_string
from trimwheel_operator.identities import counted_again, largest_share, share_sentence
from trimwheel_operator.plan.observed import Evidence
from trimwheel_operator.tallies import Tallies
from trimwheel_telemetry.answers import Answer, Empty, Ok, Series, Stale
from trimwheel_telemetry.client import Prometheus
from trimwheel_telemetry.counters import (
    LOOKBACK_SECONDS,
    Window,
    covered_seconds,
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


READ = (metrics.GUARD_TRIALS, metrics.GUARD_EVENTS, metrics.REQUESTS, metrics.DEVICE_SECONDS)
WINDOW_SECONDS = 1800.0
"""Span of one query of a rollout's history: what a look holds of it at once."""
WINDOWS_A_LOOK = 4
"""Of each metric: a pass also renews the canary, so a long history is read over several."""


@dataclass(frozen=True, slots=True)
class Found:
    """What a rollout's guards are judged by, or why there is nothing."""

    tallies: Tallies
    recent: tuple[Series, ...]
    gap: str


class EvidenceReader:
    """Asks one Prometheus; `None` for its address means that there is none."""

    def __init__(self, prometheus: Prometheus | None, scrape_interval: float) -> None:
        self._prometheus = prometheus
        self._max_age = MISSED_SCRAPES * scrape_interval + 5.0
        self._known: dict[tuple[str, str], Tallies] = {}

    def read(self, rollout: PolicyRollout, workers: int, now: datetime) -> Evidence | None:
        """Evidence on an active rollout since its start; None when it has not started."""
        effective = rollout.status.effective
        if effective is None:
            return None
        until = now.timestamp()
        since = parse_or(effective.started_at, now).timestamp()
        step_since = parse_or(rollout.status.step_started_at, now).timestamp()
        window = Window(since=since, until=until, max_age=self._max_age)
        tallies = self._tallies(rollout, since, step_since)
        gap = self._refresh(rollout, tallies, until)
        found = Found(tallies, tuple(tallies.recent.values()), gap)
        digest = rollout.spec.policy_digest
        sampled = () if gap else self._gauges(rollout, metrics.GUARD_SESSION_SAMPLE, until)
        guards = [
            judge(
                rule,
                replace(
                    _guard(rule, found, window, workers),
                    effect=counted_again(sampled, rule.name, digest),
                ),
            )
            for rule in rules_of(effective)
        ]
        ratios = () if gap else self._gauges(rollout, metrics.GUARD_LARGEST_SHARE, until)
        trials = tallies.lines(metrics.GUARD_TRIALS).totals()
        shares = {
            guard.name: largest_share(trials, ratios, guard.name, digest, window)
            for guard in guards
        }
        return Evidence(
            rollout_uid=rollout.metadata.uid,
            guards=tuple(as_status(guard, shares[guard.name]) for guard in guards),
            step_requests=None if gap else round(tallies.step_answered),
            step_started_at=rollout.status.step_started_at,
        )

    def _refresh(self, rollout: PolicyRollout, tallies: Tallies, until: float) -> str:
        """Read what is new, a window at a time; why there is nothing to judge by, if so."""
        if self._prometheus is None:
            return "PROMETHEUS_URL is not set"
        for metric in READ:
            lines = tallies.lines(metric)
            for _ in range(WINDOWS_A_LOOK):
                start = tallies.since - LOOKBACK_SECONDS
                if lines.until is not None:
                    # A little before the last look, since scrapes arrive late.
                    start = max(start, lines.until - self._max_age)
                end = min(until, start + WINDOW_SECONDS)
                selector = _selector(metric, rollout.metadata.namespace, rollout.spec.model)
                answer = self._prometheus.raw(selector, start, end)
                series = _series(answer, is_past=end < until)
                if series is None:
                    return answer.reason
                tallies.feed(metric, series, end)
                if end >= until:
                    break
            else:
                moment = datetime.fromtimestamp(lines.until or tallies.since, UTC)
                return f"reading the rollout's history, {moment:%Y-%m-%d %H:%M} UTC so far"
        return ""

    def _tallies(self, rollout: PolicyRollout, since: float, step_since: float) -> Tallies:
        """What is known of this attempt; a model's former attempt is forgotten.

        A new step counts from what its first looks bring: it began after the last one.
        """
        key, uid = (rollout.metadata.namespace, rollout.spec.model), rollout.metadata.uid
        held = self._known.get(key)
        if held is None or (held.uid, held.since) != (uid, since) or not held.step(step_since):
            held = Tallies(uid, rollout.spec.policy_digest, since, step_since)
            self._known[key] = held
        return held

    def _gauges(
        self, rollout: PolicyRollout, metric: metrics.Metric, until: float
    ) -> tuple[Series, ...]:
        """The newest values of a gauge of the model's workers; none is no gap in the evidence."""
        if self._prometheus is None:
            return ()
        selector = _selector(metric, rollout.metadata.namespace, rollout.spec.model)
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
            selector = _selector(metric, namespace, model)
            answer = self._prometheus.raw(selector, window.since - LOOKBACK_SECONDS, until)
            if not isinstance(answer, Ok):
                return None
            found.append(answer.series)
        return full_depth_utilisation(LoadCounters(*found), window, workers)


def _guard(rule: GuardRule, found: Found, window: Window, workers: int) -> GuardEvidence:
    if found.gap:
        return GuardEvidence(state=DataState.ABSENT, reason=found.gap)
    if rule.name == names.GUARD_CAPACITY:
        return _capacity(found, window, workers)
    return found.tallies.evidence(rule.name, window)


def _selector(metric: metrics.Metric, namespace: str, model: str) -> str:
    return f'{metric.name}{{namespace="{namespace}",model="{model}"}}'


def _series(answer: Answer, *, is_past: bool) -> tuple[Series, ...] | None:
    """The lines of an answer that counts as whole; None for one that does not.

    In a window of the past a gap is a gap: Prometheus, or all workers, were away.
    """
    if isinstance(answer, Ok) or (is_past and isinstance(answer, Stale)):
        return answer.series
    return () if is_past and isinstance(answer, Empty) else None


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


def _capacity(found: Found, window: Window, workers: int) -> GuardEvidence:
    """Arrivals of late, at the candidate's cost since it began."""
    recent = max(window.since, window.until - ARRIVAL_SECONDS)
    lately = Window(since=recent, until=window.until, max_age=window.max_age)
    reporting = reporting_pods(found.recent, window)
    if reporting < max(workers, 1):
        reason = f"{reporting} of {workers} ready workers have reported lately"
        return GuardEvidence(state=DataState.STALE, reason=reason)
    return capacity_evidence(
        arrivals=total(found.recent, lately),
        seconds=covered_seconds(found.recent, lately),
        # A request that was refused took no engine time and exposed nobody.
        candidate_requests=found.tallies.answered,
        candidate_device_seconds=found.tallies.device,
        workers=workers,
    )
