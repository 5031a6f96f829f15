"""Live telemetry as covariate signals: exit depth, input length and expert load from Prometheus.

Called by the watch loop on every pass, which asks for the newest samples only. A signal's value is
the ratio of two counters' increments between neighbouring scrapes of one worker (layers run per
layer of full depth, tokens per answer, an expert's share of tokens): raw samples, no `rate()`, so
that blocks do not overlap. Kept are sums by block and, for each worker, up to when it was read: a
month of fifty workers takes no more room than a day of one. The first-exit score comes from the
audit records, where each request has its own (`watch`).

Signals never roll anything back: they say where to look closer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from trimwheel_api import metrics, names
from trimwheel_api.errors import Unavailable
from trimwheel_pipelines.block_sums import BlockSums
from trimwheel_telemetry.answers import Empty, Ok, Series, Stale, Unreachable, series_of
from trimwheel_telemetry.client import Prometheus

Floats = npt.NDArray[np.float64]

EXIT_DEPTH = "exit depth"
INPUT_LENGTH = "input length"
EXPERT_LOAD = "expert {} load"
OVERLAP_SECONDS = 60.0
"""Each query reaches back this far: an increment needs the sample before it."""
FIRST_LOOK_SECONDS = 6 * 3600.0
"""What a loop without a checkpoint reads of the past at most."""
WINDOW_SECONDS = 1800.0
"""Span of one look: what a pass holds of Prometheus at once."""
WINDOWS_A_PASS = 2
MOST_SIGNALS = 128
"""Of one model. Labels are whatever a pod reports; the first ones by name are watched."""


@dataclass
class Telemetry:
    """The covariate signals of one model since `since`, in blocks of `block` seconds."""

    namespace: str
    model: str
    since: float
    block: float
    sums: dict[str, BlockSums] = field(default_factory=dict)
    read: dict[tuple[str, str], float] = field(default_factory=dict)
    """(signal, pod): up to when its increments are in the sums."""
    until: float = 0.0

    def refresh(self, prometheus: Prometheus, now: float) -> None:
        """Read what is new, a window at a time. Raises Unavailable when Prometheus is away."""
        for _ in range(WINDOWS_A_PASS):
            start = max(self.since, self.until - OVERLAP_SECONDS, now - FIRST_LOOK_SECONDS)
            end = min(now, start + WINDOW_SECONDS)
            if not self._look(prometheus, start, end, is_past=end < now):
                # Stale or in part: the next pass asks for the same stretch again.
                return
            self.until = end
            self._forget(end - 2 * OVERLAP_SECONDS)
            if end >= now:
                return

    def signals(self) -> list[BlockSums]:
        """All signals, each with what was read so far."""
        return list(self.sums.values())

    def _look(self, prometheus: Prometheus, start: float, end: float, *, is_past: bool) -> bool:
        """Add one window; whether all answers were whole."""
        where = f'namespace="{self.namespace}"'
        mine = f'{where},model="{self.model}"'
        stable = f'{mine},arm="{names.ARM_STABLE}"'
        pods = f'{where},pod=~"{self.model}-[a-z0-9]+-[a-z0-9]+"'
        answers = {
            metric.name: _ask(prometheus, f"{metric.name}{{{labels}}}", start, end, is_past)
            for metric, labels in (
                (metrics.LAYERS_RUN, stable),
                (metrics.LAYERS_FULL, stable),
                (metrics.INPUT_TOKENS, mine),
                (metrics.REQUESTS, f'{mine},code="{metrics.CODE_ANSWERED}"'),
                (metrics.EXPERT_TOKENS, pods),
            )
        }
        asked = {name: lines for name, (lines, _) in answers.items()}
        self._add(EXIT_DEPTH, asked[metrics.LAYERS_RUN.name], asked[metrics.LAYERS_FULL.name])
        self._add(INPUT_LENGTH, asked[metrics.INPUT_TOKENS.name], asked[metrics.REQUESTS.name])
        tokens = asked[metrics.EXPERT_TOKENS.name]
        for expert in sorted({line.labels.get("expert", "") for line in tokens}):
            chosen = [line for line in tokens if line.labels.get("expert") == expert]
            self._add(EXPERT_LOAD.format(expert), chosen, tokens)
        return all(whole for _, whole in answers.values())

    def _add(self, name: str, over: Sequence[Series], under: Sequence[Series]) -> None:
        ratios = increment_ratios(over, under)
        if not ratios or (name not in self.sums and len(self.sums) >= MOST_SIGNALS):
            return
        sums = self.sums.setdefault(name, BlockSums(name, self.since, self.block))
        for pod, times, values in ratios:
            fresh = times > self.read.get((name, pod), float("-inf"))
            if fresh.any():
                sums.add(times[fresh], values[fresh])
                self.read[name, pod] = float(times[fresh][-1])

    def _forget(self, before: float) -> None:
        """Workers that have not reported lately: what was read of them is not asked for again."""
        self.read = {key: moment for key, moment in self.read.items() if moment >= before}


def increment_ratios(
    over: Sequence[Series], under: Sequence[Series]
) -> list[tuple[str, Floats, Floats]]:
    """(pod, times, ratios) between neighbouring scrapes, for pods that report both counters.

    Lines of one pod are added up first. Intervals in which the denominator stood still, or either
    counter was reset, say nothing and are left out.
    """
    tops, bottoms = _by_pod(over), _by_pod(under)
    found = []
    for pod in sorted(set(tops) & set(bottoms)):
        times, first, second = np.intersect1d(
            tops[pod][0], bottoms[pod][0], assume_unique=True, return_indices=True
        )
        rise, base = np.diff(tops[pod][1][first]), np.diff(bottoms[pod][1][second])
        valid = (base > 0) & (rise >= 0)
        found.append((pod, times[1:][valid], rise[valid] / base[valid]))
    return found


def _by_pod(lines: Sequence[Series]) -> dict[str, tuple[Floats, Floats]]:
    """Sum of a pod's lines at each scrape; a scrape reads all lines of a pod at one time."""
    pods: dict[str, list[Series]] = {}
    for line in lines:
        pods.setdefault(line.labels.get("pod", ""), []).append(line)
    summed = {}
    for pod, parts in pods.items():
        moments = np.concatenate([part.times for part in parts])
        values = np.concatenate([part.values for part in parts])
        times, place = np.unique(moments, return_inverse=True)
        total = np.bincount(place, weights=values, minlength=len(times)).astype(np.float64)
        summed[pod] = (times, total)
    return summed


def _ask(
    prometheus: Prometheus, selector: str, start: float, end: float, is_past: bool
) -> tuple[tuple[Series, ...], bool]:
    """The lines of an answer, and whether it is whole. In a window of the past a gap is a gap."""
    answer = prometheus.raw(selector, start, end)
    if isinstance(answer, Unreachable):
        raise Unavailable(f"Prometheus: {answer.reason}")
    if is_past and isinstance(answer, Stale):
        return answer.series, True
    return series_of(answer), isinstance(answer, Ok | Empty)
