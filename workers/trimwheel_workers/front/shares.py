"""No single client decides a verdict: how much of a guard's evidence one identity may bring.

A client chooses its session key and sees which arm answered, so it can make as many sessions as it
likes and send all of them to the candidate. What it cannot choose is its identity: the subject of
its token, else the address of its peer. `guards` counts trials through this file.

* Fewer than ten identities: every trial counts, and the largest share is a metric that the verdict
  repeats, so that whoever approves sees it.
* Ten or more: an identity's trials count up to a tenth of all that count. What is beyond waits, and
  counts when the others' trials have grown; nobody's evidence is lost by being early.

What an attacker with one identity can still do: before nine others came, everything (it is named);
afterwards, bring a tenth of the evidence, and, by being the tenth identity and sending little,
make the verdict wait for more. It can slow a decision, never take it. Pure; no I/O.
"""

from __future__ import annotations

import ipaddress
from collections import deque
from collections.abc import Callable

IDENTITIES = 10
"""From this many, none counts above one in this many."""
MOST_IDENTITIES = 10_000
"""Later ones share one place: an attacker with many addresses gets a tenth in all of it."""
MOST_WAITING = 1000
"""Trials of one identity that may wait; later ones are not evidence."""
_OTHERS = "others"


class Trial:
    """One session's (or request's) trial of a guard: counted, waiting, or never to count."""

    __slots__ = ("_events", "dropped", "waits")

    def __init__(self) -> None:
        self.waits = False
        self.dropped = False
        self._events: list[Callable[[], None]] = []

    def event(self, count: Callable[[], None]) -> None:
        """The trial went wrong; `count` is called when the trial counts, if ever."""
        if self.waits:
            self._events.append(count)
        elif not self.dropped:
            count()

    def release(self) -> None:
        """The trial counts from now on, and what went wrong with it."""
        self.waits = False
        for count in self._events:
            count()


class Shares:
    """The trials of one guard under one policy, by identity."""

    def __init__(self, count: Callable[[], None]) -> None:
        """`count` is called once for each trial that counts."""
        self._count = count
        self._counted: dict[str, int] = {}
        self._waiting: dict[str, deque[Trial]] = {}
        self._waiting_at: dict[int, set[str]] = {}
        """Identities that wait, by how many of their trials are counted; never below the level."""
        self._level = 0
        """As many trials as every identity may have counted now."""
        self._total = 0
        self._largest = 0

    @property
    def identities(self) -> int:
        """How many have brought a trial."""
        return len(self._counted)

    @property
    def largest(self) -> float:
        """The largest identity's share of the trials that count; 0 without any."""
        return self._largest / self._total if self._total else 0.0

    def offer(self, identity: str) -> Trial:
        """A trial of this identity."""
        if identity not in self._counted:
            if len(self._counted) >= MOST_IDENTITIES:
                identity = _OTHERS
            self._counted.setdefault(identity, 0)
        trial = Trial()
        if len(self._counted) < IDENTITIES or self._counted[identity] < self._level:
            self._counts(identity)
        else:
            self._hold(identity, trial)
        self._raise_level()
        return trial

    def _counts(self, identity: str) -> None:
        self._counted[identity] += 1
        self._largest = max(self._largest, self._counted[identity])
        self._total += 1
        self._count()

    def _hold(self, identity: str, trial: Trial) -> None:
        waiting = self._waiting.setdefault(identity, deque())
        if len(waiting) >= MOST_WAITING:
            trial.dropped = True
            return
        trial.waits = True
        waiting.append(trial)
        self._waiting_at.setdefault(self._counted[identity], set()).add(identity)

    def _raise_level(self) -> None:
        """Let everybody have one more, as often as that leaves each at a tenth at most."""
        if len(self._counted) < IDENTITIES:
            return
        while IDENTITIES * (self._level + 1) <= self._total + len(self._ready()):
            ready = self._waiting_at.pop(self._level, set())
            self._level += 1
            for identity in ready:
                self._release(identity)

    def _ready(self) -> set[str]:
        """Identities whose next trial counts as soon as the level rises by one."""
        return self._waiting_at.get(self._level, set())

    def _release(self, identity: str) -> None:
        waiting = self._waiting[identity]
        trial = waiting.popleft()
        self._counts(identity)
        trial.release()
        if waiting:
            self._waiting_at.setdefault(self._counted[identity], set()).add(identity)
        else:
            del self._waiting[identity]


def identity_of(address: str) -> str:
    """Identity of a peer's address; of IPv6 its /64, of which one machine has all addresses."""
    try:
        parsed = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if isinstance(parsed, ipaddress.IPv6Address):
        mapped = parsed.ipv4_mapped
        if mapped is not None:
            return str(mapped)
        return str(ipaddress.ip_network((parsed, 64), strict=False))
    return str(parsed)
