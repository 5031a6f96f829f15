"""The tripwire: a candidate whose batches fail is taken out of service by the worker itself.

Three of the last five candidate-bearing batches failed while none of the last five stable-only
batches did: then the fault is the candidate's, and nobody need ask the operator. A batch fails when
it raises, gives numbers that are not finite, or is grossly slow. Pure; the engine's loop feeds it.

Slow is judged by execution time alone: how long a request queued says nothing of its batch. The
yardstick is the last few stable-only batches. A forward pass never takes longer than one over more
work, nor more for each unit of work than one over less; so a batch of `w` work that took `t` says
that one of `v` takes at least `t * min(1, v / w)` and at most `t * max(1, v / w)`, and the median
says what is likely. Work is layers x tokens, summed over rows: a candidate that goes deeper than
stable is dearer, which the capacity guard judges, but not slow. A batch is grossly slow when

* its execution alone breaks the model's latency promise (the SLO), so every row of it is late, and
* it took more than ten times the most that is likely.

The machine slows down too, for many batches on end, and a wire that trips then is worse than none.
So a slow batch is evidence only if, since the slow one before it, a stable-only batch ran in its
usual time: within twice the least that is likely. A slow batch without that control is left out.
Where there are no stable-only batches (the candidate has every request, or a row in every batch),
execution time hence never trips the wire, and the latency guard judges it alone. Little is lost by
that: arms share a batch only if they share a compute key, so the same kernels. Raising and numbers
that are not finite need no control.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from statistics import median

WINDOW = 5
FAILURES = 3
GROSS = 10.0
"""Times the likely seconds. What a policy may change for each layer and token (experts, router) and
what length does to attention stays well below."""
USUAL = 2.0
"""Times the likely seconds within which a control must stay: noise, not a slower machine."""
YARDSTICK = 9
"""Stable-only batches whose median is the yardstick: five must stall before it moves."""


@dataclass(frozen=True, slots=True)
class Ran:
    """How one batch went."""

    failed: bool
    """It raised, or rows that count gave numbers that are not finite."""
    seconds: float = 0.0
    """Execution alone, without the wait in the queue."""
    work: int = 1
    """Layers x tokens over its rows."""


class Tripwire:
    """Watches one candidate; make another for the next."""

    def __init__(self, slo: float) -> None:
        """`slo`: seconds beyond which a request breaks the model's latency promise."""
        self._slo = slo
        self._candidate: deque[bool] = deque(maxlen=WINDOW)
        self._stable: deque[bool] = deque(maxlen=WINDOW)
        self._yardstick: deque[Ran] = deque(maxlen=YARDSTICK)
        self._controlled = False
        """A stable-only batch ran in its usual time since the last slow candidate-bearing one."""

    def saw_candidate_batch(self, ran: Ran) -> bool:
        """Note a candidate-bearing batch; whether the wire trips now."""
        slow = not ran.failed and self._grossly_slow(ran)
        if slow and not self._controlled:
            return False
        if slow:
            self._controlled = False
        self._candidate.append(ran.failed or slow)
        return sum(self._candidate) >= FAILURES and not any(self._stable)

    def saw_stable_batch(self, ran: Ran) -> None:
        """Note a batch without candidate rows: the control."""
        bad = ran.failed or self._grossly_slow(ran)
        self._stable.append(bad)
        # Once controlled, a batch costs no look at the yardstick until a slow one comes.
        self._controlled = not bad and (self._controlled or self._usual(ran))
        if not ran.failed:
            self._yardstick.append(ran)

    def _grossly_slow(self, ran: Ran) -> bool:
        if ran.seconds <= self._slo or len(self._yardstick) < YARDSTICK:
            return False
        most = median(one.seconds * max(1.0, ran.work / one.work) for one in self._yardstick)
        return ran.seconds > GROSS * most

    def _usual(self, ran: Ran) -> bool:
        if len(self._yardstick) < YARDSTICK:
            return False
        least = median(one.seconds * min(1.0, ran.work / one.work) for one in self._yardstick)
        return ran.seconds <= USUAL * least
