"""The exit decision, in plain Python: what "adaptive" means.

This is the reference. The worker's vectorised decision and the pipelines' bitmap replay are tested
equal to it; anything that they do beyond it is speed.

Scores and thresholds meet as 32-bit floats, since that is what a model computes and a record holds.
A threshold is a decimal in its policy and becomes the nearest 32-bit float before it is compared,
everywhere; so replay decides what was served, also where a score equals its threshold (it exits)
or lies one rounding beside it. Above 1 means never, however little above.
"""

from __future__ import annotations

from collections.abc import Sequence
from struct import Struct

NEVER = 1.01
"""A threshold above every possible score: this exit is not used."""
_SINGLE = Struct("f")


def single(number: float) -> float:
    """The nearest 32-bit float."""
    rounded: float = _SINGLE.unpack(_SINGLE.pack(number))[0]
    return rounded


def as_compared(threshold: float) -> float:
    """A threshold as scores meet it; comparing with it in 64 bits gives the same answer."""
    return NEVER if threshold > 1 else single(threshold)


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
        if single(scores[index]) >= as_compared(thresholds[index]):
            return index
    return last
