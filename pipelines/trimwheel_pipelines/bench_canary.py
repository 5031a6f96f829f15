"""`trimwheel bench canary`: false Fails of identical arms, and the delay until a real one is found.

Simulates the counters of a rollout and puts them through the very verdict code that the operator
runs (`trimwheel_telemetry.verdicts`), block by block. Two questions:

* Two arms of one policy go through a ramp while the background error and latency rates fall tenfold
  (the case in which pooled counters blame the candidate): how many runs see a Fail at any of
  24 looks? Once with one request a session, once with sticky sessions in which errors cluster, and
  once more behind `--pods` workers without affinity, each of which counts a session that reaches
  it. For contrast the same runs are judged on requests instead of sessions, and as if no two pods
  had counted the same session.
* The candidate's error rate rises to a multiple: in how many runs is it found, and how soon?

Leaves out the network, Prometheus and the scrape: their delay comes on top.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final

import click
import numpy as np
import numpy.typing as npt
from scipy.stats import binom

from trimwheel_api import names
from trimwheel_api.metrics import GUARD_SAMPLE_SLOTS
from trimwheel_console import NEGATIVE, emit, output_option, progress, text_table
from trimwheel_console.ranges import SEED, Real, Whole
from trimwheel_pipelines.bench_host import host
from trimwheel_telemetry.session_effect import session_effect
from trimwheel_telemetry.verdicts import GuardEvidence, GuardRule, Verdict, judge, rollout_rules

BLOCK_SECONDS: Final = 15.0
CONFIDENCE: Final = 0.999
RAMP: Final = (0.0, 0.01, 0.05, 0.25, 0.5)
"""Weights of the steps, shadow first; equal times."""
STEP_SECONDS: Final = 600.0
BACKGROUND: Final = (0.05, 0.004)
"""Event rate of both arms at the start and at the end of the ramp."""
EPSILON: Final = 0.02
CERTIFIED_RISK: Final = 0.014
"""Where certified policies sit below epsilon."""
BUDGET: Final = 0.01
AUDIT_EVERY: Final = 50
"""One request in this many is audited."""
SESSION_REQUESTS: Final = 4
"""Mean requests of a sticky session."""
ERROR_PRONE: Final = 0.05
"""Share of sessions that all errors fall on, when sessions are sticky."""
LAG_BLOCKS: Final = 1
"""Blocks by which a sticky session's first error may come after its first request."""
JUDGED: Final = (names.GUARD_ERRORS, names.GUARD_LATENCY, names.GUARD_DISAGREEMENT)
Counts = npt.NDArray[np.float64]
Places = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Ramp:
    """What a simulated rollout looks like, block by block."""

    requests: int  # a block, both arms
    weights: Counts  # [B], the candidate's share
    rates: Counts  # [B], event rate of the background

    @property
    def blocks(self) -> int:
        """Number of blocks."""
        return len(self.weights)


