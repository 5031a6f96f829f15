"""Evidence for the rollout guards: trials and events, at most one of each a session and policy.

Errors cluster in sessions, so requests are not independent trials; sessions nearly are. What was
seen of a session is forgotten when another rollout's salt arrives (evidence is baselined for each
rollout), and, oldest first, when there are too many sessions. A request without a session key is a
session of its own. How much of it one client may bring is `shares`'s. No I/O; counters are handed
in.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from prometheus_client import Counter

from trimwheel_api import names
from trimwheel_workers.front.metrics import GuardCounters, WorkerMetrics
from trimwheel_workers.front.session_sample import SessionSample
from trimwheel_workers.front.shares import Shares, Trial

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


class _Trials:
    """One kind of trial of a policy: a trial a session, which counts when its identity's may."""

    def __init__(self, trials: Sequence[Counter], sample: SessionSample | None = None) -> None:
        self._trials = trials
        self._sample = sample
        self._open: dict[str, Trial] = {}
        """Trials of sessions that do not count yet, or never will."""
        self.shares = Shares(self._count)

    def _count(self) -> None:
        for counter in self._trials:
            counter.inc()

    def add(self, session: str, identity: str, *, first: bool) -> Trial | None:
        """The session's trial; None for one that was counted before."""
        if not first:
            return self._open.get(session)
        if self._sample is not None:
            self._sample.add(session)
        trial = self.shares.offer(identity)
        if session and (trial.waits or trial.dropped):
            self._open[session] = trial
            if len(self._open) > REMEMBERED_SESSIONS:
                del self._open[next(iter(self._open))]
        return trial

    def restart(self, salt: str) -> None:
        """A new rollout begins."""
        self._open.clear()
        self.shares = Shares(self._count)
        if self._sample is not None:
            self._sample.restart(salt)


class PolicyGuards:
    """Evidence about one policy in one arm."""

    def __init__(self, counters: GuardCounters, salt: str = "") -> None:
        self._memory = SessionMemory()
        self._events = counters.events
        trials = counters.trials
        self._requests = _Trials(
            [trials[names.GUARD_ERRORS], trials[names.GUARD_LATENCY]],
            SessionSample(counters, names.GUARD_ERRORS),
        )
        self._audits = _Trials(
            [trials[names.GUARD_DISAGREEMENT]], SessionSample(counters, names.GUARD_DISAGREEMENT)
        )
        self._replays = _Trials([trials[names.GUARD_PARITY]])
        for guard, kind in (
            (names.GUARD_ERRORS, self._requests), (names.GUARD_LATENCY, self._requests),
            (names.GUARD_DISAGREEMENT, self._audits), (names.GUARD_PARITY, self._replays),
        ):  # fmt: skip
            counters.largest[guard].set_function(partial(_largest, kind))
            counters.identities[guard].set_function(partial(_identities, kind))
        self.restart(salt)

    def served(self, session: str, identity: str = "", *, failed: bool, slow: bool) -> None:
        """A request ended: `failed` by the server's fault (5xx), `slow` beyond the SLO."""
        marks = _REQUEST | (_ERROR if failed else 0) | (_SLOW if slow else 0)
        new = self._memory.add(session, marks)
        if not new:
            return
        trial = self._requests.add(session, identity, first=bool(new & _REQUEST))
        if new & _ERROR:
            _event(trial, self._events[names.GUARD_ERRORS])
        if new & _SLOW:
            _event(trial, self._events[names.GUARD_LATENCY])

    def audited(self, session: str, identity: str = "", *, disagrees: bool) -> None:
        """The policy was judged on an audited request; only a session's first counts."""
        if not self._memory.add(session, _AUDIT):
            return
        trial = self._audits.add(session, identity, first=True)
        if disagrees:
            _event(trial, self._events[names.GUARD_DISAGREEMENT])

    def replayed(self, session: str, identity: str = "", *, differs: bool) -> None:
        """The answer that this policy served was replayed; only a session's first counts."""
        if not self._memory.add(session, _PARITY):
            return
        trial = self._replays.add(session, identity, first=True)
        if differs:
            _event(trial, self._events[names.GUARD_PARITY])

    def restart(self, salt: str) -> None:
        """A new rollout begins: nobody was counted yet, and its salt samples the sessions."""
        self._memory.clear()
        for kind in (self._requests, self._audits, self._replays):
            kind.restart(salt)


def _event(trial: Trial | None, counter: Counter) -> None:
    if trial is None:
        counter.inc()
    else:
        trial.event(counter.inc)


def _largest(kind: _Trials) -> float:
    return kind.shares.largest


def _identities(kind: _Trials) -> float:
    return float(kind.shares.identities)


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
                known.restart(salt)
        for arm, digest in policies.items():
            former = self._policies.pop((arm, digest), None)
            self._policies[arm, digest] = former or PolicyGuards(
                self._metrics.guards(arm, digest), salt
            )
        while len(self._policies) > 2 * REMEMBERED_POLICIES:
            arm, digest = next(iter(self._policies))
            del self._policies[arm, digest]
            self._metrics.drop_guards(arm, digest)

    def of(self, arm: str, digest: str) -> PolicyGuards | None:
        """Evidence of a policy; None when it has not been resident for long."""
        return self._policies.get((arm, digest))
