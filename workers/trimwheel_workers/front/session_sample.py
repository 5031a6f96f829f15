"""A sample of sessions that is the same in every worker: how often do pods count one session?

Without session affinity a session's requests reach several pods, and each counts it once. No pod
can see that, so each publishes the smallest keyed hashes of the sessions that it counted: the hash
is keyed with the rollout's salt, hence every pod samples the same sessions, and nobody can choose
to be one. The operator compares them (`trimwheel_telemetry.session_effect`). Used by `guards`.
Source: the bottom-k sketch of Cohen and Kaplan (2007).
"""

from __future__ import annotations

from bisect import bisect_left
from functools import partial
from hashlib import blake2b

from trimwheel_api.metrics import GUARD_SAMPLE_EMPTY, GUARD_SAMPLE_SLOTS
from trimwheel_workers.front.metrics import GuardCounters

HASH_BYTES = 6
"""48 bits: exact in the floating-point numbers of a metric."""


class SessionSample:
    """The smallest hashes of the sessions that one kind of trial counted."""

    def __init__(self, counters: GuardCounters, guard: str) -> None:
        self._key = b""
        self._hashes: list[int] = []
        for slot, gauge in enumerate(counters.sample[guard]):
            gauge.set_function(partial(self._value, slot))

    def restart(self, salt: str) -> None:
        """A new rollout begins: its salt keys the sample."""
        self._key, self._hashes = salt.encode()[:64], []

    def add(self, session: str) -> None:
        """A session was counted; one without a key is counted once and is no sample."""
        if not session:
            return
        digest = blake2b(session.encode(), key=self._key, digest_size=HASH_BYTES).digest()
        value = int.from_bytes(digest, "big") + 1
        if len(self._hashes) == GUARD_SAMPLE_SLOTS and value >= self._hashes[-1]:
            return
        place = bisect_left(self._hashes, value)
        if place < len(self._hashes) and self._hashes[place] == value:
            return
        self._hashes.insert(place, value)
        del self._hashes[GUARD_SAMPLE_SLOTS:]

    def _value(self, slot: int) -> float:
        return float(self._hashes[slot]) if slot < len(self._hashes) else GUARD_SAMPLE_EMPTY