@click.command("canary", short_help="False Fails of identical arms, and delay to a real one.")
@click.option(
    "--runs",
    type=Whole(1, 1_000_000),
    default=2_000,
    show_default=True,
    help="Rollouts of identical arms.",
)
@click.option(
    "--looks",
    type=Whole(1, 10_000),
    default=24,
    show_default=True,
    help="Looks at each, evenly spread.",
)
@click.option(
    "--alpha",
    type=Real(0, 1, above=True, below=True),
    default=0.05,
    show_default=True,
    help="Level of the identical arms.",
)
@click.option(
    "--pods",
    type=Whole(1, 1000),
    default=12,
    show_default=True,
    help="Workers that a session's requests are spread over, without affinity.",
)
@click.option(
    "--rate",
    type=Real(0.1, 1e6),
    default=100.0,
    show_default=True,
    help="Requests a second, both arms.",
)
@click.option(
    "--factor",
    type=Real(1, 1e6),
    default=8.0,
    show_default=True,
    help="The regression's error factor.",
)
@click.option(
    "--base",
    type=Real(0, 1, above=True, below=True),
    default=0.001,
    show_default=True,
    help="Error rate without regression.",
)
@click.option(
    "--weight",
    "weights",
    multiple=True,
    type=Real(0, 1, above=True, below=True),
    default=(0.1, 0.5),
    show_default=True,
    help="Candidate's share meanwhile; may be given again.",
)
@click.option(
    "--detection-alpha",
    type=Real(0, 1, above=True, below=True),
    default=0.001,
    show_default=True,
    help="Level of detection.",
)
@click.option(
    "--detection-runs",
    type=Whole(1, 1_000_000),
    default=400,
    show_default=True,
    help="Rollouts with regression.",
)
@click.option("--seed", type=Whole(0, SEED), default=0, show_default=True, help="Of everything.")
@output_option
def command(
    runs: int,
    looks: int,
    alpha: float,
    pods: int,
    rate: float,
    factor: float,
    base: float,
    weights: tuple[float, ...],
    detection_alpha: float,
    detection_runs: int,
    seed: int,
    output: str,
) -> None:
    """Measure the canary's error rates on the operator's own verdict code.

    Exits with 1 when identical arms fail more often than alpha allows (99.9 % limit), or a
    regression goes unfound.

    \b
    trimwheel bench canary
    trimwheel bench canary --runs 500 --factor 4 -o json
    """
    rng = np.random.default_rng(seed)
    allowed = int(binom.ppf(CONFIDENCE, runs, alpha))
    identical = {
        kind: identical_arms(runs, looks, alpha, rate, rng, sticky=kind != "requests", pods=count)
        for kind, count in (("requests", 1), ("sessions", 1), ("pods", pods))
    }
    detection = [
        detect(detection_runs, detection_alpha, rate, weight, base, factor, rng)
        for weight in weights
    ]
    worst = max(found["by_guard"][guard] for found in identical.values() for guard in JUDGED)
    result = {
        "bench": "canary",
        "seed": seed,
        "identical_arms": {
            "runs": runs,
            "looks": looks,
            "alpha": alpha,
            "allowed": allowed,
            "rate_rps": rate,
            "pods": pods,
            "ramp": list(RAMP),
            "step_seconds": STEP_SECONDS,
            "background": list(BACKGROUND),
            **identical,
        },
        "regression": detection,
        "ok": worst <= allowed and all(each["found"] == detection_runs for each in detection),
        "host": host(),
    }
    emit(result, output, table=lambda: _table(result))
    if not result["ok"]:
        click.get_current_context().exit(NEGATIVE)


