"""Which audits are a session's first of the day, remembered in a bounded number of bytes.

Used by `drift_sums`; the slow reference is `AuditStream.since`, which holds every audit. A trial is
a session's first audit in each `SESSION_SPAN` since a moment, so only the sessions of one span are
held, eight bytes each.

What is approximate, and by how much
* Sessions are told apart by 64 bits: with 250,000 of them two share theirs, and the second is never
  a trial, with probability below 2e-9.
* Beyond `LIMIT` sessions in a span only a pseudo-random share of the sessions are trials, so that
  at most `LIMIT` are held: by their hash, which knows nothing of outcomes, so a test stays as valid
  with fewer trials. No session is ever two trials in one span.
"""

from __future__ import annotations

import hashlib
import secrets
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from trimwheel_pipelines.drift import SESSION_SPAN

Floats = npt.NDArray[np.float64]
Hashes = npt.NDArray[np.uint64]

LIMIT: Final = 250_000
"""Sessions held: 2 MB. At 2 audits a second no day has more than 172,800."""
_ALL: Final = 2**64 - 1


def session_hashes(sessions: npt.NDArray[Any]) -> Hashes:
    """64 bits for each session's text."""
    digest = hashlib.blake2b
    joined = b"".join(digest(str(one).encode(), digest_size=8).digest() for one in sessions)
    return np.frombuffer(joined, np.uint64).copy()


@dataclass
class SessionMemory:
    """The sessions met in the current span since `since` (Unix seconds)."""

    since: float
    salt: int = field(default_factory=lambda: secrets.randbits(64))
    limit: int = LIMIT
    span: int = -1
    largest: int = _ALL
    """Sessions whose salted hash is above this are no trials in this span."""
    known: Hashes = field(default_factory=lambda: np.empty(0, np.uint64))

    def firsts(self, times: Floats, sessions: Hashes) -> npt.NDArray[np.bool_]:
        """Which of these audits are trials, and remember their sessions.

        In order of time; one that is older than the current span counts as of that span.
        """
        found = np.zeros(len(times), bool)
        spans = np.ceil((times - self.since) / SESSION_SPAN).astype(np.int64) - 1
        spans = np.maximum.accumulate(np.maximum(spans, self.span)) if len(spans) else spans
        mixed = _mixed(sessions, self.salt)
        for span in np.unique(spans):
            if span > self.span:
                self.span, self.largest = int(span), _ALL
                self.known = np.empty(0, np.uint64)
            rows = np.flatnonzero(spans == span)
            found[rows[self._new(mixed[rows])]] = True
        return found

    def copy(self) -> SessionMemory:
        """The same, to go on from without changing this one. Arrays are replaced, never written."""
        return SessionMemory(self.since, self.salt, self.limit, self.span, self.largest, self.known)

    def _new(self, sessions: Hashes) -> npt.NDArray[np.int64]:
        """Indices of sessions that were not met before, first occurrences; remembers them."""
        fresh, first = np.unique(sessions, return_index=True)
        chosen = fresh <= np.uint64(self.largest)
        fresh, first = fresh[chosen], first[chosen]
        places = np.searchsorted(self.known, fresh)
        inside = places < len(self.known)
        met = np.zeros(len(fresh), bool)
        met[inside] = self.known[places[inside]] == fresh[inside]
        self.known = np.insert(self.known, places[~met], fresh[~met])
        while len(self.known) > self.limit:
            self.largest >>= 1
            self.known = self.known[: int(np.searchsorted(self.known, self.largest, "right"))]
        return np.sort(first[~met]).astype(np.int64)


def _mixed(values: Hashes, salt: int) -> Hashes:
    """splitmix64 of each value under a secret salt: nobody chooses which sessions are trials."""
    with np.errstate(over="ignore"):
        mixed = (values ^ np.uint64(salt)) + np.uint64(0x9E3779B97F4A7C15)
        mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.asarray(mixed ^ (mixed >> np.uint64(31)), np.uint64)
