"""One certified threshold for a model and a body of texts, for benchmarks that need a fair policy.

The product's own certificate walks chains over live audits with sessions; this is its simplest
case, one shared threshold and independent texts, by the same fixed-sequence test.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from trimwheel_api.decide import NEVER
from trimwheel_pipelines.loss_tests import p_value
from trimwheel_pipelines.replay import ReplayRecords, exits_taken, losses

POINTS = 200


@dataclass(frozen=True, slots=True)
class Point:
    """What a policy does to some texts."""

    disagreement: float
    cost: float  # layers run, as a share of full depth
    texts: int


def certify(records: ReplayRecords, epsilon: float, delta: float) -> tuple[float, ...]:
    """Thresholds, all equal, whose disagreement is at most ``epsilon`` with confidence 1 -
    ``delta``.

    Walks from "never" down a grid fixed beforehand and stops at the first test that fails; without
    any pass the answer is full depth.
    """
    last = NEVER
    for threshold in np.linspace(1.0, 0.0, POINTS + 1):
        wrong = losses(records, np.full(records.exits, threshold))
        if p_value(int(wrong.sum()), len(wrong), 1.0, epsilon) > delta:
            break
        last = float(threshold)
    return (last,) * records.exits


def apply(records: ReplayRecords, thresholds: tuple[float, ...], depths: tuple[int, ...]) -> Point:
    """Disagreement and cost of ``thresholds``; ``depths`` [E + 1] are layers, the last is full
    depth."""
    taken = exits_taken(records.scores, thresholds)
    layers: npt.NDArray[np.int64] = np.asarray(depths)[taken]
    wrong = losses(records, thresholds)
    return Point(float(wrong.mean()), float(layers.mean() / depths[-1]), len(wrong))