def identical_arms(
    runs: int,
    looks: int,
    alpha: float,
    rate: float,
    rng: np.random.Generator,
    *,
    sticky: bool,
    pods: int = 1,
) -> dict[str, Any]:
    """Runs with a Fail at any look, by guard; candidate and stable are the same policy."""
    ramp = falling_ramp(rate)
    rules = {rule.name: rule for rule in _rules(alpha)}
    at = np.unique(np.linspace(1, ramp.blocks, looks).astype(int))
    failed = dict.fromkeys(JUDGED, 0)
    anywhere = naive = once_a_pod = 0
    with progress() as bar:
        label = "identical arms, sessions" if sticky else "identical arms"
        label += f", {pods} pods" if pods > 1 else ""
        for _ in bar.track(range(runs), description=label):
            errors, by_request, effects = simulate(ramp, rng, sticky=sticky, pods=pods)
            latency, _, slow_effects = simulate(ramp, rng, sticky=sticky, pods=pods)
            audits = np.full(ramp.blocks, float(ramp.requests // AUDIT_EVERY))
            wrong = rng.binomial(ramp.requests // AUDIT_EVERY, CERTIFIED_RISK, ramp.blocks)
            fails = {
                names.GUARD_ERRORS: _fails(rules[names.GUARD_ERRORS], errors, at, effects),
                names.GUARD_LATENCY: _fails(rules[names.GUARD_LATENCY], latency, at, slow_effects),
                names.GUARD_DISAGREEMENT: _fails(
                    rules[names.GUARD_DISAGREEMENT], _alone(audits, wrong.astype(np.float64)), at
                ),
            }
            for guard, found in fails.items():
                failed[guard] += found
            anywhere += any(fails.values())
            naive += _fails(rules[names.GUARD_ERRORS], by_request, at)
            once_a_pod += pods > 1 and _fails(rules[names.GUARD_LATENCY], latency, at)
    return {
        "by_guard": failed,
        "any_guard": anywhere,
        "if_requests_were_counted": naive,
        "latency_if_pods_were_independent": once_a_pod,
        "events_per_trial": "first error of a session" if sticky else "each request a session",
    }


def detect(
    runs: int,
    alpha: float,
    rate: float,
    weight: float,
    base: float,
    factor: float,
    rng: np.random.Generator,
    limit_seconds: float = 3_600.0,
) -> dict[str, Any]:
    """Delay from the regression's first block to Fail, with a look at every block."""
    blocks = int(limit_seconds / BLOCK_SECONDS)
    requests = int(rate * BLOCK_SECONDS)
    rule = next(rule for rule in _rules(alpha) if rule.name == names.GUARD_ERRORS)
    delays = []
    with progress() as bar:
        for _ in bar.track(range(runs), description="regression"):
            nc = rng.binomial(requests, weight, blocks)
            kc = rng.binomial(nc, min(1.0, base * factor))
            ks = rng.binomial(requests - nc, base)
            table = np.stack([nc, requests - nc, kc, ks], axis=1).astype(np.float64)
            look = _first_fail(rule, table, range(1, blocks + 1))
            if look is not None:
                delays.append(look * BLOCK_SECONDS)
    found = np.array(delays)
    return {
        "runs": runs,
        "found": len(delays),
        "alpha": alpha,
        "rate_rps": rate,
        "weight": weight,
        "base_rate": base,
        "factor": factor,
        "look_every_seconds": BLOCK_SECONDS,
        "median_seconds": float(np.median(found)) if len(found) else None,
        "p90_seconds": float(np.quantile(found, 0.9)) if len(found) else None,
    }


def falling_ramp(rate: float) -> Ramp:
    """The weights of `RAMP` while the background falls from end to end of `BACKGROUND`."""
    each = int(STEP_SECONDS / BLOCK_SECONDS)
    weights = np.repeat(RAMP, each)
    return Ramp(
        requests=int(rate * BLOCK_SECONDS),
        weights=weights,
        rates=np.geomspace(*BACKGROUND, len(weights)),
    )


def simulate(
    ramp: Ramp, rng: np.random.Generator, *, sticky: bool, pods: int = 1
) -> tuple[Counts, Counts, Counts]:
    """Blocks [B, 4] counted by session, the same traffic by request, and design effects [B].

    With `sticky`, a block's requests belong to sessions that stay on their arm, all events fall
    on few error-prone sessions, and a session's first event may come in a later block than
    its first request. Without, every request is its own session. Each of `pods` counts a session
    that reaches it; the effect is what the operator estimates from the pods' samples by then.
    """
    if not sticky:
        nc = rng.binomial(ramp.requests, ramp.weights)
        ns = ramp.requests - nc
        table = np.stack([nc, ns, rng.binomial(nc, ramp.rates), rng.binomial(ns, ramp.rates)], 1)
        return table.astype(np.float64), table.astype(np.float64), np.ones(ramp.blocks)
    sessions = np.zeros((ramp.blocks, 4))
    requests = np.zeros((ramp.blocks, 4))
    effects = np.ones(ramp.blocks)
    samples = PodSamples(pods)
    count = ramp.requests // SESSION_REQUESTS
    for block in range(ramp.blocks):
        arm = (rng.random(count) >= ramp.weights[block]).astype(int)  # 0 candidate, 1 stable
        size = rng.geometric(1.0 / SESSION_REQUESTS, count)
        prone = rng.random(count) < ERROR_PRONE
        owner = np.repeat(np.arange(count), size)
        chance = ramp.rates[block] / ERROR_PRONE * 0.9
        failed = prone[owner] & (rng.random(len(owner)) < chance)
        events = np.bincount(owner, weights=failed, minlength=count)
        # What pods count: a session once each, and that it went wrong once each.
        place = owner * pods + rng.integers(0, pods, len(owner))
        reached, hit = np.unique(place), np.unique(place[failed])
        late = rng.random(count) < 0.5
        later = min(block + LAG_BLOCKS, ramp.blocks - 1)
        sessions[block, :2] += np.bincount(arm[reached // pods], minlength=2)
        requests[block, :2] += np.bincount(arm, weights=size, minlength=2)
        for moment, mask in ((block, ~late), (later, late)):
            counted = arm[hit // pods][mask[hit // pods]]
            sessions[moment, 2:] += np.bincount(counted, minlength=2)
            chosen = (events > 0) & mask
            requests[moment, 2:] += np.bincount(arm[chosen], weights=events[chosen], minlength=2)
        if pods > 1:
            samples.add(rng.random(count), arm, reached // pods, reached % pods)
            effects[block] = samples.effect()
    return sessions, requests, effects


class PodSamples:
    """The smallest session hashes of each arm that each pod publishes (`session_sample`)."""

    def __init__(self, pods: int) -> None:
        self._kept = [[np.empty(0) for _ in range(pods)] for _ in range(2)]

    def add(self, hashes: Counts, arm: Places, sessions: Places, pods: Places) -> None:
        """Sessions with their hashes and arms; `sessions[i]` was counted by `pods[i]`."""
        near = hashes[sessions] <= self._limit()
        sessions, pods = sessions[near], pods[near]
        if not len(sessions):
            return
        for side, kept in enumerate(self._kept):
            for pod in range(len(kept)):
                chosen = sessions[(pods == pod) & (arm[sessions] == side)]
                joined = np.concatenate([kept[pod], hashes[chosen]])
                kept[pod] = np.sort(joined)[:GUARD_SAMPLE_SLOTS]

    def _limit(self) -> float:
        """No sample takes a hash above this."""
        full = [
            float(sample[-1]) if len(sample) == GUARD_SAMPLE_SLOTS else 1.0
            for kept in self._kept
            for sample in kept
        ]
        return max(full)

    def effect(self) -> float:
        """As the operator takes it: the larger of both arms."""
        return max(session_effect(kept) for kept in self._kept)


def _rules(alpha: float) -> tuple[GuardRule, ...]:
    return rollout_rules(
        max_disagreement=EPSILON,
        error_budget=BUDGET,
        latency_budget=BUDGET,
        capacity_target=0.8,
        alpha=alpha,
        certified=True,
    )


def _alone(trials: Counts, events: Counts) -> Counts:
    """Blocks of an absolute guard: nothing is compared."""
    nothing = np.zeros_like(trials)
    return np.stack([trials, nothing, events, nothing], axis=1)


def _fails(
    rule: GuardRule, table: Counts, looks: Iterable[int], effects: Counts | None = None
) -> bool:
    return _first_fail(rule, table, looks, effects) is not None


def _first_fail(
    rule: GuardRule, table: Counts, looks: Iterable[int], effects: Counts | None = None
) -> int | None:
    """Number of blocks at the first look that fails: the operator's verdict on what is known."""
    sums = np.cumsum(table, axis=0)
    for look in looks:
        nc, ns, kc, ks = (float(value) for value in sums[look - 1])
        effect = 1.0 if effects is None else float(effects[look - 1])
        evidence = GuardEvidence(nc, min(kc, nc), ns, ks, table[:look], effect=effect)
        if judge(rule, evidence).verdict is Verdict.FAIL:
            return look
    return None


def _table(result: dict[str, Any]) -> str:
    arms, regressions = result["identical_arms"], result["regression"]
    rows = [
        [
            kind,
            *(arms[kind]["by_guard"][guard] for guard in JUDGED),
            arms[kind]["any_guard"],
            arms[kind]["if_requests_were_counted"],
            arms[kind]["latency_if_pods_were_independent"],
        ]
        for kind in ("requests", "sessions", "pods")
    ]
    headers = ["traffic", *JUDGED, "any guard", "errors by request", "latency by pod"]
    return (
        f"False Fails of identical arms in {arms['runs']:,} runs of {arms['looks']} looks at alpha "
        f"{arms['alpha']:g} (at most {arms['allowed']} a guard)\n"
        f"{text_table(headers, rows)}\n" + "\n".join(_sentence(found) for found in regressions)
    )


def _sentence(found: dict[str, Any]) -> str:
    delay = "never"
    if found["median_seconds"] is not None:
        delay = f"median {found['median_seconds']:.0f} s, p90 {found['p90_seconds']:.0f} s"
    return (
        f"Regression {found['factor']:g}x from {found['base_rate']:.2%} at "
        f"{found['rate_rps']:g} requests/s, weight {found['weight']:.0%}, alpha "
        f"{found['alpha']:g}: found {found['found']} of {found['runs']}, {delay}"
    )
