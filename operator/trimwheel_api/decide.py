"""The exit decision, in plain Python: what "adaptive" means.

This is the reference. The worker's vectorised decision and the pipelines' bitmap replay are tested
equal to it; anything that they do beyond it is speed.
"""

from __future__ import annotations

from collections.abc import Sequence

NEVER = 1.01
"""A threshold above every possible score: this exit is not used."""


def decide(
    scores: Sequence[float], thresholds: Sequence[float], depth_cap: int | None = None
) -> int:
    """Index of the exit that answers: the first whose score reaches its threshold.

    `scores` and `thresholds` hold one number for each exit, shallow first; scores lie in [0, 1].
    Returns `len(scores)` for full depth. `depth_cap` forces an answer at that exit at the latest.
    """
    if len(scores) != len(thresholds):
        raise ValueError(
            f"thresholds: one for each of the {len(scores)} exits, but got {len(thresholds)}"
        )
    last = len(scores) if depth_cap is None else min(depth_cap, len(scores))
    for index in range(last):
        if scores[index] >= thresholds[index]:
            return index
    return last
