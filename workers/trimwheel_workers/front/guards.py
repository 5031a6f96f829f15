"""Evidence for the rollout guards: trials and events, at most one of each a session and policy.

Errors cluster in sessions, so requests are not independent trials; sessions nearly are. What was
seen of a session is forgotten when another rollout's salt arrives (evidence is baselined for each
rollout), and, oldest first, when there are too many sessions. A request without a session key is a
session of its own. No I/O; counters are handed in.
"""

from __future__ import annotations

from trimwheel_api import names
from trimwheel_workers.front.metrics import GuardCounters, WorkerMetrics

REMEMBERED_SESSIONS = 50_000
"""Sessions kept for each policy and arm, about 7 MB; an older one would count again."""
REMEMBERED_POLICIES = 5


# What was counted of a session: bits, as plain integers for the request path.
_REQUEST, _ERROR, _SLOW, _AUDIT, _PARITY = 1, 2, 4, 8, 16


class SessionMemory:
    """Marks of the latest sessions; a bounded, least-recently-used map."""

    def __init__(self, limit: int = REMEMBERED_SESSIONS) -> None:
        self._limit = limit
        self._marks: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self._marks)

    def add(self, session: str, marks: int) -> int:
        """Add marks to a session and return those that are new; "" is a session of its own."""
        if not session:
            return marks
        before = self._marks.pop(session, 0)
        # Put back at the end: a dict keeps its order, so the first key is the least recently used.
        self._marks[session] = before | marks
        if len(self._marks) > self._limit:
            del self._marks[next(iter(self._marks))]
        return marks & ~before

    def clear(self) -> None:
        """Forget all."""
        self._marks.clear()


class PolicyGuards:
    """Evidence about one policy in one arm."""

    def __init__(self, counters: GuardCounters) -> None:
        self._memory = SessionMemory()
        self._trials, self._events = counters.trials, counters.events

    def served(self, session: str, *, failed: bool, slow: bool) -> None:
        """A request ended: `failed` by the server's fault (5xx), `slow` beyond the SLO."""
        marks = _REQUEST | (_ERROR if failed else 0) | (_SLOW if slow else 0)
        new = self._memory.add(session, marks)
        if not new:
            return
        if new & _REQUEST:
            self._trials[names.GUARD_ERRORS].inc()
            self._trials[names.GUARD_LATENCY].inc()
        if new & _ERROR:
            self._events[names.GUARD_ERRORS].inc()
        if new & _SLOW:
            self._events[names.GUARD_LATENCY].inc()

    def audited(self, session: str, *, disagrees: bool) -> None:
        """The policy was judged on an audited request; only a session's first counts."""
        if not self._memory.add(session, _AUDIT):
            return
        self._trials[names.GUARD_DISAGREEMENT].inc()
        if disagrees:
            self._events[names.GUARD_DISAGREEMENT].inc()

    def replayed(self, session: str, *, differs: bool) -> None:
        """The answer that this policy served was replayed; only a session's first counts."""
        if not self._memory.add(session, _PARITY):
            return
        self._trials[names.GUARD_PARITY].inc()
        if differs:
            self._events[names.GUARD_PARITY].inc()

    def forget_sessions(self) -> None:
        """A new rollout begins."""
        self._memory.clear()


class Guards:
    """`PolicyGuards` of the resident policies, by arm and digest."""

    def __init__(self, metrics: WorkerMetrics) -> None:
        self._metrics = metrics
        self._salt = ""
        self._policies: dict[tuple[str, str], PolicyGuards] = {}

    def reside(self, salt: str, policies: dict[str, str]) -> None:
        """Policies `{arm: digest}` become resident: their series begin at 0."""
        if salt != self._salt:
            self._salt = salt
            for known in self._policies.values():
                known.forget_sessions()
        for arm, digest in policies.items():
            former = self._policies.pop((arm, digest), None)
            self._policies[arm, digest] = former or PolicyGuards(self._metrics.guards(arm, digest))
        while len(self._policies) > 2 * REMEMBERED_POLICIES:
            arm, digest = next(iter(self._policies))
            del self._policies[arm, digest]
            self._metrics.drop_guards(arm, digest)

    def of(self, arm: str, digest: str) -> PolicyGuards | None:
        """Evidence of a policy; None when it has not been resident for long."""
        return self._policies.get((arm, digest))
