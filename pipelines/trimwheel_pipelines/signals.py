"""Live telemetry as covariate signals: exit depth, input length and expert load from Prometheus.

Called by the watch loop on every pass; keeps what it has read, so that a pass asks for the newest
samples only. A signal's value is the ratio of two counters' increments between neighbouring scrapes
of one worker (layers run per layer of full depth, tokens per answer, an expert's share of tokens):
raw samples, no `rate()`, so that blocks do not overlap. The first-exit score comes from the audit
records, where each request has its own (`watch`).

Signals never roll anything back: they say where to look closer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from trimwheel_api import metrics, names
from trimwheel_api.errors import Unavailable
from trimwheel_pipelines.covariates import Signal
from trimwheel_telemetry.answers import Empty, Ok, Series, Unreachable, series_of
from trimwheel_telemetry.client import Prometheus

Floats = npt.NDArray[np.float64]

EXIT_DEPTH = "exit depth"
INPUT_LENGTH = "input length"
EXPERT_LOAD = "expert {} load"
OVERLAP_SECONDS = 60.0
"""Each query reaches back this far: an increment needs the sample before it."""
FIRST_LOOK_SECONDS = 6 * 3600.0
"""What a restarted loop reads of the past at most: the whole reference would take minutes."""


@dataclass
class Telemetry:
    """The covariate signals of one model, grown pass by pass."""

    namespace: str
    model: str
    keep: float
    """Seconds of history to hold: the reference and the watch behind it."""
    _points: dict[str, dict[tuple[str, float], float]] = field(default_factory=dict)
    _until: float = 0.0

    def refresh(self, prometheus: Prometheus, since: float, now: float) -> None:
        """Read what is new. Raises Unavailable when Prometheus does not answer."""
        start = max(since, self._until - OVERLAP_SECONDS, now - self.keep, now - FIRST_LOOK_SECONDS)
        where = f'namespace="{self.namespace}"'
        mine = f'{where},model="{self.model}"'
        stable = f'{mine},arm="{names.ARM_STABLE}"'
        pods = f'{where},pod=~"{self.model}-[a-z0-9]+-[a-z0-9]+"'
        answers = {
            metric.name: _ask(prometheus, f"{metric.name}{{{labels}}}", start, now)
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
        if all(whole for _, whole in answers.values()):
            # Else (stale, partial) the next pass asks for the same stretch again.
            self._until = now
        self._forget(now - self.keep)

    def signals(self) -> list[Signal]:
        """All signals, each with the points read so far."""
        found = []
        for name, points in self._points.items():
            times = np.array([time for _, time in points])
            found.append(Signal(name, times, np.array(list(points.values()))))
        return found

    def _add(self, name: str, over: Sequence[Series], under: Sequence[Series]) -> None:
        points = self._points.setdefault(name, {})
        for pod, times, values in increment_ratios(over, under):
            points.update(
                ((pod, float(time)), float(value))
                for time, value in zip(times, values, strict=True)
            )

    def _forget(self, before: float) -> None:
        for name, points in self._points.items():
            self._points[name] = {key: value for key, value in points.items() if key[1] >= before}


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
    prometheus: Prometheus, selector: str, start: float, now: float
) -> tuple[tuple[Series, ...], bool]:
    """The lines of an answer, and whether it is whole."""
    answer = prometheus.raw(selector, start, now)
    if isinstance(answer, Unreachable):
        raise Unavailable(f"Prometheus: {answer.reason}")
    return series_of(answer), isinstance(answer, Ok | Empty)
