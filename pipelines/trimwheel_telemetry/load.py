"""How busy the workers would be if they served everyone full depth.

Asked by the operator before it answers harm with full depth: workers that cannot carry it would
turn wrong answers into none. Pure.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from trimwheel_api.metrics import CODE_ANSWERED
from trimwheel_api.names import ARM_STABLE
from trimwheel_telemetry.answers import Series
from trimwheel_telemetry.counters import Window, covered_seconds, matching, reporting_pods, total


@dataclass(frozen=True, slots=True)
class LoadCounters:
    """All lines of one model's counters: requests, engine seconds, layers run and layers in all."""

    requests: Sequence[Series]
    device_seconds: Sequence[Series]
    layers_run: Sequence[Series]
    layers_full: Sequence[Series]


def full_depth_utilisation(found: LoadCounters, window: Window, workers: int) -> float | None:
    """Engine seconds a second and worker that the window's arrivals would take at full depth.

    What an answer of the stable arm costs now, scaled by the layers that it skips, times the
    arrivals of both arms, refused ones too. A policy that saves inside a layer (fewer experts)
    costs more at full depth than this says. None without stable requests, without workers, or
    without a fresh sample of as many pods as there are workers.
    """
    if workers < 1 or reporting_pods(found.requests, window) < workers:
        return None
    answered = matching(found.requests, code=CODE_ANSWERED)
    served, device, run, full = (
        total(matching(lines, arm=ARM_STABLE), window, history_of=lines)
        for lines in (answered, found.device_seconds, found.layers_run, found.layers_full)
    )
    spent = covered_seconds(found.requests, window)
    if spent <= 0 or served <= 0 or run <= 0:
        return None
    each = device / served * full / run
    return total(found.requests, window) / spent * each / workers
