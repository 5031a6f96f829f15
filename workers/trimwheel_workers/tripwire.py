"""The tripwire: a candidate whose batches fail is taken out of service by the worker itself.

Three of the last five candidate-bearing batches raised or gave numbers that are not finite, while
stable-only batches did not: then the fault is the candidate's, and nobody need ask the operator.
Pure; the engine's loop feeds it.
"""

from __future__ import annotations

from collections import deque

WINDOW = 5
FAILURES = 3


class Tripwire:
    """Watches one candidate; make another for the next."""

    def __init__(self) -> None:
        self._candidate: deque[bool] = deque(maxlen=WINDOW)
        self._stable: deque[bool] = deque(maxlen=WINDOW)

    def saw_candidate_batch(self, failed: bool) -> bool:
        """Note a candidate-bearing batch; whether the wire trips now."""
        self._candidate.append(failed)
        return sum(self._candidate) >= FAILURES and not any(self._stable)

    def saw_stable_batch(self, failed: bool) -> None:
        """Note a batch without candidate rows: the control."""
        self._stable.append(failed)
